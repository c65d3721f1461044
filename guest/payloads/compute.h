/* The work whose speed in ring 3 is compared with the host's: dependent and independent integer operations, a
 * multiplication, and loads and stores that stay in the first-level cache. The same instructions run in both places.
 *
 * In: RDI, a page-aligned buffer of 4 KiB; RSI, how many rounds. Out: RAX, a checksum; RDX, time-stamp counter ticks.
 * Changes RCX and R8 to R11. In Intel's syntax, where no register has a %, so that top-level and extended
 * assembly can both have it. */
#define COMPUTE                                                                                                      \
    ".intel_syntax noprefix\n"                                                                                       \
    " rdtsc\n shl rdx, 32\n or rdx, rax\n mov r11, rdx\n mov eax, 0x1e3779b9\n xor ecx, ecx\n"                       \
    " 1: mov r8, rax\n shl r8, 13\n xor rax, r8\n mov r9, rax\n shr r9, 7\n xor rax, r9\n"                           \
    " imul r10, rax, 0x2545f491\n add r10, rcx\n mov r8, r10\n and r8d, 0xff8\n"                                     \
    " add [rdi + r8], r10\n add rax, [rdi + rcx]\n add ecx, 8\n and ecx, 0xff8\n dec rsi\n jnz 1b\n"                 \
    " mov r9, rax\n rdtsc\n shl rdx, 32\n or rdx, rax\n sub rdx, r11\n mov rax, r9\n"                                \
    ".att_syntax\n"

/* How many times the work is done and timed, and rounds of each time: some milliseconds. */
#define SLICES 100
#define ROUNDS 1000000ul
