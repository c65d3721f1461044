/* Locked instructions under contention, split ones included; memory order. SDM vol. 3A §8.1.2, §8.2.
 * Runs with 4 processors. */
#include "runtime.h"

enum { CPUS = 4, ROUNDS = 20000 };
static u8 arena[4 * 4096] __attribute__((aligned(4096)));
static volatile u32 gate;
static u64 results[CPUS];
typedef u64 (*worker_t)(void *cell, u32 me);

static worker_t current;
static void *current_cell;

static void enter(void *me) {
    __sync_fetch_and_add(&gate, 1);
    while (gate < CPUS) pause();
    results[(u64)me] = current(current_cell, (u64)me);
}

/* Runs `worker` on all processors at once, on `cell`. */
static void together(worker_t worker, void *cell) {
    current = worker;
    current_cell = cell;
    gate = 0;
    for (u64 i = 1; i < CPUS; i++) on_cpu(i, enter, (void *)i);
    enter((void *)0);
    for (u32 i = 1; i < CPUS; i++) wait_cpu(i);
}

static u64 sum(void) { return results[0] + results[1] + results[2] + results[3]; }

#define REPEAT(body)                            \
    for (u32 i = 0; i < ROUNDS; i++) {          \
        body;                                   \
    }                                           \
    return 0
static u64 inc64(void *p, u32 me) { (void)me; REPEAT(asm volatile("lock incq (%0)" ::"r"(p) : "memory")); }
static u64 inc32(void *p, u32 me) { (void)me; REPEAT(asm volatile("lock incl (%0)" ::"r"(p) : "memory")); }
static u64 inc16(void *p, u32 me) { (void)me; REPEAT(asm volatile("lock incw (%0)" ::"r"(p) : "memory")); }
static u64 inc8(void *p, u32 me) { REPEAT(asm volatile("lock incb (%0)" ::"r"((u8 *)p + me) : "memory")); }
static u64 xadd64(void *p, u32 me) {
    (void)me;
    u64 total = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        u64 v = 3;
        asm volatile("lock xaddq %0, (%1)" : "+r"(v) : "r"(p) : "memory");
        total += v;
    }
    return total;
}
static u64 dec_zero(void *p, u32 me) {
    (void)me;
    u64 zeros = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        bool zero;
        asm volatile("lock decl (%1)" : "=@ccz"(zero) : "r"(p) : "memory");
        zeros += zero;
    }
    return zeros;
}
static u64 cmpxchg64(void *p, u32 me) {
    (void)me;
    for (u32 i = 0; i < ROUNDS; i++) {
        u64 old = *(volatile u64 *)p;
        bool done;
        do asm volatile("lock cmpxchgq %3, (%2)" : "=@ccz"(done), "+a"(old) : "r"(p), "r"(old + 1) : "memory");
        while (!done);
    }
    return 0;
}
static u64 cmpxchg8(void *p, u32 me) {
    (void)me;
    for (u32 i = 0; i < ROUNDS; i++) {
        u64 old = *(volatile u64 *)p;
        bool done;
        do {
            u64 next = old + 0x100000001;
            u32 a = old, d = old >> 32;
            asm volatile("lock cmpxchg8b (%3)"
                         : "=@ccz"(done), "+a"(a), "+d"(d) : "r"(p), "b"((u32)next), "c"((u32)(next >> 32)) : "memory");
            old = a | (u64)d << 32;
        } while (!done);
    }
    return 0;
}
static u64 cmpxchg16(void *p, u32 me) {
    (void)me;
    u64 a = 0, d = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        bool done;
        do asm volatile("lock cmpxchg16b (%3)"
                        : "=@ccz"(done), "+a"(a), "+d"(d) : "r"(p), "b"(a + 1), "c"(d + 2) : "memory");
        while (!done);
    }
    return 0;
}
static u64 bit_lock(void *p, u32 me) {
    (void)me;
    volatile u64 *counter = (u64 *)p + 8;
    for (u32 i = 0; i < ROUNDS / 4; i++) {
        bool taken;
        for (;;) {
            asm volatile("lock btsl $5, (%1)" : "=@ccc"(taken) : "r"(p) : "memory");
            if (!taken) break;
            pause();
        }
        *counter += 1;
        asm volatile("lock btrl $5, (%0)" ::"r"(p) : "memory");
    }
    return 0;
}
static u64 exchange_lock(void *p, u32 me) {
    (void)me;
    volatile u64 *counter = (u64 *)p + 8;
    for (u32 i = 0; i < ROUNDS / 4; i++) {
        u32 taken = 1;
        for (;;) {
            asm volatile("xchgl %0, (%1)" : "+r"(taken) : "r"(p) : "memory");
            if (!taken) break;
            pause();
        }
        *counter += 1;
        barrier();
        *(volatile u32 *)p = 0;
    }
    return 0;
}
static u64 logic(void *p, u32 me) {
    u64 mine = 1ul << (me * 7), wrong = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        asm volatile("lock orq %1, (%0)" ::"r"(p), "r"(mine) : "memory");
        wrong += !(*(volatile u64 *)p & mine);
        asm volatile("lock andq %1, (%0)" ::"r"(p), "r"(~mine) : "memory");
        wrong += !!(*(volatile u64 *)p & mine);
        asm volatile("lock xorq %1, (%0)" ::"r"(p), "r"(mine << 1) : "memory");
    }
    return wrong;
}
static u64 sub_neg_not(void *p, u32 me) {
    (void)me;
    REPEAT(asm volatile("lock subl $2, (%0)\n lock addl $1, (%0)\n lock notl 64(%0)\n lock adcl $0, 128(%0)" ::"r"(p) : "memory", "cc"));
}
/* Plain aligned 8-byte stores and loads are single-copy atomic. */
static u64 torn(void *p, u32 me) {
    u64 wrong = 0;
    for (u32 i = 0; i < ROUNDS; i++) {
        u32 v = i * 4 + me;
        *(volatile u64 *)p = v | (u64)v << 32;
        u64 seen = *(volatile u64 *)p;
        wrong += (u32)seen != seen >> 32;
    }
    return wrong;
}

static u64 value(const void *p) { return *(volatile const u64 *)p; }

static void *cell(u64 offset) {
    memset(arena, 0, sizeof arena);
    return arena + offset;
}

static void counters(u64 offset, const char *where) {
    const u64 all = CPUS * ROUNDS;
    print("# cells ");
    print(where);
    print("\n");
    void *p = cell(offset);
    together(inc64, p);
    check("lock inc, 8 bytes", value(p), all);
    p = cell(offset);
    together(inc32, p);
    check("lock inc, 4 bytes", value(p), all);
    p = cell(offset);
    together(inc16, p);
    check("lock inc, 2 bytes", value(p), all & 0xffff);
    p = cell(offset);
    together(xadd64, p);
    check("lock xadd", value(p), 3 * all);
    check("  each old value once", sum(), 3 * (all * (all - 1) / 2));
    p = cell(offset);
    together(cmpxchg64, p);
    check("lock cmpxchg", value(p), all);
    p = cell(offset);
    together(cmpxchg8, p);
    check("lock cmpxchg8b", value(p), all | all << 32);
    p = cell(offset);
    *(u32 *)p = ROUNDS;
    together(dec_zero, p);
    check("lock dec passes zero once", sum(), 1);
    p = cell(offset);
    together(logic, p);
    check("lock or, and, xor", sum(), 0);
}

static void aligned_only(void) {
    void *p = cell(64);
    together(inc8, p);
    check("lock inc of neighbouring bytes", (u32)value(p), (ROUNDS & 0xff) * 0x01010101u);
    if (cpuid(1, 0).c >> 13 & 1) {
        p = cell(256);
        together(cmpxchg16, p);
        check("lock cmpxchg16b, low half", value(p), CPUS * ROUNDS);
        check("lock cmpxchg16b, high half", value((u64 *)p + 1), 2 * CPUS * ROUNDS);
        CODE(misaligned16, "lock cmpxchg16b 8(%rbx)");
        struct context c = kernel(misaligned16);
        c.rbx = (u64)arena;
        run(&c);
        check_trap("misaligned cmpxchg16b", &c, GP, 0);
    } else {
        skip("cmpxchg16b", "CPUID does not offer it");
    }
    p = cell(128);
    together(bit_lock, p);
    check("spin lock of lock bts", value((u64 *)p + 8), CPUS * (ROUNDS / 4));
    p = cell(128);
    together(exchange_lock, p);
    check("spin lock of xchg", value((u64 *)p + 8), CPUS * (ROUNDS / 4));
    p = cell(128);
    together(sub_neg_not, p);
    check("lock sub and add", (u32)value(p), -(u32)(CPUS * ROUNDS));
    check("lock not, an even number of times", (u32)value((u8 *)p + 64), 0);
    p = cell(192);
    together(torn, p);
    check("torn 8-byte stores", sum(), 0);
}

/* ---- Memory order ---- */

static volatile u64 box_x __attribute__((aligned(64))), box_y __attribute__((aligned(64)));
/* Message passing: stores are seen in order (x86-TSO). */
static u64 message(void *unused, u32 me) {
    (void)unused;
    u64 wrong = 0;
    for (u64 i = 1; i <= ROUNDS; i++) {
        if (me == 0) {
            box_x = i;
            barrier();
            box_y = i;
        } else {
            u64 y = box_y;
            barrier();
            u64 x = box_x;
            wrong += x < y;
        }
    }
    return wrong;
}

/* Dekker: with a locked instruction (or MFENCE) between store and load, not both may read the old value. */
static volatile u64 flags[2][8] __attribute__((aligned(64)));
static volatile u64 entered[2], both, arrived;
static u64 dekker(void *fence, u32 me) {
    u64 seen_both = 0;
    if (me > 1) return 0;
    for (u64 round = 1; round <= ROUNDS / 10; round++) {
        __sync_fetch_and_add(&arrived, 1);
        while (arrived < 2 * round) pause();
        flags[me][0] = round;
        if (fence) asm volatile("mfence" ::: "memory");
        else asm volatile("lock addq $0, (%%rsp)" ::: "memory");
        entered[me] = flags[1 - me][0] != round;
        __sync_fetch_and_add(&both, 1);
        while (both < 2 * round) pause();
        if (me == 0) seen_both += entered[0] && entered[1];
        barrier();
        /* Nobody starts the next round before the verdict is in. */
        __sync_fetch_and_add(&flags[0][1], 1);
        while (flags[0][1] < 2 * round) pause();
    }
    return seen_both;
}

static void order(void) {
    box_x = box_y = 0;
    together(message, NULL);
    check("stores seen out of order", sum(), 0);
    for (u64 fence = 0; fence < 2; fence++) {
        arrived = both = flags[0][0] = flags[1][0] = flags[0][1] = 0;
        together(dekker, (void *)fence);
        check(fence ? "Dekker with MFENCE: both entered" : "Dekker with LOCK: both entered", sum(), 0);
    }
}

void guest(void) {
    check("processors started", start_cpus(CPUS), CPUS);
    counters(512, "aligned");
    counters(64 - 3, "across cache lines");
    counters(4096 - 5, "across pages");
    aligned_only();
    order();
}
