/* See runtime.h. */
#include "runtime.h"

extern u32 boot_magic, boot_information;
extern u64 page_map[512];
extern const char image_end[];
extern const char trap_stubs[];
extern __attribute__((noreturn)) void leave_run(u64 saved_rsp);

#define CODE_SEGMENT(dpl, size_bits) (0x000f9a000000ffffull | (u64)(dpl) << 45 | (u64)(size_bits) << 52)
#define DATA_SEGMENT(dpl, size_bits) (0x000f92000000ffffull | (u64)(dpl) << 45 | (u64)(size_bits) << 52)
enum { BITS64 = 0xa, BITS32 = 0xc, BITS16 = 0x0 };
#define LIMIT_64K (~0x000f000000000000ull)

u64 gdt[(TSS_BASE >> 3) + 2 * MAX_CPUS] __attribute__((aligned(16))) = {
    [KCODE64 >> 3] = CODE_SEGMENT(0, BITS64),
    [KDATA >> 3] = DATA_SEGMENT(0, BITS32),
    [UCODE32 >> 3] = CODE_SEGMENT(3, BITS32),
    [UDATA >> 3] = DATA_SEGMENT(3, BITS32),
    [UCODE64 >> 3] = CODE_SEGMENT(3, BITS64),
    [UDATA2 >> 3] = DATA_SEGMENT(3, BITS32),
    [KCODE32 >> 3] = CODE_SEGMENT(0, BITS32),
    [UCODE16 >> 3] = CODE_SEGMENT(3, BITS16) & LIMIT_64K,
    [UDATA16 >> 3] = DATA_SEGMENT(3, BITS16) & LIMIT_64K,
    [KCODE16 >> 3] = CODE_SEGMENT(0, BITS16) & LIMIT_64K,
    [KDATA16 >> 3] = DATA_SEGMENT(0, BITS16) & LIMIT_64K,
    [ABSENT >> 3] = DATA_SEGMENT(0, BITS32) & ~(1ull << 47),
};
struct tss tss[MAX_CPUS];
handler_t handlers[256];
struct idt_gate { u16 low; u16 selector; u16 attributes; u16 middle; u32 high; u32 zero; } idt[256];

#define STACK_SIZE 16384
static u8 cpu_stacks[MAX_CPUS][STACK_SIZE] __attribute__((aligned(16)));
static u8 trap_stacks[MAX_CPUS][2][STACK_SIZE] __attribute__((aligned(16)));
static u8 run_stacks[MAX_CPUS][STACK_SIZE] __attribute__((aligned(16)));
struct cpu cpus[MAX_CPUS];

/* ---- Report ---- */

static volatile u32 print_lock;
static u32 failures, cases;
static bool on_reference;

static void put(char c) {
    for (u32 spins = 0; !(inb(0x3fd) & 0x20) && spins < 100000; spins++) pause();
    outb(0x3f8, c);
}

void print(const char *text) {
    while (*text) put(*text++);
}

void print_hex(u64 value) {
    print("0x");
    bool started = false;
    for (int shift = 60; shift >= 0; shift -= 4) {
        u32 digit = value >> shift & 15;
        started |= digit || !shift;
        if (started) put("0123456789abcdef"[digit]);
    }
}

static void lock_print(void) {
    while (__sync_lock_test_and_set(&print_lock, 1)) pause();
}

static void unlock_print(void) { __sync_lock_release(&print_lock); }

static void verdict(const char *name, bool holds) {
    cases++;
    failures += !holds;
    print(holds ? "ok " : "FAIL ");
    print(name);
}

void check(const char *name, u64 got, u64 want) {
    lock_print();
    verdict(name, got == want);
    if (got != want) {
        print(": got ");
        print_hex(got);
        print(", want ");
        print_hex(want);
    }
    put('\n');
    unlock_print();
}

void check_true(const char *name, bool holds) { check(name, holds, true); }

void skip(const char *name, const char *reason) {
    lock_print();
    print("skip ");
    print(name);
    print(": ");
    print(reason);
    put('\n');
    unlock_print();
}

bool skip_on_reference(const char *name, const char *deviation) {
    if (on_reference) skip(name, deviation);
    return on_reference;
}

static void print_trap(const struct context *c) {
    print("trap ");
    print_hex(c->vector);
    print(" error ");
    print_hex(c->error);
    print(" rip ");
    print_hex(c->rip);
    print(" cr2 ");
    print_hex(c->cr2);
    print(" rsp ");
    print_hex(c->rsp);
}

void check_trap(const char *name, const struct context *c, u64 vector, u64 error) {
    bool holds = c->vector == vector && c->error == error;
    lock_print();
    verdict(name, holds);
    if (!holds) {
        print(": got ");
        print_trap(c);
        print(", want trap ");
        print_hex(vector);
        print(" error ");
        print_hex(error);
    }
    put('\n');
    unlock_print();
}

void expect(const char *name, const void *code, u64 vector, u64 error) {
    struct context c = kernel(code);
    run(&c);
    check_trap(name, &c, vector, error);
}

void finish(void) {
    if (!cases) failures++;
    print(failures ? "guest: FAILED\n" : "guest: passed\n");
    outb(0xf4, failures != 0);
    for (;;) asm volatile("cli; hlt");
}

/* ---- Traps ---- */

u32 this_cpu(void) {
    u16 selector;
    asm volatile("str %0" : "=r"(selector));
    return (selector - TSS_BASE) >> 4;
}

void dispatch(struct context *frame);
void dispatch(struct context *frame) {
    struct cpu *cpu = &cpus[this_cpu()];
    /* The frame on the stack ends before cr2. */
    struct context c;
    memcpy(&c, frame, offsetof(struct context, cr2));
    c.cr2 = read_cr2();
    handler_t handler = handlers[c.vector];
    if (handler && handler(&c)) {
        memcpy(frame, &c, offsetof(struct context, cr2));
        return;
    }
    if (!cpu->context) {
        print("FAIL unexpected ");
        print_trap(&c);
        put('\n');
        failures++;
        finish();
    }
    *cpu->context = c;
    cpu->context = NULL;
    leave_run(cpu->saved_rsp);
}

static struct context context_for(u64 rip, u64 cs, u64 ss, u64 rsp) {
    return (struct context){.rip = rip, .cs = cs, .ss = ss, .rsp = rsp, .rflags = 2};
}

static u64 run_stack(void) { return (u64)run_stacks[this_cpu()] + STACK_SIZE - 256; }

struct context kernel(const void *code) { return context_for((u64)code, KCODE64, KDATA, run_stack()); }
struct context user(const void *code) { return context_for(as_user(code), UCODE64, UDATA, as_user(run_stack())); }
struct context compat(const void *code) { return context_for(as_user(code), UCODE32, UDATA, as_user(run_stack())); }

void set_ist(u32 vector, u32 ist) { idt[vector].attributes = (idt[vector].attributes & ~7) | ist; }

void set_gate(u32 vector, u32 type_attributes) {
    idt[vector].attributes = (idt[vector].attributes & 7) | type_attributes << 8;
}

static void fill_idt(void) {
    for (u32 v = 0; v < 256; v++) {
        u64 target = (u64)trap_stubs + 16 * v;
        bool open = v == BP || v == OF || v == DONE || v == SYSCALLED;
        idt[v] = (struct idt_gate){.low = target, .selector = KCODE64, .attributes = open ? 0xee00 : 0x8e00,
                                   .middle = target >> 16, .high = target >> 32};
        set_ist(v, v == NMI || v == DF || v == MC ? 2 : v < 32 ? 1 : 0);
    }
}

static void load_tables(u32 cpu) {
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};
    u64 base = (u64)&tss[cpu];
    tss[cpu].rsp[0] = (u64)trap_stacks[cpu][0] + STACK_SIZE;
    for (u32 i = 0; i < 7; i++) tss[cpu].ist[i] = (u64)trap_stacks[cpu][i == 0 ? 0 : 1] + STACK_SIZE;
    tss[cpu].ist[0] -= STACK_SIZE / 2;
    tss[cpu].io_map = sizeof(struct tss);
    u32 slot = (TSS_BASE >> 3) + 2 * cpu;
    gdt[slot] = (sizeof(struct tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[slot + 1] = base >> 32;
    asm volatile("lidt %0" ::"m"(pointer));
    asm volatile("lldt %w0" ::"r"(0));
    asm volatile("ltr %w0" ::"r"(TSS_BASE + 16 * cpu));
}

/* ---- Memory ---- */

static u64 next_page;

void *alloc_pages(u32 count) {
    u64 size = count * 4096ul;
    next_page = (next_page + size - 1) & -size;
    void *page = (void *)next_page;
    next_page += size;
    if (next_page > 60ul << 20) {
        print("FAIL the guest is out of memory\n");
        failures++;
        finish();
    }
    return memset(page, 0, size);
}

void *alloc_page(void) { return alloc_pages(1); }

volatile u64 *entry(u64 address, u32 level) {
    u64 *table = page_map;
    for (u32 l = 4; l > level; l--) table = (u64 *)(table[address >> (9 * l + 3) & 511] & ADDRESS_MASK);
    return &table[address >> (9 * level + 3) & 511];
}

void map(u64 address, u64 physical, u64 flags, u32 level) {
    for (u32 l = 4; l > level; l--) {
        volatile u64 *e = entry(address, l);
        if (!(*e & P)) *e = (u64)alloc_page() | P | W | U;
    }
    *entry(address, level) = physical | flags | (level > 1 ? PS : 0);
}

void flush_tlb(void) {
    u64 cr4 = read_cr4();
    write_cr4(cr4 ^ 0x80);
    write_cr4(cr4);
    write_cr3(read_cr3());
}

void *memset(void *to, int byte, u64 len) {
    void *d = to;
    asm volatile("rep stosb" : "+D"(d), "+c"(len) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, u64 len) {
    void *d = to;
    asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(len)::"memory");
    return to;
}

int memcmp(const void *a, const void *b, u64 len) {
    const u8 *x = a, *y = b;
    for (u64 i = 0; i < len; i++)
        if (x[i] != y[i]) return x[i] - y[i];
    return 0;
}

bool has_smep(void) { return cpuid(0, 0).a >= 7 && cpuid(7, 0).b >> 7 & 1; }
bool has_smap(void) { return cpuid(0, 0).a >= 7 && cpuid(7, 0).b >> 20 & 1; }
bool has_1g_pages(void) { return cpuid(0x80000001, 0).d >> 26 & 1; }

/* ---- Processors ---- */

extern const char ap_start[], ap_end[];
extern volatile u32 cpus_started;

void ap_main(u32 cpu);
void ap_main(u32 cpu) {
    load_tables(cpu);
    apic_enable();
    cpus[cpu].apic_id = apic_read(APIC_ID) >> 24;
    cpus[cpu].online = 1;
    for (;;) {
        while (!cpus[cpu].work) pause();
        cpus[cpu].work(cpus[cpu].argument);
        barrier();
        cpus[cpu].work = NULL;
    }
}

u32 start_cpus(u32 count) {
    apic_enable();
    cpus[0].apic_id = apic_read(APIC_ID) >> 24;
    memcpy((void *)0x8000, ap_start, ap_end - ap_start);
    for (u32 i = 1; i < count; i++) {
        send_ipi(i, 0x4500);
        for (u64 until = rdtsc() + 20000000; rdtsc() < until;) pause();
        send_ipi(i, 0x4608);
        u64 until = rdtsc() + 2000000;
        while (cpus_started <= i && rdtsc() < until) pause();
        if (cpus_started <= i) send_ipi(i, 0x4608);
        if (!wait_for(cpus_started > i && cpus[i].online)) return i;
    }
    return count;
}

void on_cpu(u32 cpu, void (*work)(void *), void *argument) {
    cpus[cpu].argument = argument;
    barrier();
    cpus[cpu].work = work;
}

void wait_cpu(u32 cpu) {
    if (!wait_for(!cpus[cpu].work)) {
        print("FAIL a processor did not finish its work\n");
        failures++;
        finish();
    }
}

/* ---- Interrupt controllers ---- */

void apic_enable(void) {
    wrmsr(0x1b, rdmsr(0x1b) | 0x800);
    apic_write(APIC_SPURIOUS, 0x1ff);
    apic_write(APIC_TPR, 0);
}

void send_ipi(u32 apic_id, u32 command) {
    apic_write(APIC_ICR_HIGH, apic_id << 24);
    apic_write(APIC_ICR, command);
    wait_for(!(apic_read(APIC_ICR) & 0x1000));
}

u32 ioapic_read(u32 r) {
    *(volatile u32 *)0xfec00000ul = r;
    return *(volatile u32 *)0xfec00010ul;
}

void ioapic_write(u32 r, u32 v) {
    *(volatile u32 *)0xfec00000ul = r;
    *(volatile u32 *)0xfec00010ul = v;
}

void pic_init(void) {
    static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
                                  {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0x21, 0xff}, {0xa1, 0xff}};
    for (u32 i = 0; i < sizeof words / 2; i++) outb(words[i][0], words[i][1]);
}

void pit_start(u32 mode, u16 count) {
    outb(0x43, 0x30 | mode << 1);
    outb(0x40, count);
    outb(0x40, count >> 8);
}

/* ---- Start ---- */

static bool contains(const char *text, const char *word) {
    for (; *text; text++) {
        u32 i = 0;
        while (word[i] && text[i] == word[i]) i++;
        if (!word[i]) return true;
    }
    return false;
}

static void read_command_line(void) {
    const u32 *information = (const u32 *)(u64)boot_information;
    if (boot_magic == 0x2badb002 && information[0] & 4)
        on_reference = contains((const char *)(u64)information[4], "machine=qemu");
}

void runtime_start(void);
void runtime_start(void) {
    for (u32 i = 0; i < MAX_CPUS; i++) cpus[i].stack_top = (u64)cpu_stacks[i] + STACK_SIZE;
    next_page = ((u64)image_end + 4095) & -4096ul;
    outb(0x3fb, 3);
    outb(0x3f9, 0);
    put('\n');
    fill_idt();
    load_tables(0);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    cpus[0].online = 1;
    read_command_line();
    guest();
    finish();
}
