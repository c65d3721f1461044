//! More code than is kept, and code that changes all the time.

use super::{Guest, USER_CODE};
use crate::block::MAX_BLOCKS;
use crate::fault::vector;
use crate::state::gpr;

const UD2: [u8; 2] = [0x0f, 0x0b];

/// Runs to UD2.
fn run(guest: &mut Guest) {
    let exception = guest.cpu.run_to_exception().expect_err("nothing else ends it");
    assert_eq!(exception.vector, vector::UD);
}

#[test]
fn a_guest_with_more_blocks_than_are_kept_runs_through_them_all_again_and_again() {
    for threshold in [None, Some(0)] {
        let mut guest = Guest::user();
        guest.cpu.set_translator(threshold);
        // inc eax; jmp to the next
        let count = MAX_BLOCKS + MAX_BLOCKS / 2;
        let mut code: Vec<u8> = [0xff, 0xc0, 0xeb, 0x00].repeat(count);
        code.extend(UD2);
        guest.poke(USER_CODE, &code);
        let cleared = guest.cpu.blocks.cleared;
        for round in 1..=2 {
            let mut state = guest.cpu.state();
            state.rip = USER_CODE;
            guest.cpu.set_state(&state);
            run(&mut guest);
            assert_eq!(guest.cpu.state().gpr[gpr::RAX], round * count as u64);
            assert!(guest.cpu.blocks.len() <= MAX_BLOCKS);
        }
        assert!(guest.cpu.blocks.cleared > cleared + 1, "they were never all kept");
    }
}

#[test]
fn a_guest_that_changes_its_code_in_a_loop_does_not_make_the_cache_grow() {
    for threshold in [None, Some(0)] {
        let mut guest = Guest::user();
        guest.cpu.set_translator(threshold);
        let count = MAX_BLOCKS as u32 + 10;
        // mov ecx, count; next: mov [rip + 1], ecx (the immediate of what follows); mov eax, imm32; add rdx, rax; dec ecx; jnz
        let mut code = vec![0xb9];
        code.extend(count.to_le_bytes());
        code.extend([0x89, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0x48, 0x01, 0xc2, 0xff, 0xc9, 0x75, 0xee]);
        code.extend(UD2);
        guest.poke(USER_CODE, &code);
        run(&mut guest);
        let sum = u64::from(count) * u64::from(count + 1) / 2;
        assert_eq!(guest.cpu.state().gpr[gpr::RDX], sum);
        assert!(guest.cpu.blocks.len() <= MAX_BLOCKS);
    }
}
