/* Cross-modifying code: one processor runs what another changes. Linux' text_poke protocol (int3 first, then the tail,
 * then the head, with an IPI to all between the steps) and a plain aligned store. SDM vol. 3A §8.1.3.
 * Runs with 2 processors. */
#include "runtime.h"

/* The reference drops translated code before the store instead of after it, so another processor can translate the old
 * bytes in between and keep them. */
static const char *const race = "code is dropped before the store";

static volatile bool stop;
static volatile u64 traps, wrong, calls, synchronised;
static u8 *code, *alias;

/* Called by the runner: `mov $imm32, %eax; ret`; the immediates used have four equal bytes. */
static u32 call_code(void) {
    u32 result;
    asm volatile("call *%1" : "=a"(result) : "r"(code) : "memory", "cc");
    return result;
}

/* int3 struck: behave as the whole instruction with some valid immediate, as text_poke's handler does. */
static bool on_breakpoint(struct context *c) {
    traps++;
    if (c->rip != (u64)code + 1) wrong++;
    c->rax = 0x01010101;
    c->rip = (u64)code + 5;
    return true;
}

static bool on_sync(struct context *c) {
    (void)c;
    cpuid(0, 0);
    __sync_fetch_and_add(&synchronised, 1);
    apic_write(APIC_EOI, 0);
    return true;
}

static void runner(void *unused) {
    (void)unused;
    sti();
    while (!stop) {
        u32 r = call_code();
        if (r != (r & 0xff) * 0x01010101u) wrong++;
        calls++;
    }
    cli();
}

static void synchronise(void) {
    u64 before = synchronised;
    send_ipi(cpus[1].apic_id, 0x40e4);
    if (!wait_for(synchronised > before)) wrong++;
}

static void poke(u32 immediate) {
    *(volatile u8 *)alias = 0xcc;
    synchronise();
    *(volatile u8 *)(alias + 1) = immediate;
    *(volatile u8 *)(alias + 2) = immediate;
    *(volatile u8 *)(alias + 3) = immediate;
    *(volatile u8 *)(alias + 4) = immediate;
    synchronise();
    *(volatile u8 *)alias = 0xb8;
    synchronise();
}

static void by_breakpoint(u64 offset, const char *name) {
    static const u8 initial[] = {0xb8, 1, 1, 1, 1, 0xc3};
    u8 *pages = alloc_pages(2);
    code = pages + offset;
    memcpy(code, initial, sizeof initial);
    map(TEST_AREA, (u64)pages, P | W, 1);
    map(TEST_AREA + 4096, (u64)pages + 4096, P | W, 1);
    flush_tlb();
    alias = (u8 *)TEST_AREA + offset;
    stop = false;
    calls = traps = wrong = 0;
    on_cpu(1, runner, NULL);
    wait_for(calls > 100);
    for (u32 i = 0; i < 300; i++) poke(i & 0x7f);
    u64 so_far = calls;
    check_true(name, wait_for(calls > so_far + 10));
    stop = true;
    wait_cpu(1);
    check("  torn or wrong results", wrong, 0);
    if (!skip_on_reference("  the last patch is in force", race))
        check("  the last patch is in force", call_code(), (299 & 0x7f) * 0x01010101u);
}

/* One aligned 8-byte store over a whole function: old or new, and new before long. */
static void by_store(void) {
    u64 versions[2];
    static const u8 bytes[2][8] = {{0xb8, 1, 1, 1, 1, 0xc3, 0x90, 0x90}, {0xb8, 2, 2, 2, 2, 0xc3, 0x90, 0x90}};
    memcpy(versions, bytes, sizeof bytes);
    code = alloc_page();
    volatile u64 *whole = (u64 *)code;
    *whole = versions[0];
    stop = false;
    calls = wrong = 0;
    on_cpu(1, runner, NULL);
    for (u32 i = 0; i < 2000; i++) {
        *whole = versions[i & 1];
        for (u32 j = 0; j < 50; j++) pause();
    }
    stop = true;
    wait_cpu(1);
    check("aligned stores over running code: torn results", wrong, 0);
    if (!skip_on_reference("  the last store is in force", race))
        check("  the last store is in force", call_code(), 0x02020202);
}

/* A branch target in a tight loop without interrupts is changed: the loop must end by itself. */
CODE(tight, "1: nop\n tight_jump: jmp 1b");
static void tight_loop(void *unused) {
    (void)unused;
    struct context c = kernel(tight);
    run(&c);
}

static void break_loop(void) {
    extern u8 tight_jump[];
    if (skip_on_reference("a patched loop ends", race)) return;
    on_cpu(1, tight_loop, NULL);
    for (u64 until = rdtsc() + 3000000; rdtsc() < until;) pause();
    *(volatile u16 *)tight_jump = 0x9090;
    wait_cpu(1);
    check_true("a patched loop ends", true);
}

void guest(void) {
    handlers[BP] = on_breakpoint;
    handlers[0xe4] = on_sync;
    check("processors started", start_cpus(2), 2);
    by_breakpoint(64, "300 patches by breakpoint");
    by_breakpoint(4096 - 3, "300 patches by breakpoint across pages");
    by_store();
    break_loop();
}
