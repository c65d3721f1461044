//! The software CPU against the host's processor: random instructions on random operands, run on both, must leave the
//! same registers, flags, vectors, x87 state, memory and faults.
//!
//! - `QUEZTL_CASES=n` runs about n cases instead of a million;
//! - `QUEZTL_SEED=n` takes other random numbers;
//! - `QUEZTL_SEED=n:i` runs only instruction i of that run, as a failure prints it;
//! - `QUEZTL_MNEMONIC=Adc,Sbb` runs only instructions so named.
//!
//! The table of what was covered is printed at the end (`--nocapture`).

mod arena;
mod case;
mod forms;
mod guest;
mod host;
mod operands;
mod rng;
mod sequences;

use std::collections::BTreeMap;
use std::sync::Mutex;

use iced_x86::{Code, FastFormatter, Instruction, InstructionInfoFactory, Mnemonic};

use arena::{DATA, DATA_LEN, ENTRY, READ_ONLY};
use case::{Ending, Registers, differences};
use guest::Guest;
use host::Host;
use queztl_soft_cpu::vector;
use rng::Rng;

/// Operand sets tried on each encoding.
const OPERAND_SETS: u64 = 6;
/// Instructions between two fills of the data pages.
const DATA_LIFETIME: u64 = 16;
/// The writable part of the data.
const WRITABLE: usize = (READ_ONLY - DATA) as usize;
/// Failures reported in full.
const REPORTED: usize = 40;

/// MXCSR bits.
const RANGE_MASKS: u32 = 1 << 11 | 1 << 10;
const PRECISION: u32 = 1 << 5;
const MISALIGNED_MODE: u32 = 1 << 17;

struct Settings {
    seed: u64,
    only: Option<u64>,
    instructions: u64,
    mnemonics: Option<Vec<String>>,
}

impl Settings {
    fn from_environment() -> Settings {
        let get = |name: &str| std::env::var(name).ok();
        let seed = get("QUEZTL_SEED").unwrap_or_else(|| "1".into());
        let (seed, only) = match seed.split_once(':') {
            Some((seed, only)) => (seed.to_owned(), Some(only.parse().expect("QUEZTL_SEED=seed:instruction"))),
            None => (seed, None),
        };
        let cases: u64 = get("QUEZTL_CASES").map_or(1_000_000, |n| n.parse().expect("QUEZTL_CASES is a number"));
        Settings {
            seed: seed.parse().expect("QUEZTL_SEED is a number"),
            only,
            instructions: cases.div_ceil(OPERAND_SETS),
            mnemonics: get("QUEZTL_MNEMONIC").map(|list| list.split(',').map(str::to_lowercase).collect()),
        }
    }

    fn wants(&self, code: Code) -> bool {
        let name = format!("{:?}", code.mnemonic()).to_lowercase();
        self.mnemonics.as_ref().is_none_or(|list| list.contains(&name))
    }
}

/// What was run of one mnemonic.
#[derive(Default)]
struct Covered {
    forms: BTreeMap<Code, u64>,
    faults: u64,
    failures: u64,
}

struct Bench {
    host: Host,
    guest: Guest,
    /// The guest runs translated code.
    translated: bool,
    data: Vec<u8>,
    fs_base: u64,
    covered: BTreeMap<Mnemonic, Covered>,
    cases: u64,
    reports: Vec<String>,
    failed: BTreeMap<Code, u64>,
}

impl Bench {
    fn new(translated: bool) -> Bench {
        let fs_base = host::fs_base();
        let mut guest = Guest::new(fs_base);
        guest.set_translator(translated);
        Bench {
            host: Host::new(),
            guest,
            translated,
            data: vec![0; DATA_LEN],
            fs_base,
            covered: BTreeMap::new(),
            cases: 0,
            reports: Vec::new(),
            failed: BTreeMap::new(),
        }
    }

    fn fill_data(&mut self, rng: &mut Rng) {
        for chunk in self.data.chunks_mut(16) {
            let lane = rng.lane();
            chunk.copy_from_slice(&lane);
            if rng.chance(25) {
                chunk[..10].copy_from_slice(&rng.extended());
            }
        }
        self.host.set_data(&self.data, true);
        self.guest.data().copy_from_slice(&self.data);
    }

    /// One encoding on several operands.
    fn instruction(&mut self, code: Code, name: &str, rng: &mut Rng) {
        let Some(encoding) = forms::encode(code, rng) else { return };
        let mut placed = Vec::new();
        for _ in 0..OPERAND_SETS {
            let mut before = operands::registers(rng);
            let Some(bytes) = operands::aim(&encoding, &mut before, self.fs_base, rng) else { continue };
            if bytes != placed {
                self.host.set_code(&bytes);
                self.guest.set_code(&bytes);
                placed = bytes;
            }
            let instruction = forms::decode(&placed);
            self.case(&instruction, &placed, &before, name, rng);
        }
    }

    fn case(&mut self, instruction: &Instruction, bytes: &[u8], before: &Registers, name: &str, rng: &mut Rng) {
        if is_processors_choice(instruction, before, self.fs_base) {
            return;
        }
        self.host.set_data(&self.data, false);
        self.guest.data().copy_from_slice(&self.data);
        if operands::branches_through_memory(instruction) {
            let mut again = rng.clone();
            let planted =
                operands::plant_branch(instruction, before, self.fs_base, &mut self.host.data()[..WRITABLE], rng)
                    & operands::plant_branch(
                        instruction,
                        before,
                        self.fs_base,
                        &mut self.guest.data()[..WRITABLE],
                        &mut again,
                    );
            if !planted {
                return;
            }
        }
        let (mut host, host_ending) = self.host.run(before, bytes.len() as u64);
        // A branch to itself never ends, and HLT is what ends the others.
        let endless = host.rip == ENTRY && host_ending == Ending::Completed;
        if self.translated && (endless || instruction.mnemonic() == Mnemonic::Hlt) {
            return;
        }
        let (guest, guest_ending) = if self.translated { self.guest.run_block(before) } else { self.guest.run(before) };
        if host.mxcsr & MISALIGNED_MODE != 0 {
            // A bit of one maker's processors, which the guest is not promised.
            return;
        }
        let unstable = unstable_flags(instruction);
        host.flags = host.flags & !unstable | guest.flags & unstable;
        if matches!(host_ending, Ending::Raised { vector: vector::XM, .. }) {
            let unsure = unsure_mxcsr(instruction, before);
            host.mxcsr = host.mxcsr & !unsure | guest.mxcsr & unsure;
        }
        self.hide_pointers(instruction, before);
        let mut found = differences(before, &host, &guest);
        if !same_ending(instruction, host_ending, guest_ending) {
            found.push(format!("  ending: host {host_ending:x?}  soft-cpu {guest_ending:x?}"));
        }
        found.extend(self.memory_differences());
        self.cases += 1;
        let covered = self.covered.entry(instruction.mnemonic()).or_default();
        *covered.forms.entry(instruction.code()).or_default() += 1;
        covered.faults += u64::from(host_ending != Ending::Completed);
        if !found.is_empty() {
            covered.failures += 1;
            self.report(instruction, bytes, before, name, &found);
        }
    }

    /// FNSTENV and FNSAVE store addresses of host instructions and data, which a guest is never shown.
    fn hide_pointers(&mut self, instruction: &Instruction, before: &Registers) {
        let (word, len) = match instruction.code() {
            Code::Fnstenv_m14byte | Code::Fnsave_m94byte => (2, 14),
            Code::Fnstenv_m28byte | Code::Fnsave_m108byte => (4, 28),
            _ => return,
        };
        for (address, _) in operands::accesses(instruction, before, self.fs_base) {
            let at = address.wrapping_sub(DATA) as usize;
            if at < WRITABLE {
                let range = at + 3 * word..(at + len).min(WRITABLE).max(at + 3 * word);
                self.host.data()[range.clone()].fill(0);
                self.guest.data()[range].fill(0);
            }
        }
    }

    fn memory_differences(&mut self) -> Vec<String> {
        let (host, guest) = (self.host.data(), self.guest.data());
        if host == guest {
            return Vec::new();
        }
        let differing = host.iter().zip(guest.iter()).enumerate().filter(|(_, (a, b))| a != b);
        differing
            .take(16)
            .map(|(at, (a, b))| format!("  [{:#x}]: host {a:02x}  soft-cpu {b:02x}", DATA + at as u64))
            .collect()
    }

    #[cold]
    fn report(&mut self, instruction: &Instruction, bytes: &[u8], before: &Registers, name: &str, found: &[String]) {
        let count = self.failed.entry(instruction.code()).or_default();
        *count += 1;
        if *count > 1 || self.reports.len() >= REPORTED {
            return;
        }
        let mut text = String::new();
        FastFormatter::new().format(instruction, &mut text);
        let accesses = operands::accesses(instruction, before, self.fs_base);
        let hex: String = bytes.iter().map(|b| format!("{b:02x} ")).collect();
        self.reports.push(format!(
            "{text}  ({:?})\n  bytes {hex}\n  again: QUEZTL_SEED={name}\n  flags before {:#x}, mxcsr {:#x}, accesses {accesses:x?}\n{}",
            instruction.code(),
            before.flags,
            before.mxcsr,
            found.join("\n")
        ));
    }

    fn print_table(&self) {
        println!("{:<20} {:>6} {:>9} {:>8} {:>8}", "mnemonic", "forms", "cases", "faults", "failures");
        for (mnemonic, covered) in &self.covered {
            let cases: u64 = covered.forms.values().sum();
            let name = format!("{mnemonic:?}");
            println!("{name:<20} {:>6} {cases:>9} {:>8} {:>8}", covered.forms.len(), covered.faults, covered.failures);
        }
        let forms: usize = self.covered.values().map(|c| c.forms.len()).sum();
        println!("{} mnemonics, {forms} forms, {} cases", self.covered.len(), self.cases);
    }
}

/// Cases in which processors of different makers do different things: SHA instructions on misaligned memory fault on
/// some only, and masked byte stores fault for bytes that they do not write on some only.
fn is_processors_choice(instruction: &Instruction, before: &Registers, fs_base: u64) -> bool {
    use Mnemonic::*;
    let accesses = || operands::accesses(instruction, before, fs_base);
    match instruction.mnemonic() {
        Sha1nexte | Sha1msg1 | Sha1msg2 | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2 => {
            accesses().iter().any(|(address, _)| address % 16 != 0)
        }
        Maskmovq | Maskmovdqu | Vmaskmovdqu => {
            let (first, end) = (DATA, DATA + WRITABLE as u64);
            accesses().iter().any(|(address, _)| *address < first || address + 16 > end)
        }
        _ => false,
    }
}

/// Flags that differ from one run to the next on one host: OF of a rotation through carry by more than one.
fn unstable_flags(instruction: &Instruction) -> u64 {
    match instruction.mnemonic() {
        Mnemonic::Rcl | Mnemonic::Rcr => 1 << 11,
        _ => 0,
    }
}

/// MXCSR flags that a masked run cannot tell of an instruction that faults unmasked: whether a result out of range that
/// is not delivered counts as inexact, and how far a dot product got.
fn unsure_mxcsr(instruction: &Instruction, before: &Registers) -> u32 {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Dpps | Dppd | Vdpps | Vdppd => 0x3f,
        _ if before.mxcsr & RANGE_MASKS != RANGE_MASKS => PRECISION,
        _ => 0,
    }
}

/// Whether the endings agree as far as the architecture says. Where an instruction makes several accesses, their order
/// is the processor's own, and with it the address that faults.
fn same_ending(instruction: &Instruction, host: Ending, guest: Ending) -> bool {
    let several = instruction.is_save_restore_instruction()
        || matches!(instruction.mnemonic(), Mnemonic::Fldenv | Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Frstor)
        || InstructionInfoFactory::new().info(instruction).used_memory().len() > 1;
    match (host, guest) {
        (Ending::Raised { .. }, Ending::Raised { .. }) if several => true,
        _ => host == guest,
    }
}

/// Both tests use the one arena and the one set of signal handlers there is.
static ARENA: Mutex<()> = Mutex::new(());

#[test]
fn random_instructions_end_as_on_the_host() {
    random_instructions(false);
}

#[test]
fn random_instructions_end_as_on_the_host_when_translated() {
    random_instructions(true);
}

fn random_instructions(translated: bool) {
    let _arena = ARENA.lock();
    let settings = Settings::from_environment();
    let codes: Vec<Code> = forms::codes().into_iter().filter(|code| settings.wants(*code)).collect();
    let mut bench = Bench::new(translated);
    let numbers = match settings.only {
        Some(only) => only..only + 1,
        None => 0..settings.instructions,
    };
    for number in numbers {
        if number % DATA_LIFETIME == 0 || settings.only.is_some() {
            bench.fill_data(&mut Rng::new(settings.seed ^ (number / DATA_LIFETIME) << 32));
        }
        let mut rng = Rng::new(settings.seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ number);
        let code = codes[(number % codes.len() as u64) as usize];
        bench.instruction(code, &format!("{}:{number}", settings.seed), &mut rng);
    }
    bench.print_table();
    let failures: u64 = bench.failed.values().sum();
    let list: Vec<String> = bench.failed.iter().map(|(code, count)| format!("{code:?} x{count}")).collect();
    assert!(
        failures == 0,
        "{failures} of {} cases differ: {}\n\n{}",
        bench.cases,
        list.join(", "),
        bench.reports.join("\n\n")
    );
}
