//! The first user process of the small root file system.
//!
//! Promises: marks the end of boot before anything else, mounts what programs expect, starts the agent when the machine
//! has a socket device and again when it ends, brings the network up when there is one, runs what the kernel command line
//! asks for (or a shell on the console), reports how it ended in one line, and powers the machine off; it does so, too,
//! when the power button is pressed. It never returns and never panics the kernel by exiting.
//!
//! No standard library and no C library: on a CPU in software the start-up of a C library would be a visible part of the
//! boot. Kernel parameters: `queztl.run="COMMAND"` is run by `/bin/sh -c`; `queztl.net=off` leaves the network alone, as
//! does the kernel's own `ip=`.
#![no_std]
#![no_main]

mod params;

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::sync::atomic::{AtomicIsize, AtomicU32, Ordering};

/// The monitor's port for `--boot-timer`; `BOOT_MARK_PORT` in the machine's layout.
const BOOT_MARK_PORT: u16 = 0x510;

// System call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
const SYS_READ: usize = 0;
const SYS_WRITE: usize = 1;
const SYS_OPEN: usize = 2;
const SYS_CLOSE: usize = 3;
const SYS_SIGPROCMASK: usize = 14;
const SYS_IOCTL: usize = 16;
const SYS_ACCESS: usize = 21;
const SYS_DUP2: usize = 33;
const SYS_PAUSE: usize = 34;
const SYS_NANOSLEEP: usize = 35;
const SYS_FORK: usize = 57;
const SYS_EXECVE: usize = 59;
const SYS_EXIT: usize = 60;
const SYS_WAIT4: usize = 61;
const SYS_KILL: usize = 62;
const SYS_CHDIR: usize = 80;
const SYS_MKDIR: usize = 83;
const SYS_SETPGID: usize = 109;
const SYS_GETPGRP: usize = 111;
const SYS_SETSID: usize = 112;
const SYS_SYNC: usize = 162;
const SYS_MOUNT: usize = 165;
const SYS_REBOOT: usize = 169;
const SYS_IOPERM: usize = 173;
const SYS_CLOCK_GETTIME: usize = 228;

const O_RDWR: usize = 2;
const SIGTERM: usize = 15;
const SIGKILL: usize = 9;
/// All processes but the first and the caller.
const EVERYBODY: usize = usize::MAX;
const TIOCSCTTY: usize = 0x540e;
const TIOCSPGRP: usize = 0x5410;
const TIOCOUTQ: usize = 0x5411;
const SIG_BLOCK: usize = 0;
const SIG_UNBLOCK: usize = 1;
/// SIGTTOU, as a set of signals.
static SET_OF_SIGTTOU: u64 = 1 << 21;
const CLOCK_MONOTONIC: usize = 1;
const REBOOT_MAGIC1: usize = 0xfee1_dead;
const REBOOT_MAGIC2: usize = 672_274_793;
const REBOOT_POWER_OFF: usize = 0x4321_fedc;
const REBOOT_HALT: usize = 0xcdef_0123;
const REBOOT_RESTART: usize = 0x0123_4567;
/// There when the machine is to start anew once its programs have ended; the agent makes it before it ends them.
const RESTART_MARK: &CStr = c"/run/queztl-restart";

// Of include/uapi/linux/input.h and input-event-codes.h: EVIOCGBIT(EV_KEY, 96), struct input_event.
const GET_KEYS: usize = 0x8060_4521;
const KEY_BYTES: usize = 96;
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// How long programs have to end when the power button was pressed.
const POWER_OFF_GRACE_NS: u64 = 300_000_000;

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of include/uapi/linux/vm_sockets.h; the address of a machine without a device.
const GET_LOCAL_CID: usize = 0x7b9;
const VMADDR_CID_ANY: u32 = u32::MAX;
/// An agent that ends this often is left alone: it would only take time from the guest.
const MAX_AGENT_STARTS: u32 = 8;

/// The agent's process; 0 when there is none.
static AGENT: AtomicIsize = AtomicIsize::new(0);
static AGENT_STARTS: AtomicU32 = AtomicU32::new(0);

const MS_NOSUID: usize = 2;
const MS_NODEV: usize = 4;
const MS_NOEXEC: usize = 8;

// The kernel starts a program with the stack aligned to 16 bytes (System V ABI, AMD64, §3.4.1); `call` keeps the
// alignment that compiled functions expect.
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "call {main}", "ud2", main = sym main, options(att_syntax));

extern "C" fn main() -> ! {
    mark_boot();
    mount_all();
    install_applets();
    watch_power_button();
    start_agent();
    let mut buffer = [0u8; 4096];
    let length = read_file(c"/proc/cmdline", &mut buffer);
    let command_line = buffer.get(..length).unwrap_or(&[]);
    if params::value(command_line, b"queztl.net") != Some(b"off") && params::value(command_line, b"ip").is_none() {
        bring_network_up();
    }
    match params::value(command_line, b"queztl.run") {
        Some(command) => run_command(command),
        None => run_shell(),
    }
    power_off()
}

/// Tells the monitor that user space has begun. Without I/O permission (an unusual kernel) nothing is told.
fn mark_boot() {
    if syscall(SYS_IOPERM, [BOOT_MARK_PORT as usize, 1, 1, 0, 0]) != 0 {
        return;
    }
    // SAFETY: ioperm has just granted this port; an OUT touches no memory.
    unsafe { asm!("out dx, al", in("dx") BOOT_MARK_PORT, in("al") 1u8, options(nostack, nomem, preserves_flags)) };
    syscall(SYS_IOPERM, [BOOT_MARK_PORT as usize, 1, 0, 0, 0]);
}

/// The file systems that programs expect. A failure is not fatal: what depends on it says so itself.
fn mount_all() {
    mount(c"proc", c"/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC);
    mount(c"sysfs", c"/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC);
    mount(c"devtmpfs", c"/dev", MS_NOSUID);
    mkdir(c"/dev/pts");
    mkdir(c"/dev/shm");
    mount(c"devpts", c"/dev/pts", MS_NOSUID | MS_NOEXEC);
    mount(c"tmpfs", c"/dev/shm", MS_NOSUID | MS_NODEV);
    mount(c"tmpfs", c"/run", MS_NOSUID | MS_NODEV);
    mount(c"tmpfs", c"/tmp", MS_NOSUID | MS_NODEV);
}

/// Busybox's links to itself. Made here rather than carried in the archive, whose unpacking takes the kernel ten times as
/// long for each link.
fn install_applets() {
    wait_for(spawn(&[c"/bin/busybox", c"--install", c"-s"], false));
}

/// Has a process wait for the power button, if there is one, and power the machine off.
fn watch_power_button() {
    const DEVICES: [&CStr; 4] =
        [c"/dev/input/event0", c"/dev/input/event1", c"/dev/input/event2", c"/dev/input/event3"];
    let mut devices =
        DEVICES.iter().filter_map(|path| usize::try_from(syscall(SYS_OPEN, [path.as_ptr() as usize, 0, 0, 0, 0])).ok());
    let button = devices.find(|device| {
        let found = has_power_key(*device);
        if !found {
            syscall(SYS_CLOSE, [*device, 0, 0, 0, 0]);
        }
        found
    });
    let Some(button) = button else { return };
    if syscall(SYS_FORK, [0; 5]) == 0 {
        wait_for_press(button);
        shut_down()
    }
    syscall(SYS_CLOSE, [button, 0, 0, 0, 0]);
}

fn has_power_key(device: usize) -> bool {
    let mut keys = [0u8; KEY_BYTES];
    let got = syscall(SYS_IOCTL, [device, GET_KEYS, keys.as_mut_ptr() as usize, 0, 0]);
    let byte = keys.get(usize::from(KEY_POWER) / 8).copied().unwrap_or(0);
    got > 0 && byte >> (KEY_POWER % 8) & 1 != 0
}

/// Comes back when the power key goes down; never when the device breaks.
fn wait_for_press(button: usize) {
    loop {
        // Seconds, microseconds, type, code, value.
        let mut event = [0u8; EVENT_BYTES];
        let length = syscall(SYS_READ, [button, event.as_mut_ptr() as usize, EVENT_BYTES, 0, 0]);
        if length <= 0 {
            syscall(SYS_EXIT, [1, 0, 0, 0, 0]);
        }
        let [.., k0, k1, c0, c1, v0, _, _, _] = event;
        if (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([c0, c1]), v0) == (EV_KEY, KEY_POWER, 1) {
            return;
        }
    }
}

/// Asks all programs to end, gives them a moment, and powers off.
fn shut_down() -> ! {
    syscall(SYS_KILL, [EVERYBODY, SIGTERM, 0, 0, 0]);
    let grace = [0u64, POWER_OFF_GRACE_NS];
    syscall(SYS_NANOSLEEP, [grace.as_ptr() as usize, 0, 0, 0, 0]);
    syscall(SYS_KILL, [EVERYBODY, SIGKILL, 0, 0, 0]);
    power_off()
}

/// Starts the agent if the machine has a socket device. Nobody waits for it.
fn start_agent() {
    let device = syscall(SYS_OPEN, [c"/dev/vsock".as_ptr() as usize, 0, 0, 0, 0]);
    let Ok(device) = usize::try_from(device) else { return };
    let mut address = VMADDR_CID_ANY;
    let result = syscall(SYS_IOCTL, [device, GET_LOCAL_CID, &raw mut address as usize, 0, 0]);
    syscall(SYS_CLOSE, [device, 0, 0, 0, 0]);
    if result == 0 && address != VMADDR_CID_ANY && AGENT_STARTS.fetch_add(1, Ordering::Relaxed) < MAX_AGENT_STARTS {
        AGENT.store(spawn(&[c"/sbin/queztl-agent"], false), Ordering::Relaxed);
    }
}

/// Loopback always; the first network card by DHCP.
fn bring_network_up() {
    wait_for(spawn(&[c"/bin/busybox", c"ip", c"link", c"set", c"lo", c"up"], false));
    if syscall(SYS_ACCESS, [c"/sys/class/net/eth0".as_ptr() as usize, 0, 0, 0, 0]) == 0 {
        wait_for(spawn(&[c"/bin/busybox", c"sh", c"/etc/queztl/network"], false));
    }
}

/// Runs `command` and writes its end as `queztl: command exited with status N after S.mmm s`.
fn run_command(command: &[u8]) {
    let mut text = [0u8; 4096];
    // The command line itself is shorter than the buffer, so the command fits with its terminating zero.
    let length = command.len().min(text.len() - 1);
    if let (Some(to), Some(from)) = (text.get_mut(..length), command.get(..length)) {
        to.copy_from_slice(from);
    }
    let Ok(command) = CStr::from_bytes_until_nul(&text) else { return };
    let start = now_ms();
    let status = wait_for(spawn(&[c"/bin/sh", c"-c", command], true));
    let took = now_ms().saturating_sub(start);
    let (how, number) = match status & 0x7f {
        0 => (&b"exited with status "[..], (status >> 8) & 0xff),
        signal => (&b"killed by signal "[..], signal),
    };
    print(b"queztl: command ");
    print(how);
    print_number(number as u64, 1);
    print(b" after ");
    print_number(took / 1000, 1);
    print(b".");
    print_number(took % 1000, 3);
    print(b" s\n");
}

/// A shell with job control; `exit` ends it, and with it the machine.
fn run_shell() {
    wait_for(spawn(&[c"/bin/sh", c"-l"], true));
}

/// Stops the machine, or starts it anew if somebody is about to do that; if the machine cannot power off, halts it, and
/// sleeps for ever if even that fails.
fn power_off() -> ! {
    syscall(SYS_SYNC, [0; 5]);
    drain_console();
    if syscall(SYS_ACCESS, [RESTART_MARK.as_ptr() as usize, 0, 0, 0, 0]) == 0 {
        syscall(SYS_REBOOT, [REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_RESTART, 0, 0]);
    }
    syscall(SYS_REBOOT, [REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_POWER_OFF, 0, 0]);
    syscall(SYS_REBOOT, [REBOOT_MAGIC1, REBOOT_MAGIC2, REBOOT_HALT, 0, 0]);
    loop {
        syscall(SYS_PAUSE, [0; 5]);
    }
}

/// Waits until the console has sent what was written, for a second at most: the machine stops without asking it.
fn drain_console() {
    for _ in 0..500 {
        let mut waiting = 0u32;
        let result = syscall(SYS_IOCTL, [1, TIOCOUTQ, &raw mut waiting as usize, 0, 0]);
        if result != 0 || waiting == 0 {
            return;
        }
        let two_ms = [0u64, 2_000_000];
        syscall(SYS_NANOSLEEP, [two_ms.as_ptr() as usize, 0, 0, 0, 0]);
    }
}

/// Starts a program; `foreground` makes it the owner of the console, so that Ctrl-C reaches it. At most seven words.
fn spawn(words: &[&CStr], foreground: bool) -> isize {
    let mut arguments = [core::ptr::null(); 8];
    for (slot, word) in arguments.iter_mut().zip(words.iter().take(7)) {
        *slot = word.as_ptr();
    }
    let environment = [
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(),
        c"HOME=/root".as_ptr(),
        c"TERM=linux".as_ptr(),
        core::ptr::null(),
    ];
    if foreground {
        take_console();
    }
    let child = syscall(SYS_FORK, [0; 5]);
    if child != 0 {
        return child;
    }
    if foreground {
        become_foreground();
    }
    syscall(SYS_CHDIR, [c"/root".as_ptr() as usize, 0, 0, 0, 0]);
    let program = arguments[0] as usize;
    syscall(SYS_EXECVE, [program, arguments.as_ptr() as usize, environment.as_ptr() as usize, 0, 0]);
    print(b"queztl: cannot execute the program\n");
    syscall(SYS_EXIT, [127, 0, 0, 0, 0]);
    loop {}
}

/// Makes the last active console the controlling terminal of this process's session: `/dev/console` itself cannot be one.
/// The session is ours, not the command's, since the end of a session's leader hangs the terminal up, and the kernel then
/// drops what it has not sent yet.
fn take_console() {
    let mut active = [0u8; 64];
    let length = read_file(c"/sys/class/tty/console/active", &mut active);
    let names = active.get(..length).unwrap_or(&[]).trim_ascii();
    let name = names.rsplit(|byte| *byte == b' ').next().unwrap_or(&[]);
    let mut path = [0u8; 80];
    for (slot, byte) in path.iter_mut().take(79).zip(b"/dev/".iter().chain(name)) {
        *slot = *byte;
    }
    syscall(SYS_SETSID, [0; 5]);
    let terminal = syscall(SYS_OPEN, [path.as_ptr() as usize, O_RDWR, 0, 0, 0]);
    let Ok(terminal) = usize::try_from(terminal) else { return };
    syscall(SYS_IOCTL, [terminal, TIOCSCTTY, 0, 0, 0]);
    for descriptor in 0..3 {
        syscall(SYS_DUP2, [terminal, descriptor, 0, 0, 0]);
    }
    if terminal > 2 {
        syscall(SYS_CLOSE, [terminal, 0, 0, 0, 0]);
    }
}

/// Makes this process a job of its own and the one that the terminal's keys reach.
fn become_foreground() {
    let change = |how| syscall(SYS_SIGPROCMASK, [how, &raw const SET_OF_SIGTTOU as usize, 0, 8, 0]);
    syscall(SYS_SETPGID, [0; 5]);
    let group = syscall(SYS_GETPGRP, [0; 5]) as u32;
    // Taking the terminal from the background would stop a process that did not block this signal.
    change(SIG_BLOCK);
    syscall(SYS_IOCTL, [0, TIOCSPGRP, &raw const group as usize, 0, 0]);
    change(SIG_UNBLOCK);
}

/// Reaps orphans, and starts an agent that ended again, until `child` has ended; its wait status, or 127 << 8 when it never
/// started.
fn wait_for(child: isize) -> u32 {
    if child < 0 {
        return 127 << 8;
    }
    loop {
        let mut status = 0u32;
        let ended = syscall(SYS_WAIT4, [usize::MAX, &raw mut status as usize, 0, 0, 0]);
        if ended == child {
            return status;
        }
        if ended > 0 && ended == AGENT.load(Ordering::Relaxed) {
            AGENT.store(0, Ordering::Relaxed);
            start_agent();
        }
        const EINTR: isize = -4;
        if ended < 0 && ended != EINTR {
            return 127 << 8;
        }
    }
}

/// Bytes of the file that fit into `buffer`; 0 when it cannot be read.
fn read_file(path: &CStr, buffer: &mut [u8]) -> usize {
    let file = syscall(SYS_OPEN, [path.as_ptr() as usize, 0, 0, 0, 0]);
    let Ok(file) = usize::try_from(file) else { return 0 };
    let length = syscall(SYS_READ, [file, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0]);
    syscall(SYS_CLOSE, [file, 0, 0, 0, 0]);
    usize::try_from(length).unwrap_or(0).min(buffer.len())
}

fn mount(kind: &CStr, target: &CStr, flags: usize) {
    let kind = kind.as_ptr() as usize;
    syscall(SYS_MOUNT, [kind, target.as_ptr() as usize, kind, flags, 0]);
}

fn mkdir(path: &CStr) {
    syscall(SYS_MKDIR, [path.as_ptr() as usize, 0o755, 0, 0, 0]);
}

/// Milliseconds of the monotonic clock.
fn now_ms() -> u64 {
    let mut time = [0u64; 2];
    syscall(SYS_CLOCK_GETTIME, [CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0]);
    time[0] * 1000 + time[1] / 1_000_000
}

fn print(text: &[u8]) {
    syscall(SYS_WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0]);
}

/// In decimal, with leading zeroes up to `digits`.
fn print_number(mut number: u64, digits: usize) {
    let mut text = [b'0'; 20];
    let mut used = 0;
    for slot in text.iter_mut().rev() {
        if number == 0 && used >= digits {
            break;
        }
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
    }
    print(text.get(text.len() - used..).unwrap_or(&text));
}

/// A system call with up to five arguments; the result or the negated error number.
fn syscall(number: usize, arguments: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: callers pass pointers to live objects of the size that the call expects; the kernel keeps all registers
    // but RAX, RCX and R11 (System V ABI, AMD64, §A.2.1).
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") arguments[0], in("rsi") arguments[1],
             in("rdx") arguments[2], in("r10") arguments[3], in("r8") arguments[4],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print(b"queztl: init failed\n");
    power_off()
}

/// The prebuilt `core` names it in its unwind tables; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// The compiler calls these by name; without a C library we bring them. In assembly, so that the compiler cannot turn
// one into a call of itself.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy: mov %rdi, %rax; mov %rdx, %rcx; rep movsb; ret",
    "memmove: mov %rdi, %rax; mov %rdx, %rcx; mov %rdi, %r8; sub %rsi, %r8; cmp %rdx, %r8; jb 2f; rep movsb; ret",
    "2: lea -1(%rdi,%rdx), %rdi; lea -1(%rsi,%rdx), %rsi; std; rep movsb; cld; ret",
    "memset: mov %rdi, %r8; mov %esi, %eax; mov %rdx, %rcx; rep stosb; mov %r8, %rax; ret",
    "memcmp: bcmp: mov %rdx, %rcx; xor %eax, %eax; cmp %eax, %eax; repe cmpsb; je 3f",
    "movzbl -1(%rdi), %eax; movzbl -1(%rsi), %ecx; sub %ecx, %eax; 3: ret",
    options(att_syntax)
);
