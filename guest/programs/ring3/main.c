/* Does the work of compute.h on the host, and prints for each slice `slice TICKS CHECKSUM`, both hexadecimal. */
#include <stdio.h>
#include <string.h>

#include "../../payloads/compute.h"

static unsigned long buffer[512] __attribute__((aligned(4096)));

int main(void) {
    for (int slice = 0; slice < SLICES; slice++) {
        unsigned long ticks, checksum, rounds = ROUNDS;
        memset(buffer, 0, sizeof buffer);
        __asm__ volatile(COMPUTE
                         : "=d"(ticks), "=a"(checksum), "+S"(rounds)
                         : "D"(buffer)
                         : "rcx", "r8", "r9", "r10", "r11", "memory", "cc");
        printf("slice 0x%lx 0x%lx\n", ticks, checksum);
    }
    return 0;
}
