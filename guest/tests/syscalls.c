/* SYSCALL, SYSRET, SYSENTER, SYSEXIT. SDM vol. 2B, instruction pages; AMD APM vol. 2 §6.1. */
#include "runtime.h"

enum { EFER = 0xc0000080, STAR = 0xc0000081, LSTAR = 0xc0000082, CSTAR = 0xc0000083, SFMASK = 0xc0000084,
       SYSENTER_CS = 0x174, SYSENTER_ESP = 0x175, SYSENTER_EIP = 0x176, KERNEL_GS_BASE = 0xc0000102, GS_BASE = 0xc0000101,
       FS_BASE = 0xc0000100 };

extern const char syscall_trap[];
CODE(do_syscall, "syscall");
CODE(after_return, "nop");
/* SYSRET changes neither stack nor its pointer. */
CODE(do_sysretq, "sysretq");
CODE(do_sysretl, "sysretl");
CODE(do_sysenter, "sysenter");
CODE(do_sysexitq, "sysexitq");
CODE(do_sysexitl, "sysexitl");
CODE(do_swapgs, "swapgs\n mov %gs:0, %rax");
CODE(do_swapgs_user, "swapgs");
CODE(read_bases, "mov %gs:0, %rax\n mov %fs:8, %rbx");
CODE(fsgsbase, "mov $0x123456789, %rax\n wrfsbase %rax\n rdfsbase %rbx\n mov $-4096, %rax\n wrgsbase %rax\n rdgsbase %rcx");
CODE(wrfsbase_bad, "wrfsbase %rax");
CODE32(compat_syscall, "syscall");
CODE32(compat_after, "nop");
/* A tight round trip, many times: ring 3 calls, ring 0 answers. */
CODE(loop_user, "mov $100000, %ebx\n 1: mov %ebx, %eax\n syscall\n add %rax, %rsi\n dec %ebx\n jnz 1b");
CODE(loop_kernel, "inc %rax\n sysretq");

static void syscall(void) {
    wrmsr(STAR, (u64)(UCODE32 & ~3) << 48 | 3ul << 48 | (u64)KCODE64 << 32);
    wrmsr(LSTAR, (u64)syscall_trap);
    wrmsr(SFMASK, 0x200 | 0x400 | 0x100 | 0x40000);
    struct context c = user(do_syscall);
    c.rflags = 0x2 | 0x200 | 0x1 | 0x800 | 0x400;
    u64 rsp = c.rsp;
    run(&c);
    check_trap("SYSCALL reaches LSTAR", &c, SYSCALLED, 0);
    check("RIP", c.rip, (u64)syscall_trap + 2);
    check("RCX is the address after SYSCALL", c.rcx, as_user(do_syscall) + 2);
    check("R11 is RFLAGS", c.r11, 0x2 | 0x200 | 0x1 | 0x800 | 0x400);
    check("SFMASK clears flags", c.rflags & 0x700, 0);
    if (!skip_on_reference("flags outside SFMASK are kept", "arithmetic flags are cleared"))
        check("flags outside SFMASK are kept", c.rflags, 0x2 | 0x1 | 0x800);
    check("CS from STAR", c.cs, KCODE64);
    check("SS from STAR", c.ss, KDATA);
    check("RSP is kept", c.rsp, rsp);
    wrmsr(SFMASK, ~0ul);
    c = user(do_syscall);
    c.rflags = 0x202 | 0x8d5;
    run(&c);
    check("a full mask clears all flags but the fixed one", c.rflags, 2);
    wrmsr(SFMASK, 0);
    c = user(do_syscall);
    c.rflags = 0x2 | 0x8d5;
    run(&c);
    if (!skip_on_reference("an empty mask clears none", "arithmetic flags are cleared"))
        check("an empty mask clears none", c.rflags, 0x2 | 0x8d5);
    wrmsr(EFER, rdmsr(EFER) & ~1ul);
    c = user(do_syscall);
    run(&c);
    check_trap("SYSCALL without EFER.SCE", &c, UD, 0);
    expect("SYSRET without EFER.SCE", do_sysretq, UD, 0);
    wrmsr(EFER, rdmsr(EFER) | 1);
    /* From ring 0 it works too. */
    c = kernel(do_syscall);
    run(&c);
    check_trap("SYSCALL in ring 0", &c, SYSCALLED, 0);
    if (!skip_on_reference("non-canonical LSTAR", "not checked")) {
        CODE(set_lstar, "wrmsr");
        c = kernel(set_lstar);
        c.rcx = LSTAR;
        c.rdx = 0x8000;
        run(&c);
        check_trap("non-canonical LSTAR", &c, GP, 0);
    }
}

static void sysret(void) {
    struct context c = kernel(do_sysretq);
    c.rcx = as_user(after_return);
    c.r11 = 0x2 | 0x8d5 | 0x200;
    c.rsp = as_user(c.rsp);
    u64 rsp = c.rsp;
    run(&c);
    check_trap("SYSRETQ", &c, DONE, 0);
    check("RIP", c.rip, as_user(after_return) + 3);
    check("CS", c.cs, UCODE64);
    check("SS", c.ss, UDATA);
    check("RSP is kept", c.rsp, rsp);
    check("RFLAGS from R11", c.rflags, 0x2 | 0x8d5 | 0x200);
    c = kernel(do_sysretq);
    c.rcx = as_user(after_return);
    c.r11 = ~0ul & ~0x100ul;
    c.rsp = as_user(c.rsp);
    run(&c);
    if (!skip_on_reference("RF and VM in R11", "taken over"))
        check("R11 all ones: RF and VM are cleared, reserved bits stay", c.rflags & 0x3802a, 0x2);
    check_true("  others are set", (c.rflags & 0x247ed5) == 0x247ed5);
    c = kernel(do_sysretl);
    c.rcx = as_user(compat_after) | 0xffffffff00000000;
    c.r11 = 2;
    c.rsp = as_user(c.rsp);
    run(&c);
    check_trap("SYSRETL returns to compatibility mode", &c, DONE, 0);
    check("CS", c.cs, UCODE32);
    check("RIP is 32 bits wide", c.rip, as_user(compat_after) + 3);
    c = user(do_sysretq);
    run(&c);
    check_trap("SYSRET in ring 3", &c, GP, 0);
    c = kernel(do_sysretq);
    c.rcx = 0x800000000000;
    c.r11 = 2;
    c.rsp = as_user(c.rsp);
    run(&c);
    /* Intel: #GP in ring 0; AMD: #GP at the target, in ring 3. */
    check("SYSRETQ to a non-canonical address", c.vector == GP || c.vector == PF, true);
}

static void compatibility(void) {
    wrmsr(SFMASK, 0);
    wrmsr(CSTAR, (u64)syscall_trap);
    struct context c = compat(compat_syscall);
    c.rax = 0x1122334455667788;
    run(&c);
    if (c.vector == UD) {
        skip("SYSCALL in compatibility mode", "this processor refuses it, as Intel's do");
    } else {
        check_trap("SYSCALL in compatibility mode reaches CSTAR", &c, SYSCALLED, 0);
        check("RCX", c.rcx, as_user(compat_syscall) + 2);
        check("CS", c.cs, KCODE64);
    }
}

static void sysenter(void) {
    if (!(cpuid(1, 0).d >> 11 & 1)) return skip("SYSENTER", "CPUID does not offer it");
    wrmsr(SYSENTER_CS, 0);
    struct context c = user(do_sysenter);
    run(&c);
    if (c.vector == UD) return skip("SYSENTER in 64-bit mode", "this processor refuses it, as AMD's do");
    check_trap("SYSENTER with a null CS", &c, GP, 0);
    wrmsr(SYSENTER_CS, KCODE64);
    wrmsr(SYSENTER_EIP, (u64)syscall_trap);
    u64 stack = (u64)alloc_page() + 4096;
    wrmsr(SYSENTER_ESP, stack);
    c = user(do_sysenter);
    c.rflags |= 0x200;
    run(&c);
    check_trap("SYSENTER", &c, SYSCALLED, 0);
    check("RIP", c.rip, (u64)syscall_trap + 2);
    check("RSP", c.rsp, stack);
    check("CS", c.cs, KCODE64);
    check("SS", c.ss, KDATA);
    check("IF is cleared", c.rflags & 0x200, 0);
    c = kernel(do_sysexitq);
    c.rdx = as_user(after_return);
    c.rcx = as_user(c.rsp);
    u64 rsp = c.rcx;
    run(&c);
    check_trap("SYSEXITQ", &c, DONE, 0);
    check("CS", c.cs, (KCODE64 + 32) | 3);
    check("SS", c.ss, (KCODE64 + 40) | 3);
    check("RSP from RCX", c.rsp, rsp);
    c = kernel(do_sysexitl);
    c.rdx = as_user(compat_after);
    c.rcx = as_user(c.rsp);
    run(&c);
    check_trap("SYSEXITL", &c, DONE, 0);
    check("CS", c.cs, (KCODE64 + 16) | 3);
    c = user(do_sysexitq);
    run(&c);
    check_trap("SYSEXIT in ring 3", &c, GP, 0);
}

static void bases(void) {
    u64 *page = alloc_page();
    page[0] = 0x1111;
    page[1] = 0x2222;
    wrmsr(GS_BASE, (u64)page);
    wrmsr(KERNEL_GS_BASE, (u64)(page + 1));
    struct context c = kernel(do_swapgs);
    run(&c);
    check("SWAPGS", c.rax, 0x2222);
    check("GS_BASE after it", rdmsr(GS_BASE), (u64)(page + 1));
    check("KERNEL_GS_BASE after it", rdmsr(KERNEL_GS_BASE), (u64)page);
    c = user(do_swapgs_user);
    run(&c);
    check_trap("SWAPGS in ring 3", &c, GP, 0);
    wrmsr(GS_BASE, as_user(page));
    wrmsr(FS_BASE, as_user(page));
    c = user(read_bases);
    run(&c);
    check("GS base in ring 3", c.rax, 0x1111);
    check("FS base in ring 3", c.rbx, 0x2222);
    wrmsr(FS_BASE, 0);
    wrmsr(GS_BASE, 0);
    expect("FSGSBASE instructions without CR4.FSGSBASE", fsgsbase, UD, 0);
    if (!(cpuid(7, 0).b & 1)) return skip("FSGSBASE", "CPUID does not offer it");
    write_cr4(read_cr4() | 1 << 16);
    c = user(fsgsbase);
    run(&c);
    check_trap("WRFSBASE and friends", &c, DONE, 0);
    check("FS base", c.rbx, 0x123456789);
    check("GS base", c.rcx, -4096ul);
    check("FS_BASE MSR", rdmsr(FS_BASE), 0x123456789);
    c = user(wrfsbase_bad);
    c.rax = 0x800000000000;
    run(&c);
    if (!skip_on_reference("non-canonical WRFSBASE", "not checked"))
        check_trap("non-canonical WRFSBASE", &c, GP, 0);
    wrmsr(FS_BASE, 0);
    wrmsr(GS_BASE, 0);
}

static void round_trips(void) {
    wrmsr(LSTAR, (u64)loop_kernel);
    wrmsr(SFMASK, 0x200);
    struct context c = user(loop_user);
    run(&c);
    check_trap("100000 round trips", &c, DONE, 0);
    check("their sum", c.rsi, 100000ul * 100001 / 2 + 100000);
}

void guest(void) {
    syscall();
    sysret();
    compatibility();
    sysenter();
    bases();
    round_trips();
}
