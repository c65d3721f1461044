/* Entry of the test guests: Multiboot 1 (32-bit protected mode, paging off) to long mode, the start of the
 * application processors, the trap stubs, and `run`, which enters a code snippet and comes back at its first trap.
 * Layouts shared with runtime.h are checked there by static assertions. */

#define CR0_PE 0x1
#define CR0_PG_WP_NE_ET_MP_PE 0x80010033
#define CR4_PAE_OSFXSR_OSXMMEXCPT 0x620
#define MSR_EFER 0xc0000080
#define EFER_NXE_LME_SCE 0x901
#define KCODE64 0x08
#define KDATA 0x10
#define KCODE32 0x38
#define UDATA 0x23
#define TSS_BASE 0xa0
#define AP_PAGE 0x8000

/* struct cpu, see runtime.h */
#define CPU_SIZE 64
#define CPU_CONTEXT 0
#define CPU_SAVED_RSP 8
#define CPU_STACK_TOP 16

/* struct context, see runtime.h */
#define C_RAX 0
#define C_RBX 8
#define C_RCX 16
#define C_RDX 24
#define C_RSI 32
#define C_RDI 40
#define C_RBP 48
#define C_R8 56
#define C_R9 64
#define C_R10 72
#define C_R11 80
#define C_R12 88
#define C_R13 96
#define C_R14 104
#define C_R15 112
#define C_VECTOR 120
#define C_ERROR 128
#define C_RIP 136
#define C_CS 144
#define C_RFLAGS 152
#define C_RSP 160
#define C_SS 168

.section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

.text
.code32
.global boot32
boot32:
    cli
    cld
    mov %eax, boot_magic
    mov %ebx, boot_information
    mov $boot_stack_top, %esp
    /* Identity map of 4 GiB by 2 MiB pages; RAM again at 2 GiB, there for ring 3. */
    mov $page_directories, %edi
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax
    mov %eax, (%edi, %ecx, 8)
    movl $0, 4(%edi, %ecx, 8)
    inc %ecx
    cmp $2048, %ecx
    jne 1b
    xor %ecx, %ecx
2:  mov %ecx, %eax
    shl $21, %eax
    or $0x87, %eax
    mov %eax, 8192(%edi, %ecx, 8)
    inc %ecx
    cmp $32, %ecx
    jne 2b
    mov $page_directory_pointers, %edi
    mov $page_directories + 7, %eax
    mov $4, %ecx
3:  mov %eax, (%edi)
    add $4096, %eax
    add $8, %edi
    loop 3b
    movl $page_directory_pointers + 7, page_map
    lgdt gdt_pointer
    call enable_long_mode
    ljmp $KCODE64, $boot64

/* Turns on long mode with paging; still in 32-bit code on return. */
enable_long_mode:
    mov $CR4_PAE_OSFXSR_OSXMMEXCPT, %eax
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_NXE_LME_SCE, %eax
    wrmsr
    mov $CR0_PG_WP_NE_ET_MP_PE, %eax
    mov %eax, %cr0
    ret

.code64
boot64:
    mov $KDATA, %eax
    mov %eax, %ss
    mov $UDATA, %eax
    mov %eax, %ds
    mov %eax, %es
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $boot_stack_top, %rsp
    fninit
    call runtime_start
    ud2

/* Application processor: copied to AP_PAGE, entered in real mode with CS = AP_PAGE >> 4. */
.code16
.global ap_start, ap_end
ap_start:
    cli
    mov %cs, %ax
    mov %ax, %cs:(ap_seen_cs - ap_start)
    mov %ds, %ax
    mov %ax, %cs:(ap_seen_ds - ap_start)
    mov %cr0, %eax
    mov %eax, %cs:(ap_seen_cr0 - ap_start)
    lgdtl %cs:(ap_gdt_pointer - ap_start)
    or $CR0_PE, %eax
    and $~0x60000000, %eax
    mov %eax, %cr0
    ljmpl $KCODE32, $ap_protected
    .balign 8
ap_gdt_pointer:
    .word 0xa0 + 8 * 16 - 1
    .long gdt
.global ap_seen_cs, ap_seen_ds, ap_seen_cr0
    .balign 4
ap_seen_cr0: .long 0
ap_seen_cs: .word 0
ap_seen_ds: .word 0
ap_end:

.code32
ap_protected:
    mov $KDATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %ebx
    lock xadd %ebx, cpus_started
    mov %ebx, %eax
    imul $CPU_SIZE, %eax
    mov cpus + CPU_STACK_TOP(%eax), %esp
    call enable_long_mode
    ljmp $KCODE64, $ap64
.code64
ap64:
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov %ebx, %edi
    mov %edi, %eax
    imul $CPU_SIZE, %rax
    mov cpus + CPU_STACK_TOP(%rax), %rsp
    fninit
    call ap_main
    ud2

/* %rax = this processor's struct cpu, found by its task register. */
.macro THIS_CPU
    xor %eax, %eax
    str %ax
    sub $TSS_BASE, %eax
    shl $2, %eax          /* selector / 16 * 64 */
    lea cpus(%rax), %rax
.endm

/* void run(struct context *c): enters c by IRETQ; returns with c updated at the first trap nobody else handles. */
.global run, run_iret
run:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    cli
    THIS_CPU
    mov %rsp, CPU_SAVED_RSP(%rax)
    mov %rdi, CPU_CONTEXT(%rax)
    pushq C_SS(%rdi)
    pushq C_RSP(%rdi)
    pushq C_RFLAGS(%rdi)
    pushq C_CS(%rdi)
    pushq C_RIP(%rdi)
    mov C_RAX(%rdi), %rax
    mov C_RBX(%rdi), %rbx
    mov C_RCX(%rdi), %rcx
    mov C_RDX(%rdi), %rdx
    mov C_RSI(%rdi), %rsi
    mov C_RBP(%rdi), %rbp
    mov C_R8(%rdi), %r8
    mov C_R9(%rdi), %r9
    mov C_R10(%rdi), %r10
    mov C_R11(%rdi), %r11
    mov C_R12(%rdi), %r12
    mov C_R13(%rdi), %r13
    mov C_R14(%rdi), %r14
    mov C_R15(%rdi), %r15
    mov C_RDI(%rdi), %rdi
run_iret:
    iretq

/* void leave_run(u64 saved_rsp): the way back out of a trap to the caller of `run`. */
.global leave_run
leave_run:
    mov $KDATA, %eax
    mov %eax, %ss
    mov $UDATA, %eax       /* an outer ring keeps it over IRET */
    mov %eax, %ds
    mov %eax, %es
    mov %rdi, %rsp
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* Trap stubs, 16 bytes each. */
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
.endr

.balign 16
trap_common:
    cld
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rbp
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rbx
    push %rax
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call dispatch
    mov %rbp, %rsp
    pop %rax
    pop %rbx
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    pop %rbp
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    add $16, %rsp
    iretq

/* Where SYSCALL lands when a test points LSTAR here: turns it into a trap with vector 0x81, all registers as they came. */
.global syscall_trap
syscall_trap:
    int $0x81

.data
.balign 8
gdt_pointer:
    .word 0xa0 + 8 * 16 - 1
    .quad gdt
.global boot_magic, boot_information
boot_magic: .long 0
boot_information: .long 0
.global cpus_started
cpus_started: .long 1

.bss
.balign 4096
.global page_map, page_directory_pointers, page_directories
page_map: .skip 4096
page_directory_pointers: .skip 4096
page_directories: .skip 4 * 4096
    .skip 32768
boot_stack_top:
    .skip 16
.section .note.GNU-stack, "", @progbits
