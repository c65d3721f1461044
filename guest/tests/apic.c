/* The local APIC of one processor: timer in its modes, self-IPIs, priorities (TPR, CR8), spurious vector, HLT, x2APIC.
 * SDM vol. 3A chapter 10. */
#include "runtime.h"

static volatile u64 counts[256], last, order[16], arrivals;

static bool count(struct context *c) {
    counts[c->vector]++;
    last = c->vector;
    if (arrivals < 16) order[arrivals] = c->vector;
    arrivals++;
    apic_write(APIC_EOI, 0);
    return true;
}

static void send_self(u32 vector) { send_ipi(apic_read(APIC_ID) >> 24, 0x4000 | vector); }

static void self_ipis(void) {
    sti();
    send_self(0x41);
    check_true("IPI to one's own identifier", wait_for(counts[0x41] == 1));
    apic_write(APIC_ICR, 0x44042);
    check_true("self shorthand", wait_for(counts[0x42] == 1));
    apic_write(APIC_ICR, 0x84043);
    check_true("broadcast with self", wait_for(counts[0x43] == 1));
    apic_write(APIC_ICR, 0xc4044);
    for (u32 i = 0; i < 10000; i++) pause();
    check("broadcast without self", counts[0x44], 0);
    cli();
}

static void priorities(void) {
    arrivals = 0;
    send_self(0x51);
    send_self(0x71);
    send_self(0x61);
    check("IRR holds what waits", apic_read(APIC_IRR + 0x10 * (0x71 / 32)) >> (0x71 % 32) & 1, 1);
    sti();
    wait_for(arrivals == 3);
    cli();
    check("highest vector first", order[0] << 16 | order[1] << 8 | order[2], 0x716151);
    /* The same vector twice is one interrupt. */
    arrivals = 0;
    send_self(0x55);
    send_self(0x55);
    sti();
    wait_for(arrivals == 1);
    for (u32 i = 0; i < 1000; i++) pause();
    cli();
    check("the same vector merges while it waits", arrivals, 1);
    arrivals = 0;
    write_cr8(6);
    check("CR8 shows in TPR", apic_read(APIC_TPR), 0x60);
    check("PPR follows", apic_read(APIC_PPR), 0x60);
    send_self(0x65);
    sti();
    for (u32 i = 0; i < 10000; i++) pause();
    check("CR8 masks its own class", arrivals, 0);
    send_self(0x75);
    check_true("a higher class passes", wait_for(arrivals == 1));
    check("  and it is that one", last, 0x75);
    write_cr8(5);
    check_true("lowering CR8 lets it in", wait_for(arrivals == 2));
    apic_write(APIC_TPR, 0x20);
    check("TPR shows in CR8", read_cr8(), 2);
    write_cr8(0);
    cli();
}

/* Within a handler, only a higher class interrupts. */
static volatile u64 nested_seen;
static bool nest(struct context *c) {
    (void)c;
    check("ISR bit in service", apic_read(APIC_ISR + 0x10 * (0x81 / 32)) >> (0x81 % 32) & 1, 1);
    check("PPR in service", apic_read(APIC_PPR), 0x80);
    u64 before = arrivals;
    send_self(0x82);
    sti();
    for (u32 i = 0; i < 1000; i++) pause();
    nested_seen = arrivals - before;
    send_self(0x91);
    for (u32 i = 0; i < 1000; i++) pause();
    cli();
    nested_seen |= (arrivals - before) << 8;
    apic_write(APIC_EOI, 0);
    return true;
}

static void nesting(void) {
    handlers[0x81] = nest;
    arrivals = 0;
    send_self(0x81);
    sti();
    check_true("the lower one follows", wait_for(arrivals == 2));
    cli();
    check("same class waits, higher class nests", nested_seen, 0x100);
}

static void timer(void) {
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0xa1);
    arrivals = 0;
    sti();
    apic_write(APIC_TIMER_INITIAL, 100000);
    check_true("one-shot timer", wait_for(arrivals == 1));
    for (u64 until = rdtsc() + 3000000; rdtsc() < until;) pause();
    check("  fires once", arrivals, 1);
    check("  current count is 0 after it", apic_read(APIC_TIMER_CURRENT), 0);
    arrivals = 0;
    apic_write(APIC_LVT_TIMER, 0x200a2);
    apic_write(APIC_TIMER_INITIAL, 100000);
    check_true("periodic timer", wait_for(arrivals >= 5));
    u32 current = apic_read(APIC_TIMER_CURRENT);
    check_true("  current count within its period", current <= 100000);
    apic_write(APIC_TIMER_INITIAL, 0);
    for (u64 until = rdtsc() + 1000000; rdtsc() < until;) pause();
    u64 now = arrivals;
    for (u64 until = rdtsc() + 3000000; rdtsc() < until;) pause();
    check("  initial count 0 stops it", arrivals, now);
    apic_write(APIC_LVT_TIMER, 0x100a3);
    arrivals = 0;
    apic_write(APIC_TIMER_INITIAL, 10000);
    for (u64 until = rdtsc() + 3000000; rdtsc() < until;) pause();
    check("masked timer", arrivals, 0);
    cli();
}

static void deadline(void) {
    if (!(cpuid(1, 0).c >> 24 & 1)) return skip("TSC deadline", "CPUID does not offer it");
    apic_write(APIC_LVT_TIMER, 0x400a4);
    asm volatile("mfence" ::: "memory");
    arrivals = 0;
    sti();
    u64 due = rdtsc() + 2000000;
    wrmsr(0x6e0, due);
    check("the MSR reads as the deadline", rdmsr(0x6e0), due);
    check_true("TSC deadline", wait_for(arrivals == 1));
    check_true("  not early", rdtsc() >= due);
    check("  the MSR is 0 afterwards", rdmsr(0x6e0), 0);
    wrmsr(0x6e0, 1);
    check_true("a deadline in the past fires at once", wait_for(arrivals == 2));
    wrmsr(0x6e0, rdtsc() + 3000000);
    wrmsr(0x6e0, 0);
    for (u64 until = rdtsc() + 6000000; rdtsc() < until;) pause();
    check("0 disarms", arrivals, 2);
    apic_write(APIC_TIMER_INITIAL, 100);
    for (u64 until = rdtsc() + 1000000; rdtsc() < until;) pause();
    check("the initial count is ignored in this mode", arrivals, 2);
    cli();
}

static void halt(void) {
    apic_write(APIC_LVT_TIMER, 0xa5);
    arrivals = 0;
    for (u32 i = 0; i < 5; i++) {
        apic_write(APIC_TIMER_INITIAL, 200000);
        asm volatile("sti; hlt; cli" ::: "memory");
    }
    check("HLT sleeps until the timer, five times", arrivals, 5);
    check("  and the handler returned behind HLT", last, 0xa5);
    apic_write(APIC_LVT_TIMER, 0x10000);
}

static void software_disable(void) {
    apic_write(APIC_SPURIOUS, 0xff);
    check("software disable masks the LVT", apic_read(APIC_LVT_TIMER) >> 16 & 1, 1);
    apic_write(APIC_LVT_TIMER, 0xa1);
    if (!skip_on_reference("LVT mask while disabled", "can be cleared"))
        check("  and it cannot be unmasked", apic_read(APIC_LVT_TIMER) >> 16 & 1, 1);
    apic_write(APIC_SPURIOUS, 0x1ff);
    check_true("version", (apic_read(0x30) & 0xff) >= 0x10);
}

static void x2apic(void) {
    if (!(cpuid(1, 0).c >> 21 & 1)) return skip("x2APIC", "CPUID does not offer it");
    u32 id = apic_read(APIC_ID) >> 24;
    wrmsr(0x1b, rdmsr(0x1b) | 0x400);
    check("identifier", rdmsr(0x802), id);
    handlers[0xb1] = NULL;
    arrivals = 0;
    CODE(x2_self, "mov $0x83f, %ecx\n mov $0xb1, %eax\n xor %edx, %edx\n sti\n wrmsr\n nop\n 1: pause\n jmp 1b");
    struct context c = kernel(x2_self);
    run(&c);
    check("self-IPI register", c.vector, 0xb1);
    wrmsr(0x80b, 0);
    wrmsr(0x808, 0x30);
    check("TPR by MSR shows in CR8", read_cr8(), 3);
    wrmsr(0x808, 0);
    CODE(x2_write, "wrmsr");
    c = kernel(x2_write);
    c.rcx = 0x802;
    run(&c);
    check_trap("the identifier is read-only", &c, GP, 0);
    c = kernel(x2_write);
    c.rcx = 0x80b;
    c.rax = 1;
    run(&c);
    check_trap("EOI takes only 0", &c, GP, 0);
    CODE(x2_back, "wrmsr");
    c = kernel(x2_back);
    c.rcx = 0x1b;
    u64 base = rdmsr(0x1b) & ~0x400ul;
    c.rax = (u32)base;
    c.rdx = base >> 32;
    run(&c);
    check_trap("x2APIC to xAPIC directly", &c, GP, 0);
}

void guest(void) {
    pic_init();
    apic_enable();
    for (u32 v = 0x30; v < 0xf8; v++)
        if (v != DONE) handlers[v] = count;
    handlers[SYSCALLED] = count;
    check("processor type: bootstrap", rdmsr(0x1b) >> 8 & 1, 1);
    self_ipis();
    priorities();
    nesting();
    timer();
    deadline();
    halt();
    software_disable();
    x2apic();
}
