/* The work whose speed in ring 3 is compared with the host's: dependent and independent integer operations, a
 * multiplication, and loads and stores that stay in the first-level cache. The same instructions run in both places.
 *
 * In: RDI, a page-aligned buffer of 4 KiB; RSI, how many rounds. Out: RAX, a checksum; RDX, time-stamp counter ticks.
 * Changes RCX and R8 to R11. */
#define COMPUTE                                                                                                      \
    " rdtsc\n shl $32, %rdx\n or %rax, %rdx\n mov %rdx, %r11\n mov $0x9e3779b9, %eax\n xor %ecx, %ecx\n"             \
    " 1: mov %rax, %r8\n shl $13, %r8\n xor %r8, %rax\n mov %rax, %r9\n shr $7, %r9\n xor %r9, %rax\n"               \
    " imul $0x2545f491, %rax, %r10\n add %rcx, %r10\n mov %r10, %r8\n and $0xff8, %r8d\n"                            \
    " add %r10, (%rdi,%r8)\n add (%rdi,%rcx), %rax\n add $8, %ecx\n and $0xff8, %ecx\n dec %rsi\n jnz 1b\n"          \
    " mov %rax, %r9\n rdtsc\n shl $32, %rdx\n or %rax, %rdx\n sub %r11, %rdx\n mov %r9, %rax\n"

/* How many times the work is done and timed, and rounds of each time: some 20 ms. */
#define SLICES 40
#define ROUNDS 4000000ul
