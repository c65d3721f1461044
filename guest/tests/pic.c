/* The legacy interrupt path: PIT through the PIC pair, then through the I/O APIC. 8259A and 8254 data sheets; 82093AA. */
#include "runtime.h"

static volatile u64 ticks, vector_seen;

static bool pic_tick(struct context *c) {
    ticks++;
    vector_seen = c->vector;
    if (c->vector >= 0x28 && c->vector < 0x30) outb(0xa0, 0x20);
    outb(0x20, 0x20);
    return true;
}

static bool apic_tick(struct context *c) {
    ticks++;
    vector_seen = c->vector;
    apic_write(APIC_EOI, 0);
    return true;
}

static u64 quiet(u64 cycles) {
    u64 before = ticks;
    for (u64 until = rdtsc() + cycles; rdtsc() < until;) pause();
    return ticks - before;
}

static void pit_readback(void) {
    pit_start(2, 0xffff);
    outb(0x43, 0);
    u16 first = inb(0x40);
    first |= inb(0x40) << 8;
    for (u64 until = rdtsc() + 1000000; rdtsc() < until;) pause();
    outb(0x43, 0);
    u16 second = inb(0x40);
    second |= inb(0x40) << 8;
    check_true("PIT counts down", second < first || second > 0xf000);
    /* Channel 2 behind port 0x61: gate, then output after a short count. */
    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);
    outb(0x42, 0x00);
    outb(0x42, 0x02);
    check_true("channel 2 raises its output (port 0x61 bit 5)", wait_for(inb(0x61) & 0x20));
}

static void pic(void) {
    pic_init();
    apic_enable();
    apic_write(APIC_LVT_LINT0, 0x700);
    for (u32 v = 0x20; v < 0x30; v++) handlers[v] = pic_tick;
    pit_start(2, 1193);
    sti();
    check("all masked", quiet(20000000), 0);
    check("IRR of the PIC shows the line", (outb(0x20, 0x0a), inb(0x20) & 1), 1);
    outb(0x21, 0xfe);
    check_true("PIT interrupt through the PIC", wait_for(ticks >= 3));
    check("  vector", vector_seen, 0x20);
    cli();
    for (u64 until = rdtsc() + 10000000; rdtsc() < until;) pause();
    u64 before = ticks;
    sti();
    check_true("one waits while IF is clear", wait_for(ticks > before));
    asm volatile("hlt");
    check_true("PIT wakes HLT", ticks > before + 1);
    outb(0x21, 0xff);
    check("mask register reads back", inb(0x21), 0xff);
    cli();
    /* Another base. */
    static const u8 words[][2] = {{0x20, 0x11}, {0x21, 0x70}, {0x21, 4}, {0x21, 1}, {0x21, 0xfe}};
    for (u32 i = 0; i < 5; i++) outb(words[i][0], words[i][1]);
    handlers[0x70] = pic_tick;
    ticks = 0;
    sti();
    check_true("PIC with another vector base", wait_for(ticks >= 1));
    check("  vector", vector_seen, 0x70);
    cli();
    outb(0x21, 0xff);
}

static void ioapic(void) {
    outb(0x21, 0xff);
    apic_write(APIC_LVT_LINT0, 0x10000);
    check_true("I/O APIC has pins", (ioapic_read(1) >> 16 & 0xff) >= 23);
    handlers[0x60] = apic_tick;
    ticks = 0;
    /* The PIT is pin 2 where the MADT overrides IRQ 0, as on every PC. */
    ioapic_write(0x10 + 2 * 2 + 1, apic_read(APIC_ID));
    ioapic_write(0x10 + 2 * 2, 0x10060);
    pit_start(2, 1193);
    sti();
    check("masked pin", quiet(20000000), 0);
    ioapic_write(0x10 + 2 * 2, 0x60);
    check_true("PIT through the I/O APIC", wait_for(ticks >= 5));
    check("  vector", vector_seen, 0x60);
    ioapic_write(0x10 + 2 * 2, 0x10060);
    quiet(1000000);
    check("masked again", quiet(20000000), 0);
    check("redirection reads back", ioapic_read(0x10 + 2 * 2) & 0x1a7ff, 0x10060);
    /* One shot, mode 0: exactly one edge. */
    outb(0x43, 0x30);
    quiet(1000000);
    ioapic_write(0x10 + 2 * 2, 0x60);
    quiet(1000000);
    ticks = 0;
    pit_start(0, 2000);
    check_true("PIT mode 0", wait_for(ticks == 1));
    check("  once", quiet(20000000), 0);
    ioapic_write(0x10 + 2 * 2, 0x10000);
    cli();
}

void guest(void) {
    pit_readback();
    pic();
    ioapic();
}
