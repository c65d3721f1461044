/* 32-bit protected mode without paging, 16-bit protected mode and real mode, as boot code uses them: segment limits,
 * exceptions through 8-byte gates, far transfers, the real-mode interrupt table. SDM vol. 3A chapters 5, 9.9, 20. */
#include "runtime.h"

/* What protected-mode code runs with and ends with. */
struct legacy {
    u32 eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, cs, ds, es, ss, eflags, vector, error;
};
_Static_assert(sizeof(struct legacy) == 64, "the assembly below");
void run_legacy(struct legacy *l);
void run_real(void);
extern u64 legacy_idt[32 + 1];
extern const char legacy_stubs[];

asm(R"(
.section .text.legacy, "ax"
.code64
run_legacy:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    cli
    mov %rsp, legacy_rsp64
    mov %edi, legacy_context
    sidt legacy_old_idt
    lidt legacy_idt_pointer
    pushq $0x38
    pushq $leave_long
    lretq

.code32
leave_long:
    call flat
    mov $legacy_stack_top, %esp
    call paging_off
    mov legacy_context, %ebp
    mov 16(%ebp), %esp
    mov 48(%ebp), %ss
    pushl 52(%ebp)
    pushl 36(%ebp)
    pushl 32(%ebp)
    mov 0(%ebp), %eax
    mov 4(%ebp), %ecx
    mov 8(%ebp), %edx
    mov 12(%ebp), %ebx
    mov 24(%ebp), %esi
    mov 28(%ebp), %edi
    mov 44(%ebp), %es
    pushl 40(%ebp)
    pushl 20(%ebp)
    pop %ebp
    pop %ds
    iretl

flat:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ret

paging_off:
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
    ret

.balign 16
legacy_stubs:
.set vector, 0
.rept 33
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
    .else
    pushl $0
    .endif
    pushl $vector
    jmp legacy_trap
    .set vector, vector + 1
.endr
/* Stack: vector, error, EIP, CS, EFLAGS. */
legacy_trap:
    push %ds
    push %eax
    mov $0x10, %eax
    mov %eax, %ds
    pop %eax
    push %ebx
    mov legacy_context, %ebx
    mov %eax, 0(%ebx)
    mov %ecx, 4(%ebx)
    mov %edx, 8(%ebx)
    mov %ebp, 20(%ebx)
    mov %esi, 24(%ebx)
    mov %edi, 28(%ebx)
    pop 12(%ebx)
    pop 40(%ebx)
    pop 56(%ebx)
    pop 60(%ebx)
    pop 32(%ebx)
    pop 36(%ebx)
    pop 52(%ebx)
    mov %esp, 16(%ebx)
    mov %es, %eax
    mov %eax, 44(%ebx)
    mov %ss, %eax
    mov %eax, 48(%ebx)
    call flat_keep
enter_long:
    mov $legacy_stack_top, %esp
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x08, $back_long

flat_keep:
    pop %ecx
    mov $legacy_stack_top, %esp
    mov $0x10, %eax
    mov %eax, %ss
    mov $legacy_stack_top, %esp
    mov %eax, %es
    jmp *%ecx

.code64
back_long:
    mov legacy_rsp64, %rsp
    lidt legacy_old_idt
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* Real mode: the part between real_start and real_end is copied to 0xa000, in segment 0. */
run_real:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    cli
    mov %rsp, legacy_rsp64
    sidt legacy_old_idt
    lidt real_idt_pointer
    pushq $0x38
    pushq $leave_protected
    lretq
.code32
leave_protected:
    call flat
    mov $legacy_stack_top, %esp
    call paging_off
    ljmp $0x50, $0xa000

.global real_start, real_end
.code16
real_start:
    mov $0x58, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0, $(real_entry - real_start + 0xa000)
real_entry:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $0x7c00, %sp
    /* 7000: results, a word each. */
    mov %cs, 0x7000
    smsw %ax
    and $1, %ax
    mov %ax, 0x7002
    /* Segment arithmetic. */
    movw $0x5a5a, 0x7110
    mov $0x0711, %ax
    mov %ax, %ds
    mov 0, %bx
    mov $0x0701, %ax
    mov %ax, %es
    mov %es:0x100, %cx
    xor %ax, %ax
    mov %ax, %ds
    mov %bx, 0x7004
    mov %cx, 0x7006
    /* Software interrupt through the table at 0. */
    movw $(real_handler - real_start + 0xa000), 0x60*4
    movw $0, 0x60*4+2
    mov $0x1111, %ax
    stc
    sti
    int $0x60
    cli
    mov %ax, 0x7008
    mov %dx, 0x700a
    /* Far call and return, another CS for the same bytes. */
    lcall $0x0a00, $(real_far - real_start)
    mov %ax, 0x700c
    /* Push and pop of 16 and 32 bits, wrap of SP. */
    mov %sp, %bp
    push %ax
    pushl %eax
    mov %bp, %bx
    sub %sp, %bx
    mov %bx, 0x700e
    mov %bp, %sp
    /* Divide error through the table: a fault, returns to the next instruction by the handler. */
    movw $(real_divide - real_start + 0xa000), 0
    movw $0, 2
    xor %cx, %cx
    mov $7, %ax
    xor %dx, %dx
    div %cx
    mov %ax, 0x7010
    /* String copy through segments. */
    mov $0x0a00, %ax
    mov %ax, %ds
    xor %si, %si
    mov $0x0730, %ax
    mov %ax, %es
    xor %di, %di
    mov $16, %cx
    rep movsb
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    /* 32-bit addressing within 64 KiB. */
    mov $0x7000, %ebx
    mov $2, %ecx
    addr32 movw $0x7777, 0x10(%ebx, %ecx, 1)
    /* LOOP, JCXZ, LES. */
    mov $5, %cx
    xor %ax, %ax
1:  inc %ax
    loop 1b
    jcxz 2f
    xor %ax, %ax
2:  mov %ax, 0x7014
    movw $0x1234, 0x7100
    movw $0x0700, 0x7102
    les 0x7100, %di
    mov %es, %ax
    mov %ax, 0x7016
    mov %di, 0x7018
    /* A limit violation is interrupt 13 without error code. */
    movw $(real_gp - real_start + 0xa000), 13*4
    movw $0, 13*4+2
    mov $0xffff, %bx
    mov (%bx), %ax
    mov %ax, 0x701a
    /* Unreal mode: a 4 GiB limit loaded in protected mode stays. */
    lgdtl (ap_gdt - real_start + 0xa000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    mov $0x10, %bx
    mov %bx, %fs
    and $~1, %al
    mov %eax, %cr0
    mov $0x100000, %ebx
    addr32 mov %fs:(%ebx), %eax
    mov %eax, 0x7020
    xor %ax, %ax
    mov %ax, %fs
    addr32 mov %fs:(%ebx), %eax
    mov %eax, 0x7024
    /* PUSHF and POPF, FLAGS have 16 bits; IRET of 16 bits above. */
    pushf
    pop %ax
    mov %ax, 0x7028
    /* Back. */
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x38, $back_protected
real_handler:
    mov $0x2222, %ax
    pushf
    pop %dx
    iret
real_far:
    mov %cs, %ax
    lret
real_divide:
    mov $0xd1d1, %ax
    push %bp
    mov %sp, %bp
    addw $2, 2(%bp)
    pop %bp
    iret
real_gp:
    mov $0x6b6b, %ax
    push %bp
    mov %sp, %bp
    addw $2, 2(%bp)
    pop %bp
    iret
    .balign 8
ap_gdt:
    .word 0x11f
    .long gdt
real_end:
.code32
back_protected:
    call flat_keep
    jmp enter_long

.data
.balign 8
legacy_rsp64: .quad 0
legacy_context: .quad 0
legacy_old_idt: .skip 10
legacy_idt_pointer: .word 33 * 8 - 1
    .quad legacy_idt
real_idt_pointer: .word 0x3ff
    .quad 0
.bss
    .skip 4096
legacy_stack_top:
    .skip 16
.text
.code64
)");

u64 legacy_idt[33] __attribute__((aligned(16)));

#undef CODE32
#define CODE32(name, ...) \
    extern const char name[]; \
    asm(".pushsection .text.snippets, \"ax\"\n.balign 64\n.code32\n" #name ":\n" __VA_ARGS__ "\n int $32\n.code64\n.popsection")

CODE32(read, "mov (%ebx), %eax");
CODE32(write, "mov %eax, (%ebx)");
CODE32(es_string, "rep stosb");
CODE32(load_es, "mov %eax, %es");
CODE32(nothing, "nop");
CODE32(undefined, "ud2");
CODE32(breakpoint, "int3");
CODE32(far_jump, "ljmp *(%ebx)");
CODE32(divide, "xor %edx, %edx\n xor %ecx, %ecx\n div %ecx");
CODE32(fs_gs, "mov %eax, %fs\n mov %fs:(%ebx), %ecx\n mov %eax, %gs\n mov %gs:4(%ebx), %edx");
CODE32(no_paging, "mov %cr0, %eax\n mov %cr4, %ecx\n mov (%ebx), %edx");
CODE32(lar_far, "lar %eax, %ecx\n setz %dl\n lsl %eax, %ebx");
CODE32(call_gate, "push $0x55\n lcall $0x78, $0\n pop %ebx");
CODE32(gate_target, "mov 8(%esp), %eax\n lret");

static u8 *data;

static void segment(u32 selector, u64 base, u32 limit, u32 type, u32 flags) {
    gdt[selector >> 3] = (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)type << 40 | (u64)(limit >> 16 & 0xf) << 48 |
                         (u64)flags << 52 | (base >> 24 & 0xff) << 56;
}

static struct legacy fresh(const void *code) {
    static u8 stack[4096] __attribute__((aligned(16)));
    return (struct legacy){.eip = (u32)(u64)code, .cs = KCODE32, .ds = KDATA, .es = KDATA, .ss = KDATA,
                           .esp = (u32)(u64)stack + 4000, .eflags = 2};
}

static void ends(const char *name, struct legacy *l, u32 vector, u32 error) {
    run_legacy(l);
    check(name, (u64)l->vector << 32 | l->error, (u64)vector << 32 | error);
}

static void protected_mode(void) {
    struct legacy l = fresh(nothing);
    ends("32-bit protected mode", &l, 32, 0);
    l = fresh(no_paging);
    l.ebx = (u32)(u64)data;
    *(u32 *)data = 0x600df00d;
    ends("paging is off", &l, 32, 0);
    check("  CR0", l.eax >> 31 << 1 | (l.eax & 1), 1);
    check("  memory", l.edx, 0x600df00d);
    l = fresh(undefined);
    ends("UD2 through an 8-byte gate", &l, UD, 0);
    check("  EIP", l.eip, (u32)(u64)undefined);
    l = fresh(breakpoint);
    ends("INT3", &l, BP, 0);
    check("  EIP", l.eip, (u32)(u64)breakpoint + 1);
    l = fresh(divide);
    ends("divide error", &l, DE, 0);
    l = fresh(load_es);
    l.eax = 0x1230;
    ends("ES beyond the GDT", &l, GP, 0x1230);
    l = fresh(load_es);
    l.eax = ABSENT;
    ends("absent ES", &l, NP, ABSENT);
}

static struct legacy with_segment(const void *code, u32 address) {
    struct legacy l = fresh(code);
    l.ds = l.es = SPARE0;
    l.ebx = l.edi = l.ebp = address;
    return l;
}

static void limits(void) {
    if (skip_on_reference("segment limits", "not checked")) return;
    segment(SPARE0, (u64)data, 0xff, 0x93, 4);
    struct legacy l = with_segment(read, 0xfc);
    ends("read at the end of a segment", &l, 32, 0);
    l = with_segment(read, 0xfd);
    ends("read across the end", &l, GP, 0);
    l = with_segment(write, 0x100);
    ends("write beyond the end", &l, GP, 0);
    l = with_segment(write, 0xffffffff);
    ends("write at the wrap", &l, GP, 0);
    l = with_segment(es_string, 0xf0);
    l.ecx = 100;
    ends("REP STOSB across the end", &l, GP, 0);
    check("  ECX", l.ecx, 100 - 16);
    check("  EDI", l.edi, 0x100);
    segment(SPARE0, (u64)data, 0xff, 0x91, 4);
    l = with_segment(write, 0);
    ends("write to a read-only segment", &l, GP, 0);
    segment(SPARE0, (u64)data, 0xff, 0x97, 4);
    l = with_segment(read, 0xff);
    ends("expand-down segment, below", &l, GP, 0);
    l = with_segment(read, 0x100);
    ends("expand-down segment, above", &l, 32, 0);
    segment(SPARE0, (u64)data, 0x0, 0x93, 0xc);
    l = with_segment(read, 0xffc);
    ends("page granularity", &l, 32, 0);
    l = with_segment(read, 0xffd);
    ends("page granularity, across the end", &l, GP, 0);
    l = fresh(read);
    l.ds = 0;
    l.ebx = (u32)(u64)data;
    ends("null DS", &l, GP, 0);
    segment(SPARE0, 0, (u32)(u64)nothing, 0x9b, 4);
    l = fresh(nothing);
    l.cs = SPARE0;
    ends("fetch beyond the limit of CS", &l, GP, 0);
}

static void segments(void) {
    segment(SPARE0, (u64)data, 0xff, 0x92, 4);
    *(u32 *)(data + 8) = 0x11, *(u32 *)(data + 12) = 0x22;
    struct legacy l = fresh(fs_gs);
    l.eax = SPARE0;
    l.ebx = 8;
    ends("FS and GS with a base", &l, 32, 0);
    check("  values", l.ecx << 8 | l.edx, 0x1122);
    check("  accessed", gdt[SPARE0 >> 3] >> 40 & 1, 1);
    l = fresh(lar_far);
    l.eax = SPARE0;
    ends("LAR and LSL", &l, 32, 0);
    check("  access rights", l.ecx & 0xf0ff00, 0x409300);
    check("  limit", l.ebx, 0xff);
    /* Far jump to 16-bit code with a base. */
    static const u8 code16[] = {0xb8, 0x34, 0x12, 0x66, 0xbb, 1, 2, 3, 4, 0xcd, 0x20};
    memcpy(data + 64, code16, sizeof code16);
    segment(SPARE1, (u64)data, 0xffff, 0x9b, 0);
    u32 target[2] = {64, SPARE1};
    memcpy(data + 16, target, 8);
    l = fresh(far_jump);
    l.eax = 0xffff0000;
    l.ebx = (u32)(u64)data + 16;
    ends("far jump to 16-bit code", &l, 32, 0);
    check("  16-bit move", l.eax, 0xffff1234);
    check("  32-bit move by prefix", l.ebx, 0x04030201);
    check("  CS", l.cs, SPARE1);
    target[1] = KDATA;
    memcpy(data + 16, target, 8);
    l = fresh(far_jump);
    l.ebx = (u32)(u64)data + 16;
    ends("far jump to data", &l, GP, KDATA);
    /* A call gate of the same ring. */
    u64 to = (u64)gate_target;
    gdt[SPARE2 >> 3] = (to & 0xffff) | (u64)KCODE32 << 16 | 0x8c00ull << 32 | (to >> 16) << 48;
    l = fresh(call_gate);
    ends("call gate", &l, 32, 0);
    check("  argument", l.eax, 0x55);
}

static void real_mode(void) {
    extern const char real_start[], real_end[];
    static u8 ivt[1024];
    memcpy(ivt, (void *)0, sizeof ivt);
    memcpy((void *)0xa000, real_start, real_end - real_start);
    memset((void *)0x7000, 0xee, 0x400);
    run_real();
    memcpy((void *)0, ivt, sizeof ivt);
    const u16 *r = (u16 *)0x7000;
    check("real mode: CS", r[0], 0);
    check("CR0.PE", r[1], 0);
    check("DS << 4", r[2], 0x5a5a);
    check("ES << 4 plus offset", r[3], 0x5a5a);
    check("INT through the vector table", r[4], 0x2222);
    check("  IF and TF clear in the handler, CF kept", r[5] & 0x301, 1);
    check("far call: CS", r[6], 0xa00);
    check("push sizes", r[7], 6);
    check("divide error", r[8], 0xd1d1);
    check("32-bit addressing", r[9], 0x7777);
    check("LOOP and JCXZ", r[10], 5);
    check("LES", (u32)r[11] << 16 | r[12], 0x07001234);
    check("string copy between segments", memcmp((void *)0x7300, (void *)0xa000, 16), 0);
    if (!skip_on_reference("segment limit in real mode", "not checked")) check("segment limit in real mode", r[13], 0x6b6b);
    check("a limit loaded in protected mode stays", *(u32 *)(r + 16), *(u32 *)0x100000);
    check("  after a real-mode load too", *(u32 *)(r + 18), *(u32 *)0x100000);
    check("FLAGS, fixed bits", r[20] & 0x802a, 2);
}

void guest(void) {
    data = alloc_pages(2);
    for (u32 v = 0; v < 33; v++) {
        u64 target = (u64)legacy_stubs + 16 * v;
        legacy_idt[v] = (target & 0xffff) | (u64)KCODE32 << 16 | 0xee00ull << 32 | (target >> 16) << 48;
    }
    protected_mode();
    limits();
    segments();
    real_mode();
}
