/* cpucheck [ROUNDS]: executes instructions on generated operands and prints one checksum for each group:
 *
 *   check NAME CHECKSUM
 *
 * Results and those flags that the manual defines go into the checksum, so two processors that follow the manual print
 * the same text. Groups that the processor does not offer by CPUID are left out. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CF = 1, PF = 4, AF = 0x10, ZF = 0x40, SF = 0x80, OF = 0x800, ALL = CF | PF | AF | ZF | SF | OF };

static uint64_t seed = 0x9e3779b97f4a7c15, hash;
static long rounds = 20000;

static uint64_t random64(void) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545f4914f6cdd1dull;
}

/* Operands near the edges as often as not. */
static uint64_t operand(void) {
    static const uint64_t edges[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
                                     0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, ~0ull, ~1ull};
    uint64_t r = random64();
    return r & 1 ? edges[r >> 8 & 15] : random64();
}

static void add(uint64_t value) { hash = (hash ^ value) * 0x100000001b3ull; }

static void add_bytes(const void *data, size_t len) {
    for (size_t i = 0; i < len; i++) add(((const uint8_t *)data)[i]);
}

static void begin(void) {
    seed = 0x9e3779b97f4a7c15;
    hash = 0xcbf29ce484222325ull;
}

static void end(const char *name) { printf("check %s %016lx\n", name, hash); }

/* One two-operand instruction at one width; the carry in is random. */
#define BINARY(op, suffix, modifier, mask)                                                                    \
    do {                                                                                                      \
        uint64_t a_ = operand(), b_ = operand(), f_ = (random64() & CF) | 2;                                  \
        asm volatile("push %2\n popfq\n " op suffix " %" modifier "3, %" modifier "0\n pushfq\n pop %1"       \
                     : "+r"(a_), "=r"(f_) : "r"(f_), "r"(b_) : "cc");                                         \
        add(a_);                                                                                              \
        add(f_ & (mask));                                                                                     \
    } while (0)
#define BINARY_ALL(op, mask)                                                                                  \
    BINARY(op, "b", "b", mask); BINARY(op, "w", "w", mask); BINARY(op, "l", "k", mask); BINARY(op, "q", "q", mask)
/* Both operands and the accumulator may change. */
#define EXCHANGE(op, suffix, modifier, mask)                                                                  \
    do {                                                                                                      \
        uint64_t a_ = operand(), b_ = operand(), c_ = random64() & 1 ? a_ : operand(), f_;                    \
        asm volatile(op suffix " %" modifier "1, %" modifier "0\n pushfq\n pop %3"                            \
                     : "+r"(a_), "+r"(b_), "+a"(c_), "=r"(f_)::"cc");                                         \
        add(a_), add(b_), add(c_);                                                                            \
        add(f_ & (mask));                                                                                     \
    } while (0)
#define EXCHANGE_ALL(op, mask)                                                                                \
    EXCHANGE(op, "b", "b", mask); EXCHANGE(op, "w", "w", mask);                                               \
    EXCHANGE(op, "l", "k", mask); EXCHANGE(op, "q", "q", mask)
#define UNARY(op, suffix, modifier, mask)                                                                     \
    do {                                                                                                      \
        uint64_t a_ = operand(), f_ = (random64() & CF) | 2;                                                  \
        asm volatile("push %2\n popfq\n " op suffix " %" modifier "0\n pushfq\n pop %1"                       \
                     : "+r"(a_), "=r"(f_) : "r"(f_) : "cc");                                                  \
        add(a_);                                                                                              \
        add(f_ & (mask));                                                                                     \
    } while (0)
#define UNARY_ALL(op, mask)                                                                                   \
    UNARY(op, "b", "b", mask); UNARY(op, "w", "w", mask); UNARY(op, "l", "k", mask); UNARY(op, "q", "q", mask)

static void arithmetic(void) {
    begin();
    for (long i = 0; i < rounds; i++) {
        BINARY_ALL("add", ALL);
        BINARY_ALL("adc", ALL);
        BINARY_ALL("sub", ALL);
        BINARY_ALL("sbb", ALL);
        BINARY_ALL("cmp", ALL);
    }
    end("add-sub");
    begin();
    for (long i = 0; i < rounds; i++) {
        BINARY_ALL("and", ALL & ~AF);
        BINARY_ALL("or", ALL & ~AF);
        BINARY_ALL("xor", ALL & ~AF);
        BINARY_ALL("test", ALL & ~AF);
    }
    end("logic");
    begin();
    for (long i = 0; i < rounds; i++) {
        UNARY_ALL("inc", ALL);
        UNARY_ALL("dec", ALL);
        UNARY_ALL("neg", ALL);
        UNARY_ALL("not", ALL);
    }
    end("inc-dec-neg-not");
    begin();
    for (long i = 0; i < rounds; i++) {
        EXCHANGE_ALL("xadd", ALL);
        EXCHANGE_ALL("xchg", 0);
        EXCHANGE_ALL("cmpxchg", ALL);
    }
    end("exchange");
}

/* Shifts: which flags are defined depends on the count (SDM vol. 2B "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR"). */
#define SHIFT(op, suffix, modifier, width, rotate)                                                            \
    do {                                                                                                      \
        uint64_t a_ = operand(), n_ = random64() & 0xff, f_ = (random64() & CF) | 2;                          \
        uint64_t count_ = n_ & ((width) == 64 ? 63 : 31);                                                     \
        asm volatile("push %2\n popfq\n " op suffix " %%cl, %" modifier "0\n pushfq\n pop %1"                 \
                     : "+r"(a_), "=r"(f_) : "r"(f_), "c"(n_) : "cc");                                         \
        uint64_t mask_ = rotate ? CF : CF | PF | ZF | SF;                                                     \
        if (count_ == 1) mask_ |= OF;                                                                         \
        if (!rotate && count_ >= (width)) mask_ &= ~(uint64_t)CF;                                             \
        add(a_);                                                                                              \
        add(f_ & mask_);                                                                                      \
    } while (0)
#define SHIFT_ALL(op, rotate)                                                                                 \
    SHIFT(op, "b", "b", 8, rotate); SHIFT(op, "w", "w", 16, rotate);                                          \
    SHIFT(op, "l", "k", 32, rotate); SHIFT(op, "q", "q", 64, rotate)

static void shifts(void) {
    begin();
    for (long i = 0; i < rounds; i++) {
        SHIFT_ALL("shl", 0);
        SHIFT_ALL("shr", 0);
        SHIFT_ALL("sar", 0);
    }
    end("shift");
    begin();
    for (long i = 0; i < rounds; i++) {
        SHIFT_ALL("rol", 1);
        SHIFT_ALL("ror", 1);
        SHIFT_ALL("rcl", 1);
        SHIFT_ALL("rcr", 1);
    }
    end("rotate");
    begin();
    for (long i = 0; i < rounds; i++) {
        uint64_t a = operand(), b = operand();
        uint32_t c = (uint32_t)operand();
        asm volatile("shld %%cl, %2, %0\n shrd %%cl, %k2, %1" : "+r"(a), "+r"(c) : "r"(b), "c"(random64()) : "cc");
        add(a);
        add(c);
    }
    end("double-shift");
}

static void multiply_divide(void) {
    begin();
    for (long i = 0; i < rounds; i++) {
        uint64_t a = operand(), b = operand(), d, f;
        asm volatile("mulq %3\n pushfq\n pop %2" : "+a"(a), "=d"(d), "=r"(f) : "r"(b) : "cc");
        add(a), add(d), add(f & (CF | OF));
        a = operand();
        asm volatile("imulq %3\n pushfq\n pop %2" : "+a"(a), "=d"(d), "=r"(f) : "r"(b) : "cc");
        add(a), add(d), add(f & (CF | OF));
        a = operand();
        asm volatile("imulb %b2\n pushfq\n pop %1" : "+a"(a), "=r"(f) : "r"(b) : "cc");
        add(a), add(f & (CF | OF));
        BINARY("imul", "w", "w", CF | OF);
        BINARY("imul", "l", "k", CF | OF);
        BINARY("imul", "q", "q", CF | OF);
    }
    end("multiply");
    begin();
    for (long i = 0; i < rounds; i++) {
        uint64_t divisor = operand() | 1, low = operand(), high = random64() % divisor;
        asm volatile("divq %2" : "+a"(low), "+d"(high) : "r"(divisor) : "cc");
        add(low), add(high);
        int32_t narrow = (int32_t)(operand() | 0x10), value = (int32_t)operand(), extension = value >> 31;
        if (value == INT32_MIN && narrow == -1) continue;
        asm volatile("idivl %2" : "+a"(value), "+d"(extension) : "r"(narrow) : "cc");
        add((uint32_t)value), add((uint32_t)extension);
    }
    end("divide");
}

static void bits(void) {
    begin();
    for (long i = 0; i < rounds; i++) {
        uint64_t a = operand() | 1ull << (i & 63), r, f, n = random64();
        asm volatile("bsfq %2, %0\n pushfq\n pop %1" : "=r"(r), "=r"(f) : "r"(a) : "cc");
        add(r), add(f & ZF);
        asm volatile("bsrq %2, %0\n pushfq\n pop %1" : "=r"(r), "=r"(f) : "r"(a) : "cc");
        add(r), add(f & ZF);
        asm volatile("btsq %2, %0\n pushfq\n pop %1" : "+r"(a), "=r"(f) : "r"(n) : "cc");
        add(a), add(f & CF);
        asm volatile("btrl %k2, %k0\n pushfq\n pop %1" : "+r"(a), "=r"(f) : "r"(n) : "cc");
        add(a), add(f & CF);
        asm volatile("btcw %w2, %w0\n pushfq\n pop %1" : "+r"(a), "=r"(f) : "r"(n) : "cc");
        add(a), add(f & CF);
        asm volatile("bswap %0" : "+r"(a));
        add(a);
        uint64_t field[16];
        for (int k = 0; k < 16; k++) field[k] = random64();
        int64_t index = (int64_t)(n % 1024) - 512;
        asm volatile("btcq %1, (%0)" ::"r"(field + 8), "r"(index) : "memory", "cc");
        add_bytes(field, sizeof field);
    }
    end("bits");
    if (__builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt")) {
        begin();
        for (long i = 0; i < rounds; i++) {
            uint64_t a = operand(), b = operand(), r, h;
#define THREE(op) asm volatile(op " %2, %1, %0" : "=r"(r) : "r"(a), "r"(b) : "cc"); add(r)
            THREE("andn"); THREE("pdep"); THREE("pext"); THREE("bextr"); THREE("bzhi");
            THREE("shlx"); THREE("shrx"); THREE("sarx");
#define TWO(op) asm volatile(op " %1, %0" : "=r"(r) : "r"(a) : "cc"); add(r)
            TWO("popcnt"); TWO("lzcnt"); TWO("tzcnt"); TWO("blsr"); TWO("blsmsk"); TWO("blsi");
            asm volatile("mulx %2, %0, %1" : "=r"(r), "=r"(h) : "r"(a), "d"(b));
            add(r), add(h);
        }
        end("bmi");
    }
}

static void conditions(void) {
    begin();
    for (long i = 0; i < rounds; i++) {
        uint64_t f = (random64() & ALL) | 2, r;
#define CONDITION(cc)                                                                              \
    do {                                                                                           \
        r = 0;                                                                                     \
        asm volatile("push %1\n popfq\n set" cc " %b0\n j" cc " 1f\n bts $9, %0\n 1:\n push %1\n"  \
                     " popfq\n cmov" cc " %1, %0" : "+r"(r) : "r"(f) : "cc");                      \
        add(r);                                                                                    \
    } while (0)
        CONDITION("o"); CONDITION("no"); CONDITION("b"); CONDITION("ae"); CONDITION("e"); CONDITION("ne");
        CONDITION("be"); CONDITION("a"); CONDITION("s"); CONDITION("ns"); CONDITION("p"); CONDITION("np");
        CONDITION("l"); CONDITION("ge"); CONDITION("le"); CONDITION("g");
    }
    end("conditions");
}

static void strings(void) {
    static uint8_t a[512], b[512];
    begin();
    for (long i = 0; i < rounds / 20; i++) {
        for (unsigned k = 0; k < sizeof a; k++) a[k] = (uint8_t)random64(), b[k] = random64() & 7 ? a[k] : (uint8_t)k;
        void *d = b + random64() % 64;
        const void *s = (i & 1 ? a : b) + random64() % 64;
        uint64_t n = random64() % 300, f;
        asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
        add((uint64_t)d - (uint64_t)b), add(n);
        d = b, s = a, n = 256;
        asm volatile("repe cmpsb\n pushfq\n pop %3" : "+D"(d), "+S"(s), "+c"(n), "=r"(f)::"memory", "cc");
        add(n), add(f & ALL);
        d = a, n = 512;
        asm volatile("repne scasb\n pushfq\n pop %2" : "+D"(d), "+c"(n), "=r"(f) : "a"(random64()) : "memory", "cc");
        add(n), add(f & ALL);
        d = b + 400, s = b + 390, n = 40;
        asm volatile("std\n rep movsl\n cld" : "+D"(d), "+S"(s), "+c"(n)::"memory", "cc");
        d = a + random64() % 9, n = 20;
        asm volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(random64()) : "memory");
        add_bytes(a, sizeof a);
        add_bytes(b, sizeof b);
    }
    end("strings");
}

static double finite_value(void) {
    uint64_t r = random64();
    double sign = r & 1 ? -1 : 1;
    return sign * ldexp((double)(r >> 11), (int)(r >> 1 & 127) - 110);
}

static void sse(void) {
    static const unsigned modes[4] = {0x1f80, 0x3f80, 0x5f80, 0x7f80};
    begin();
    for (long i = 0; i < rounds; i++) {
        double a = finite_value(), b = i & 15 ? finite_value() : 0, r;
        uint64_t bits;
        _mm_setcsr(modes[i & 3]);
#define SCALAR(op) r = a; asm volatile(op " %1, %0" : "+x"(r) : "x"(b)); memcpy(&bits, &r, 8); add(bits)
        SCALAR("addsd"); SCALAR("subsd"); SCALAR("mulsd"); SCALAR("divsd"); SCALAR("minsd"); SCALAR("maxsd");
        SCALAR("sqrtsd"); SCALAR("cmpltsd");
        int64_t whole;
        asm volatile("cvtsd2si %1, %0" : "=r"(whole) : "x"(a));
        add((uint64_t)whole);
        asm volatile("cvttsd2si %1, %0" : "=r"(whole) : "x"(b));
        add((uint64_t)whole);
        float single;
        asm volatile("cvtsd2ss %1, %0" : "=x"(single) : "x"(a));
        add_bytes(&single, 4);
        asm volatile("ucomisd %2, %1\n pushfq\n pop %0" : "=r"(bits) : "x"(a), "x"(b) : "cc");
        add(bits & ALL);
        add(_mm_getcsr() & 0x3f);
    }
    _mm_setcsr(0x1f80);
    end("sse2-scalar");
    begin();
    for (long i = 0; i < rounds; i++) {
        __m128i a = _mm_set_epi64x((long long)operand(), (long long)operand());
        __m128i b = _mm_set_epi64x((long long)operand(), (long long)operand()), r;
#define PACKED(op) r = a; asm volatile(op " %1, %0" : "+x"(r) : "x"(b)); add_bytes(&r, 16)
        PACKED("paddb"); PACKED("paddsw"); PACKED("psubusb"); PACKED("pmullw"); PACKED("pmulhw"); PACKED("pmaddwd");
        PACKED("pmuludq"); PACKED("packsswb"); PACKED("packuswb"); PACKED("punpcklbw"); PACKED("punpckhqdq");
        PACKED("pcmpeqd"); PACKED("pcmpgtw"); PACKED("pavgb"); PACKED("psadbw"); PACKED("pminub"); PACKED("pmaxsw");
        PACKED("pand"); PACKED("pandn"); PACKED("pxor"); PACKED("psllq"); PACKED("psrad"); PACKED("psrlw");
        PACKED("shufps $0x4e,"); PACKED("pshufd $0x1b,"); PACKED("pshuflw $0x72,");
        add((uint64_t)_mm_movemask_epi8(r));
    }
    end("sse2-integer");
    if (__builtin_cpu_supports("sse4.2")) {
        begin();
        for (long i = 0; i < rounds; i++) {
            __m128i a = _mm_set_epi64x((long long)operand(), (long long)operand());
            __m128i b = _mm_set_epi64x((long long)operand(), (long long)operand()), r;
            PACKED("pshufb"); PACKED("phaddw"); PACKED("pmulhrsw"); PACKED("psignd"); PACKED("palignr $5,");
            PACKED("pmulld"); PACKED("pminsd"); PACKED("packusdw"); PACKED("pcmpgtq"); PACKED("pblendw $0x3c,");
            PACKED("pmovsxbw"); PACKED("mpsadbw $3,");
            uint64_t n, f;
            asm volatile("pcmpestri $0x18, %3, %2\n pushfq\n pop %1" : "=c"(n), "=r"(f) : "x"(a), "x"(b), "a"(9), "d"(13) : "cc");
            add((uint32_t)n), add(f & (CF | ZF | SF | OF));
        }
        end("sse4");
    }
}

__attribute__((target("avx2,fma"))) static void avx(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
    begin();
    for (long i = 0; i < rounds; i++) {
        __m256i a = _mm256_set_epi64x((long long)operand(), (long long)operand(), (long long)operand(), (long long)operand());
        __m256i b = _mm256_set_epi64x((long long)operand(), (long long)operand(), (long long)operand(), (long long)operand());
        __m256i r;
#define WIDE(op) asm volatile(op " %2, %1, %0" : "=x"(r) : "x"(a), "x"(b)); add_bytes(&r, 32)
        WIDE("vpaddq"); WIDE("vpshufb"); WIDE("vpmuludq"); WIDE("vpsllvd"); WIDE("vpsrlvq"); WIDE("vpermd");
        WIDE("vpunpckhbw"); WIDE("vpacksswb"); WIDE("vpcmpgtb");
        double x[4], y[4];
        for (int k = 0; k < 4; k++) x[k] = finite_value(), y[k] = finite_value();
        __m256d p = _mm256_loadu_pd(x), q = _mm256_loadu_pd(y);
        __m256d s = _mm256_fmadd_pd(p, q, _mm256_addsub_pd(q, p));
        add_bytes(&s, 32);
        __m256i gathered = _mm256_i32gather_epi32((const int *)x, _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), 4);
        add_bytes(&gathered, 32);
    }
    end("avx2-fma");
}

static void x87(void) {
    static const uint16_t modes[4] = {0x037f, 0x077f, 0x0b7f, 0x027f};
    begin();
    for (long i = 0; i < rounds; i++) {
        double a = finite_value(), b = finite_value();
        uint16_t mode = modes[i & 3], status;
        uint8_t ten[10], bcd[10];
        asm volatile("fninit\n fldcw %0" ::"m"(mode));
#define X87(code)                                                                                               \
    asm volatile("fldl %2\n fldl %3\n " code "\n fnstsw %1\n fstpt %0" : "=m"(ten), "=a"(status) : "m"(a), "m"(b)); \
    add_bytes(ten, 10);                                                                                         \
    add(status & 0x7f)
        X87("faddp"); X87("fmulp"); X87("fsubrp"); X87("fdivp");
        X87("fabs\n fsqrt\n fstp %%st(1)"); X87("frndint\n fstp %%st(1)"); X87("fxch\n fstp %%st(1)");
        X87("fxtract\n fstp %%st(1)\n fstp %%st(1)"); X87("fchs\n fscale\n fstp %%st(1)");
        int64_t whole = (int64_t)(operand() % 1000000000000000000ull);
        asm volatile("fildll %1\n fbstp %0" : "=m"(bcd) : "m"(whole));
        add_bytes(bcd, 10);
        asm volatile("fldl %1\n fldl %2\n fcomip %%st(1), %%st\n pushfq\n pop %0\n fstp %%st(0)" : "=r"(whole) : "m"(a), "m"(b) : "cc");
        add((uint64_t)whole & (CF | PF | ZF));
    }
    asm volatile("fninit");
    end("x87");
}

static void crypto(void) {
    if (!__builtin_cpu_supports("aes") || !__builtin_cpu_supports("pclmul")) return;
    begin();
    for (long i = 0; i < rounds; i++) {
        __m128i a = _mm_set_epi64x((long long)random64(), (long long)random64());
        __m128i b = _mm_set_epi64x((long long)random64(), (long long)random64()), r;
        PACKED("aesenc"); PACKED("aesdeclast"); PACKED("aesimc"); PACKED("aeskeygenassist $0x1b,"); PACKED("pclmulqdq $0x11,");
        uint64_t c = random64();
        asm volatile("crc32q %1, %0" : "+r"(c) : "r"(i));
        add(c);
    }
    end("crypto");
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atol(argv[1]);
    if (argc > 2 || rounds < 1) {
        fprintf(stderr, "usage: cpucheck [ROUNDS]\n");
        return 2;
    }
    arithmetic();
    shifts();
    multiply_divide();
    bits();
    conditions();
    strings();
    sse();
    avx();
    x87();
    crypto();
    return 0;
}
