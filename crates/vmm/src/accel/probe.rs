//! What kind of KVM the host has, found out by measurement.
//!
//! The presence of `/dev/kvm` says little: on hosts that are virtual machines themselves, KVM may run guest ring 3
//! natively but emulate ring 0 instruction by instruction, hundreds of times slower. No capability tells the two apart,
//! so a throw-away machine runs a short loop in ring 0 of 64-bit mode and the clock tells. It takes about a millisecond
//! or two on emulating hosts and less on others.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Ring-0 loop iterations per second that tell hardware (hundreds of millions) from emulation (about one million).
const NATIVE_LOOPS_PER_SECOND: f64 = 20e6;
/// Iterations of the first try, about a millisecond when emulated.
const SHORT_LOOP: u64 = 1_000;
/// Iterations of the second try, about half a millisecond on hardware.
const LONG_LOOP: u64 = 1_000_000;
/// A short loop that ends sooner than this did not run at an emulator's speed.
const SHORT_LOOP_EMULATED: Duration = Duration::from_micros(250);

const GUEST_BYTES: usize = 0x4000;
const CODE: u64 = 0;
const TABLES: u64 = 0x1000;

/// What KVM can do here.
#[derive(Debug)]
pub enum KvmSupport {
    /// Guests run natively.
    Hardware { loops_per_second: f64 },
    /// Guest ring 0 is emulated by the host's kernel; ring 3 may run natively.
    EmulatedRing0 { loops_per_second: f64 },
    /// There is no usable KVM.
    Missing(MissingKvm),
}

/// Why there is no usable KVM.
#[derive(Debug, thiserror::Error)]
pub enum MissingKvm {
    #[error("/dev/kvm does not exist")]
    NoDevice,
    #[error("/dev/kvm cannot be opened: {0}")]
    Denied(io::Error),
    #[error("/dev/kvm has interface version {0} instead of {KVM_API_VERSION}")]
    Version(i32),
    #[error("a trial machine could not be made: {step}: {source}")]
    Broken { step: &'static str, source: io::Error },
    #[error("a trial machine stopped unexpectedly: {0}")]
    Unexpected(String),
}

impl KvmSupport {
    /// Measures. Nothing remains of the trial machine.
    pub fn probe() -> KvmSupport {
        match measure() {
            Ok(rate) if rate >= NATIVE_LOOPS_PER_SECOND => KvmSupport::Hardware { loops_per_second: rate },
            Ok(rate) => KvmSupport::EmulatedRing0 { loops_per_second: rate },
            Err(missing) => KvmSupport::Missing(missing),
        }
    }

    /// Whether Linux runs at native speed under it.
    pub fn is_native(&self) -> bool {
        matches!(self, KvmSupport::Hardware { .. })
    }
}

/// The finding with its measured reason, as a sentence without a final stop.
impl fmt::Display for KvmSupport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let millions = |rate: &f64| rate / 1e6;
        match self {
            KvmSupport::Hardware { loops_per_second } => write!(
                f,
                "KVM with hardware virtualization: a guest's ring 0 ran {:.0} million loop iterations a second",
                millions(loops_per_second)
            ),
            KvmSupport::EmulatedRing0 { loops_per_second } => write!(
                f,
                "KVM that emulates ring 0: a guest's ring 0 ran only {:.1} million loop iterations a second, \
                 where hardware runs hundreds of millions",
                millions(loops_per_second)
            ),
            KvmSupport::Missing(missing) => write!(f, "no KVM: {missing}"),
        }
    }
}

/// Ring-0 loop iterations per second.
fn measure() -> Result<f64, MissingKvm> {
    let mut trial = Trial::new()?;
    // The first entry pays for page faults and for the machine's set-up.
    trial.run(1)?;
    let short = trial.run(SHORT_LOOP)?;
    let (loops, time) =
        if short >= SHORT_LOOP_EMULATED { (SHORT_LOOP, short) } else { (LONG_LOOP, trial.run(LONG_LOOP)?) };
    Ok(loops as f64 / time.as_secs_f64().max(1e-9))
}

fn open() -> Result<Kvm, MissingKvm> {
    let kvm = Kvm::new().map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::NotFound => MissingKvm::NoDevice,
        error => MissingKvm::Denied(error),
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(MissingKvm::Version(version)),
    }
}

/// A machine with one vCPU and four pages of memory: code, then page tables that map the first 2 MiB to themselves.
///
/// The fields are dropped in order: nothing runs any more when the memory goes.
struct Trial {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Mapping,
}

impl Trial {
    fn new() -> Result<Trial, MissingKvm> {
        let broken = |step| move |error: kvm_ioctls::Error| MissingKvm::Broken { step, source: error.into() };
        let kvm = open()?;
        let vm = kvm.create_vm().map_err(broken("creating it"))?;
        let mut memory = Mapping::new().map_err(|source| MissingKvm::Broken { step: "mapping memory", source })?;
        fill(memory.bytes());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: GUEST_BYTES as u64,
            userspace_addr: memory.start as u64,
        };
        // SAFETY: the mapping has this size and outlives the machine, see the order of the fields.
        unsafe { vm.set_user_memory_region(region) }.map_err(broken("giving it memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(broken("creating its vCPU"))?;
        enter_long_mode(&vcpu).map_err(broken("setting its registers"))?;
        Ok(Trial { vcpu, _vm: vm, _memory: memory })
    }

    /// Runs the loop `loops` times and gives the host's time for it.
    fn run(&mut self, loops: u64) -> Result<Duration, MissingKvm> {
        let broken = |step| move |error: kvm_ioctls::Error| MissingKvm::Broken { step, source: error.into() };
        let mut regs = self.vcpu.get_regs().map_err(broken("reading its registers"))?;
        regs.rip = CODE;
        regs.rcx = loops;
        regs.rflags = 2;
        self.vcpu.set_regs(&regs).map_err(broken("setting its registers"))?;
        let start = Instant::now();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(..)) => return Ok(start.elapsed()),
                Ok(exit) => return Err(MissingKvm::Unexpected(format!("{exit:?}"))),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(broken("running it")(error)),
            }
        }
    }
}

/// The loop, and identity page tables with one 2 MiB page.
fn fill(memory: &mut [u8]) {
    const LOOP: [u8; 7] = [
        0x48, 0xff, 0xc9, // dec rcx
        0x75, 0xfb, // jnz the line above
        0xe6, 0x80, // out 0x80, al
    ];
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let mut put = |at: u64, bytes: &[u8]| memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(CODE, &LOOP);
    put(TABLES, &((TABLES + 0x1000) | PRESENT_WRITABLE).to_le_bytes());
    put(TABLES + 0x1000, &((TABLES + 0x2000) | PRESENT_WRITABLE).to_le_bytes());
    put(TABLES + 0x2000, &(LARGE | PRESENT_WRITABLE).to_le_bytes());
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x18, type_: 3, db: 1, ..flat };
    sregs.cs = kvm_segment { selector: 0x10, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = 0x8000_0011;
    sregs.cr3 = TABLES;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    vcpu.set_sregs(&sregs)
}

/// Anonymous memory, unmapped on drop.
struct Mapping {
    start: *mut u8,
}

impl Mapping {
    fn new() -> io::Result<Mapping> {
        // SAFETY: a new private mapping at an address of the host kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), GUEST_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(Mapping { start: start.cast() })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has this size, and no guest runs on it while the slice lives: none has been made yet.
        unsafe { std::slice::from_raw_parts_mut(self.start, GUEST_BYTES) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and used by nobody any more.
        let unmapped = unsafe { munmap(self.start.cast(), GUEST_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_gives_a_verdict_with_its_reason_in_a_fraction_of_a_second() {
        let start = Instant::now();
        let support = KvmSupport::probe();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        let sentence = support.to_string();
        println!("{sentence} (found in {:?})", start.elapsed());
        match support {
            KvmSupport::Hardware { loops_per_second } => assert!(loops_per_second >= NATIVE_LOOPS_PER_SECOND),
            KvmSupport::EmulatedRing0 { loops_per_second } => assert!(loops_per_second > 1e3),
            KvmSupport::Missing(reason) => assert!(sentence.ends_with(&reason.to_string())),
        }
    }
}
