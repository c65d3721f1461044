//! What goes into a test case and what comes out of it.

/// Registers before or after an instruction.
#[derive(Clone, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15.
    pub gpr: [u64; 16],
    /// The arithmetic flags and DF.
    pub flags: u64,
    pub rip: u64,
    /// YMM0–YMM15.
    pub ymm: [[u8; 32]; 16],
    pub mxcsr: u32,
    pub x87: X87,
}

#[derive(Clone, PartialEq, Eq)]
pub struct X87 {
    pub control: u16,
    pub status: u16,
    /// The abridged tag word: a bit per physical register in use.
    pub tags: u8,
    /// ST0–ST7.
    pub st: [[u8; 10]; 8],
}

/// How an instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    Completed,
    Raised { vector: u8, error: u32, address: u64 },
}

pub const FLAGS: u64 = 0xcd5;

impl X87 {
    /// From an FXSAVE image.
    pub fn from_image(image: &[u8]) -> X87 {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let st = std::array::from_fn(|n| std::array::from_fn(|byte| image[32 + 16 * n + byte]));
        X87 { control: word(0), status: word(2), tags: image[4], st }
    }

    /// Into an FXSAVE image.
    pub fn to_image(&self, image: &mut [u8]) {
        image[..160].fill(0);
        image[..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        for (n, st) in self.st.iter().enumerate() {
            image[32 + 16 * n..42 + 16 * n].copy_from_slice(st);
        }
    }
}

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

/// One line for each register in which `host` and `guest` differ, with the value before.
pub fn differences(before: &Registers, host: &Registers, guest: &Registers) -> Vec<String> {
    let mut lines = Vec::new();
    if host == guest {
        return lines;
    }
    let mut note = |name: &str, before: String, host: String, guest: String| {
        if host != guest {
            lines.push(format!("  {name}: before {before}  host {host}  soft-cpu {guest}"));
        }
    };
    for (n, name) in NAMES.iter().enumerate() {
        let value = |r: &Registers| format!("{:#x}", r.gpr[n]);
        note(name, value(before), value(host), value(guest));
    }
    let flags = |r: &Registers| flag_names(r.flags);
    note("flags", flags(before), flags(host), flags(guest));
    let rip = |r: &Registers| format!("{:#x}", r.rip);
    note("rip", rip(before), rip(host), rip(guest));
    for n in 0..16 {
        let value = |r: &Registers| hex(&r.ymm[n]);
        note(&format!("ymm{n}"), value(before), value(host), value(guest));
    }
    let mxcsr = |r: &Registers| format!("{:#x}", r.mxcsr);
    note("mxcsr", mxcsr(before), mxcsr(host), mxcsr(guest));
    let x87 = |r: &Registers| format!("cw {:#x} sw {:#x} tags {:#x}", r.x87.control, r.x87.status, r.x87.tags);
    note("x87", x87(before), x87(host), x87(guest));
    for n in 0..8 {
        let value = |r: &Registers| hex(&r.x87.st[n]);
        note(&format!("st{n}"), value(before), value(host), value(guest));
    }
    lines
}

fn flag_names(flags: u64) -> String {
    let names = [(0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (10, "DF"), (11, "OF")];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, name)| *name).collect();
    format!("[{}]", set.join(" "))
}
