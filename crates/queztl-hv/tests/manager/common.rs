//! A manager in a home of its own, and machines that start in milliseconds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use queztl_api::{CreateVm, Operation, OperationState, Problem, StopRequest, Vm, VmSpec, VmState};
use queztl_control::{Config, Manager, Service};
use queztl_guest_image::{self as image, Profile, Silent, Store};

/// More than anything here takes, on a busy host too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A home for managers, one after the other.
pub struct Home {
    pub folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(self.folder.path()).unwrap();
        config.program = env!("CARGO_BIN_EXE_queztl-hv").into();
        config
    }

    pub async fn manager(&self) -> Manager {
        Manager::open(self.config()).await.unwrap()
    }

    pub fn vm_folder(&self, id: &str) -> PathBuf {
        self.folder.path().join("vms").join(id)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        kill_all(self.folder.path());
    }
}

/// Ends the machines of a home: a test that failed must not leave any behind.
pub fn kill_all(home: &Path) {
    let Ok(entries) = std::fs::read_dir(home.join("vms")) else { return };
    for entry in entries.flatten() {
        let folder = queztl_vmm::process::Folder::new(entry.path());
        if let Ok(Some(process)) = folder.runner() {
            kill(process.pid);
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(folder.log()).unwrap_or_default();
            eprintln!("{:?}:\n{log}", folder.log());
        }
    }
}

/// Ends a process of a machine.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// A kernel of a few instructions: 32-bit code at 1 MiB, entered by Multiboot.
pub fn kernel(folder: &Path, name: &str, code: &[u8]) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    let load = 0x10_0000u32;
    let words = [MAGIC, ADDRESSES, 0u32.wrapping_sub(MAGIC + ADDRESSES), load, load, 0, 0, load + 32];
    let mut file: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    file.extend(code);
    let path = folder.join(name);
    std::fs::write(&path, file).unwrap();
    path
}

/// A guest that waits for ever: `hlt; jmp $-1`.
pub fn idle(folder: &Path) -> VmSpec {
    spec(kernel(folder, "idle", &[0xf4, 0xeb, 0xfd]))
}

/// A guest that fills its RAM from 2 MiB to 14 MiB, writes `a` to the serial port, and goes on with the next letter
/// whenever it has counted for a while: what it says tells whether it goes on from a snapshot.
pub fn counting(folder: &Path) -> VmSpec {
    spec(kernel(folder, "counting", &counting_code()))
}

/// The same, but it fills so many bytes.
pub fn filling(folder: &Path, bytes: u32) -> VmSpec {
    let mut code = counting_code();
    code[6..10].copy_from_slice(&(bytes / 4).to_le_bytes());
    spec(kernel(folder, "filling", &code))
}

/// The code of [`counting`]; the number of words that it fills is at byte 6.
pub fn counting_code() -> Vec<u8> {
    vec![
        0xbf, 0, 0, 0x20, 0, // mov edi, 2 MiB
        0xb9, 0, 0, 0x30, 0, // mov ecx, 12 MiB / 4
        0xb8, 0x21, 0x43, 0x65, 0x87, // mov eax, a pattern
        0xf3, 0xab, // rep stosd
        0xc7, 0x05, 0, 0, 0x20, 0, 0x61, 0, 0, 0, // mov dword [2 MiB], 'a'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xa1, 0, 0, 0x20, 0,    // next: mov eax, [2 MiB]
        0xee, // out dx, al
        0x40, // inc eax
        0xa3, 0, 0, 0x20, 0, // mov [2 MiB], eax
        0xb9, 0, 0, 0x80, 0,    // mov ecx, 8 M
        0x49, // count: dec ecx
        0x75, 0xfd, // jnz count
        0xeb, 0xea, // jmp next
    ]
}

/// A guest whose exceptions cannot be delivered: `ud2`.
pub fn crashing(folder: &Path) -> VmSpec {
    spec(kernel(folder, "crashing", &[0x0f, 0x0b]))
}

pub fn spec(kernel: PathBuf) -> VmSpec {
    VmSpec { kernel: Some(kernel), ram_bytes: 16 << 20, accel: "soft".into(), ..VmSpec::default() }
}

/// Our Linux, with an agent; says so and gives `None` if it is not built here.
pub fn linux() -> Option<VmSpec> {
    let store = Store::open().ok()?;
    let kernels = image::kernels_in(&store).ok()?;
    let built = kernels.iter().any(|kernel| kernel.info.profile == Profile::Minimal);
    if !built || image::rootfs::build(&store, &[], &mut Silent).is_err() {
        eprintln!("skipped: no guest kernel; build one: queztl-hv kernel build --profile minimal");
        return None;
    }
    Some(VmSpec { ram_bytes: 128 << 20, accel: "soft".into(), ..VmSpec::default() })
}

pub fn request(name: &str, spec: VmSpec, start: bool) -> CreateVm {
    CreateVm { name: name.parse().unwrap(), spec, start }
}

/// Waits for the end of an operation.
pub async fn end(manager: &Manager, operation: Result<Operation, Problem>) -> Operation {
    let id = operation.unwrap().id;
    let operation = manager.wait_operation(&id, PATIENCE).await.unwrap();
    assert!(operation.state.is_over(), "an operation does not end: {operation:?}");
    operation
}

/// Waits for the end of an operation, which must be a good one.
pub async fn done(manager: &Manager, operation: Result<Operation, Problem>) -> Operation {
    let operation = end(manager, operation).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{:?}", operation.problem);
    operation
}

/// Makes a machine and starts it.
pub async fn spawn(manager: &Manager, name: &str, spec: VmSpec) -> Vm {
    done(manager, manager.create(request(name, spec, true)).await).await;
    manager.vm(name).await.unwrap()
}

/// Waits until a machine is as wanted.
#[track_caller]
pub fn wait_for<'a>(
    manager: &'a Manager,
    vm: &'a str,
    wanted: impl Fn(&Vm) -> bool + 'a,
) -> impl Future<Output = Vm> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        loop {
            let found = manager.vm(vm).await.unwrap();
            if wanted(&found) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "{caller}: never as wanted: {found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub async fn wait_for_state(manager: &Manager, vm: &str, state: VmState) -> Vm {
    wait_for(manager, vm, |vm| vm.state == state).await
}

pub fn at_once() -> StopRequest {
    StopRequest { grace_seconds: Some(0) }
}

pub fn pid(vm: &Vm) -> u32 {
    vm.runtime.as_ref().expect("the machine runs").pid
}
