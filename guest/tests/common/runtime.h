/* Runtime of the test guests: cases and their report, traps, page tables, segments, processors, interrupt controllers.
 *
 * A guest is one topic: it defines `void guest(void)`, which calls `check*` for each case. Each case prints one line,
 * `ok NAME`, `skip NAME: reason` or `FAIL NAME: got .., want ..`; at the end the guest writes 0 (all passed) or 1 to
 * port 0xf4.
 *
 * Code under test is written as snippets (`CODE`), entered by `run` with every register given, and left by a trap: the
 * context then holds vector, error code, registers and CR2. So each case reads: make a context, run it, compare. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define offsetof(t, m) __builtin_offsetof(t, m)

/* ---- Report ---- */
void print(const char *text);
void print_hex(u64 value);
void check(const char *name, u64 got, u64 want);
void check_true(const char *name, bool holds);
void skip(const char *name, const char *reason);
/* True on a machine that deviates from the manual in a known way there; prints the skipped case. */
bool skip_on_reference(const char *name, const char *deviation);
__attribute__((noreturn)) void finish(void);

/* ---- Traps ---- */
struct context {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 vector, error, rip, cs, rflags, rsp, ss;
    u64 cr2;
};
_Static_assert(offsetof(struct context, vector) == 120 && offsetof(struct context, ss) == 168, "boot.S");

enum { DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13,
       PF = 14, MF = 16, AC = 17, MC = 18, XM = 19 };
enum { DONE = 0x80, SYSCALLED = 0x81 };

/* Defines a snippet. It ends in trap DONE unless it traps before. */
#define CODE(name, ...)                                                                                              \
    extern const char name[];                                                                                        \
    asm(".pushsection .text.snippets, \"ax\"\n.balign 64\n" #name ":\n" __VA_ARGS__ "\n int $0x80\n.popsection")
#define CODE32(name, ...) CODE(name, ".code32\n" __VA_ARGS__ "\n int $0x80\n.code64\n")
#define CODE16(name, ...) CODE(name, ".code16\n" __VA_ARGS__ "\n int $0x80\n.code64\n")

/* Fresh contexts: ring 0, ring 3, and ring 3 in compatibility mode. Interrupts off, a stack of their own. */
struct context kernel(const void *code);
struct context user(const void *code);
struct context compat(const void *code);
void run(struct context *c);
extern const char run_iret[];
/* Checks how a run ended. */
void check_trap(const char *name, const struct context *c, u64 vector, u64 error);
/* Runs snippet at ring 0 and checks its end; for cases without operands. */
void expect(const char *name, const void *code, u64 vector, u64 error);

/* A handler returns true when the interrupted code shall go on with the (changed) context, false to end the run. */
typedef bool (*handler_t)(struct context *c);
extern handler_t handlers[256];
/* Sets the IST slot (0..=7; 0 for none) of a vector; DPL likewise. Exceptions have IST 1 by default, others none. */
void set_ist(u32 vector, u32 ist);
void set_gate(u32 vector, u32 type_attributes);

/* ---- Segments ---- */
enum { KCODE64 = 0x08, KDATA = 0x10, UCODE32 = 0x1b, UDATA = 0x23, UCODE64 = 0x2b, UDATA2 = 0x33, KCODE32 = 0x38,
       UCODE16 = 0x43, UDATA16 = 0x4b, KCODE16 = 0x50, KDATA16 = 0x58, ABSENT = 0x60, SPARE0 = 0x68, SPARE1 = 0x70,
       SPARE2 = 0x78, SPARE3 = 0x80, TSS_BASE = 0xa0 };
extern u64 gdt[];
struct tss {
    u32 reserved0;
    u64 rsp[3], reserved1, ist[7], reserved2;
    u16 reserved3, io_map;
} __attribute__((packed));

/* ---- Processors ---- */
enum { MAX_CPUS = 8 };
struct cpu {
    struct context *context;
    u64 saved_rsp, stack_top;
    void (*volatile work)(void *);
    void *volatile argument;
    volatile u32 online, apic_id;
    u64 pad[2];
};
_Static_assert(sizeof(struct cpu) == 64, "boot.S");
extern struct cpu cpus[MAX_CPUS];
extern struct tss tss[MAX_CPUS];
u32 this_cpu(void);
/* Starts processors until `count` run; returns how many do. */
u32 start_cpus(u32 count);
void on_cpu(u32 cpu, void (*work)(void *), void *argument);
void wait_cpu(u32 cpu);

/* ---- Memory ---- */
enum { P = 1, W = 2, U = 4, PWT = 8, PCD = 16, A = 32, D = 64, PS = 128, G = 256 };
#define NX (1ul << 63)
#define ADDRESS_MASK 0x000ffffffffff000ul
enum { F_P = 1, F_W = 2, F_U = 4, F_RSVD = 8, F_ID = 16, F_PK = 32 };
/* RAM seen by ring 3: the identity map again at this offset. */
#define USER_BASE 0x80000000ul
#define as_user(p) ((u64)(p) + USER_BASE)
/* Addresses from here are unmapped at first, free for tests. */
#define TEST_AREA 0x10000000000ul
/* A zeroed page; a zeroed run of pages aligned to its size (a power of two). Identity-mapped. */
void *alloc_page(void);
void *alloc_pages(u32 count);
/* Maps at level 1 (4 KiB), 2 (2 MiB) or 3 (1 GiB), tables in between with P, W, U. Does not flush the TLB. */
void map(u64 address, u64 physical, u64 flags, u32 level);
/* The entry that translates `address` at `level` (4 for the PML4). The tables above it must exist. */
volatile u64 *entry(u64 address, u32 level);
void flush_tlb(void);
void *memset(void *to, int byte, u64 len);
void *memcpy(void *to, const void *from, u64 len);
int memcmp(const void *a, const void *b, u64 len);

/* ---- Instructions ---- */
#define barrier() asm volatile("" ::: "memory")
static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline void pause(void) { asm volatile("pause" ::: "memory"); }
static inline void cli(void) { asm volatile("cli" ::: "memory"); }
static inline void sti(void) { asm volatile("sti; nop" ::: "memory"); }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d)); return a | (u64)d << 32; }
static inline u64 rdmsr(u32 i) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(i)); return a | (u64)d << 32; }
static inline void wrmsr(u32 i, u64 v) { asm volatile("wrmsr" ::"a"((u32)v), "d"((u32)(v >> 32)), "c"(i) : "memory"); }
#define CONTROL(r)                                                                                                   \
    static inline u64 read_##r(void) { u64 v; asm volatile("mov %%" #r ", %0" : "=r"(v)); return v; }                \
    static inline void write_##r(u64 v) { asm volatile("mov %0, %%" #r ::"r"(v) : "memory"); }
CONTROL(cr0) CONTROL(cr2) CONTROL(cr3) CONTROL(cr4) CONTROL(cr8) CONTROL(dr0) CONTROL(dr6) CONTROL(dr7)
static inline void invlpg(u64 a) { asm volatile("invlpg (%0)" ::"r"(a) : "memory"); }
struct leaf { u32 a, b, c, d; };
static inline struct leaf cpuid(u32 leaf, u32 sub) {
    struct leaf r;
    asm volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
    return r;
}
bool has_smep(void), has_smap(void), has_1g_pages(void);

/* ---- Interrupt controllers ---- */
enum { APIC_ID = 0x20, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0, APIC_SPURIOUS = 0xf0, APIC_ISR = 0x100,
       APIC_IRR = 0x200, APIC_ICR = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320, APIC_LVT_LINT0 = 0x350,
       APIC_TIMER_INITIAL = 0x380, APIC_TIMER_CURRENT = 0x390, APIC_TIMER_DIVIDE = 0x3e0 };
static inline u32 apic_read(u32 r) { return *(volatile u32 *)(0xfee00000ul + r); }
static inline void apic_write(u32 r, u32 v) { *(volatile u32 *)(0xfee00000ul + r) = v; }
void apic_enable(void);
/* Sends what the low word of the interrupt command register says to one local APIC; waits until it has left. */
void send_ipi(u32 apic_id, u32 command);
u32 ioapic_read(u32 r);
void ioapic_write(u32 r, u32 v);
/* PIC pair at vectors 0x20 and 0x28, all lines masked. */
void pic_init(void);
/* PIT channel 0: mode 2 (periodic) or 0 (once), count in 1.193 MHz ticks. */
void pit_start(u32 mode, u16 count);

/* Spins while `condition` does not hold, for some seconds at the most; says whether it holds. */
#define wait_for(condition)                                                                                          \
    ({                                                                                                               \
        u64 until_ = rdtsc() + 80000000000ul;                                                                         \
        while (!(condition) && rdtsc() < until_) pause();                                                            \
        (bool)(condition);                                                                                           \
    })
void guest(void);
