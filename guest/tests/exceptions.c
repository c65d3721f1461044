/* Exceptions: vectors and error codes, stacks (TSS, IST), double fault, non-canonical addresses, alignment, MSRs.
 * SDM vol. 3A §6.13–6.15; vol. 1 §3.3.7.1 (canonical addresses). */
#include "runtime.h"

CODE(divide_by_zero, "xor %ecx, %ecx\n xor %edx, %edx\n mov $5, %eax\n div %ecx");
CODE(divide_overflow, "mov $1, %ecx\n mov $2, %edx\n mov $5, %eax\n div %ecx");
CODE(idiv_overflow, "mov $-1, %rcx\n mov $1, %rax\n shl $63, %rax\n cqo\n idiv %rcx");
CODE(breakpoint, "int3");
CODE(icebp, ".byte 0xf1");
CODE(undefined, "ud2");
CODE(invalid_opcode, ".byte 0x06");
CODE(lock_register, ".byte 0xf0, 0x01, 0xc0");
CODE(lock_mov, ".byte 0xf0, 0x89, 0x03");
CODE(int_no_gate, "int $0xf0");
CODE(too_long, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90");
CODE(fifteen_bytes, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90");
CODE(load_ds, "mov %ax, %ds");
CODE(load_ss, "mov %ax, %ss");
CODE(load_fs, "mov %ax, %fs");
CODE(far_return, "push %rax\n push %rbx\n lretq");
CODE(load_tr, "ltr %ax");
CODE(load_ldt, "lldt %ax");
CODE(read64, "mov (%rbx), %rax");
CODE(write64, "mov %rax, (%rbx)");
CODE(stack_read, "mov (%rbp), %rax");
CODE(stack_push, "mov %rbx, %rsp\n push %rax");
CODE(stack_pop, "mov %rbx, %rsp\n pop %rax");
CODE(stack_override, "mov %ss:(%rbx), %rax");
CODE(jump, "jmp *%rbx");
CODE(call, "call *%rbx");
CODE(ret, "push %rbx\n ret");
CODE(read_msr, "rdmsr");
CODE(write_msr, "wrmsr");
CODE(halt, "hlt");
CODE(clear_if, "cli");
CODE(port_in, "in $0x80, %al");
CODE(read_cr, "mov %cr0, %rax");
CODE(write_cr0_, "mov %rax, %cr0");
CODE(write_cr3_, "mov %rax, %cr3");
CODE(write_cr4_, "mov %rax, %cr4");
CODE(write_cr8_, "mov %rax, %cr8");
CODE(read_dr, "mov %dr4, %rax");
CODE(misaligned_sse, "movaps 1(%rsp), %xmm0");
CODE(misaligned_sse_store, "movaps %xmm0, 8(%rsp)");
CODE(unaligned_sse, "movups 1(%rsp), %xmm0");
CODE(unaligned_access, "orq $0x40000, (%rsp)\n popfq\n mov 1(%rsp), %eax");
CODE(store_gdt, "sgdt -16(%rsp)");
CODE(rdpmc_, "mov $0x40000100, %ecx\n rdpmc");

static void ring0(const char *name, const void *code, u64 rax, u64 rbx, u64 rcx, u64 vector, u64 error) {
    struct context c = kernel(code);
    c.rax = rax;
    c.rbx = rbx;
    c.rcx = rcx;
    run(&c);
    check_trap(name, &c, vector, error);
    if (vector < 32 && vector != BP && vector != DB && code != (const void *)jump && code != (const void *)ret)
        check_true("  RIP is in the snippet", c.rip - (u64)code < 64);
}

static void ring3(const char *name, const void *code, u64 rax, u64 vector, u64 error) {
    struct context c = user(code);
    c.rax = rax;
    run(&c);
    check_trap(name, &c, vector, error);
}

/* Error code of a fault in a gate of the IDT. The reference gives the gate's offset instead of its index. */
static u64 gate_error(u64 vector) { return vector * 8 + 2; }

static void gates(void) {
    set_gate(0xf0, 0x8e);
    ring0("INT n", int_no_gate, 0, 0, 0, 0xf0, 0);
    if (skip_on_reference("error codes of gates", "the gate's offset where the manual says its index")) return;
    set_gate(0xf0, 0x0e);
    ring0("INT n, gate absent", int_no_gate, 0, 0, 0, NP, gate_error(0xf0));
    set_gate(0xf0, 0x8e);
    ring3("INT n, gate for ring 0", int_no_gate, 0, GP, gate_error(0xf0));
    set_gate(0xf0, 0x85);
    ring0("INT n, gate of a wrong type", int_no_gate, 0, 0, 0, GP, gate_error(0xf0));
    set_gate(0xf0, 0x8e);
    set_gate(BP, 0x8e);
    ring3("INT3, gate for ring 0", breakpoint, 0, GP, gate_error(BP));
    set_gate(BP, 0xee);
}

static void simple(void) {
    expect("divide by zero", divide_by_zero, DE, 0);
    expect("divide overflow", divide_overflow, DE, 0);
    expect("most negative / -1", idiv_overflow, DE, 0);
    expect("INT3", breakpoint, BP, 0);
    struct context c = user(breakpoint);
    run(&c);
    check("INT3 is a trap: RIP after it", c.rip, as_user(breakpoint) + 1);
    expect("UD2", undefined, UD, 0);
    c = kernel(undefined);
    run(&c);
    check("UD2 is a fault: RIP at it", c.rip, (u64)undefined);
    expect("PUSH ES in 64-bit mode", invalid_opcode, UD, 0);
    expect("LOCK with a register operand", lock_register, UD, 0);
    if (!skip_on_reference("LOCK MOV", "executed")) expect("LOCK MOV", lock_mov, UD, 0);
    expect("instruction of 16 bytes", too_long, GP, 0);
    expect("instruction of 15 bytes", fifteen_bytes, DONE, 0);
    if (!skip_on_reference("INT1", "ends in its debugger")) expect("INT1", icebp, DB, 0);
}

static void selectors(void) {
    ring0("null DS", load_ds, 0, 0, 0, DONE, 0);
    ring0("DS beyond the GDT", load_ds, 0x1230, 0, 0, GP, 0x1230);
    ring0("DS from an absent LDT", load_ds, 0x1c, 0, 0, GP, 0x1c);
    ring0("DS from an absent LDT, RPL is not reported", load_ds, 0x1f, 0, 0, GP, 0x1c);
    ring0("DS = absent segment", load_ds, ABSENT, 0, 0, NP, ABSENT);
    ring0("FS = absent segment", load_fs, ABSENT, 0, 0, NP, ABSENT);
    ring0("DS = TSS", load_ds, TSS_BASE, 0, 0, GP, TSS_BASE);
    ring0("SS = absent segment", load_ss, ABSENT, 0, 0, SS, ABSENT);
    ring0("SS = code segment", load_ss, KCODE64, 0, 0, GP, KCODE64);
    ring0("SS with a wrong RPL", load_ss, KDATA | 3, 0, 0, GP, KDATA);
    ring0("null SS with RPL 0 in ring 0", load_ss, 0, 0, 0, DONE, 0);
    ring3("null SS in ring 3", load_ss, 3, GP, 0);
    ring3("DS of ring 0 from ring 3", load_ds, KDATA, GP, KDATA);
    ring3("DS of ring 3", load_ds, UDATA, DONE, 0);
    /* Execute-only code cannot be read. */
    gdt[SPARE0 >> 3] = gdt[KCODE64 >> 3] & ~(1ul << 41);
    ring0("DS = execute-only code", load_ds, SPARE0, 0, 0, GP, SPARE0);
    ring0("DS = readable code", load_ds, KCODE64, 0, 0, DONE, 0);
    ring0("far return to a data segment", far_return, KDATA, (u64)undefined, 0, GP, KDATA);
    ring0("far return to null", far_return, 0, (u64)undefined, 0, GP, 0);
    ring0("far return to an absent segment", far_return, 0x1238, (u64)undefined, 0, GP, 0x1238);
    gdt[SPARE0 >> 3] = gdt[KCODE64 >> 3] & ~(1ul << 47);
    ring0("far return to absent code", far_return, SPARE0, (u64)undefined, 0, NP, SPARE0);
    gdt[SPARE0 >> 3] = gdt[KCODE64 >> 3] | 1ul << 54;
    if (!skip_on_reference("far return to code with L and D", "not checked"))
        ring0("far return to code with L and D", far_return, SPARE0, (u64)undefined, 0, GP, SPARE0);
    ring0("LTR of a busy TSS", load_tr, TSS_BASE, 0, 0, GP, TSS_BASE);
    if (!skip_on_reference("LTR of null", "accepted")) ring0("LTR of null", load_tr, 0, 0, 0, GP, 0);
    ring0("LTR of data", load_tr, KDATA, 0, 0, GP, KDATA);
    ring0("LLDT of null", load_ldt, 0, 0, 0, DONE, 0);
    ring0("LLDT of data", load_ldt, KDATA, 0, 0, GP, KDATA);
    ring3("LTR in ring 3", load_tr, TSS_BASE, GP, 0);
}

static void accessed_bit(void) {
    gdt[SPARE1 >> 3] = gdt[UDATA >> 3] & ~(1ul << 40);
    ring0("load of a fresh segment", load_ds, SPARE1, 0, 0, DONE, 0);
    check("the load sets the descriptor's accessed bit", gdt[SPARE1 >> 3] >> 40 & 1, 1);
}

static void canonical(void) {
    const u64 hole = 0x800000000000ul, high = 0xffff7fffffffffff;
    if (cpuid(7, 0).c >> 16 & 1 && read_cr4() >> 12 & 1) return skip("canonical addresses", "5-level paging is on");
    ring0("read of a non-canonical address", read64, 0, hole, 0, GP, 0);
    ring0("write to a non-canonical address", write64, 0, high, 0, GP, 0);
    struct context c = kernel(stack_read);
    c.rbp = hole;
    run(&c);
    if (!skip_on_reference("stack references", "#GP where the manual says #SS")) {
        check_trap("read by RBP of a non-canonical address", &c, SS, 0);
        ring0("push to a non-canonical address", stack_push, 0, hole + 64, 0, SS, 0);
        ring0("pop from a non-canonical address", stack_pop, 0, hole, 0, SS, 0);
        ring0("SS override does nothing in 64-bit mode for RBX", stack_override, 0, hole, 0, GP, 0);
    }
    ring0("jump to a non-canonical address", jump, 0, hole, 0, GP, 0);
    c = kernel(jump);
    c.rbx = hole;
    run(&c);
    if (!skip_on_reference("RIP of a jump to a non-canonical address", "faults at the target"))
        check("RIP of a jump to a non-canonical address", c.rip, (u64)jump);
    c = kernel(call);
    c.rbx = high;
    u64 rsp = c.rsp;
    run(&c);
    check_trap("call of a non-canonical address", &c, GP, 0);
    if (!skip_on_reference("RSP after such a call", "faults at the target"))
        check("RSP after such a call", c.rsp, rsp);
    ring0("return to a non-canonical address", ret, 0, hole, 0, GP, 0);
    ring0("last canonical byte is only unmapped", read64, 0, hole - 8, 0, PF, 0);
    map(hole - 4096, (u64)alloc_page(), P | W, 1);
    flush_tlb();
    if (!skip_on_reference("read across the canonical edge", "#PF where the manual says #GP"))
        ring0("read across the canonical edge", read64, 0, hole - 4, 0, GP, 0);
}

static void privileged(void) {
    static const struct { const char *name, *code; } cases[] = {
        {"HLT in ring 3", halt}, {"CLI in ring 3", clear_if}, {"IN in ring 3", port_in},
        {"MOV from CR0 in ring 3", read_cr}, {"RDMSR in ring 3", read_msr}, {"WRMSR in ring 3", write_msr},
        {"RDPMC in ring 3", rdpmc_},
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) ring3(cases[i].name, cases[i].code, 0, GP, 0);
    struct context c = user(clear_if);
    c.rflags |= 0x3000;
    run(&c);
    check_trap("CLI in ring 3 with IOPL 3", &c, DONE, 0);
    c = user(port_in);
    c.rflags |= 0x3000;
    run(&c);
    check_trap("IN in ring 3 with IOPL 3", &c, DONE, 0);
}

static void control_registers(void) {
    u64 cr0 = read_cr0(), cr4 = read_cr4();
    if (!skip_on_reference("reserved bits of control registers", "not checked")) {
        ring0("CR0: PG without PE", write_cr0_, 0x80000000, 0, 0, GP, 0);
        ring0("CR0: NW without CD", write_cr0_, cr0 | 1ul << 29, 0, 0, GP, 0);
        ring0("CR0: high bits", write_cr0_, cr0 | 1ul << 32, 0, 0, GP, 0);
        ring0("CR0: paging off in 64-bit code", write_cr0_, cr0 & ~(1ul << 31), 0, 0, GP, 0);
        ring0("CR4: PAE off in long mode", write_cr4_, cr4 & ~0x20ul, 0, 0, GP, 0);
        ring0("CR4: reserved bit", write_cr4_, cr4 | 1ul << 31, 0, 0, GP, 0);
        ring0("CR3: reserved high bits", write_cr3_, read_cr3() | 1ul << 58, 0, 0, GP, 0);
        ring0("CR8: high bits", write_cr8_, 0x10, 0, 0, GP, 0);
    }
    write_cr4(cr4 | 8);
    ring0("DR4 with CR4.DE", read_dr, 0, 0, 0, UD, 0);
    write_cr4(cr4 & ~8ul);
    ring0("DR4 without CR4.DE is DR6", read_dr, 0, 0, 0, DONE, 0);
    write_cr4(cr4 | 4);
    expect("CR4.TSD leaves ring 0 alone", divide_by_zero, DE, 0);
    write_cr4(cr4);
    if (cpuid(7, 0).c >> 2 & 1) {
        write_cr4(cr4 | 1 << 11);
        ring3("SGDT in ring 3, UMIP", store_gdt, 0, GP, 0);
        ring0("SGDT in ring 0, UMIP", store_gdt, 0, 0, 0, DONE, 0);
        write_cr4(cr4);
    } else {
        skip("UMIP", "CPUID does not offer it");
    }
}

static void msrs(void) {
    if (!skip_on_reference("unknown MSRs", "read as 0")) {
        ring0("read of an unknown MSR", read_msr, 0, 0, 0x12345678, GP, 0);
        ring0("write of an unknown MSR", write_msr, 0, 0, 0x12345678, GP, 0);
    }
    struct context c = kernel(write_msr);
    c.rcx = 0xc0000102;
    c.rdx = 0x8000;
    run(&c);
    if (!skip_on_reference("non-canonical KERNEL_GS_BASE", "not checked"))
        check_trap("non-canonical KERNEL_GS_BASE", &c, GP, 0);
    wrmsr(0xc0000102, 0);
    if (!skip_on_reference("EFER reserved bit", "ignored")) {
        u64 efer = rdmsr(0xc0000080);
        ring0("EFER reserved bit", write_msr, efer | 0x10000000, 0, 0xc0000080, GP, 0);
        ring0("EFER.LME cleared with paging on", write_msr, efer & ~0x100ul, 0, 0xc0000080, GP, 0);
    }
    if (!skip_on_reference("PAT with a reserved type", "not checked"))
        ring0("PAT with a reserved type", write_msr, 2, 0, 0x277, GP, 0);
}

static void alignment(void) {
    expect("MOVAPS load misaligned", misaligned_sse, GP, 0);
    expect("MOVAPS store misaligned", misaligned_sse_store, GP, 0);
    expect("MOVUPS misaligned", unaligned_sse, DONE, 0);
    write_cr0(read_cr0() | 1 << 18);
    struct context c = user(unaligned_access);
    u64 *flags = (u64 *)(c.rsp - USER_BASE);
    *flags = 2;
    if (!skip_on_reference("alignment check", "not implemented")) {
        run(&c);
        check_trap("misaligned read in ring 3 with AM and AC", &c, AC, 0);
    }
    c = kernel(unaligned_access);
    *(u64 *)c.rsp = 2;
    run(&c);
    check_trap("ring 0 has no alignment check", &c, DONE, 0);
    write_cr0(read_cr0() & ~(1ul << 18));
    c = user(unaligned_access);
    *(u64 *)(c.rsp - USER_BASE) = 2;
    run(&c);
    check_trap("no alignment check without CR0.AM", &c, DONE, 0);
}

/* ---- Stacks ---- */

static u64 seen_stack;
static bool note_stack(struct context *c) {
    u64 rsp;
    asm volatile("mov %%rsp, %0" : "=r"(rsp));
    seen_stack = rsp;
    (void)c;
    return false;
}

static bool within(u64 rsp, u64 top) { return rsp < top && rsp > top - 4096; }

static void stacks(void) {
    u64 rsp0 = (u64)alloc_pages(4) + 16384, ist3 = (u64)alloc_pages(4) + 16384, old = tss[0].rsp[0];
    handlers[0x90] = note_stack;
    set_gate(0x90, 0xee);
    extern const char int90[];
    tss[0].rsp[0] = rsp0;
    struct context c = user(int90);
    run(&c);
    check_true("from ring 3: RSP0", within(seen_stack, rsp0));
    check("SS from ring 3 is saved", c.ss, UDATA);
    c = kernel(int90);
    u64 before = c.rsp;
    run(&c);
    check_true("from ring 0: same stack", within(seen_stack, before));
    check("RSP from ring 0 is saved", c.rsp, before);
    c = kernel(int90);
    c.rsp -= 5;
    before = c.rsp;
    run(&c);
    check("unaligned RSP is saved as it was", c.rsp, before);
    tss[0].ist[2] = ist3;
    set_ist(0x90, 3);
    c = kernel(int90);
    run(&c);
    check_true("IST from ring 0", within(seen_stack, ist3));
    c = user(int90);
    run(&c);
    check_true("IST from ring 3", within(seen_stack, ist3));
    tss[0].ist[2] = ist3 - 3;
    c = kernel(int90);
    run(&c);
    check_true("unaligned IST is aligned down", within(seen_stack, ist3) && c.vector == 0x90);
    set_ist(0x90, 0);
    /* Delivery to an unmapped stack: #PF during delivery of a software interrupt is a #PF; its error code is a write. */
    tss[0].rsp[0] = TEST_AREA + (9ul << 30);
    set_ist(PF, 1);
    c = user(int90);
    run(&c);
    check_trap("interrupt to an unmapped stack", &c, PF, F_W);
    check("its CR2", c.cr2, TEST_AREA + (9ul << 30) - 8);
    check("the interrupted ring", c.cs, UCODE64);
    tss[0].rsp[0] = 0x800000000100ul;
    c = user(int90);
    run(&c);
    if (!skip_on_reference("interrupt to a non-canonical stack", "#GP where the manual says #SS"))
        check_trap("interrupt to a non-canonical stack", &c, SS, 0);
    /* #PF whose own delivery faults: double fault, error code 0, on its IST. */
    tss[0].rsp[0] = TEST_AREA + (9ul << 30);
    set_ist(PF, 0);
    c = user(read64);
    c.rbx = TEST_AREA + (10ul << 30);
    run(&c);
    check_trap("page fault on an unmapped stack: double fault", &c, DF, 0);
    set_ist(PF, 1);
    /* Contributory after contributory: #GP whose gate is absent. */
    set_gate(GP, 0x0e);
    c = kernel(read64);
    c.rbx = 0x8000000000000000;
    run(&c);
    check_trap("#GP with an absent gate: double fault", &c, DF, 0);
    set_gate(GP, 0x8e);
    /* Benign after that: #UD with an absent gate is a #NP with EXT. */
    set_gate(UD, 0x0e);
    c = kernel(undefined);
    run(&c);
    check("#UD with an absent gate: vector", c.vector, NP);
    if (!skip_on_reference("#UD with an absent gate: error code", "the gate's offset"))
        check("#UD with an absent gate: error code", c.error & ~1ul, gate_error(UD));
    set_gate(UD, 0x8e);
    tss[0].rsp[0] = old;
    handlers[0x90] = NULL;
}
CODE(int90, "int $0x90");

void guest(void) {
    simple();
    gates();
    selectors();
    accessed_bit();
    canonical();
    privileged();
    control_registers();
    msrs();
    alignment();
    stacks();
}
