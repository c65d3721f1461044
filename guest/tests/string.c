/* String instructions: interrupted and faulting in the middle, directions, overlap, address sizes.
 * SDM vol. 2B "REP": registers are committed after each iteration. */
#include "runtime.h"

CODE(rep_stosb, "rep stosb");
CODE(rep_stosq, "rep stosq");
CODE(rep_movsb, "rep movsb");
CODE(rep_movsq, "rep movsq");
CODE(rep_movsb_back, "std\n rep movsb\n cld");
CODE(rep_lodsb, "rep lodsb");
CODE(repne_scasb, "repne scasb");
CODE(repe_cmpsb, "repe cmpsb");
CODE(rep_stosl_32, "rep stosl %eax, %es:(%edi)");
CODE(rep_outsb, "mov $0x80, %edx\n rep outsb");

static u8 *buffer;

static struct context go(const void *code, u64 rdi, u64 rsi, u64 rcx, u64 rax) {
    struct context c = kernel(code);
    c.rdi = rdi;
    c.rsi = rsi;
    c.rcx = rcx;
    c.rax = rax;
    run(&c);
    return c;
}

static void fill(void) {
    for (u32 i = 0; i < 8192; i++) buffer[i] = i * 7 + (i >> 8);
}

/* Two mapped pages, then none. */
static void faults(void) {
    const u64 area = TEST_AREA, end = area + 8192;
    map(area, (u64)buffer, P | W, 1);
    map(area + 4096, (u64)buffer + 4096, P | W, 1);
    struct context c = go(rep_stosb, end - 100, 0, 1000, 0x5a);
    check_trap("REP STOSB into an absent page", &c, PF, F_W);
    check("  RCX", c.rcx, 900);
    check("  RDI", c.rdi, end);
    check("  CR2", c.cr2, end);
    check("  RIP at the instruction", c.rip, (u64)rep_stosb);
    check("  the rest is stored", buffer[8191] + buffer[8092], 2 * 0x5a);
    c = go(rep_stosq, end - 20, 0, 10, ~0ul);
    check_trap("REP STOSQ, crossing element", &c, PF, F_W);
    check("  RCX", c.rcx, 8);
    check("  RDI", c.rdi, end - 4);
    check("  CR2 is in the absent page", c.cr2, end);
    fill();
    c = go(rep_movsb, area, end - 64, 1000, 0);
    check_trap("REP MOVSB from an absent page", &c, PF, 0);
    check("  RCX", c.rcx, 1000 - 64);
    check("  RSI", c.rsi, end);
    check("  RDI", c.rdi, area + 64);
    c = go(rep_movsq, end - 24, area, 100, 0);
    check_trap("REP MOVSQ into an absent page", &c, PF, F_W);
    check("  RCX", c.rcx, 97);
    check("  RSI", c.rsi, area + 24);
    check("  RDI", c.rdi, end);
    check("  copied so far", memcmp(buffer + 8192 - 24, buffer, 24), 0);
    c = kernel(rep_movsb_back);
    c.rdi = area + 2000;
    c.rsi = area + 50;
    c.rcx = 100;
    run(&c);
    check_trap("backwards below the area", &c, PF, 0);
    check("  RCX", c.rcx, 49);
    check("  RSI", c.rsi, area - 1);
    check("  RDI", c.rdi, area + 2000 - 51);
    check("  DF", c.rflags >> 10 & 1, 1);
    memset(buffer, 1, 8192);
    c = go(repne_scasb, end - 10, 0, 100, 7);
    check_trap("REPNE SCASB into an absent page", &c, PF, 0);
    check("  RCX", c.rcx, 90);
    c = go(repe_cmpsb, end - 10, area, 100, 0);
    check_trap("REPE CMPSB into an absent page", &c, PF, 0);
    check("  RCX", c.rcx, 90);
    check("  RSI", c.rsi, area + 10);
    c = go(rep_lodsb, 0, end - 3, 10, 0);
    check("REP LODSB into an absent page: RCX", c.rcx, 7);
    c = go(rep_outsb, 0, end - 3, 10, 0);
    check("REP OUTSB into an absent page: RCX", c.rcx, 7);
    c = go(rep_stosb, end + 4096, 0, 0, 0);
    check_trap("RCX = 0 touches nothing", &c, DONE, 0);
    c = go(rep_stosb, 0x800000000000ul - 0, 0, 5, 0);
    check_trap("non-canonical destination", &c, GP, 0);
    *entry(area + 4096, 1) = (u64)(buffer + 4096) | P;
    flush_tlb();
    c = go(rep_stosb, area + 4000, 0, 200, 3);
    check_trap("REP STOSB into a read-only page", &c, PF, F_P | F_W);
    check("  RCX", c.rcx, 104);
}

static void results(void) {
    fill();
    struct context c = go(rep_movsb, (u64)buffer + 1, (u64)buffer, 100, 0);
    bool same = true;
    for (u32 i = 0; i <= 100; i++) same &= buffer[i] == buffer[0];
    check_true("overlapping forwards copy repeats its first byte", same && c.rcx == 0);
    fill();
    u8 seventh = buffer[7];
    go(rep_movsq, (u64)buffer + 8, (u64)buffer, 10, 0);
    check("overlapping copy of quadwords", buffer[87], seventh);
    fill();
    go(rep_movsq, (u64)buffer + 3, (u64)buffer, 4, 0);
    u8 want[64], *p = want;
    for (u32 i = 0; i < 64; i++) want[i] = i * 7;
    for (u32 i = 0; i < 4; i++)
        for (u32 j = 0, t[8]; j < 16; j++)
            if (j < 8) t[j] = p[i * 8 + j];
            else p[i * 8 + j - 8 + 3] = t[j - 8];
    check("overlap shorter than an element", memcmp(buffer, want, 48), 0);
    fill();
    c = kernel(rep_movsb_back);
    c.rdi = (u64)buffer + 199;
    c.rsi = (u64)buffer + 149;
    c.rcx = 100;
    run(&c);
    same = true;
    for (u32 i = 100; i < 200; i++) same &= buffer[i] == (u8)((i - 50) * 7);
    check_true("overlapping backwards copy moves", same);
    memset(buffer, 0, 256);
    buffer[77] = 9;
    c = go(repne_scasb, (u64)buffer, 0, 256, 9);
    check("REPNE SCASB stops behind the hit", c.rdi, (u64)buffer + 78);
    check("  RCX", c.rcx, 256 - 78);
    check("  ZF", c.rflags >> 6 & 1, 1);
    c = go(repne_scasb, (u64)buffer, 0, 70, 9);
    check("REPNE SCASB without a hit: RCX and ZF", c.rcx | (c.rflags >> 6 & 1), 0);
    c = go(repe_cmpsb, (u64)buffer, (u64)buffer + 100, 100, 0);
    check("REPE CMPSB stops behind the difference", c.rcx, 100 - 78);
    check("  CF: source below", c.rflags & 1, 1);
    c = go(rep_stosl_32, 0xffffffff00000000 | (u64)buffer, 0, 0xffffffff00000003, 0x11111111);
    check("32-bit addresses use EDI and ECX", *(u32 *)(buffer + 8), 0x11111111);
    check("  RCX", c.rcx, 0);
    check("  RDI is 32 bits wide", c.rdi, (u64)buffer + 12);
}

static volatile u64 ticks, middle, inconsistent;
static u64 base, total;
static bool tick(struct context *c) {
    ticks++;
    if (c->rip == (u64)rep_stosb || c->rip == (u64)rep_movsb) {
        middle++;
        inconsistent += c->rdi - base != total - c->rcx;
    }
    apic_write(APIC_EOI, 0);
    return true;
}

/* Runs `c` until an interrupt struck in its middle: on a busy host the timer may come after a whole run. */
static struct context run_until_interrupted(struct context start) {
    struct context c;
    middle = 0;
    for (u32 tries = 0; tries < 100 && !middle; tries++) {
        c = start;
        run(&c);
        if (c.vector != DONE) break;
    }
    return c;
}

/* A long run, all of it the same memory, under a fast timer. */
static void interrupted(void) {
    u64 area = TEST_AREA + (8ul << 30);
    u64 memory = (u64)alloc_pages(512);
    total = 96ul << 20;
    for (u64 at = 0; at < total; at += 2 << 20) map(area + at, memory, P | W, 2);
    flush_tlb();
    base = area;
    handlers[0xc1] = tick;
    apic_enable();
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0x200c1);
    apic_write(APIC_TIMER_INITIAL, 200000);
    struct context c = kernel(rep_stosb);
    c.rdi = area;
    c.rcx = total;
    c.rax = 0x77;
    c.rflags |= 0x200;
    c = run_until_interrupted(c);
    check_trap("long REP STOSB under interrupts", &c, DONE, 0);
    check("  RCX", c.rcx, 0);
    check("  RDI", c.rdi, area + total);
    check_true("  interrupts struck in its middle", middle > 0);
    check("  with registers that do not add up", inconsistent, 0);
    c = kernel(rep_movsb);
    c.rdi = area;
    c.rsi = area + 64;
    c.rcx = total = 64ul << 20;
    c.rflags |= 0x200;
    c = run_until_interrupted(c);
    check_trap("long REP MOVSB under interrupts", &c, DONE, 0);
    check("  RSI", c.rsi, area + 64 + total);
    check_true("  interrupts struck in its middle", middle > 0);
    check("  with registers that do not add up", inconsistent, 0);
    apic_write(APIC_TIMER_INITIAL, 0);
    apic_write(APIC_LVT_TIMER, 0x10000);
}

void guest(void) {
    buffer = alloc_pages(2);
    pic_init();
    faults();
    results();
    interrupted();
}
