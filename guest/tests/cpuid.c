/* What CPUID promises works, what it denies does not; known answers; the time-stamp counter. SDM vol. 2A "CPUID". */
#include "runtime.h"

/* Each snippet leaves its answer in RAX. */
CODE(sse3_, "movddup %xmm0, %xmm1\n mov $1, %eax");
CODE(ssse3_, "pabsb %xmm0, %xmm1\n mov $1, %eax");
CODE(sse41_, "mov $0x1234, %eax\n pinsrd $2, %eax, %xmm0\n pextrd $2, %xmm0, %eax");
CODE(sse42_, "mov $0x12345678, %ecx\n xor %eax, %eax\n crc32l %ecx, %eax");
CODE(popcnt_, "mov $0xf0f0f0f0f0f0f0f1, %rcx\n popcnt %rcx, %rax");
CODE(movbe_, "movl $0x11223344, -8(%rsp)\n movbe -8(%rsp), %eax");
CODE(lzcnt_, "mov $0x10, %ecx\n lzcnt %rcx, %rax");
CODE(tzcnt_, "xor %ecx, %ecx\n tzcnt %ecx, %eax");
CODE(andn_, "mov $0xf0, %ecx\n mov $0xff, %edx\n andn %edx, %ecx, %eax");
CODE(bextr_, "mov $0x12345678, %ecx\n mov $0x0804, %edx\n bextr %edx, %ecx, %eax");
CODE(pdep_, "mov $0x5, %ecx\n mov $0xf0f0, %edx\n pdep %edx, %ecx, %eax");
CODE(pext_, "mov $0xabcd, %ecx\n mov $0xf0f0, %edx\n pext %edx, %ecx, %eax");
CODE(bzhi_, "mov $-1, %rcx\n mov $12, %edx\n bzhi %rdx, %rcx, %rax");
CODE(mulx_, "mov $-1, %rdx\n mov $3, %ecx\n mulx %rcx, %rbx, %rax");
CODE(rorx_, "mov $0x1, %ecx\n rorx $4, %ecx, %eax");
CODE(shlx_, "mov $0x3, %ecx\n mov $68, %edx\n shlx %rdx, %rcx, %rax");
CODE(adx_, "mov $-1, %rax\n mov $1, %ecx\n xor %edx, %edx\n stc\n adcx %rcx, %rax\n setc %al\n movzx %al, %eax");
CODE(aes_, "pxor %xmm0, %xmm0\n pxor %xmm1, %xmm1\n aesenc %xmm1, %xmm0\n movq %xmm0, %rax");
CODE(pclmul_, "mov $7, %eax\n movq %rax, %xmm0\n pclmulqdq $0, %xmm0, %xmm0\n movq %xmm0, %rax");
CODE(sha_, "pxor %xmm0, %xmm0\n mov $1, %eax\n movq %rax, %xmm1\n sha1msg1 %xmm1, %xmm0\n mov $1, %eax");
CODE(rdrand_, "1: rdrand %rax\n jnc 1b\n mov $1, %eax");
CODE(rdseed_, "mov $100000, %ecx\n 1: rdseed %rax\n jc 2f\n loop 1b\n 2: mov $1, %eax");
CODE(clflush_, "clflush (%rsp)\n mov $1, %eax");
CODE(clflushopt_, "clflushopt (%rsp)\n mov $1, %eax");
CODE(clwb_, "clwb (%rsp)\n mov $1, %eax");
CODE(rdtscp_, "rdtscp\n mov %ecx, %eax");
CODE(rdpid_, "rdpid %rax");
CODE(lahf_, "stc\n lahf\n movzx %ah, %eax\n and $0x41, %eax");
CODE(cx16_, "xor %eax, %eax\n xor %edx, %edx\n xor %ebx, %ebx\n xor %ecx, %ecx\n movaps %xmm0, -32(%rsp)\n"
            " cmpxchg16b -32(%rsp)\n mov $1, %eax");
CODE(cx8_, "cmpxchg8b -32(%rsp)\n mov $1, %eax");
CODE(cmov_, "mov $5, %eax\n mov $9, %ecx\n stc\n cmovc %ecx, %eax");
CODE(sse4a_, "mov $0xff00, %eax\n movq %rax, %xmm0\n extrq $8, $8, %xmm0\n movq %xmm0, %rax");
CODE(prefetchw_, "prefetchw (%rsp)\n mov $1, %eax");
CODE(gfni_, "pxor %xmm0, %xmm0\n gf2p8mulb %xmm0, %xmm0\n mov $1, %eax");
CODE(fma_, "vfmadd231sd %xmm0, %xmm1, %xmm2\n mov $1, %eax");
CODE(avx2_, "vpaddd %ymm0, %ymm1, %ymm2\n mov $1, %eax");
CODE(f16c_, "vcvtph2ps %xmm0, %xmm1\n mov $1, %eax");
CODE(vaes_, "vaesenc %ymm0, %ymm1, %ymm2\n mov $1, %eax");
CODE(vpclmul_, "vpclmulqdq $0, %ymm0, %ymm1, %ymm2\n mov $1, %eax");
CODE(avx512_, "vpaddd %zmm0, %zmm1, %zmm2\n mov $1, %eax");
CODE(monitor_, "mov %rsp, %rax\n xor %ecx, %ecx\n xor %edx, %edx\n monitor\n mov $1, %eax");
CODE(movdiri_, "mov %rax, %rcx\n movdiri %rcx, -8(%rsp)\n mov $1, %eax");
CODE(serialize_, ".byte 0x0f, 0x01, 0xe8\n mov $1, %eax");
CODE(vmxon_, "vmxon (%rsp)");
CODE(vmrun_, "vmrun");
CODE(xsave_, "xgetbv\n mov $1, %eax");
CODE(user_rdtsc, "rdtsc");
CODE(user_cpuid, "xor %eax, %eax\n cpuid");

enum { LEAF1 = 1, LEAF7 = 7, EXT1 = 0x80000001 };
struct feature {
    const char *name, *code;
    u32 leaf, reg, bit;
    u64 answer;
    /* Without the bit the encoding means #UD (not another instruction). */
    bool undefined_without;
};

static const struct feature features[] = {
    {"SSE3", sse3_, LEAF1, 2, 0, 1, false},
    {"SSSE3", ssse3_, LEAF1, 2, 9, 1, false},
    {"SSE4.1", sse41_, LEAF1, 2, 19, 0x1234, false},
    {"SSE4.2 CRC32", sse42_, LEAF1, 2, 20, 0xfa745634, false},
    {"POPCNT", popcnt_, LEAF1, 2, 23, 33, false},
    {"MOVBE", movbe_, LEAF1, 2, 22, 0x44332211, false},
    {"AES", aes_, LEAF1, 2, 25, 0x6363636363636363, false},
    {"PCLMULQDQ", pclmul_, LEAF1, 2, 1, 0x15, false},
    {"RDRAND", rdrand_, LEAF1, 2, 30, 1, true},
    {"CMPXCHG16B", cx16_, LEAF1, 2, 13, 1, false},
    {"CMPXCHG8B", cx8_, LEAF1, 3, 8, 1, false},
    {"CMOV", cmov_, LEAF1, 3, 15, 9, false},
    {"CLFLUSH", clflush_, LEAF1, 3, 19, 1, false},
    {"MONITOR", monitor_, LEAF1, 2, 3, 1, true},
    {"BMI1 TZCNT", tzcnt_, LEAF7, 1, 3, 32, false},
    {"BMI1 ANDN", andn_, LEAF7, 1, 3, 0x0f, false},
    {"BMI1 BEXTR", bextr_, LEAF7, 1, 3, 0x67, false},
    {"BMI2 PDEP", pdep_, LEAF7, 1, 8, 0x50, false},
    {"BMI2 PEXT", pext_, LEAF7, 1, 8, 0xac, false},
    {"BMI2 BZHI", bzhi_, LEAF7, 1, 8, 0xfff, false},
    {"BMI2 MULX", mulx_, LEAF7, 1, 8, 2, false},
    {"BMI2 RORX", rorx_, LEAF7, 1, 8, 0x10000000, false},
    {"BMI2 SHLX", shlx_, LEAF7, 1, 8, 0x30, false},
    {"ADX", adx_, LEAF7, 1, 19, 1, false},
    {"RDSEED", rdseed_, LEAF7, 1, 18, 1, false},
    {"CLFLUSHOPT", clflushopt_, LEAF7, 1, 23, 1, false},
    {"CLWB", clwb_, LEAF7, 1, 24, 1, false},
    {"SHA", sha_, LEAF7, 1, 29, 1, false},
    {"GFNI", gfni_, LEAF7, 2, 8, 1, false},
    {"RDPID", rdpid_, LEAF7, 2, 22, 0x77, true},
    {"MOVDIRI", movdiri_, LEAF7, 2, 27, 1, false},
    {"SERIALIZE", serialize_, LEAF7, 3, 14, 1, true},
    {"LZCNT", lzcnt_, EXT1, 2, 5, 59, false},
    {"LAHF", lahf_, EXT1, 2, 0, 1, false},
    {"SSE4A", sse4a_, EXT1, 2, 6, 0xff, false},
    {"PREFETCHW", prefetchw_, EXT1, 2, 8, 1, false},
    {"RDTSCP", rdtscp_, EXT1, 3, 27, 0x77, true},
};

static const struct feature vector_features[] = {
    {"XSAVE", xsave_, LEAF1, 2, 26, 1, true},       {"FMA", fma_, LEAF1, 2, 12, 1, false},
    {"F16C", f16c_, LEAF1, 2, 29, 1, false},        {"AVX2", avx2_, LEAF7, 1, 5, 1, false},
    {"VAES", vaes_, LEAF7, 2, 9, 1, false},         {"VPCLMULQDQ", vpclmul_, LEAF7, 2, 10, 1, false},
    {"AVX-512", avx512_, LEAF7, 1, 16, 1, true},
};

static bool offered(const struct feature *f) {
    u32 top = cpuid(f->leaf & 0x80000000, 0).a;
    if (f->leaf > top) return false;
    struct leaf l = cpuid(f->leaf, 0);
    u32 registers[4] = {l.a, l.b, l.c, l.d};
    return registers[f->reg] >> f->bit & 1;
}

static void try_all(const struct feature *list, u32 count) {
    for (u32 i = 0; i < count; i++) {
        const struct feature *f = &list[i];
        if (offered(f)) {
            struct context c = user(f->code);
            if (f->code == monitor_) c = kernel(f->code);
            run(&c);
            check_trap(f->name, &c, DONE, 0);
            check("  answer", c.rax, f->answer);
        } else if (f->undefined_without) {
            struct context c = kernel(f->code);
            run(&c);
            print(f->name);
            print(":\n");
            check("  is denied and undefined", c.vector, UD);
        } else {
            skip(f->name, "CPUID does not offer it");
        }
    }
}

static void leaves(void) {
    check_true("basic leaves reach 7", cpuid(0, 0).a >= 7);
    check_true("extended leaves reach 80000008", cpuid(0x80000000, 0).a >= 0x80000008);
    struct leaf vendor = cpuid(0, 0), extended = cpuid(0x80000000, 0);
    bool amd = vendor.b == 0x68747541;
    if (amd) check("the vendor is repeated in the extended leaf", extended.b, vendor.b);
    struct leaf one = cpuid(1, 0);
    check("long mode, NX, SYSCALL", cpuid(EXT1, 0).d & (1 << 29 | 1 << 20 | 1 << 11), 1 << 29 | 1 << 20 | 1 << 11);
    u32 base = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24 | 3 << 25;
    check("what every x86-64 has", one.d & base, base);
    check("APIC identifier", one.b >> 24, apic_read(APIC_ID) >> 24);
    struct leaf widths = cpuid(0x80000008, 0);
    check_true("physical addresses of 36 to 52 bits", (widths.a & 0xff) >= 36 && (widths.a & 0xff) <= 52);
    check_true("linear addresses of 48 or 57 bits", (widths.a >> 8 & 0xff) == 48 || (widths.a >> 8 & 0xff) == 57);
    check("subleaf 1 and a high one of leaf 7 differ from 0 only as defined", cpuid(7, 77).b, 0);
    if (one.c >> 31) {
        struct leaf hypervisor = cpuid(0x40000000, 0);
        check_true("the hypervisor names itself", hypervisor.b != 0);
        check_true("its leaves reach themselves", hypervisor.a >= 0x40000000 || hypervisor.a == 0);
    }
    struct context c = user(user_cpuid);
    run(&c);
    check("CPUID in ring 3", c.rbx, vendor.b);
    c = kernel(user_cpuid);
    c.rbx = c.rcx = c.rdx = ~0ul;
    run(&c);
    check("CPUID clears the upper halves", c.rbx >> 32 | c.rcx >> 32 | c.rdx >> 32 | c.rax >> 32, 0);
}

static void time_stamp(void) {
    u64 last = rdtsc(), backwards = 0;
    for (u32 i = 0; i < 100000; i++) {
        u64 now = rdtsc();
        backwards += now < last;
        last = now;
    }
    check("RDTSC goes backwards", backwards, 0);
    check_true("RDTSC goes on", rdtsc() > last);
    u64 cr4 = read_cr4();
    write_cr4(cr4 | 4);
    struct context c = user(user_rdtsc);
    run(&c);
    check_trap("RDTSC in ring 3 with CR4.TSD", &c, GP, 0);
    write_cr4(cr4);
    c = user(user_rdtsc);
    run(&c);
    check_trap("RDTSC in ring 3", &c, DONE, 0);
    check("  halves in EDX:EAX", c.rax >> 32 | c.rdx >> 32, 0);
    if (cpuid(7, 0).b >> 1 & 1 && !skip_on_reference("TSC_ADJUST", "without effect")) {
        wrmsr(0x3b, 1ul << 50);
        check_true("TSC_ADJUST shifts the counter", rdtsc() >> 50 & 1);
        wrmsr(0x3b, 0);
        check("  and back", rdtsc() >> 50 & 1, 0);
    }
}

void guest(void) {
    wrmsr(0xc0000103, 0x77);
    leaves();
    try_all(features, sizeof features / sizeof *features);
    if (cpuid(1, 0).c >> 26 & 1) {
        write_cr4(read_cr4() | 1 << 18);
        u32 xcr0 = cpuid(13, 0).a & 0xe7;
        asm volatile("xsetbv" ::"a"(xcr0), "d"(0), "c"(0));
        if ((xcr0 & 6) == 6) try_all(vector_features, sizeof vector_features / sizeof *vector_features);
    }
    if (!(cpuid(1, 0).c >> 5 & 1)) expect("VMXON is denied", vmxon_, UD, 0);
    if (!(cpuid(EXT1, 0).c >> 2 & 1)) expect("VMRUN is denied", vmrun_, UD, 0);
    time_stamp();
}
