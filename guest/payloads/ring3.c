/* Does the work of compute.h in ring 3, and prints for each slice `slice TICKS CHECKSUM`, both hexadecimal. */
#include "runtime.h"

#include "compute.h"

/* Ends in an exception: hosts that emulate ring 0 deliver those, but no software interrupt, from ring 3. */
CODE(compute, COMPUTE " .global compute_end\n compute_end: ud2\n");
extern const char compute_end[];

void guest(void) {
    u64 *buffer = alloc_page();
    for (int slice = 0; slice < SLICES; slice++) {
        memset(buffer, 0, 4096);
        struct context c = user(compute);
        c.rdi = as_user(buffer);
        c.rsi = ROUNDS;
        run(&c);
        if (c.vector != UD || c.rip != as_user(compute_end)) {
            check("the work ends in its last instruction", c.vector, UD);
            check("the work ends at its last instruction", c.rip, as_user(compute_end));
            return;
        }
        print("slice ");
        print_hex(c.rdx);
        print(" ");
        print_hex(c.rax);
        print("\n");
    }
    check_true("all slices are done", true);
}
