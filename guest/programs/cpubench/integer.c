/* Integer and branchy programs. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static uint64_t sieve(void) {
    enum { LIMIT = 2000000 };
    static uint8_t composite[LIMIT + 1];
    memset(composite, 0, sizeof composite);
    uint64_t sum = 0;
    for (uint32_t i = 2; i <= LIMIT; i++) {
        if (composite[i]) continue;
        sum += i;
        for (uint64_t j = (uint64_t)i * i; j <= LIMIT; j += i) composite[j] = 1;
    }
    return sum;
}

/* ---- SHA-256 (FIPS 180-4) ---- */

static const uint32_t sha_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha_block(uint32_t h[8], const uint8_t *data) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, 4);
        w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0];
        uint32_t t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + sha_constants[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
}

static uint64_t sha256(void) {
    enum { SIZE = 1 << 20 };
    static uint8_t data[SIZE];
    for (uint32_t i = 0; i < SIZE; i++) data[i] = (uint8_t)(i * 31 + (i >> 8));
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (uint32_t i = 0; i < SIZE; i += 64) sha_block(h, data + i);
    return (uint64_t)h[0] << 32 | h[1];
}

static uint32_t __attribute__((noinline)) fib_of(uint32_t n) {
    asm volatile("" : "+r"(n));
    return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2);
}
static uint64_t fib(void) { return fib_of(30); }

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t sort(void) {
    enum { COUNT = 200000 };
    static uint32_t values[COUNT];
    uint64_t seed = 42, sum = 0;
    for (uint32_t i = 0; i < COUNT; i++) values[i] = (uint32_t)next_random(&seed);
    qsort(values, COUNT, sizeof *values, compare);
    for (uint32_t i = 0; i < COUNT; i += 97) sum = mix(sum, values[i]);
    return sum;
}

#define OPERATION(n, expression) \
    static uint64_t __attribute__((noinline)) operation##n(uint64_t x) { return expression; }
OPERATION(0, x + 1)
OPERATION(1, x * 3)
OPERATION(2, x ^ 0x5555)
OPERATION(3, x >> 1)
OPERATION(4, x - 7)
OPERATION(5, x << 2)
OPERATION(6, ~x)
OPERATION(7, x | 0x100)

static uint64_t indirect(void) {
    static uint64_t (*const volatile table[8])(uint64_t) = {operation0, operation1, operation2, operation3,
                                                            operation4, operation5, operation6, operation7};
    uint64_t x = 1, seed = 7;
    for (uint32_t i = 0; i < 3000000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x = table[seed >> 61](x);
    }
    return x;
}

static uint64_t crc32_program(void) {
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    uint32_t crc = ~0u;
    for (uint32_t i = 0; i < 2000000; i++) crc = table[(crc ^ (i * 13)) & 0xff] ^ crc >> 8;
    return ~crc;
}

/* A byte-code interpreter running a small program: hard to predict branches through a switch. */
static uint64_t interpreter(void) {
    enum { LOAD, ADD, MUL, XOR, SHIFT, SWAP, JUMP_ODD, DEC, JUMP, END };
    static const uint8_t program[] = {LOAD, 3, MUL, XOR, JUMP_ODD, 8, ADD, SWAP, SHIFT, ADD, DEC, JUMP, 2, END};
    uint64_t a = 12345, b = 1;
    uint32_t counter = 200000, pc = 0;
    for (;;) {
        switch (program[pc++]) {
        case LOAD: b = program[pc++]; break;
        case ADD: a += b; break;
        case MUL: a *= 2862933555777941757u; break;
        case XOR: a ^= a >> 29; break;
        case SHIFT: b = b << 1 | b >> 63; break;
        case SWAP: { uint64_t t = a; a = b; b = t; break; }
        case JUMP_ODD: pc = a & 1 ? program[pc] : pc + 1; break;
        case DEC: counter--; break;
        case JUMP: pc = counter ? program[pc] : pc + 1; break;
        case END: return mix(a, b);
        }
    }
}

/* Greedy LZ77 with a hash table of recent positions, as gzip's fast levels do. */
static uint64_t lz(void) {
    enum { SIZE = 1 << 19, BITS = 14 };
    static uint8_t text[SIZE + 8];
    static uint32_t heads[1 << BITS];
    static const char *const words[8] = {"memory ", "virtual ", "page ", "fault ", "kernel ", "a ", "the ", "entry\n"};
    uint64_t seed = 99, sum = 0;
    for (uint32_t at = 0; at < SIZE;) {
        const char *word = words[next_random(&seed) >> 61];
        while (*word && at < SIZE) text[at++] = (uint8_t)*word++;
        if (next_random(&seed) >> 60 == 0 && at < SIZE) text[at++] = (uint8_t)next_random(&seed);
    }
    memset(heads, 0xff, sizeof heads);
    uint32_t literals = 0, matches = 0;
    for (uint32_t at = 0; at + 4 < SIZE;) {
        uint32_t four;
        memcpy(&four, text + at, 4);
        uint32_t slot = four * 2654435761u >> (32 - BITS), from = heads[slot], length = 0;
        heads[slot] = at;
        if (from != ~0u && at - from < 32768)
            while (length < 258 && at + length < SIZE && text[from + length] == text[at + length]) length++;
        if (length >= 4) {
            matches++;
            sum = mix(sum, (uint64_t)(at - from) << 16 | length);
            at += length;
        } else {
            literals++;
            sum = mix(sum, text[at++]);
        }
    }
    return mix(mix(sum, literals), matches);
}

/* Exactly known instruction counts: a mix of arithmetic, loads, stores and branches; ten instructions a turn. */
enum { MIX_TURNS = 5000000 };
static uint64_t instruction_mix(void) {
    static uint64_t cells[64];
    uint64_t a = 1, n = MIX_TURNS, t = 0;
    asm volatile("1:\n"
                 " mov %%eax, %%ecx\n"
                 " and $63, %%ecx\n"
                 " add (%[cells],%%rcx,8), %[t]\n"
                 " imul $0x5851f42d, %%rax, %%rax\n"
                 " add $0x1405, %%rax\n"
                 " xor %[t], %%rcx\n"
                 " shr $3, %%rcx\n"
                 " mov %%rcx, 8(%[cells])\n"
                 " dec %[n]\n"
                 " jnz 1b\n"
                 : [t] "+r"(t), "+a"(a), [n] "+r"(n) : [cells] "r"(cells) : "rcx", "memory", "cc");
    cells[1] = 0;
    return mix(a, t);
}

const struct program integer_programs[] = {
    {"mips-mix", instruction_mix, 10ull * MIX_TURNS, 0},
    {"sieve", sieve, 0, 0},
    {"sha256", sha256, 0, 0},
    {"fib", fib, 0, 0},
    {"qsort", sort, 0, 0},
    {"indirect-calls", indirect, 0, 0},
    {"crc32", crc32_program, 0, 0},
    {"interpreter", interpreter, 0, 0},
    {"lz", lz, 0, 0},
    {0, 0, 0, 0},
};
