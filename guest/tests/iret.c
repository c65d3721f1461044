/* IRET in its forms: to the same and to the outer ring, 16, 32 and 64 bits wide, its refusals, flags.
 * SDM vol. 2A "IRET", vol. 3A §6.14.3. */
#include "runtime.h"

CODE(landing, "nop");
CODE32(compat_landing, "nop");
CODE(iret64, "iretq");
CODE(iret32, "iretl");
CODE(iret16, "iretw");
CODE(ring3_iret, "push %rax\n push %rbx\n pushf\n push %rcx\n push %rdx\n iretq");
CODE(nt_iret, "pushfq\n orl $0x4000, (%rsp)\n popfq\n iretq");

struct frame { u64 rip, cs, rflags, rsp, ss; };

/* Executes an IRETQ in ring 0 with the given frame. */
static struct context iretq(struct frame f) {
    struct context c = kernel(iret64);
    c.rsp -= sizeof f;
    memcpy((void *)c.rsp, &f, sizeof f);
    run(&c);
    return c;
}

static struct frame frame(u64 cs, u64 ss) {
    bool outer = cs & 3;
    u64 rip = cs == UCODE32 ? as_user(compat_landing) : outer ? as_user(landing) : (u64)landing;
    u64 rsp = kernel(landing).rsp - 1024;
    return (struct frame){rip, cs, 2, outer ? as_user(rsp) : rsp, ss};
}

static void refused(const char *name, struct frame f, u64 vector, u64 error) {
    struct context c = iretq(f);
    check_trap(name, &c, vector, error);
    check("  in ring 0, at IRET", c.rip, (u64)iret64);
    check("  RSP as before", c.rsp, kernel(landing).rsp - sizeof f);
}

static void lands(const char *name, struct frame f) {
    struct context c = iretq(f);
    check_trap(name, &c, DONE, 0);
    check("  RSP", c.rsp, f.rsp);
    check("  CS", c.cs, f.cs);
    check("  SS", c.ss, f.ss);
}

static void sound(void) {
    lands("to ring 0", frame(KCODE64, KDATA));
    lands("to ring 0 with a null SS", frame(KCODE64, 0));
    lands("to ring 3", frame(UCODE64, UDATA));
    lands("to ring 3, compatibility mode", frame(UCODE32, UDATA));
    struct frame f = frame(KCODE64, KDATA);
    f.rsp = 0x123456789abcdef0;
    set_ist(DONE, 1);
    struct context c = iretq(f);
    check("RSP is not checked at IRET", c.rsp, f.rsp);
    set_ist(DONE, 0);
    f = frame(UCODE64, UDATA);
    f.rflags = 0x2 | 0x8d5 | 0x200 | 0x3000 | 0x200000;
    c = iretq(f);
    check("ring 0 may change IF and IOPL", c.rflags, f.rflags);
    f.rflags = 0x2 | 0x10000;
    c = iretq(f);
    check_trap("RF is taken", &c, DONE, 0);
    f.rflags = ~0ul & ~0x24100ul;
    c = iretq(f);
    check("reserved flags stay fixed", c.rflags & ~0x3f7fd5ul, 2);
}

static void refusals(void) {
    struct frame f = frame(0, KDATA);
    refused("null CS", f, GP, 0);
    refused("CS is data", frame(KDATA, KDATA), GP, KDATA);
    refused("CS beyond the GDT", frame(0x1230, KDATA), GP, 0x1230);
    gdt[SPARE0 >> 3] = gdt[KCODE64 >> 3] & ~(1ul << 47);
    refused("absent CS", frame(SPARE0, KDATA), NP, SPARE0);
    refused("CS of ring 0 with RPL 3", frame(KCODE64 | 3, UDATA), GP, KCODE64);
    refused("SS is null for ring 3", frame(UCODE64, 3), GP, 0);
    refused("SS of ring 0 for ring 3", frame(UCODE64, KDATA), GP, KDATA);
    refused("SS is code", frame(UCODE64, UCODE64), GP, UCODE64 & ~3);
    refused("SS with another RPL", frame(UCODE64, UDATA & ~3), GP, UDATA & ~3);
    gdt[SPARE1 >> 3] = gdt[UDATA >> 3] & ~(1ul << 47);
    if (!skip_on_reference("absent SS", "#NP where the manual says #SS"))
        refused("absent SS", frame(UCODE64, SPARE1 | 3), SS, SPARE1);
    f = frame(UCODE32, 3);
    refused("SS is null for compatibility mode", f, GP, 0);
    f = frame(UCODE64, UDATA);
    f.rip = 0x800000000000;
    struct context c = iretq(f);
    /* The manual: #GP before anything changes; some processors load everything first. */
    check("non-canonical RIP", c.vector, GP);
    c = kernel(nt_iret);
    if (!skip_on_reference("NT in long mode", "not checked")) {
        run(&c);
        check_trap("NT in long mode", &c, GP, 0);
    }
    f = frame(UCODE64, UDATA);
    c = kernel(iret64);
    c.rsp = TEST_AREA + (7ul << 30);
    set_ist(PF, 1);
    run(&c);
    check_trap("frame on an unmapped page", &c, PF, 0);
    if (!skip_on_reference("frame at a non-canonical address", "#GP where the manual says #SS")) {
        c = kernel(iret64);
        c.rsp = 0x800000000000;
        run(&c);
        check_trap("frame at a non-canonical address", &c, SS, 0);
    }
}

static void narrow(void) {
    struct context c = kernel(iret32);
    c.rsp -= 20;
    u32 f32[5] = {(u32)as_user(landing), UCODE64, 2, (u32)as_user(c.rsp) - 512, UDATA};
    memcpy((void *)c.rsp, f32, sizeof f32);
    run(&c);
    check_trap("IRETL to ring 3", &c, DONE, 0);
    check("its RSP", c.rsp, f32[3]);
    c = kernel(iret32);
    c.rsp -= 20;
    f32[0] = (u32)(u64)landing, f32[1] = KCODE64, f32[3] = (u32)c.rsp - 64, f32[4] = KDATA;
    memcpy((void *)c.rsp, f32, sizeof f32);
    run(&c);
    check_trap("IRETL to ring 0", &c, DONE, 0);
    check("its RSP", c.rsp, f32[3]);
    /* 16 bits: the code must lie in the first 64 KiB. */
    memcpy((void *)0x9000, landing, 16);
    c = kernel(iret16);
    c.rsp -= 10;
    u16 f16[5] = {0x9000, KCODE64, 2, 0x9800, KDATA};
    memcpy((void *)c.rsp, f16, sizeof f16);
    run(&c);
    check_trap("IRETW to ring 0", &c, DONE, 0);
    check("its RIP", c.rip, 0x9003);
    check("its RSP", c.rsp, 0x9800);
}

static void from_ring3(void) {
    struct context c = user(ring3_iret);
    c.rax = UDATA;
    c.rbx = c.rsp - 256;
    c.rcx = UCODE64;
    c.rdx = as_user(landing);
    c.rflags |= 0x200;
    run(&c);
    check_trap("ring 3 to ring 3", &c, DONE, 0);
    check("ring 3 keeps IF", c.rflags & 0x200, 0x200);
    c = user(ring3_iret);
    c.rax = KDATA;
    c.rbx = c.rsp - 256;
    c.rcx = KCODE64;
    c.rdx = (u64)landing;
    run(&c);
    check_trap("ring 3 to ring 0", &c, GP, KCODE64);
    c = user(ring3_iret);
    c.rax = UDATA;
    c.rbx = c.rsp - 256;
    c.rcx = UCODE32;
    c.rdx = as_user(compat_landing);
    run(&c);
    check_trap("ring 3 to compatibility mode", &c, DONE, 0);
    check("CS", c.cs, UCODE32);
}

/* Data segments of the inner ring become null when the outer ring is entered. */
static void segments(void) {
    CODE(iret_with_ds, "mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %es\n iretq");
    CODE(read_ds, "mov %ds, %eax\n mov %es, %ebx");
    struct frame f = frame(UCODE64, UDATA);
    f.rip = as_user(read_ds);
    struct context c = kernel(iret_with_ds);
    c.rsp -= sizeof f;
    memcpy((void *)c.rsp, &f, sizeof f);
    run(&c);
    check_trap("IRET with DS and ES of ring 0", &c, DONE, 0);
    check("DS becomes null", c.rax, 0);
    check("ES becomes null", c.rbx, 0);
}

/* IRET re-enables NMIs; without it a second NMI waits. */
static u32 nmis;
static bool count_nmi(struct context *c) {
    (void)c;
    nmis++;
    /* A second one arrives while the first is handled; it must wait for our IRET. */
    if (nmis == 1) {
        send_ipi(0, 0x400);
        for (u32 i = 0; i < 10000; i++) pause();
        check("no NMI within an NMI", nmis, 1);
    }
    return true;
}

static void nmi(void) {
    apic_enable();
    handlers[NMI] = count_nmi;
    send_ipi(apic_read(APIC_ID) >> 24, 0x400);
    check_true("the NMI that waited comes after IRET", wait_for(nmis == 2));
}

void guest(void) {
    sound();
    refusals();
    narrow();
    from_ring3();
    segments();
    nmi();
}
