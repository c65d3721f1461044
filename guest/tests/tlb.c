/* What the translation lookaside buffer may and may not keep: INVLPG on small and large pages, CR3 loads, global pages,
 * upgrades without a flush. SDM vol. 3A §4.10. */
#include "runtime.h"

CODE(read64, "mov (%rbx), %rax");
CODE(write64, "mov %rax, (%rbx)");
CODE(call_there, "call *%rbx");

static const u64 area = TEST_AREA;
static u64 *first, *second;

static u64 value_at(u64 address) { return *(volatile u64 *)address; }

static void aim(u64 *page, u64 flags) {
    map(area, (u64)page, P | W | U | flags, 1);
    invlpg(area);
}

static void small_pages(void) {
    aim(first, 0);
    check("page A", value_at(area), 1);
    *entry(area, 1) = (u64)second | P | W | U;
    invlpg(area + 0xabc);
    check("INVLPG of any address in the page", value_at(area), 2);
    *entry(area, 1) = 0;
    invlpg(area);
    struct context c = kernel(read64);
    c.rbx = area;
    run(&c);
    check_trap("unmapped after INVLPG", &c, PF, 0);
    /* A not-present entry is never cached: making it present needs no flush. */
    *entry(area, 1) = (u64)first | P | W | U;
    check("mapped without a flush", value_at(area), 1);
}

static void upgrades(void) {
    aim(first, 0);
    *entry(area, 1) = (u64)first | P | U;
    invlpg(area);
    struct context c = kernel(write64);
    c.rbx = area;
    run(&c);
    check_trap("write to a read-only page", &c, PF, F_P | F_W);
    /* A fault drops what the TLB had for its page (§4.10.4.1), so the retry after an upgrade succeeds. */
    *entry(area, 1) = (u64)first | P | W | U;
    c = kernel(write64);
    c.rbx = area;
    c.rax = 1;
    run(&c);
    check_trap("write after an upgrade without a flush", &c, DONE, 0);
    *entry(area, 1) |= NX;
    *(u8 *)first = 0xc3;
    invlpg(area);
    c = kernel(call_there);
    c.rbx = area;
    run(&c);
    check_trap("fetch from an NX page", &c, PF, F_P | F_ID);
    *entry(area, 1) &= ~NX;
    c = kernel(call_there);
    c.rbx = area;
    run(&c);
    check_trap("fetch after NX was taken away without a flush", &c, DONE, 0);
    *first = 1;
}

static void cr3_loads(void) {
    write_cr4(read_cr4() | 0x80);
    aim(first, 0);
    value_at(area);
    *entry(area, 1) = (u64)second | P | W | U;
    write_cr3(read_cr3());
    check("CR3 load drops an ordinary page", value_at(area), 2);
    aim(first, G);
    value_at(area);
    *entry(area, 1) = (u64)second | P | W | U | G;
    /* The TLB may keep a global page over the load, it need not: both values are right. */
    write_cr3(read_cr3());
    u64 kept = value_at(area);
    check_true("CR3 load may keep a global page", kept == 1 || kept == 2);
    invlpg(area);
    check("INVLPG drops a global page", value_at(area), 2);
    aim(first, G);
    value_at(area);
    *entry(area, 1) = (u64)second | P | W | U | G;
    write_cr4(read_cr4() ^ 0x80);
    check("a change of CR4.PGE drops global pages", value_at(area), 2);
    write_cr4(read_cr4() | 0x80);
    /* A second address space, with its own table for the area. */
    u64 *other = alloc_page(), *now = (u64 *)(read_cr3() & ADDRESS_MASK);
    memcpy(other, now, 4096);
    u64 home = read_cr3();
    aim(first, 0);
    other[area >> 39 & 511] = 0;
    write_cr3((u64)other);
    struct context c = kernel(read64);
    c.rbx = area;
    run(&c);
    check_trap("the other address space lacks the area", &c, PF, 0);
    write_cr3(home);
    check("back home", value_at(area), 1);
}

static void large_pages(void) {
    u64 address = area + (32ul << 21);
    u64 *a = alloc_pages(512), *b = alloc_pages(512);
    for (u32 i = 0; i < 512; i++) a[i * 512] = 0x100 + i, b[i * 512] = 0x200 + i;
    map(address, (u64)a, P | W | U, 2);
    invlpg(address);
    bool same = true;
    for (u32 i = 0; i < 512; i++) same &= value_at(address + i * 4096) == 0x100 + i;
    check_true("every part of a 2 MiB page", same);
    *entry(address, 2) = (u64)b | P | W | U | PS;
    invlpg(address + 0x155000);
    same = true;
    for (u32 i = 0; i < 512; i++) same &= value_at(address + i * 4096) == 0x200 + i;
    check_true("one INVLPG drops the whole 2 MiB page", same);
    /* Split into 4 KiB pages, every second one aimed at the other memory. */
    u64 *table = alloc_page();
    for (u32 i = 0; i < 512; i++) table[i] = ((u64)(i & 1 ? a : b) + i * 4096) | P | W | U;
    *entry(address, 2) = (u64)table | P | W | U;
    invlpg(address);
    same = true;
    for (u32 i = 0; i < 512; i++) same &= value_at(address + i * 4096) == (i & 1 ? 0x100u : 0x200u) + i;
    check_true("a large page split into small ones", same);
    *entry(address, 2) = (u64)a | P | W | U | PS;
    flush_tlb();
    same = true;
    for (u32 i = 0; i < 512; i++) same &= value_at(address + i * 4096) == 0x100 + i;
    check_true("small pages joined to a large one", same);
    if (!has_1g_pages()) return skip("INVLPG of a 1 GiB page", "CPUID does not offer them");
    u64 giant = TEST_AREA + (32ul << 30);
    map(giant, 0, P | W | U, 3);
    u64 sum = 0;
    for (u32 i = 0; i < 8; i++) sum += value_at(giant + (u64)a + i * 4096);
    check("1 GiB page", sum, 0x81c);
    *entry(giant, 3) = 0;
    invlpg(giant + 0x12345678);
    struct context c = kernel(read64);
    c.rbx = giant + (u64)a + 4096;
    run(&c);
    check_trap("one INVLPG drops the whole 1 GiB page", &c, PF, 0);
}

/* More pages than any TLB holds, remapped and flushed in several ways. */
static void many_pages(void) {
    enum { PAGES = 2000 };
    u64 base = area + (4ul << 30);
    u64 *frames[8];
    for (u32 i = 0; i < 8; i++) {
        frames[i] = alloc_page();
        *frames[i] = i;
    }
    u64 wrong = 0;
    for (u32 round = 0; round < 4; round++) {
        for (u32 i = 0; i < PAGES; i++) {
            map(base + i * 4096ul, (u64)frames[(i + round) & 7], P | W, 1);
            if (round & 1) invlpg(base + i * 4096ul);
        }
        if (!(round & 1)) write_cr3(read_cr3());
        for (u32 i = 0; i < PAGES; i++) wrong += value_at(base + i * 4096ul) != ((i + round) & 7);
    }
    check("2000 pages remapped four times", wrong, 0);
}

void guest(void) {
    first = alloc_page();
    second = alloc_page();
    *first = 1;
    *second = 2;
    small_pages();
    upgrades();
    cr3_loads();
    large_pages();
    many_pages();
    struct context c = user((const void *)0);
    extern const char user_invlpg[];
    c.rip = as_user(user_invlpg);
    run(&c);
    check_trap("INVLPG in ring 3", &c, GP, 0);
}
CODE(user_invlpg, "invlpg (%rax)");
