/* x87, SSE and AVX state: availability, exceptions, FXSAVE and XSAVE. SDM vol. 1 chapters 8, 10, 11, 13; vol. 3A §13. */
#include "runtime.h"

CODE(x87, "fldpi");
CODE(x87_no_wait, "fnop");
CODE(wait_, "fwait");
CODE(mmx, "pxor %mm0, %mm0\n emms");
CODE(sse, "xorps %xmm0, %xmm0");
CODE(sse_general, "cvtsi2sd %eax, %xmm0");
CODE(sfence_, "sfence\n mfence\n lfence\n prefetcht0 (%rsp)");
CODE(load_mxcsr, "ldmxcsr (%rbx)");
CODE(store_mxcsr, "stmxcsr (%rbx)");
CODE(divide_sse, "divsd 8(%rbx), %xmm0");
CODE(load_xmm, "movupd (%rbx), %xmm0");
CODE(x87_divide, "fninit\n fldcw (%rbx)\n fld1\n fldz\n fdivrp\n nop\n nop");
CODE(x87_then_wait, "fninit\n fldcw (%rbx)\n fld1\n fldz\n fdivrp\n fwait");
CODE(x87_then_no_wait, "fninit\n fldcw (%rbx)\n fld1\n fldz\n fdivrp\n fnstsw %ax\n fnclex");
CODE(x87_then_x87, "fninit\n fldcw (%rbx)\n fld1\n fldz\n fdivrp\n fld1");
CODE(fx_save, "fxsave64 (%rbx)");
CODE(fx_restore, "fxrstor64 (%rbx)");
CODE(fill_state, "fninit\n fld1\n fldpi\n fldl2e\n movq %rax, %xmm0\n movq %rcx, %xmm15\n movq %rdx, %xmm7");
CODE(wipe_state, "fninit\n pxor %xmm0, %xmm0\n pxor %xmm15, %xmm15\n pxor %xmm7, %xmm7");
CODE(read_state, "fnstsw %ax\n mov %eax, %esi\n movq %xmm0, %rax\n movq %xmm15, %rcx\n movq %xmm7, %rdx\n fstpl (%rbx)");
CODE(x_save, "xsave64 (%rbx)");
CODE(x_restore, "xrstor64 (%rbx)");
CODE(x_save_opt, "xsaveopt64 (%rbx)");
CODE(x_save_c, "xsavec64 (%rbx)");
CODE(x_getbv, "xgetbv");
CODE(x_setbv, "xsetbv");
CODE(avx, "vxorps %ymm0, %ymm0, %ymm0");
CODE(avx_fill, "vmovdqu (%rbx), %ymm3\n vmovdqu 32(%rbx), %ymm12");
CODE(avx_read, "vmovdqu %ymm3, (%rbx)\n vmovdqu %ymm12, 32(%rbx)");
CODE(avx_zero, "vzeroall");

static u8 *area;

static struct context go(const void *code, u64 rbx) {
    struct context c = kernel(code);
    c.rbx = rbx;
    run(&c);
    return c;
}

static void ends(const char *name, const void *code, u64 vector) {
    struct context c = go(code, (u64)area);
    check_trap(name, &c, vector, 0);
}

static void availability(void) {
    enum { MP = 2, EM = 4, TS_ = 8 };
    u64 cr0 = read_cr0(), cr4 = read_cr4();
    write_cr0(cr0 | TS_);
    ends("x87 with CR0.TS", x87, NM);
    ends("SSE with CR0.TS", sse, NM);
    ends("MMX with CR0.TS", mmx, NM);
    ends("FXSAVE with CR0.TS", fx_save, NM);
    ends("FWAIT with CR0.TS and MP", wait_, NM);
    ends("fences and prefetch with CR0.TS", sfence_, DONE);
    if (!skip_on_reference("LDMXCSR with CR0.TS", "executed")) ends("LDMXCSR with CR0.TS", load_mxcsr, NM);
    write_cr0((cr0 | TS_) & ~(u64)MP);
    ends("FWAIT with CR0.TS, without MP", wait_, DONE);
    asm volatile("clts");
    check("CLTS clears CR0.TS", read_cr0() & TS_, 0);
    write_cr0(cr0 | EM);
    ends("x87 with CR0.EM", x87, NM);
    ends("SSE with CR0.EM", sse, UD);
    ends("MMX with CR0.EM", mmx, UD);
    write_cr0(cr0);
    write_cr4(cr4 & ~0x200ul);
    ends("SSE without CR4.OSFXSR", sse, UD);
    if (!skip_on_reference("CVTSI2SD without CR4.OSFXSR", "executed"))
        ends("CVTSI2SD without CR4.OSFXSR", sse_general, UD);
    ends("MMX without CR4.OSFXSR", mmx, DONE);
    write_cr4(cr4);
    ends("SSE with everything on", sse, DONE);
}

static void mxcsr(void) {
    u32 *value = (u32 *)area;
    *value = 0x1f80;
    ends("LDMXCSR", load_mxcsr, DONE);
    if (!skip_on_reference("reserved bits of MXCSR", "not checked")) {
        *value = 0x10000;
        ends("LDMXCSR with a reserved bit", load_mxcsr, GP);
        *value = 0x80001f80;
        ends("LDMXCSR with bit 31", load_mxcsr, GP);
        ends("STMXCSR", store_mxcsr, DONE);
        check("  refused values leave MXCSR alone", *value, 0x1f80);
    }
    /* Unmasked division by zero. */
    double *operands = (double *)(area + 64);
    static const u64 one_zero[2] = {0x3ff0000000000000, 0};
    memcpy(operands, one_zero, 16);
    *value = 0x1f80 & ~0x200u;
    ends("unmask division by zero", load_mxcsr, DONE);
    go(load_xmm, (u64)operands);
    if (!skip_on_reference("unmasked SSE exceptions", "not delivered")) {
        struct context c = go(divide_sse, (u64)operands);
        check_trap("unmasked division by zero", &c, XM, 0);
        check("  RIP at the instruction", c.rip, (u64)divide_sse);
        ends("STMXCSR", store_mxcsr, DONE);
        check("  flag is set", *value & 0x3f, 4);
        u64 cr4 = read_cr4();
        write_cr4(cr4 & ~0x400ul);
        *value = 0x1f80 & ~0x200u;
        go(load_mxcsr, (u64)area);
        c = go(divide_sse, (u64)operands);
        check_trap("the same without CR4.OSXMMEXCPT", &c, UD, 0);
        write_cr4(cr4);
    }
    *value = 0x1f80;
    go(load_mxcsr, (u64)area);
    ends("masked division by zero", load_mxcsr, DONE);
    struct context c = go(divide_sse, (u64)operands);
    check_trap("masked division by zero goes on", &c, DONE, 0);
    go(store_mxcsr, (u64)area);
    check("  flag is set", *value & 0x3f, 4);
    *value = 0x1f80;
    go(load_mxcsr, (u64)area);
}

static void x87_exceptions(void) {
    u16 *control = (u16 *)area;
    *control = 0x37f & ~4;
    struct context c = go(x87_divide, (u64)area);
    check_trap("the failing x87 instruction itself does not trap", &c, DONE, 0);
    c = go(x87_then_no_wait, (u64)area);
    check_trap("nor do instructions that do not wait", &c, DONE, 0);
    check("  status: ZE, ES, busy", c.rax & 0x8084, 0x8084);
    c = go(x87_then_wait, (u64)area);
    check_trap("FWAIT does", &c, MF, 0);
    check("  RIP at FWAIT", c.rip, (u64)x87_then_wait + 10);
    if (!skip_on_reference("the next x87 instruction traps", "only FWAIT does")) {
        c = go(x87_then_x87, (u64)area);
        check_trap("the next x87 instruction traps", &c, MF, 0);
    }
    go(wipe_state, 0);
}

static void fill(void) {
    struct context c = kernel(fill_state);
    c.rax = 0x1111222233334444;
    c.rcx = 0x5555666677778888;
    c.rdx = 0x99990000aaaabbbb;
    run(&c);
}

static void compare(const char *name) {
    struct context c = go(read_state, (u64)area + 8000 - 128);
    check(name, c.rax, 0x1111222233334444);
    check("  XMM15", c.rcx, 0x5555666677778888);
    check("  XMM7", c.rdx, 0x99990000aaaabbbb);
    check("  x87 top", c.rsi >> 11 & 7, 5);
    check("  ST0 is log2(e)", *(u64 *)(area + 8000 - 128), 0x3ff71547652b82fe);
}

static void fxsave(void) {
    fill();
    ends("FXSAVE64", fx_save, DONE);
    check("  tag word: three registers", area[4], 0xe0);
    check("  MXCSR mask is not zero", *(u32 *)(area + 28) != 0, true);
    check("  MXCSR", *(u32 *)(area + 24), 0x1f80);
    go(wipe_state, 0);
    ends("FXRSTOR64", fx_restore, DONE);
    compare("  XMM0");
    struct context c = go(fx_save, (u64)area + 8);
    if (!skip_on_reference("misaligned FXSAVE", "not checked")) check_trap("misaligned FXSAVE", &c, GP, 0);
    go(fx_save, (u64)area);
    *(u32 *)(area + 24) = 0x10000;
    if (!skip_on_reference("FXRSTOR with a reserved MXCSR bit", "not checked"))
        ends("FXRSTOR with a reserved MXCSR bit", fx_restore, GP);
    go(wipe_state, 0);
}

static struct context xsave_masked(const void *code, u64 address, u64 mask) {
    struct context c = kernel(code);
    c.rbx = address;
    c.rax = (u32)mask;
    c.rdx = mask >> 32;
    run(&c);
    return c;
}

static void set_xcr0(const char *name, u64 value, u32 index, u64 vector) {
    struct context c = kernel(x_setbv);
    c.rax = (u32)value;
    c.rdx = value >> 32;
    c.rcx = index;
    run(&c);
    check_trap(name, &c, vector, 0);
}

static u64 get_xcr0(void) {
    struct context c = kernel(x_getbv);
    run(&c);
    return (u32)c.rax | c.rdx << 32;
}

static void xsave_control(u64 supported) {
    set_xcr0("XCR0 without x87", 2, 0, GP);
    set_xcr0("XCR0 with AVX without SSE", 5, 0, GP);
    set_xcr0("XCR0 with an unknown bit", 3 | 1ul << 62, 0, GP);
    set_xcr0("XCR1", 3, 1, GP);
    set_xcr0("XCR0 with x87 alone", 1, 0, DONE);
    check("  reads back", get_xcr0(), 1);
    struct leaf l = cpuid(13, 0);
    check("  CPUID.D.0:EBX is the size in force", l.b, 576);
    if (cpuid(1, 0).c >> 28 & 1) ends("AVX without XCR0.AVX", avx, UD);
    set_xcr0("XCR0 with all that is offered", supported, 0, DONE);
    check("  reads back", get_xcr0(), supported);
    l = cpuid(13, 0);
    check_true("  CPUID.D.0: EBX <= ECX", l.b <= l.c && l.b >= 576);
    struct context c = user(x_setbv);
    c.rax = 3;
    run(&c);
    check_trap("XSETBV in ring 3", &c, GP, 0);
    c = user(x_getbv);
    run(&c);
    check_trap("XGETBV in ring 3", &c, DONE, 0);
}

static void xsave_state(void) {
    fill();
    memset(area, 0, 4096);
    struct context c = xsave_masked(x_save, (u64)area, 3);
    check_trap("XSAVE64", &c, DONE, 0);
    check("  XSTATE_BV", *(u64 *)(area + 512) & 3, 3);
    go(wipe_state, 0);
    c = xsave_masked(x_restore, (u64)area, 3);
    check_trap("XRSTOR64", &c, DONE, 0);
    compare("  XMM0");
    /* A component that is not in XSTATE_BV is put into its initial state. */
    fill();
    *(u64 *)(area + 512) = 1;
    xsave_masked(x_restore, (u64)area, 3);
    c = go(read_state, (u64)area + 7000);
    check("XRSTOR without SSE in XSTATE_BV clears XMM0", c.rax, 0);
    *(u64 *)(area + 512) = 1ul << 60;
    c = xsave_masked(x_restore, (u64)area, ~0ul);
    check_trap("XRSTOR with an unknown component", &c, GP, 0);
    *(u64 *)(area + 512) = 3;
    *(u64 *)(area + 528) = 1;
    c = xsave_masked(x_restore, (u64)area, 3);
    check_trap("XRSTOR with a reserved header byte", &c, GP, 0);
    *(u64 *)(area + 528) = 0;
    c = xsave_masked(x_save, (u64)area + 16, 3);
    check_trap("XSAVE misaligned", &c, GP, 0);
    go(wipe_state, 0);
    u32 extended = cpuid(13, 1).a;
    if (extended & 1) {
        fill();
        memset(area, 0, 4096);
        c = xsave_masked(x_save_opt, (u64)area, 3);
        check_trap("XSAVEOPT", &c, DONE, 0);
        go(wipe_state, 0);
        xsave_masked(x_restore, (u64)area, 3);
        compare("  XMM0");
    } else {
        skip("XSAVEOPT", "CPUID does not offer it");
    }
    if (extended & 2) {
        fill();
        memset(area, 0, 4096);
        c = xsave_masked(x_save_c, (u64)area, 3);
        check_trap("XSAVEC", &c, DONE, 0);
        check("  XCOMP_BV", *(u64 *)(area + 520), 1ul << 63 | 3);
        go(wipe_state, 0);
        c = xsave_masked(x_restore, (u64)area, 3);
        check_trap("XRSTOR of the compacted form", &c, DONE, 0);
        compare("  XMM0");
    } else {
        skip("XSAVEC", "CPUID does not offer it");
    }
}

static void avx_state(void) {
    if (!(cpuid(1, 0).c >> 28 & 1)) return skip("AVX", "CPUID does not offer it");
    ends("AVX", avx, DONE);
    u8 *pattern = area + 6144;
    for (u32 i = 0; i < 64; i++) pattern[i] = i * 3 + 1;
    go(avx_fill, (u64)pattern);
    memset(area, 0, 4096);
    xsave_masked(x_save, (u64)area, 7);
    struct leaf l = cpuid(13, 2);
    check("upper halves at the offset CPUID gives", memcmp(area + l.b + 3 * 16, pattern + 16, 16), 0);
    go(avx_zero, 0);
    xsave_masked(x_restore, (u64)area, 7);
    memset(area, 0, 64);
    go(avx_read, (u64)area);
    check("XRSTOR brings YMM3 and YMM12 back", memcmp(area, pattern, 64), 0);
    CODE(mixed, "movaps %xmm1, %xmm3\n vmovaps %xmm1, %xmm12");
    go(mixed, 0);
    go(avx_read, (u64)area);
    check("a legacy SSE write keeps the upper half", memcmp(area + 16, pattern + 16, 16), 0);
    static const u8 zero[16];
    check("a VEX write clears it", memcmp(area + 48, zero, 16), 0);
}

static void xsave(void) {
    check("CPUID.OSXSAVE mirrors CR4 (off)", cpuid(1, 0).c >> 27 & 1, 0);
    ends("XGETBV without CR4.OSXSAVE", x_getbv, UD);
    if (!(cpuid(1, 0).c >> 26 & 1)) return skip("XSAVE", "CPUID does not offer it");
    write_cr4(read_cr4() | 1 << 18);
    check("CPUID.OSXSAVE mirrors CR4 (on)", cpuid(1, 0).c >> 27 & 1, 1);
    struct leaf l = cpuid(13, 0);
    xsave_control(l.a & 7);
    xsave_state();
    avx_state();
}

void guest(void) {
    area = alloc_pages(2);
    availability();
    mxcsr();
    x87_exceptions();
    fxsave();
    xsave();
}
