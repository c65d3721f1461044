//! Every target with its seeds, with changed seeds, and with random bytes: what a fuzzer does for hours, for a moment.

use queztl_fuzz_targets::{call, seeds};

/// xorshift64* (Vigna: An experimental exploration of Marsaglia's xorshift generators): the same inputs every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next() as u8).collect()
    }

    /// A seed with some bytes changed, left out or put in.
    fn changed(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut input = seed.to_vec();
        for _ in 0..=self.below(8) {
            let place = self.below(input.len());
            match (self.below(4), input.is_empty()) {
                (0, false) => drop(input.remove(place)),
                (1, _) => input.insert(place, self.next() as u8),
                (_, false) => input[place] = self.next() as u8,
                _ => {}
            }
        }
        input
    }
}

fn smoke(target: &str, rounds: usize) {
    let seeds = seeds::seeds(target);
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| call(target, seed));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds {
        let input = match round % 3 {
            0 => random.bytes(512),
            _ => {
                let seed = random.below(seeds.len());
                random.changed(&seeds[seed])
            }
        };
        call(target, &input);
    }
}

#[test]
fn kernels() {
    smoke("boot", 3000);
}

#[test]
fn code() {
    smoke("cpu", 1000);
}

#[test]
fn disks() {
    smoke("disks", 20_000);
}

#[test]
fn devices() {
    smoke("devices", 2000);
}

#[test]
fn frames() {
    smoke("frames", 3000);
}

#[test]
fn handshakes() {
    smoke("handshake", 10_000);
}

#[test]
fn disk_images() {
    smoke("qcow2", 3000);
}

#[test]
fn peers() {
    smoke("qhp", 10_000);
}

#[test]
fn saved_states() {
    smoke("states", 2000);
}
