/* Interrupt shadows of STI and MOV SS, single step, breakpoints. SDM vol. 3A §6.8.3, vol. 3B §17.2–17.3. */
#include "runtime.h"

static volatile u64 hits, hit_rip[64], hit_dr6[64], hit_flags[64];

static bool note(struct context *c) {
    if (hits < 64) {
        hit_rip[hits] = c->rip;
        hit_dr6[hits] = read_dr6();
        hit_flags[hits] = c->rflags;
    }
    hits++;
    write_dr6(0xffff0ff0);
    return true;
}

/* The handler of the pending interrupt: ends the run where it struck. */
static bool eoi(struct context *c) {
    (void)c;
    apic_write(APIC_EOI, 0);
    return false;
}

static void pend(void) { send_ipi(apic_read(APIC_ID) >> 24, 0x40f1); }

/* Runs a snippet with an interrupt pending and checks at which offset of it the interrupt strikes. */
static void struck(const char *name, const void *code, u64 rflags, u64 offset) {
    pend();
    struct context c = kernel(code);
    c.rflags |= rflags;
    c.rax = KDATA;
    run(&c);
    check("  vector", c.vector, 0xf1);
    check(name, c.rip - (u64)code, offset);
}

CODE(sti_nops, "sti\n nop\n nop\n nop");
CODE(sti_jump, "sti\n jmp 1f\n .skip 40, 0x90\n 1: nop\n nop");
CODE(sti_cli, "sti\n cli\n nop\n nop");
CODE(sti_enabled, "sti\n nop");
CODE(sti_sti, "sti\n sti\n nop\n nop");
CODE(sti_hlt, "sti\n hlt\n nop");
CODE(popf_if, "push $0x202\n popfq\n nop\n nop");
CODE(sti_mov_ss, "sti\n mov %eax, %ss\n nop\n nop");
CODE(nops, "nop\n nop\n nop");

static void sti_shadow(void) {
    apic_enable();
    handlers[0xf1] = eoi;
    struck("after STI one more instruction runs", sti_nops, 0, 2);
    struck("the shadow spans a jump", sti_jump, 0, 3 + 40);
    struck("POPF has no shadow", popf_if, 0, 6);
    struck("STI with IF set has no shadow", sti_enabled, 0x200, 0);
    struck("STI; HLT wakes", sti_hlt, 0, 2);
    struck("STI; STI: one shadow", sti_sti, 0, 2);
    pend();
    struct context c = kernel(sti_cli);
    run(&c);
    check_trap("STI; CLI lets nothing in", &c, DONE, 0);
    pend();
    c = kernel(nops);
    run(&c);
    check_trap("IF clear lets nothing in", &c, DONE, 0);
    struck("an interrupt that was pending comes with IRET", nops, 0x200, 0);
}

static void mov_ss_shadow(void) {
    CODE(ss_window, "mov %eax, %ss\n sti\n nop\n nop");
    /* MOV SS then STI: the STI executes in the shadow and starts its own (or not: implementations differ). */
    pend();
    struct context c = kernel(ss_window);
    c.rax = KDATA;
    run(&c);
    u64 offset = c.rip - (u64)ss_window;
    check_true("MOV SS; STI", c.vector == 0xf1 && (offset == 3 || offset == 4));
    /* STI; MOV SS: MOV SS runs in STI's shadow; then its own holds (SDM) or not. */
    pend();
    c = kernel(sti_mov_ss);
    c.rax = KDATA;
    run(&c);
    offset = c.rip - (u64)sti_mov_ss;
    check_true("STI; MOV SS", c.vector == 0xf1 && (offset == 3 || offset == 4));
}

/* ---- Single step ---- */

static struct context step(struct context c) {
    hits = 0;
    handlers[DB] = note;
    c.rflags |= 0x100;
    write_dr6(0xffff0ff0);
    run(&c);
    handlers[DB] = NULL;
    return c;
}

/* Steps through a snippet up to its final INT and compares the offsets at which #DB came. */
static void steps(const char *name, struct context c, const u8 *offsets, u32 count) {
    u64 base = c.rip;
    c = step(c);
    check_trap(name, &c, DONE, 0);
    check("  number of steps", hits, count);
    u64 wrong = 0, bs = 0;
    for (u32 i = 0; i < hits && i < count && i < 64; i++) {
        wrong += hit_rip[i] - base != offsets[i];
        bs += hit_dr6[i] >> 14 & 1;
    }
    check("  steps at a wrong address", wrong, 0);
    check("  DR6.BS at each", bs, count);
}

CODE(step_plain, "nop\n mov %rsp, %rax\n jmp 1f\n nop\n 1: nop");
CODE(step_rep, "mov $3, %ecx\n mov %rsp, %rdi\n xor %eax, %eax\n rep stosb\n nop");
CODE(step_rep_zero, "xor %ecx, %ecx\n rep stosb\n nop");
CODE(step_mov_ss, "mov %ss, %eax\n mov %eax, %ss\n nop\n nop");
CODE(step_pushf, "pushfq\n pop %rax\n nop");
CODE(step_popf_off, "push $2\n popfq\n nop\n nop");
CODE(step_popf_on, "push $0x102\n popfq\n nop\n nop\n push $2\n popfq\n nop");
CODE(step_int, "nop\n int $0x92\n nop");
CODE(step_call, "call 1f\n nop\n jmp 2f\n 1: ret\n 2: nop");

static bool resume(struct context *c) {
    hit_flags[63] = c->rflags;
    u64 now;
    asm volatile("pushfq; pop %0" : "=r"(now));
    hit_flags[62] = now;
    return true;
}

static void single_step(void) {
    static const u8 plain[] = {1, 4, 7, 8};
    steps("single step", kernel(step_plain), plain, 4);
    steps("single step in ring 3", user(step_plain), plain, 4);
    static const u8 rep[] = {5, 8, 10, 10, 10, 12, 13};
    steps("each iteration of REP is a step", kernel(step_rep), rep, 7);
    static const u8 rep_zero[] = {2, 4, 5};
    steps("REP with RCX = 0 is one step", kernel(step_rep_zero), rep_zero, 3);
    static const u8 ss[] = {2, 5, 6};
    if (!skip_on_reference("MOV SS holds a single-step trap back", "implemented as for interrupts only"))
        steps("MOV SS holds a single-step trap back", kernel(step_mov_ss), ss, 3);
    static const u8 pushf[] = {1, 2, 3};
    steps("PUSHF pushes TF", kernel(step_pushf), pushf, 3);
    struct context c = step(kernel(step_pushf));
    check("  the pushed TF", c.rax & 0x100, 0x100);
    static const u8 off[] = {2, 3};
    steps("POPF that clears TF still traps after itself", kernel(step_popf_off), off, 2);
    check("  with TF clear in the frame", hit_flags[1] & 0x100, 0);
    /* POPF that sets TF: the first trap is after the instruction after it. */
    hits = 0;
    handlers[DB] = note;
    c = kernel(step_popf_on);
    run(&c);
    check_trap("POPF sets TF", &c, DONE, 0);
    static const u8 on[] = {7, 8, 10, 11};
    check("  number of steps", hits, 4);
    u64 wrong = 0;
    for (u32 i = 0; i < 4; i++) wrong += hit_rip[i] - (u64)step_popf_on != (u64)on[i];
    check("  steps at a wrong address", wrong, 0);
    handlers[0x92] = resume;
    set_gate(0x92, 0xee);
    c = step(kernel(step_int));
    check_trap("INT n under TF", &c, DONE, 0);
    check("  the frame holds TF", hit_flags[63] & 0x100, 0x100);
    check("  the handler runs without TF", hit_flags[62] & 0x100, 0);
    check("  steps: before it, and after its successor", hits, 2);
    c = step(kernel(step_call));
    check("CALL, RET and JMP are one step each", hits, 5);
}

/* SYSCALL with TF set and not masked traps in the kernel, after the first instruction there; masked, not at all. */
static void step_syscall(void) {
    extern const char step_sys[], step_sys_entry[];
    wrmsr(0xc0000081, (u64)UCODE32 << 48 | (u64)KCODE64 << 32);
    wrmsr(0xc0000082, (u64)step_sys_entry);
    wrmsr(0xc0000084, 0x100);
    struct context c = step(user(step_sys));
    check_trap("SYSCALL under TF, masked", &c, DONE, 0);
    check("  no step in the kernel", hits, 1);
    check("  R11 keeps TF", c.r11 & 0x100, 0x100);
}
CODE(step_sys, "nop\n syscall");
CODE(step_sys_entry, "nop\n nop");

/* ---- Breakpoints ---- */

CODE(watched, "nop\n nop\n mov %rax, (%rbx)\n nop\n mov (%rbx), %rax\n nop\n movb $1, 9(%rbx)\n nop");

static bool once(struct context *c) {
    note(c);
    c->rflags |= 0x10000;
    return true;
}

static void run_watched(u64 *cell) {
    hits = 0;
    struct context c = kernel(watched);
    c.rbx = (u64)cell;
    run(&c);
    write_dr7(0x400);
    check("  end", c.vector, DONE);
}

static void watchpoints(void) {
    u64 *cell = alloc_page();
    write_dr6(0xffff0ff0);
    handlers[DB] = once;
    asm volatile("mov %0, %%dr0" ::"r"(watched + 1));
    write_dr7(0x402);
    run_watched(cell);
    check("instruction breakpoint: one hit with RF", hits, 1);
    check("  RIP at the instruction", hit_rip[0], (u64)watched + 1);
    check("  DR6", hit_dr6[0] & 0xf, 1);
    handlers[DB] = note;
    asm volatile("mov %0, %%dr0" ::"r"(cell));
    write_dr7(0x402 | 1 << 16 | 3 << 18);
    run_watched(cell);
    check("write watchpoint of 4 bytes: one hit", hits, 1);
    check("  RIP after the instruction", hit_rip[0], (u64)watched + 5);
    write_dr7(0x402 | 3 << 16 | 3 << 18);
    run_watched(cell);
    check("read and write watchpoint: two hits", hits, 2);
    check("  RIP of the second", hit_rip[1], (u64)watched + 9);
    asm volatile("mov %0, %%dr0" ::"r"((u64)cell + 9));
    write_dr7(0x402 | 1 << 16);
    run_watched(cell);
    check("write watchpoint of one byte", hits, 1);
    check("  RIP", hit_rip[0], (u64)watched + 14);
    handlers[DB] = NULL;
}

/* DR7.GD guards the debug registers. */
static void general_detect(void) {
    CODE(read_dr, "mov %dr0, %rax");
    write_dr7(0x2400);
    struct context c = kernel(read_dr);
    run(&c);
    if (!skip_on_reference("general detect", "not implemented")) {
        check_trap("general detect", &c, DB, 0);
        check("  DR6.BD", read_dr6() >> 13 & 1, 1);
    }
    write_dr7(0x400);
    write_dr6(0xffff0ff0);
}

void guest(void) {
    sti_shadow();
    mov_ss_shadow();
    single_step();
    step_syscall();
    watchpoints();
    general_detect();
}
