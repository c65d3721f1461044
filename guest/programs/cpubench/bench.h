/* Benchmark programs for comparing processors: a table of functions, each with fixed work and a checksum of its result,
 * so that equal checksums prove equal work. */
#pragma once
#include <stdint.h>

struct program {
    const char *name;
    /* Does the work, returns the checksum. */
    uint64_t (*run)(void);
    /* Instructions of one run, where the code is assembly and they can be counted; 0 else. */
    uint64_t instructions;
    /* False leaves the program out on processors without what it needs; null means always. */
    int (*available)(void);
};

extern const struct program integer_programs[], memory_programs[], floating_programs[], system_programs[];

/* A small generator (xorshift64*), the same everywhere. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dull;
}

static inline uint64_t mix(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 0x100000001b3ull;
}

/* Nanoseconds of the monotonic clock. */
uint64_t now_ns(void);

/* Ends the process with a message; a benchmark that cannot do its work has no figure. */
__attribute__((noreturn)) void die(const char *what);
