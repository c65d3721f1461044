/* cpubench [-r REPEATS] [-l] [NAME]...: runs the programs (all, or those named), prints one line for each:
 *
 *   bench NAME NS CHECKSUM INSTRUCTIONS
 *
 * NS is the shortest of REPEATS runs (3 unless told), in nanoseconds; INSTRUCTIONS is 0 where it is not known.
 * -l lists the names. Exit status 2 for wrong arguments, 1 for a program that failed. */
#define _GNU_SOURCE
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct program *const groups[] = {integer_programs, memory_programs, floating_programs, system_programs};

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void die(const char *what) {
    perror(what);
    exit(1);
}

static void measure(const struct program *p, int repeats) {
    uint64_t best = UINT64_MAX, sum = 0;
    for (int i = 0; i < repeats; i++) {
        uint64_t start = now_ns();
        uint64_t checksum = p->run();
        uint64_t took = now_ns() - start;
        if (took < best) best = took;
        if (i > 0 && checksum != sum) {
            printf("bench-error %s gave %016lx, then %016lx\n", p->name, sum, checksum);
            exit(1);
        }
        sum = checksum;
    }
    printf("bench %s %lu %016lx %lu\n", p->name, best, sum, p->instructions);
    fflush(stdout);
}

static int wanted(const char *name, char **names, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(name, names[i])) return 1;
    return count == 0;
}

int main(int argc, char **argv) {
    int repeats = 3, list = 0, first = 1;
    for (; first < argc && argv[first][0] == '-'; first++) {
        if (!strcmp(argv[first], "-l")) list = 1;
        else if (!strcmp(argv[first], "-r") && first + 1 < argc) repeats = atoi(argv[++first]);
        else repeats = 0;
    }
    if (repeats < 1) {
        fprintf(stderr, "usage: cpubench [-r REPEATS] [-l] [NAME]...\n");
        return 2;
    }
    int done = 0;
    for (unsigned g = 0; g < sizeof groups / sizeof *groups; g++)
        for (const struct program *p = groups[g]; p->name; p++) {
            if (!wanted(p->name, argv + first, argc - first)) continue;
            done++;
            if (list) puts(p->name);
            else if (!p->available || p->available()) measure(p, repeats);
        }
    if (!done) {
        fprintf(stderr, "cpubench: no program of that name; -l lists them\n");
        return 2;
    }
    return 0;
}
