/* Several processors: start-up, IPIs between them, TLB shoot-down. SDM vol. 3A §8.4, §10.6, §4.10.5.
 * Runs with 4 processors. */
#include "runtime.h"

extern u32 ap_seen_cr0;
extern const char ap_start[];
extern u16 ap_seen_cs, ap_seen_ds;

enum { FLUSH = 0xe1, PING = 0xe2, STOP = 0xe3 };
static volatile u64 pings[MAX_CPUS], acknowledged, flush_address, nmis[MAX_CPUS];

static bool ping(struct context *c) {
    (void)c;
    __sync_fetch_and_add(&pings[this_cpu()], 1);
    apic_write(APIC_EOI, 0);
    return true;
}

static bool flush(struct context *c) {
    (void)c;
    invlpg(flush_address);
    __sync_fetch_and_add(&acknowledged, 1);
    apic_write(APIC_EOI, 0);
    return true;
}

static bool note_nmi(struct context *c) {
    (void)c;
    __sync_fetch_and_add(&nmis[this_cpu()], 1);
    return true;
}

/* A processor that has taken STOP leaves its loop; no other interrupt is under way to it then. */
static volatile bool stopped[MAX_CPUS];
static bool note_stop(struct context *c) {
    (void)c;
    stopped[this_cpu()] = true;
    apic_write(APIC_EOI, 0);
    return true;
}

static void idle(void *unused) {
    (void)unused;
    while (!stopped[this_cpu()]) asm volatile("sti; hlt; cli" ::: "memory");
}

static void spin(void *unused) {
    (void)unused;
    sti();
    while (!stopped[this_cpu()]) pause();
    cli();
}

static u64 all_pings(void) { return pings[0] + pings[1] + pings[2] + pings[3]; }

static void end(u32 count) {
    for (u32 i = 1; i < count; i++) {
        send_ipi(cpus[i].apic_id, 0x4000 | STOP);
        wait_cpu(i);
        stopped[i] = false;
    }
    for (u32 i = 0; i < MAX_CPUS; i++) pings[i] = nmis[i] = 0;
}

static void ipis(u32 count, void (*state)(void *), const char *name) {
    print("# ");
    print(name);
    print("\n");
    for (u32 i = 1; i < count; i++) on_cpu(i, state, NULL);
    for (u32 i = 1; i < count; i++) {
        send_ipi(cpus[i].apic_id, 0x4000 | PING);
        check_true("fixed IPI arrives", wait_for(pings[i] == 1));
    }
    apic_write(APIC_ICR, 0xc4000 | PING);
    check_true("broadcast without self", wait_for(all_pings() == 2 * (count - 1)));
    check("  not to oneself", pings[0], 0);
    sti();
    apic_write(APIC_ICR, 0x84000 | PING);
    check_true("broadcast with self", wait_for(all_pings() == 3 * (count - 1) + 1));
    cli();
    for (u32 i = 1; i < count; i++) {
        send_ipi(cpus[i].apic_id, 0x4400);
        check_true("NMI arrives", wait_for(nmis[i] == 1));
    }
    for (u32 i = 0; i < 200; i++) {
        u64 before = pings[1];
        send_ipi(cpus[1].apic_id, 0x4000 | PING);
        if (!wait_for(pings[1] > before)) break;
    }
    check_true("200 IPIs in a row", pings[1] >= 200);
    end(count);
}

static void set_logical(void *unused) {
    (void)unused;
    apic_write(0xe0, ~0u);
    apic_write(0xd0, 1u << (24 + this_cpu()));
}

static void logical(u32 count) {
    set_logical(NULL);
    for (u32 i = 1; i < count; i++) {
        on_cpu(i, set_logical, NULL);
        wait_cpu(i);
        on_cpu(i, spin, NULL);
    }
    apic_write(APIC_ICR_HIGH, 0xeu << 24);
    apic_write(APIC_ICR, 0x4800 | PING);
    check_true("logical destination of three", wait_for(all_pings() == count - 1));
    apic_write(APIC_ICR_HIGH, 0x4u << 24);
    apic_write(APIC_ICR, 0x4800 | PING);
    check_true("logical destination of one", wait_for(pings[2] == 2));
    check("  and no other", all_pings(), count);
    end(count);
}

/* ---- Shoot-down ---- */

static volatile u64 *const shared = (u64 *)TEST_AREA;
static volatile u64 stale, rounds_seen[MAX_CPUS];
static volatile u64 generation;

/* Reads the page; after the shoot-down of a generation it must never see an older page. */
static void reader(void *unused) {
    (void)unused;
    sti();
    while (!stopped[this_cpu()]) {
        u64 before = generation;
        barrier();
        u64 seen = *shared;
        if (seen < before) __sync_fetch_and_add(&stale, 1);
        rounds_seen[this_cpu()] = seen;
    }
    cli();
}

static void shootdown(u32 count) {
    enum { ROUNDS = 300 };
    u64 *frames[2] = {alloc_page(), alloc_page()};
    *frames[0] = 0;
    map(TEST_AREA, (u64)frames[0], P | W, 1);
    for (u32 i = 1; i < count; i++) on_cpu(i, reader, NULL);
    u64 lost = 0;
    for (u64 round = 1; round <= ROUNDS; round++) {
        u64 *frame = frames[round & 1];
        *frame = round;
        *entry(TEST_AREA, 1) = (u64)frame | P | W;
        invlpg(TEST_AREA);
        acknowledged = 0;
        flush_address = TEST_AREA;
        apic_write(APIC_ICR, 0xc4000 | FLUSH);
        if (!wait_for(acknowledged == count - 1)) lost++;
        barrier();
        generation = round;
    }
    check("shoot-downs without an answer", lost, 0);
    for (u32 i = 1; i < count; i++) check_true("the last page is seen", wait_for(rounds_seen[i] == ROUNDS));
    end(count);
    check("stale reads", stale, 0);
}

/* Write access taken away: the other processor must fault after the shoot-down, its stores before it must be seen. */
static volatile u64 faults, stores;
static bool on_fault(struct context *c) {
    faults++;
    c->rip = c->r15;
    return true;
}

CODE(store_loop, "1: incq (%rbx)\n incq (%rcx)\n jmp 1b");
static void writer(void *unused) {
    (void)unused;
    struct context c = kernel(store_loop);
    extern const char after_fault[];
    c.rbx = TEST_AREA;
    c.rcx = (u64)&stores;
    c.r15 = (u64)after_fault;
    c.rflags |= 0x200;
    run(&c);
    /* A processor may drop a translation whenever it likes, and so fault before the shoot-down reaches it. */
    sti();
    wait_for(acknowledged == 1);
    cli();
}
CODE(after_fault, "nop");

static void drop_area(void *unused) {
    (void)unused;
    invlpg(TEST_AREA);
}

static void write_protect(void) {
    u64 *frame = alloc_page();
    map(TEST_AREA, (u64)frame, P | W, 1);
    invlpg(TEST_AREA);
    on_cpu(1, drop_area, NULL);
    wait_cpu(1);
    handlers[PF] = on_fault;
    on_cpu(1, writer, NULL);
    check_true("stores run", wait_for(stores > 1000));
    acknowledged = 0;
    *entry(TEST_AREA, 1) = (u64)frame | P;
    send_ipi(cpus[1].apic_id, 0x4000 | FLUSH);
    check_true("the shoot-down is answered", wait_for(acknowledged == 1));
    u64 frozen = *(volatile u64 *)frame;
    wait_cpu(1);
    check("a store after the shoot-down faults", faults, 1);
    check("no store came through", *(volatile u64 *)frame, frozen);
    check("  every earlier one did", stores, frozen);
    check("D was set by the other processor", *entry(TEST_AREA, 1) & D, 0);
    handlers[PF] = NULL;
}

/* A processor is stopped by INIT in the middle of a loop and started again. */
static void init_again(u32 count) {
    extern volatile u32 cpus_started;
    u32 victim = count - 1;
    on_cpu(victim, spin, NULL);
    for (u64 until = rdtsc() + 2000000; rdtsc() < until;) pause();
    send_ipi(cpus[victim].apic_id, 0x4500);
    cpus[victim].work = NULL;
    cpus[victim].online = 0;
    cpus_started = victim;
    for (u64 until = rdtsc() + 20000000; rdtsc() < until;) pause();
    u64 slot = (TSS_BASE >> 3) + 2 * victim;
    gdt[slot] &= ~(1ul << 41);
    send_ipi(cpus[victim].apic_id, 0x4608);
    check_true("INIT, SIPI on a running processor restarts it", wait_for(cpus[victim].online));
    on_cpu(victim, spin, NULL);
    send_ipi(cpus[victim].apic_id, 0x4000 | PING);
    check_true("  and it takes IPIs", wait_for(pings[victim] == 1));
    send_ipi(cpus[victim].apic_id, 0x4000 | STOP);
    wait_cpu(victim);
}

void guest(void) {
    handlers[PING] = ping;
    handlers[FLUSH] = flush;
    handlers[STOP] = note_stop;
    handlers[NMI] = note_nmi;
    u32 count = start_cpus(4);
    check("processors started", count, 4);
    if (count < 2) return;
    u8 *copy = (u8 *)0x8000;
    check("start-up CS is the vector", *(u16 *)(copy + ((u64)&ap_seen_cs - (u64)ap_start)), 0x800);
    check("start-up DS", *(u16 *)(copy + ((u64)&ap_seen_ds - (u64)ap_start)), 0);
    check("start-up CR0 is real mode", *(u32 *)(copy + ((u64)&ap_seen_cr0 - (u64)ap_start)) & 0x80000001, 0);
    check_true("each has an identifier of its own",
               cpus[1].apic_id != cpus[0].apic_id && cpus[count - 1].apic_id != cpus[1].apic_id);
    ipis(count, idle, "halted processors");
    ipis(count, spin, "spinning processors");
    logical(count);
    shootdown(count);
    write_protect();
    init_again(count);
}
