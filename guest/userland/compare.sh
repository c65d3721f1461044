#!/bin/sh
# Everyday programs with results that depend on nothing but the processor: one line `result NAME CHECKSUM` each. Run in two
# copies of the same Debian root, on two machines, the lines must be equal.
export LC_ALL=C TZ=UTC PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 PATH=/usr/sbin:/usr/bin:/sbin:/bin
work=/var/tmp/compare
rm -rf $work && mkdir -p $work && cd $work || exit 1

result() {
	name=$1
	shift
	if "$@" >output 2>errors; then
		echo "result $name $(sha256sum <output | cut -c1-16)"
	else
		echo "result $name failed-$?"
		head -n 3 errors
	fi
}

cat >program.c <<'END'
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct node { struct node *left, *right; uint64_t key; };
static struct node *insert(struct node *n, uint64_t key) {
    if (!n) { n = calloc(1, sizeof *n); n->key = key; return n; }
    if (key < n->key) n->left = insert(n->left, key); else n->right = insert(n->right, key);
    return n;
}
static uint64_t walk(const struct node *n, uint64_t h) {
    return n ? walk(n->right, (walk(n->left, h) ^ n->key) * 1099511628211u) : h;
}
int main(void) {
    struct node *root = NULL;
    uint64_t x = 88172645463325252u;
    double sum = 0;
    char text[64];
    for (int i = 0; i < 20000; i++) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        root = insert(root, x);
        sum += sin((double)i) * sqrt((double)(x >> 40)) / (1 + i % 7);
        if (i % 1000 == 0) { snprintf(text, sizeof text, "%d %.17g %a", i, sum, sum); puts(text); }
    }
    printf("%016lx %.17g %La\n", walk(root, 1), pow(sum, 0.3), (long double)sum / 3);
    return 0;
}
END
result gcc-assembly sh -c 'gcc -O2 -S -o - program.c'
result gcc-program sh -c 'gcc -O2 -o program program.c -lm && ./program'
result gcc-static sh -c 'gcc -O3 -mavx2 -mfma -static -o program program.c -lm 2>&1 || true; sha256sum program'
result gcc-debug sh -c 'gcc -g -O0 -o program program.c -lm && ./program && sha256sum program'

result python-integers python3 -c '
import math
x = 3**2000 + 7**900
print(x, math.factorial(400), math.isqrt(x), pow(3, x, 10**60 + 7))'
result python-floats python3 -c '
import math
print([repr(math.sin(i) * math.exp(i / 50) / (i + 0.1)) for i in range(500)], sum(1 / k for k in range(1, 50000)))'
result python-structures python3 -c '
d = {str(i): [i * j % 97 for j in range(20)] for i in range(2000)}
s = repr(d)
print(len(s), s[::7].translate(str.maketrans("0123456789", "9876543210"))[:5000], hash(1.5), hash(2**70))
print(sorted(d.items(), key=lambda p: (sum(p[1]), p[0]))[:50], {c: s.count(c) for c in sorted(set(s))})'
result perl-text perl -e '
my %h; my $s = 1;
for (1 .. 50000) { $s = ($s * 1103515245 + 12345) & 0x7fffffff; $h{$s % 5000} .= chr(97 + $s % 26) }
for (sort { $a <=> $b } keys %h) { my $t = $h{$_}; $t =~ s/([aeiou]+)/<$1>/g; print "$_:$t\n" }'
result perl-numbers perl -e 'for (1 .. 3000) { printf "%.15g %e %x\n", sqrt($_) ** 1.7, log($_) / 3, $_ * 2654435761 }'

head -c 3000000 /usr/bin/perl >data
for digest in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
	result openssl-$digest openssl dgst -$digest data
done
key=000102030405060708090a0b0c0d0e0f
for cipher in "aes-128-cbc $key" "aes-256-ctr $key$key" "chacha20 $key$key"; do
	result "openssl-${cipher% *}" openssl enc "-${cipher% *}" -K "${cipher#* }" \
		-iv 0f0e0d0c0b0a09080706050403020100 -in data
done
result openssl-prime openssl prime 170141183460469231731687303715884105727 170141183460469231731687303715884105729
result openssl-pbkdf2 openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt pass:queztl -kdfopt salt:salt -kdfopt iter:5000 PBKDF2

result sha256sum sh -c 'sha256sum /usr/bin/[a-m]* 2>/dev/null'
result gzip sh -c 'gzip -9n <data >data.gz && gzip -d <data.gz | cmp - data && sha256sum data.gz'
result zstd sh -c 'command -v zstd >/dev/null || exit 0; zstd -q -12 <data | sha256sum'
result sort sh -c 'strings -n 6 data 2>/dev/null || tr -c "[:alnum:]" "\n" <data | sort -u | sort -k1.3r'
result awk sh -c 'od -An -tu1 -v data | head -n 30000 | awk "{ for (i = 1; i <= NF; i++) { s += sqrt(\$i); n[\$i]++ } } END { printf \"%.12g\n\", s; for (i = 0; i < 256; i++) print n[i] }"'
result tar sh -c 'tar cf - --sort=name --mtime=@0 --owner=0 --group=0 /usr/lib/gcc 2>/dev/null | sha256sum'
cd / && rm -rf $work
echo "result end 0"
