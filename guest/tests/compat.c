/* Compatibility mode: 32-bit and 16-bit code under a 64-bit kernel. SDM vol. 1 §3.3, vol. 3A §5.2.1 (limits are checked). */
#include "runtime.h"

CODE32(push_pop, "mov %esp, %ebx\n push %eax\n mov %esp, %ecx\n pop %edx\n pushw %ax\n mov %esp, %esi\n popw %di");
CODE32(calls, "call 1f\n jmp 2f\n 1: mov (%esp), %ebx\n ret\n 2: nop");
CODE32(short_inc, ".byte 0x40, 0x43, 0x49");
CODE32(wide, "mov $-1, %eax\n inc %ebx");
CODE32(wrap, "mov (%ebx, %ecx), %eax");
CODE32(bcd, "mov $0x79, %al\n add $0x35, %al\n daa\n mov %eax, %ebx\n mov $0x0205, %ax\n aad\n mov %eax, %ecx\n mov $63, %al\n aam");
CODE32(into_no, "xor %eax, %eax\n into");
CODE32(into_yes, "mov $0x7fffffff, %eax\n inc %eax\n into");
CODE32(bound_bad, "mov $10, %eax\n push $9\n push $1\n bound %eax, (%esp)");
CODE32(pusha_popa, "mov %esp, %edx\n pusha\n mov (%esp), %ebx\n sub %esp, %edx\n popa");
CODE32(segments, "mov $0x23, %eax\n mov %eax, %ds\n push %ds\n pop %ebx\n push %es\n pop %ecx");
CODE32(ds_read, "mov %ax, %ds\n mov (%ebx), %eax");
CODE32(ds_write, "mov %ax, %ds\n mov %ecx, (%ebx)");
CODE32(ss_read, "mov %ax, %ss\n mov (%ebp), %eax");
CODE32(fs_read, "mov %ax, %fs\n mov %fs:(%ebx), %eax");
CODE32(null_ds, "xor %eax, %eax\n mov %eax, %ds\n mov (%ebx), %eax");
CODE32(to_64, "push $0x2b\n push %eax\n lret");
CODE(in_64, "mov %cs, %ebx\n mov $0x123456789ab, %rcx\n mov %rsp, %rdx");
CODE32(lds_les, "push $0x23\n push $0x1234567\n lds (%esp), %ebx\n mov %ds, %ecx");
CODE32(salc_xlat, "stc\n .byte 0xd6\n mov %eax, %ebx\n mov %esp, %eax");
CODE32(rex_is_inc, ".byte 0x48\n mov %eax, %ebx");
CODE32(leave_enter, "push %ebp\n mov %esp, %ebp\n enter $16, $0\n mov %ebp, %eax\n leave\n pop %ebp");
CODE32(arpl_, "mov $0x20, %eax\n mov $3, %ebx\n arpl %bx, %ax\n setz %cl");
CODE32(lar_lsl, "mov $0x1b, %ebx\n lar %ebx, %eax\n lsl %ebx, %ecx\n mov $0x23, %edx\n verw %dx\n setz %dl");
CODE16(sixteen, "mov $0x1234, %ax\n push %ax\n mov %sp, %bx\n pop %cx\n mov $0x11111111, %edx\n call 1f\n 1: pop %si");

static u64 data_page;

static struct context go(const void *code, u64 rax, u64 rbx) {
    struct context c = compat(code);
    c.rax = rax;
    c.rbx = rbx;
    run(&c);
    return c;
}

static void stack(void) {
    struct context c = go(push_pop, 0x11223344aabbccdd, 0);
    check_trap("push and pop", &c, DONE, 0);
    check("push takes 4 bytes", c.rbx - c.rcx, 4);
    check("pop", c.rdx, 0xaabbccdd);
    check("pushw takes 2 bytes", c.rbx - c.rsi, 2);
    c = go(calls, 0, 0);
    check_trap("call and ret", &c, DONE, 0);
    check("return address", c.rbx, as_user(calls) + 5);
    c = go(pusha_popa, 1, 2);
    check_trap("pusha and popa", &c, DONE, 0);
    c = go(leave_enter, 0, 0);
    check_trap("enter and leave", &c, DONE, 0);
}

static void instructions(void) {
    struct context c = compat(short_inc);
    c.rax = 1, c.rbx = 0xffffffff, c.rcx = 5;
    run(&c);
    check("40 is INC EAX, 49 is DEC ECX", c.rax << 8 | c.rcx, 2 << 8 | 4);
    check("INC EBX wraps at 32 bits", c.rbx, 0);
    c = go(rex_is_inc, 7, 0);
    check("48 is DEC EAX, no REX prefix", c.rbx, 6);
    c = go(wide, 0, 0x1ffffffff);
    check("32-bit results clear the upper half", c.rax, 0xffffffff);
    c = go(bcd, 0, 0);
    check("DAA", c.rbx & 0xff, 0x14);
    check("AAD", c.rcx & 0xffff, 25);
    check("AAM", c.rax & 0xffff, 0x0603);
    c = go(into_no, 0, 0);
    check_trap("INTO without OF", &c, DONE, 0);
    c = go(into_yes, 0, 0);
    check_trap("INTO with OF", &c, OF, 0);
    c = go(bound_bad, 0, 0);
    check_trap("BOUND", &c, BR, 0);
    c = go(salc_xlat, 0, 0);
    check("SALC", c.rbx & 0xff, 0xff);
    c = go(arpl_, 0, 0);
    check("ARPL", c.rax << 8 | (c.rcx & 1), 0x23 << 8 | 1);
    c = go(lds_les, 0, 0);
    check("LDS", c.rbx, 0x1234567);
    check("  selector", c.rcx & 0xffff, 0x23);
    c = go(lar_lsl, 0, 0);
    check("LAR", c.rax & 0xf0fe00, 0xc0fa00);
    check("LSL", c.rcx, 0xffffffff);
    check("VERW", c.rdx & 1, 1);
    c = compat(wrap);
    c.rbx = 0xffffff00;
    c.rcx = as_user(data_page) + 0x100;
    *(u32 *)data_page = 0xfeedf00d;
    run(&c);
    check_trap("addresses wrap at 4 GiB", &c, DONE, 0);
    check("  value", c.rax, 0xfeedf00d);
}

static void set_segment(u32 selector, u64 base, u32 limit, u32 type) {
    gdt[selector >> 3] = (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)type << 40 | (u64)(limit >> 16 & 0xf) << 48 |
                         0x4ul << 52 | (base >> 24 & 0xff) << 56;
}

static void limits(void) {
    u64 base = as_user(data_page);
    set_segment(SPARE0, base, 0xff, 0xf3);
    *(u32 *)(data_page + 0xfc) = 0xcafe;
    struct context c = go(ds_read, SPARE0 | 3, 0xfc);
    check("segment base is added", c.rax, 0xcafe);
    c = go(ds_read, SPARE0 | 3, 0xfd);
    if (!skip_on_reference("limits", "not checked")) {
        check_trap("read across the limit", &c, GP, 0);
        c = go(ds_write, SPARE0 | 3, 0x100);
        check_trap("write beyond the limit", &c, GP, 0);
        c = compat(ss_read);
        c.rax = SPARE0 | 3;
        c.rbp = 0x100;
        run(&c);
        check_trap("stack segment beyond its limit", &c, SS, 0);
        set_segment(SPARE1, base, 0xff, 0xf1);
        c = go(ds_read, SPARE1 | 3, 0);
        check_trap("read of a read-only segment", &c, DONE, 0);
        c = go(ds_write, SPARE1 | 3, 0);
        check_trap("write to a read-only segment", &c, GP, 0);
        set_segment(SPARE2, base, 0xff, 0xf7);
        c = go(ds_read, SPARE2 | 3, 0xff);
        check_trap("expand-down segment, below", &c, GP, 0);
        c = go(ds_read, SPARE2 | 3, 0x100);
        check_trap("expand-down segment, above", &c, DONE, 0);
        c = go(null_ds, 0, base);
        check_trap("null DS", &c, GP, 0);
    }
    set_segment(SPARE3, base, 0xfff, 0xf3);
    *(u32 *)(data_page + 0x20) = 0xbeef;
    c = go(fs_read, SPARE3 | 3, 0x20);
    check("FS base from the descriptor", c.rax, 0xbeef);
    check("FS base MSR follows", rdmsr(0xc0000100), base);
    wrmsr(0xc0000100, 0);
}

static void mode_changes(void) {
    struct context c = go(to_64, as_user(in_64), 0);
    check_trap("far return to 64-bit code", &c, DONE, 0);
    check("CS", c.rbx, UCODE64);
    check("64-bit instructions work", c.rcx, 0x123456789ab);
    c = go(segments, 0, 0);
    check("DS", c.rbx, UDATA);
    /* 16-bit code: a copy at the start of its segment. */
    u8 *page = alloc_page();
    memcpy(page, sixteen, 64);
    u64 base = as_user(page);
    gdt[UCODE16 >> 3] = (gdt[UCODE16 >> 3] & 0x00ffff000000fffful) | (base & 0xffffff) << 16 | (base >> 24) << 56;
    gdt[UDATA16 >> 3] = (gdt[UDATA16 >> 3] & 0x00ffff000000fffful) | (base & 0xffffff) << 16 | (base >> 24) << 56;
    c = compat(sixteen);
    c.rip = 0;
    c.cs = UCODE16;
    c.ss = UDATA16;
    c.rsp = 0x12340800;
    run(&c);
    check_trap("16-bit code segment", &c, DONE, 0);
    check("push and pop of 16 bits", c.rcx & 0xffff, 0x1234);
    check("SP", c.rbx & 0xffff, 0x7fe);
    check("operand prefix gives 32 bits", c.rdx, 0x11111111);
    check("call pushes IP", c.rsi & 0xffff, 0x10);
    check("the stack segment's base is used", *(u16 *)(page + 0x7fe), 0x10);
    /* IRETQ to a 16-bit stack loads SP alone: the upper half of ESP is what ring 0 had. */
    check("SP at the end", c.rsp & 0xffff, 0x800);
}

static bool interrupted;
static bool on_interrupt(struct context *c) {
    interrupted = c->cs == UCODE32;
    c->rbx = 0;
    apic_write(APIC_EOI, 0);
    return true;
}

static void interrupts(void) {
    CODE32(spin, "1: test %ebx, %ebx\n jnz 1b");
    handlers[0xd1] = on_interrupt;
    apic_enable();
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0xd1);
    apic_write(APIC_TIMER_INITIAL, 100000);
    struct context c = compat(spin);
    c.rbx = 1;
    c.rflags |= 0x200;
    run(&c);
    check_trap("interrupt in compatibility mode and back", &c, DONE, 0);
    check_true("  CS in its frame", interrupted);
}

void guest(void) {
    data_page = (u64)alloc_page();
    pic_init();
    stack();
    instructions();
    limits();
    mode_changes();
    interrupts();
}
