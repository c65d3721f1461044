/* Memory and string programs. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t chase(void) {
    enum { COUNT = 1 << 16, STEPS = 2000000 };
    static uint32_t next[COUNT];
    static int ready;
    if (!ready) {
        uint64_t seed = 5;
        for (uint32_t i = 0; i < COUNT; i++) next[i] = i;
        /* Sattolo's shuffle: one cycle through all. */
        for (uint32_t i = COUNT - 1; i > 0; i--) {
            uint32_t j = (uint32_t)(next_random(&seed) % i), t = next[i];
            next[i] = next[j];
            next[j] = t;
        }
        ready = 1;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < STEPS; i++) at = next[at];
    return at;
}

static uint64_t format(void) {
    char text[64];
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 100000; i++) {
        int n = snprintf(text, sizeof text, "%u:%s:%08x", i, "queztl", i * 2654435761u);
        sum = mix(sum, (uint64_t)n + (uint8_t)text[n - 1]);
    }
    return sum;
}

enum { BLOCK = 16 << 20 };
static uint8_t *source, *target;

static void prepare(void) {
    if (source) return;
    source = malloc(BLOCK);
    target = malloc(BLOCK);
    if (!source || !target) die("malloc");
    for (uint32_t i = 0; i < BLOCK; i++) source[i] = (uint8_t)(i * 7);
    memset(target, 1, BLOCK);
}

static uint64_t sample(void) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < BLOCK; i += 65521) sum = mix(sum, target[i]);
    return sum;
}

static uint64_t rep_movsb(void) {
    prepare();
    void *d = target;
    const void *s = source;
    uint64_t n = BLOCK;
    asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
    return sample();
}

static uint64_t rep_stosq(void) {
    prepare();
    void *d = target;
    uint64_t n = BLOCK / 8;
    asm volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(0x0102030405060708) : "memory");
    return sample();
}

static uint64_t library_copy(void) {
    prepare();
    for (int i = 0; i < 4; i++) {
        memset(target, i, BLOCK);
        asm volatile("" ::: "memory");
        memcpy(target, source, BLOCK);
        asm volatile("" ::: "memory");
    }
    return sample();
}

static uint64_t string_functions(void) {
    static char text[4096];
    memset(text, 'x', sizeof text - 1);
    memcpy(text + 4000, "needle", 6);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 20000; i++) {
        text[i % 3900] = (char)('a' + i % 20);
        sum = mix(sum, strlen(text + i % 100));
        sum = mix(sum, (uint64_t)(strchr(text, 'n') - text));
        sum = mix(sum, (uint64_t)memcmp(text, text + 1, 64) & 1);
    }
    return sum;
}

static uint64_t allocate(void) {
    enum { LIVE = 512 };
    void *blocks[LIVE] = {0};
    uint64_t seed = 11, sum = 0;
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t slot = (uint32_t)(next_random(&seed) % LIVE);
        free(blocks[slot]);
        uint64_t size = 16 + next_random(&seed) % 1024;
        uint8_t *p = blocks[slot] = malloc(size);
        if (!p) die("malloc");
        p[0] = p[size - 1] = (uint8_t)i;
        sum = mix(sum, size);
    }
    for (uint32_t i = 0; i < LIVE; i++) free(blocks[i]);
    return sum;
}

const struct program memory_programs[] = {
    {"pointer-chase", chase, 0, 0},
    {"snprintf", format, 0, 0},
    {"malloc", allocate, 0, 0},
    {"string-functions", string_functions, 0, 0},
    {"memcpy-memset", library_copy, 0, 0},
    {"rep-movsb", rep_movsb, 0, 0},
    {"rep-stosq", rep_stosq, 0, 0},
    {0, 0, 0, 0},
};
