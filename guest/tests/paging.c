/* Page faults with exact error codes and CR2, accessed and dirty bits, NX, WP, SMEP, SMAP, reserved bits, large pages.
 * SDM vol. 3A §4.6 (access rights), §4.7 (page-fault exceptions), §4.8 (accessed and dirty flags). */
#include "runtime.h"

CODE(read8, "mov (%rbx), %al");
CODE(read64, "mov (%rbx), %rax");
CODE(write8, "mov %al, (%rbx)");
CODE(write64, "mov %rax, (%rbx)");
CODE(modify, "incl (%rbx)");
CODE(locked, "lock incl (%rbx)");
CODE(compare_exchange, "lock cmpxchg %ecx, (%rbx)");
CODE(plain_compare_exchange, "cmpxchg %ecx, (%rbx)");
CODE(bit_test, "btl $1, (%rbx)");
CODE(execute, "call *%rbx");
CODE(push_there, "lea 8(%rbx), %rsp\n push %rax");
CODE(string_store, "mov %rbx, %rdi\n stosb");
CODE(prefetch, "prefetcht0 (%rbx)\n prefetchnta (%rbx)\n nopl (%rbx)");
CODE(write_ac, "stac\n mov %al, (%rbx)\n clac");
CODE(read_ac, "stac\n mov (%rbx), %al\n clac");
CODE(popf_ac, "pushfq\n orl $0x40000, (%rsp)\n popfq\n mov (%rbx), %al\n clac");

static const u64 area = TEST_AREA;

static struct context touch(struct context c, u64 address) {
    c.rbx = address;
    c.rax = 0;
    run(&c);
    return c;
}

static void faults(const char *name, struct context c, u64 address, u64 error) {
    struct context end = touch(c, address);
    check_trap(name, &end, PF, error);
    check(name, end.cr2, address);
}

/* The reference leaves P out of the error code of a reserved-bit violation. */
static void reserved(const char *name, struct context c, u64 address, u64 error) {
    if (!skip_on_reference(name, "P is missing from the error code")) faults(name, c, address, error | F_P | F_RSVD);
}

static void passes(const char *name, struct context c, u64 address) {
    struct context end = touch(c, address);
    check_trap(name, &end, DONE, 0);
}

static void set(u64 flags) {
    static u64 page;
    if (!page) page = (u64)alloc_page();
    *(volatile u8 *)page = 0xc3;
    map(area, page, flags, 1);
    flush_tlb();
}

static void not_present(void) {
    faults("read, no PML4 entry", kernel(read8), TEST_AREA + (1ul << 40) + 0x123, 0);
    set(P | W | U);
    faults("read, no PDPT entry", kernel(read8), area + (3ul << 30) + 1, 0);
    faults("read, no PD entry", kernel(read8), area + (5ul << 21) + 2, 0);
    faults("read, no page", kernel(read8), area + 4096, 0);
    faults("write, no page", kernel(write8), area + 4097, F_W);
    if (!skip_on_reference("read-modify-write, no page", "reported as a read")) {
        faults("read-modify-write, no page", kernel(modify), area + 4100, F_W);
        faults("locked read-modify-write, no page", kernel(locked), area + 4100, F_W);
        faults("cmpxchg, no page", kernel(plain_compare_exchange), area + 4100, F_W);
    }
    faults("push, no page", kernel(push_there), area + 8192, F_W);
    faults("fetch, no page", kernel(execute), area + 4096, F_ID);
    faults("user read, no page", user(read8), area + 4096, F_U);
    faults("user write, no page", user(write8), area + 4096, F_U | F_W);
    faults("user fetch, no page", user(execute), area + 4096, F_U | F_ID);
    passes("prefetch and long nop do not fault", kernel(prefetch), area + 4096);
}

static void rights(void) {
    set(P);
    passes("supervisor reads a read-only page", kernel(read8), area);
    faults("supervisor writes a read-only page, WP", kernel(write8), area + 8, F_P | F_W);
    faults("user reads a supervisor page", user(read8), area, F_P | F_U);
    faults("user fetches from a supervisor page", user(execute), area, F_P | F_U | F_ID);
    write_cr0(read_cr0() & ~0x10000ul);
    passes("supervisor writes a read-only page, no WP", kernel(write8), area + 8);
    set(P | U);
    faults("user writes a read-only page, no WP", user(write8), area, F_P | F_U | F_W);
    write_cr0(read_cr0() | 0x10000);
    faults("user writes a read-only page", user(write8), area + 5, F_P | F_U | F_W);
    faults("user locked write to a read-only page", user(compare_exchange), area + 4, F_P | F_U | F_W);
    passes("user executes", user(execute), area);
    set(P | W | U | NX);
    passes("user reads and writes an NX page", user(modify), area);
    faults("user fetches from an NX page", user(execute), area, F_P | F_U | F_ID);
    set(P | W | NX);
    faults("supervisor fetches from an NX page", kernel(execute), area, F_P | F_ID);
    /* With EFER.NXE clear, bit 63 is reserved. */
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ul);
    flush_tlb();
    reserved("NX bit without EFER.NXE is reserved", kernel(read8), area, 0);
    set(P | W);
    passes("execution without EFER.NXE", kernel(execute), area);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    flush_tlb();
}

static void upper_level_rights(void) {
    static const char *const names[] = {"", "", "PD", "PDPT", "PML4"};
    for (u32 level = 2; level <= 4; level++) {
        set(P | W | U);
        volatile u64 *e = entry(area, level);
        u64 old = *e;
        print("# rights at the ");
        print(names[level]);
        print(" level\n");
        *e = old & ~(u64)W;
        flush_tlb();
        faults("write through a read-only table", kernel(write8), area, F_P | F_W);
        *e = old & ~(u64)U;
        flush_tlb();
        faults("user read through a supervisor table", user(read8), area, F_P | F_U);
        *e = old | NX;
        flush_tlb();
        faults("fetch through an NX table", kernel(execute), area, F_P | F_ID);
        *e = old & ~(u64)P;
        flush_tlb();
        faults("read through an absent table", kernel(read8), area, 0);
        *e = old;
        flush_tlb();
    }
}

static void reserved_bits(void) {
    u64 width = cpuid(0x80000008, 0).a & 0xff;
    set(P | W | U);
    if (width < 52) {
        u64 high = 1ul << width;
        *entry(area, 1) |= high;
        flush_tlb();
        reserved("physical address too wide, page", kernel(read8), area, 0);
        reserved("physical address too wide, user write", user(write8), area, F_U | F_W);
        set(P | W | U);
        *entry(area, 2) |= 1ul << 51;
        flush_tlb();
        reserved("physical address too wide, table", kernel(execute), area, F_ID);
        *entry(area, 2) &= ~(1ul << 51);
    } else {
        skip("physical address too wide", "52 bits are implemented");
    }
    *entry(area, 4) |= PS;
    flush_tlb();
    reserved("PS in the PML4", kernel(read8), area, 0);
    *entry(area, 4) &= ~(u64)PS;
    u64 large = area + (8ul << 21);
    map(large, (u64)alloc_pages(512) | 1ul << 13, P | W | U, 2);
    flush_tlb();
    reserved("low address bits of a 2 MiB page", kernel(read8), large, 0);
    *entry(large, 2) &= ~(1ul << 13);
    flush_tlb();
    passes("2 MiB page", kernel(write64), large + 0x12345);
    set(P | W | U);
    *entry(area, 1) |= (u64)G | 0xe00 | PWT | PCD | 0x7ful << 52;
    flush_tlb();
    passes("ignored bits are ignored", kernel(write8), area);
    set(P | W | U);
}

static u64 bits(u64 address, u32 level) { return *entry(address, level) & (A | D); }

static void clear_bits(u64 address, u32 lowest) {
    for (u32 l = 4; l >= lowest; l--) *entry(address, l) &= ~(u64)(A | D);
    flush_tlb();
}

static void accessed_and_dirty(void) {
    static const struct { const char *name, *code; u64 want; bool user; } cases[] = {
        {"read sets A", read8, A, false},
        {"user read sets A", read8, A, true},
        {"fetch sets A", execute, A, false},
        {"bt sets A only", bit_test, A, false},
        {"write sets A and D", write8, A | D, false},
        {"user write sets A and D", write8, A | D, true},
        {"read-modify-write sets A and D", modify, A | D, false},
        {"locked read-modify-write sets A and D", locked, A | D, false},
        {"push sets A and D", push_there, A | D, false},
        {"string store sets A and D", string_store, A | D, true},
    };
    set(P | W | U);
    *(u8 *)(*entry(area, 1) & ADDRESS_MASK) = 0xc3;
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        set(P | W | U);
        clear_bits(area, 1);
        struct context c = cases[i].user ? user(cases[i].code) : kernel(cases[i].code);
        touch(c, area);
        check(cases[i].name, bits(area, 1), cases[i].want);
        u64 upper = (bits(area, 2) | bits(area, 3) | bits(area, 4)) & D;
        check("no D in tables", upper, 0);
        check("A in all tables", bits(area, 2) & bits(area, 3) & bits(area, 4) & A, A);
    }
    /* A read fills the TLB without D; the write that follows must still set it. */
    clear_bits(area, 1);
    touch(kernel(read8), area);
    check("read before write", bits(area, 1), A);
    touch(kernel(write8), area);
    check("write after read sets D", bits(area, 1), A | D);
    set(P | U);
    clear_bits(area, 1);
    touch(kernel(write8), area);
    check("a refused write does not set D", bits(area, 1) & D, 0);
    set(P | W | U);
    clear_bits(area, 1);
    *(volatile u32 *)area = 0;
    clear_bits(area, 1);
    struct context c = kernel(compare_exchange);
    c.rax = 5;
    c.rbx = area;
    run(&c);
    check_true("failed locked cmpxchg sets D (it writes)", bits(area, 1) & D);
}

static void large_pages(void) {
    u64 address = area + (16ul << 21), memory = (u64)alloc_pages(512);
    map(address, memory, P | W | U, 2);
    clear_bits(address, 2);
    touch(kernel(read8), address + 0x1ff000);
    check("read of a 2 MiB page sets A", bits(address, 2), A);
    struct context c = kernel(write64);
    c.rbx = address + 0x1ffff8;
    c.rax = 0x1122334455667788;
    run(&c);
    check("write to a 2 MiB page sets D", bits(address, 2), A | D);
    check("a 2 MiB page reaches its end", *(u64 *)(memory + 0x1ffff8), 0x1122334455667788);
    faults("read across the end of a 2 MiB page", kernel(read64), address + 0x1ffffc + 4, 0);
    struct context end = touch(kernel(read64), address + 0x1ffffc);
    check("CR2 of a crossing read is the first absent byte", end.cr2, address + 0x200000);
    *entry(address, 2) &= ~(u64)W;
    flush_tlb();
    faults("write to a read-only 2 MiB page", kernel(write8), address + 77, F_P | F_W);
    if (!has_1g_pages()) {
        skip("1 GiB pages", "CPUID does not offer them");
        return;
    }
    u64 giant = TEST_AREA + (64ul << 30);
    map(giant, 0, P | W | U, 3);
    clear_bits(giant, 3);
    c = touch(kernel(read64), giant + memory + 0x1ffff8);
    check("read through a 1 GiB page", c.rax, 0x1122334455667788);
    check("read of a 1 GiB page sets A", bits(giant, 3), A);
    touch(kernel(write8), giant + memory);
    check("write to a 1 GiB page sets D", bits(giant, 3), A | D);
    *entry(giant, 3) |= NX;
    flush_tlb();
    faults("fetch from a 1 GiB NX page", kernel(execute), giant + 0x100000, F_P | F_ID);
    *entry(giant, 3) |= 1ul << 20;
    flush_tlb();
    reserved("low address bits of a 1 GiB page", kernel(read8), giant, 0);
}

/* A store that crosses into an absent page must not write its first part. */
static void crossing(void) {
    set(P | W | U);
    volatile u32 *tail = (u32 *)(area + 4092);
    *tail = 0xaaaaaaaa;
    struct context c = kernel(write64);
    c.rbx = area + 4092;
    c.rax = ~0ul;
    run(&c);
    check_trap("store into an absent second page", &c, PF, F_W);
    check("CR2 is in the second page", c.cr2, area + 4096);
    check("nothing was stored", *tail, 0xaaaaaaaa);
    map(area + 4096, (u64)alloc_page(), P, 1);
    c.rip = (u64)write64;
    c.cs = KCODE64;
    c.ss = KDATA;
    run(&c);
    check_trap("store into a read-only second page", &c, PF, F_P | F_W);
    check("nothing was stored", *tail, 0xaaaaaaaa);
    /* Two neighbouring pages that are not neighbours in memory. */
    u8 *low = alloc_page(), *high = alloc_page();
    map(area, (u64)high, P | W | U, 1);
    map(area + 4096, (u64)low, P | W | U, 1);
    flush_tlb();
    c = kernel(write64);
    c.rbx = area + 4093;
    c.rax = 0x8877665544332211;
    run(&c);
    check_trap("store across two pages", &c, DONE, 0);
    check("its first part", high[4093] | high[4094] << 8 | high[4095] << 16, 0x332211);
    check("its second part", *(u32 *)low, 0x77665544);
    c = touch(kernel(read64), area + 4093);
    check("load across two pages", c.rax, 0x8877665544332211);
    /* An instruction across two pages: 9 bytes of nop and moves up to the end. */
    memset(high + 4090, 0x90, 6);
    static const u8 code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3};
    for (u32 split = 1; split < sizeof code; split++) {
        memcpy(high + 4096 - split, code, split);
        memcpy(low, code + split, sizeof code - split);
        c = touch(kernel(execute), area + 4096 - split);
        check("instruction across two pages", c.rax, 0x0807060504030201);
    }
    *entry(area + 4096, 1) = 0;
    flush_tlb();
    memcpy(high + 4094, code, 2);
    c = touch(kernel(execute), area + 4094);
    check_trap("fetch of an instruction's second half", &c, PF, F_ID);
    check("CR2 is where the second half begins", c.cr2, area + 4096);
    check("RIP is where the instruction begins", c.rip, area + 4094);
}

static void smep_smap(void) {
    set(P | W | U);
    if (has_smep()) {
        passes("supervisor fetches from a user page, no SMEP", kernel(execute), area);
        write_cr4(read_cr4() | 1 << 20);
        faults("supervisor fetches from a user page, SMEP", kernel(execute), area, F_P | F_ID);
        passes("supervisor reads a user page, SMEP", kernel(read8), area);
        passes("user fetches from a user page, SMEP", user(execute), area);
        write_cr4(read_cr4() & ~(1ul << 20));
    } else {
        skip("SMEP", "CPUID does not offer it");
    }
    if (!has_smap()) {
        skip("SMAP", "CPUID does not offer it");
        return;
    }
    *(volatile u8 *)(*entry(area, 1) & ADDRESS_MASK) = 0xc3;
    passes("supervisor reads a user page, no SMAP", kernel(read8), area);
    write_cr4(read_cr4() | 1 << 21);
    faults("supervisor reads a user page, SMAP", kernel(read8), area, F_P);
    faults("supervisor writes a user page, SMAP", kernel(write8), area + 3, F_P | F_W);
    passes("STAC allows a read", kernel(read_ac), area);
    passes("STAC allows a write", kernel(write_ac), area + 9);
    passes("POPF sets AC", kernel(popf_ac), area);
    faults("after CLAC", kernel(read8), area, F_P);
    passes("SMAP leaves the user alone", user(modify), area);
    set(P | W | U);
    passes("SMAP leaves fetches alone", kernel(execute), area);
    write_cr4(read_cr4() & ~(1ul << 21));
    struct context c = user(write_ac);
    run(&c);
    check_trap("STAC in ring 3", &c, UD, 0);
}

void guest(void) {
    not_present();
    rights();
    upper_level_rights();
    reserved_bits();
    accessed_and_dirty();
    large_pages();
    crossing();
    smep_smap();
}
