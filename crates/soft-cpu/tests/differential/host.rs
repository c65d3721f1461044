//! Runs one instruction on the host's own processor, with every register set before and read after.
//!
//! The instruction lies alone on a page of breakpoints, followed by a jump to the landing. Whatever else happens, a
//! fault or a branch elsewhere, arrives as a signal whose handler notes it and goes on at the landing.

use std::arch::{asm, global_asm};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arena::{ARENA_LEN, BASE, CODE, CONTEXT, DATA, DATA_LEN, ENTRY, LANDING, PAGE, READ_ONLY};
use crate::case::{Ending, FLAGS, Registers, X87};

/// At [`CONTEXT`]; the assembly below knows the offsets.
#[repr(C, align(64))]
struct Context {
    gpr: [u64; 16],
    flags: u64,
    entry: u64,
    host_rsp: u64,
    /// Signal number's trap, error code, address and RIP, if `trapped`.
    trap: u64,
    error: u64,
    address: u64,
    rip: u64,
    trapped: u64,
    /// XSAVE area: x87, SSE, AVX.
    extended: Extended,
}

#[repr(C, align(64))]
struct Extended([u8; 1024]);

const _: () = assert!(std::mem::offset_of!(Context, extended) == 192);

global_asm!(
    ".globl queztl_sandbox_enter",
    "queztl_sandbox_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [0x20010000 + 144], rsp",
    "mov eax, 7",
    "xor edx, edx",
    "mov rcx, 0x20010000 + 192",
    "xrstor64 [rcx]",
    "push qword ptr [0x20010000 + 128]",
    "popfq",
    "mov rax, [0x20010000]",
    "mov rcx, [0x20010000 + 8]",
    "mov rdx, [0x20010000 + 16]",
    "mov rbx, [0x20010000 + 24]",
    "mov rbp, [0x20010000 + 40]",
    "mov rsi, [0x20010000 + 48]",
    "mov rdi, [0x20010000 + 56]",
    "mov r8, [0x20010000 + 64]",
    "mov r9, [0x20010000 + 72]",
    "mov r10, [0x20010000 + 80]",
    "mov r11, [0x20010000 + 88]",
    "mov r12, [0x20010000 + 96]",
    "mov r13, [0x20010000 + 104]",
    "mov r14, [0x20010000 + 112]",
    "mov r15, [0x20010000 + 120]",
    "mov rsp, [0x20010000 + 32]",
    "jmp qword ptr [0x20010000 + 136]",
    ".globl queztl_sandbox_leave",
    "queztl_sandbox_leave:",
    "mov [0x20010000], rax",
    "mov [0x20010000 + 8], rcx",
    "mov [0x20010000 + 16], rdx",
    "mov [0x20010000 + 24], rbx",
    "mov [0x20010000 + 32], rsp",
    "mov [0x20010000 + 40], rbp",
    "mov [0x20010000 + 48], rsi",
    "mov [0x20010000 + 56], rdi",
    "mov [0x20010000 + 64], r8",
    "mov [0x20010000 + 72], r9",
    "mov [0x20010000 + 80], r10",
    "mov [0x20010000 + 88], r11",
    "mov [0x20010000 + 96], r12",
    "mov [0x20010000 + 104], r13",
    "mov [0x20010000 + 112], r14",
    "mov [0x20010000 + 120], r15",
    "mov rsp, [0x20010000 + 144]",
    "pushfq",
    "pop qword ptr [0x20010000 + 128]",
    "cld",
    "mov eax, 7",
    "xor edx, edx",
    "mov rcx, 0x20010000 + 192",
    "xsave64 [rcx]",
    "vzeroupper",
    "fninit",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn queztl_sandbox_enter();
    fn queztl_sandbox_leave();
}

static INSIDE: AtomicBool = AtomicBool::new(false);

/// The host as an executor of single instructions. One per process, used by one thread.
pub struct Host {
    context: *mut Context,
    host_mxcsr: u32,
}

impl Host {
    pub fn new() -> Host {
        assert_eq!(CONTEXT, 0x2001_0000, "the assembly knows this address");
        map(BASE, ARENA_LEN, libc::PROT_NONE);
        map(DATA, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE);
        map(CODE, PAGE as usize, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        map(CONTEXT, 2 * PAGE as usize, libc::PROT_READ | libc::PROT_WRITE);
        map(LANDING, PAGE as usize, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        // jmp [rip]; the address of the way out
        // SAFETY: both pages have just been mapped and are used by nothing else.
        unsafe {
            std::ptr::write_bytes(CODE as *mut u8, 0xcc, PAGE as usize);
            std::ptr::copy([0xff, 0x25, 0, 0, 0, 0].as_ptr(), LANDING as *mut u8, 6);
            ((LANDING + 6) as *mut u64).write_unaligned(queztl_sandbox_leave as *const () as u64);
        }
        install_handlers();
        let mut host_mxcsr = 0_u32;
        // SAFETY: stores four bytes.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut host_mxcsr) };
        Host { context: CONTEXT as *mut Context, host_mxcsr }
    }

    /// Puts an instruction in place.
    pub fn set_code(&mut self, bytes: &[u8]) {
        let end = ENTRY + bytes.len() as u64;
        let distance = (LANDING as i64 - (end as i64 + 5)) as i32;
        // SAFETY: the code page is mapped writable, and nobody runs on it now.
        unsafe {
            std::ptr::write_bytes(ENTRY as *mut u8, 0xcc, 256);
            std::ptr::copy(bytes.as_ptr(), ENTRY as *mut u8, bytes.len());
            (end as *mut u8).write(0xe9);
            ((end + 1) as *mut i32).write_unaligned(distance);
        }
    }

    /// The data pages.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new`; readable for good.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN) }
    }

    /// Fills the data pages, the read-only one included.
    pub fn set_data(&mut self, data: &[u8], with_read_only: bool) {
        let writable = (READ_ONLY - DATA) as usize;
        if with_read_only {
            protect(READ_ONLY, libc::PROT_READ | libc::PROT_WRITE);
            self.data()[writable..].copy_from_slice(&data[writable..]);
            protect(READ_ONLY, libc::PROT_READ);
        }
        self.data()[..writable].copy_from_slice(&data[..writable]);
    }

    /// Runs the instruction put in place, `len` bytes long.
    pub fn run(&mut self, before: &Registers, len: u64) -> (Registers, Ending) {
        // SAFETY: the context is mapped and this value alone uses it.
        let context = unsafe { &mut *self.context };
        context.gpr = before.gpr;
        context.flags = before.flags | 0x202;
        context.entry = ENTRY;
        context.trapped = 0;
        fill(&mut context.extended.0, before);
        INSIDE.store(true, Ordering::SeqCst);
        // SAFETY: the sandbox restores what the C convention asks for; the instruction's accesses were found harmless.
        unsafe { asm!("call {}", sym queztl_sandbox_enter, clobber_abi("C")) };
        INSIDE.store(false, Ordering::SeqCst);
        // SAFETY: loads the value that was in force before.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const self.host_mxcsr) };
        // SAFETY: as above; the sandbox wrote to it.
        let context = unsafe { &*self.context };
        let mut rip = ENTRY + len;
        let mut ending = Ending::Completed;
        if context.trapped != 0 {
            rip = context.rip;
            if context.trap == 3 {
                // A breakpoint around the instruction: a branch was taken.
                rip -= 1;
            } else {
                let page_fault = context.trap == 14;
                let error = context.error as u32 & if page_fault { 0x7 } else { 0xffff };
                let address = if page_fault { context.address } else { 0 };
                ending = Ending::Raised { vector: context.trap as u8, error, address };
            }
        }
        (read(context, rip), ending)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the arena belongs to this value alone.
        unsafe { libc::munmap(BASE as *mut _, ARENA_LEN) };
    }
}

fn fill(area: &mut [u8; 1024], registers: &Registers) {
    area[..576].fill(0);
    registers.x87.to_image(area);
    area[24..28].copy_from_slice(&registers.mxcsr.to_le_bytes());
    for (n, ymm) in registers.ymm.iter().enumerate() {
        area[160 + 16 * n..176 + 16 * n].copy_from_slice(&ymm[..16]);
        area[576 + 16 * n..592 + 16 * n].copy_from_slice(&ymm[16..]);
    }
    // XSTATE_BV: all three components are in the area.
    area[512] = 7;
}

fn read(context: &Context, rip: u64) -> Registers {
    let area = &context.extended.0;
    let ymm = std::array::from_fn(|n| {
        let mut value = [0; 32];
        value[..16].copy_from_slice(&area[160 + 16 * n..176 + 16 * n]);
        value[16..].copy_from_slice(&area[576 + 16 * n..592 + 16 * n]);
        value
    });
    Registers {
        gpr: context.gpr,
        flags: context.flags & FLAGS,
        rip,
        ymm,
        mxcsr: u32::from_le_bytes([area[24], area[25], area[26], area[27]]),
        x87: X87::from_image(area),
    }
}

fn map(address: u64, len: usize, protection: i32) {
    let fixed = if protection == libc::PROT_NONE { libc::MAP_FIXED_NOREPLACE } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | fixed;
    // SAFETY: the whole arena is reserved first, where nothing else is; the rest goes into that reservation.
    let result = unsafe { libc::mmap(address as *mut _, len, protection, flags, -1, 0) };
    assert_eq!(result as u64, address, "the arena's addresses are taken: {}", std::io::Error::last_os_error());
}

fn protect(address: u64, protection: i32) {
    // SAFETY: one page of the arena.
    let result = unsafe { libc::mprotect(address as *mut _, PAGE as usize, protection) };
    assert_eq!(result, 0);
}

fn install_handlers() {
    const STACK: usize = 1 << 16;
    let stack = Box::leak(vec![0_u8; STACK].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
    // SAFETY: the stack lives for ever, and the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !INSIDE.load(Ordering::SeqCst) {
        // A fault of the test program itself is fatal once it returns to the instruction; say where it was.
        // SAFETY: the kernel passes a `ucontext_t`; the default action is always allowed.
        unsafe {
            let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let (rip, address) = (registers[libc::REG_RIP as usize], registers[libc::REG_CR2 as usize]);
            let code = *(rip as *const [u8; 16]);
            eprintln!("signal {signal} outside the sandbox: rip {rip:#x} address {address:#x} code {code:02x?}");
            libc::signal(signal, libc::SIG_DFL);
        }
        return;
    }
    // SAFETY: the kernel passes a `ucontext_t`, and the sandbox's context is mapped.
    let (machine, sandbox) =
        unsafe { (&mut (*context.cast::<libc::ucontext_t>()).uc_mcontext, &mut *(CONTEXT as *mut Context)) };
    let registers = &mut machine.gregs;
    sandbox.trapped = 1;
    sandbox.trap = registers[libc::REG_TRAPNO as usize] as u64;
    sandbox.error = registers[libc::REG_ERR as usize] as u64;
    sandbox.address = registers[libc::REG_CR2 as usize] as u64;
    sandbox.rip = registers[libc::REG_RIP as usize] as u64;
    registers[libc::REG_RIP as usize] = queztl_sandbox_leave as *const () as i64;
}

/// The base of FS on this thread.
pub fn fs_base() -> u64 {
    const ARCH_GET_FS: i32 = 0x1003;
    let mut base = 0_u64;
    // SAFETY: the kernel writes eight bytes.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
    base
}
