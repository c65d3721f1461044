/* Does the work of compute.h in ring 3, and prints for each slice `slice TICKS CHECKSUM`, both hexadecimal. */
#include "runtime.h"

#include "compute.h"

CODE(compute, COMPUTE);

void guest(void) {
    u64 *buffer = alloc_page();
    for (int slice = 0; slice < SLICES; slice++) {
        memset(buffer, 0, 4096);
        struct context c = user(compute);
        c.rdi = as_user(buffer);
        c.rsi = ROUNDS;
        run(&c);
        if (c.vector != DONE) {
            check("the work ends", c.vector, DONE);
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
