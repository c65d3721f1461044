/* Self-modifying code on one processor: the next instruction, the same block, another page, through an alias, by string
 * instructions, by the modified code itself. SDM vol. 3A §8.1.3: a jump makes modified code visible; on real processors
 * since the Pentium Pro a store to linear addresses of code takes effect at the next instruction. */
#include "runtime.h"

/* The immediate of `mov $1, %eax` is at offset 1 of the marked instruction. */
CODE(patch_next, "lea 1f(%rip), %rbx\n movb $2, 1(%rbx)\n 1: mov $1, %eax");
CODE(patch_in_block, "lea 1f(%rip), %rbx\n xor %ecx, %ecx\n movb $3, 1(%rbx)\n add $5, %ecx\n sub $2, %ecx\n 1: mov $1, %eax");
CODE(patch_loop, "lea 1f(%rip), %rbx\n xor %edx, %edx\n mov $200, %ecx\n 2: incb 1(%rbx)\n 1: mov $0, %eax\n"
                 " movzx %al, %eax\n add %eax, %edx\n dec %ecx\n jnz 2b");
CODE(patch_backwards, "mov $10, %ecx\n xor %edx, %edx\n 1: mov $1, %eax\n add %eax, %edx\n incb 1b+1(%rip)\n dec %ecx\n jnz 1b");
CODE(patch_by_movs, "lea 3f(%rip), %rsi\n lea 1f(%rip), %rdi\n mov $5, %ecx\n rep movsb\n 1: mov $1, %eax\n jmp 2f\n"
                    " 3: mov $7, %eax\n 2: nop");
CODE(patch_by_lock, "lea 1f+1(%rip), %rbx\n mov $8, %eax\n lock xadd %al, (%rbx)\n 1: mov $1, %eax");
CODE(patch_by_push, "mov %rsp, %rbp\n lea 1f+8(%rip), %rsp\n push %rax\n 1: nop\n nop\n nop\n nop\n nop\n nop\n nop\n nop\n mov %rbp, %rsp");
CODE(patch_call, "call *%rbx\n mov %eax, %edx\n movb $9, 1(%rsi)\n call *%rbx");
CODE(patch_through, "movb $4, 1(%rsi)\n call *%rbx");
CODE(patch_opcode, "mov $5, %eax\n lea 1f(%rip), %rbx\n movw $0xc8ff, (%rbx)\n 1: inc %eax");
CODE(sse_store, "movups (%rsi), %xmm0\n lea 1f(%rip), %rbx\n movups %xmm0, (%rbx)\n jmp 1f\n 1: .skip 16, 0x90");
CODE(call_it, "call *%rbx");

static const u8 mov1_ret[] = {0xb8, 1, 0, 0, 0, 0xc3};

static void result(const char *name, const void *code, u64 rax) {
    struct context c = kernel(code);
    run(&c);
    check_trap(name, &c, DONE, 0);
    check(name, c.rax & 0xff, rax);
}

static void same_block(void) {
    result("store to the next instruction", patch_next, 2);
    result("store ahead in the block", patch_in_block, 3);
    struct context c = kernel(patch_loop);
    run(&c);
    check("200 patches of the next instruction", c.rdx, 200 * 201 / 2);
    c = kernel(patch_backwards);
    run(&c);
    check("a loop that patches its head", c.rdx, 55);
    result("REP MOVSB over the next instruction", patch_by_movs, 7);
    result("LOCK XADD to the next instruction", patch_by_lock, 9);
    c = kernel(patch_by_push);
    c.rax = 0x90909090c0ffc031; /* xor eax, eax; inc eax */
    run(&c);
    check("PUSH over the next instruction", c.rax, 1);
    result("another opcode", patch_opcode, 4);
    u8 code[16] = {0xb8, 0x2a, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90};
    c = kernel(sse_store);
    c.rsi = (u64)code;
    run(&c);
    check("a 16-byte store over code", c.rax, 0x2a);
}

static void other_page(void) {
    u8 *page = alloc_page();
    memcpy(page, mov1_ret, sizeof mov1_ret);
    struct context c = kernel(patch_call);
    c.rbx = (u64)page;
    c.rsi = (u64)page;
    run(&c);
    check("code on another page, first call", c.rdx, 1);
    check("code on another page, after the store", c.rax, 9);
    /* Through another linear address of the same page. */
    map(TEST_AREA, (u64)page, P | W, 1);
    memcpy(page, mov1_ret, sizeof mov1_ret);
    c = kernel(call_it);
    c.rbx = (u64)page;
    run(&c);
    check("before the store through an alias", c.rax, 1);
    c = kernel(patch_through);
    c.rbx = (u64)page;
    c.rsi = TEST_AREA;
    run(&c);
    check("after the store through an alias", c.rax, 4);
    /* An alias by a large page. */
    map(TEST_AREA + (1ul << 30), (u64)page & ~0x1ffffful, P | W, 2);
    page[1] = 1;
    c = kernel(call_it);
    c.rbx = TEST_AREA;
    run(&c);
    check("before the store through a large alias", c.rax, 1);
    c = kernel(patch_through);
    c.rbx = TEST_AREA;
    c.rsi = TEST_AREA + (1ul << 30) + ((u64)page & 0x1fffff);
    run(&c);
    check("after the store through a large alias", c.rax, 4);
    /* The same linear address, aimed at another page. */
    u8 *other = alloc_page();
    memcpy(other, mov1_ret, sizeof mov1_ret);
    other[1] = 0x33;
    map(TEST_AREA, (u64)other, P | W, 1);
    invlpg(TEST_AREA);
    c = kernel(call_it);
    c.rbx = TEST_AREA;
    run(&c);
    check("another page under the same address", c.rax, 0x33);
}

/* An instruction that crosses pages: either part may be patched. */
static void crossing(void) {
    u8 *pages = alloc_pages(2);
    u8 *code = pages + 4096 - 2;
    memcpy(code, mov1_ret, sizeof mov1_ret);
    struct context c = kernel(call_it);
    c.rbx = (u64)code;
    run(&c);
    check("crossing instruction", c.rax, 1);
    code[1] = 5;
    c = kernel(call_it);
    c.rbx = (u64)code;
    run(&c);
    check("its part on the first page patched", c.rax, 5);
    code[3] = 6;
    c = kernel(call_it);
    c.rbx = (u64)code;
    run(&c);
    check("its part on the second page patched", c.rax, 0x60005);
    /* A block that runs from one page to the next; the second page is patched. */
    memset(pages + 4000, 0x90, 200);
    memcpy(pages + 4096 + 50, mov1_ret, sizeof mov1_ret);
    for (u32 i = 1; i < 5; i++) {
        pages[4096 + 51] = i;
        c = kernel(call_it);
        c.rbx = (u64)pages + 4000;
        run(&c);
        check("a block across pages, patched behind the border", c.rax, i);
    }
    /* The second page swapped for another by remapping. */
    u8 *second = alloc_page();
    memcpy(second, pages + 4096, 4096);
    second[51] = 0x77;
    u64 area = TEST_AREA + (2ul << 30);
    map(area, (u64)pages, P | W, 1);
    map(area + 4096, (u64)pages + 4096, P | W, 1);
    c = kernel(call_it);
    c.rbx = area + 4000;
    run(&c);
    check("a block across two mapped pages", c.rax, 4);
    map(area + 4096, (u64)second, P | W, 1);
    invlpg(area + 4096);
    c = kernel(call_it);
    c.rbx = area + 4000;
    run(&c);
    check("its second page remapped", c.rax, 0x77);
}

/* Data next to code on one page: many stores, code stays right. */
static void mixed_page(void) {
    u8 *page = alloc_page();
    memcpy(page, mov1_ret, sizeof mov1_ret);
    u64 sum = 0;
    for (u32 i = 0; i < 3000; i++) {
        *(volatile u32 *)(page + 2048) = i;
        if (i % 100 == 0) page[1] = i / 100;
        struct context c = kernel(call_it);
        c.rbx = (u64)page;
        run(&c);
        sum += c.rax;
    }
    check("data and code on one page", sum, 100 * (29 * 30 / 2));
}

/* A just-in-time compiler in small. */
static void generated(void) {
    u8 *page = alloc_page();
    u64 wrong = 0;
    for (u32 i = 0; i < 500; i++) {
        u32 at = i * 7 % 3000;
        page[at] = 0xb8;
        memcpy(page + at + 1, &i, 4);
        page[at + 5] = 0xc3;
        struct context c = kernel(call_it);
        c.rbx = (u64)page + at;
        run(&c);
        wrong += c.rax != i;
    }
    check("500 small functions generated and run", wrong, 0);
}

void guest(void) {
    same_block();
    other_page();
    crossing();
    mixed_page();
    generated();
}
