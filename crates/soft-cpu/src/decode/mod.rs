//! From instruction bytes to a [`Block`].

pub(crate) mod flags;
mod lower;
mod operands;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};
use queztl_guest_memory::line_mask;

use crate::block::{Block, MAX_INSTRUCTIONS, PageStamp, SecondPage, key};
use crate::cpu::{CodeSize, Cpu};
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::{PAGE, PAGE_MASK};
use crate::system;
use crate::translator::Translation;
use lower::Builder;
pub(crate) use lower::has_memory;
pub(crate) use operands::{Operands, Shape, address_size};

/// Longest instruction (SDM vol. 2A §2.3.11).
const MAX_LENGTH: usize = 15;

/// Decodes something, for which the library builds its tables.
pub(crate) fn prepare() {
    let _ = Decoder::with_ip(64, &[0x90], 0, DecoderOptions::NONE).decode();
}

/// The code bytes of a block: the rest of a page and, where an instruction needs it, the start of the next.
struct Bytes {
    buffer: [u8; PAGE as usize + MAX_LENGTH],
    len: usize,
}

impl Cpu {
    /// The block that starts at `rip`, decoding it if need be; with `single`, of one instruction only.
    pub(crate) fn find_block(&mut self, single: bool) -> Outcome<*mut Block> {
        let rip = self.rip;
        let linear = self.code_address(rip);
        let gpa = self.fetch_address(linear)?;
        let key = key(gpa, self.code_size, single);
        if let Some(block) = self.blocks.get(key)
            && self.second_page_holds(block, linear)?
        {
            return Ok(block);
        }
        self.build(rip, linear, gpa, single)
    }

    /// The linear address of instruction address `rip`.
    pub(crate) fn code_address(&self, rip: u64) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => rip,
            _ => self.segments[crate::state::seg::CS].base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    fn second_page_holds(&mut self, block: *mut Block, linear: u64) -> Outcome<bool> {
        // SAFETY: the cache returned a live block.
        let Some(second) = (unsafe { (*block).second() }) else { return Ok(true) };
        let gpa = self.fetch_address((linear & PAGE_MASK).wrapping_add(PAGE))?;
        Ok(gpa == second.gpa && second.stamp_holds())
    }

    #[cold]
    fn build(&mut self, rip: u64, linear: u64, gpa: u64, single: bool) -> Outcome<*mut Block> {
        let limit = if single { 1 } else { MAX_INSTRUCTIONS };
        let mut bytes = Bytes { buffer: [0; PAGE as usize + MAX_LENGTH], len: 0 };
        let stamp = self.watch_code(gpa, single, &mut bytes)?;
        let mut instructions = decode(&bytes, rip, self.code_size, limit);
        let mut second = None;
        if instructions.is_empty() {
            // The first instruction runs into the next page: a block of its own.
            second = Some(self.second_page(linear, &mut bytes)?);
            instructions = decode(&bytes, rip, self.code_size, 1);
        }
        self.blocks.make_room();
        let code = self.code_size;
        let mut builder =
            Builder { cpu: self, rip, code, ops: Vec::with_capacity(instructions.len() + 2), instructions };
        let live_flags = builder.lower() as u16;
        let Builder { ops, instructions, .. } = builder;
        let ops = self.blocks.keep(&ops);
        let count = instructions.len().max(1) as u16;
        let len = instructions.iter().map(Instruction::len).sum::<usize>();
        let bytes = self.blocks.keep(&bytes.buffer[..len]);
        let second = second.map(|second| self.blocks.keep_one(second));
        Ok(self.blocks.insert(Block {
            ops,
            code: bytes,
            key: key(gpa, code, single),
            stamp,
            second,
            links: [std::ptr::null_mut(); 2],
            count,
            live_flags,
            translation: Translation::Counting(0),
            next: std::ptr::null_mut(),
        }))
    }

    /// Copies the code bytes from `gpa` to the end of its page, after making sure that every later write to them will
    /// be noticed.
    fn watch_code(&mut self, gpa: u64, single: bool, bytes: &mut Bytes) -> Outcome<PageStamp> {
        let Some(page) = self.guest_ram().host_page(gpa) else {
            // Code outside RAM: the machine has none, and what a bus returns there is no instruction.
            return self.fail(Exception::new(vector::UD));
        };
        let inside = gpa % PAGE;
        // As many bytes as a block can hold; a long page would mark lines that are never decoded.
        let most = if single { MAX_LENGTH as u64 } else { (MAX_INSTRUCTIONS * 6) as u64 };
        let len = (PAGE - inside).min(most);
        let generation = page.tracker.generation(page.index);
        let shared = self.shared.clone();
        let mark = || page.tracker.add_code(page.index, line_mask(inside, len));
        if shared.watch(self.id, gpa, mark, || self.drop_writes_everywhere()) {
            self.wait_for_watch(gpa);
        }
        // SAFETY: the bytes lie within the page.
        unsafe {
            std::ptr::copy_nonoverlapping(page.host.add(inside as usize), bytes.buffer.as_mut_ptr(), len as usize);
        }
        bytes.len = len as usize;
        Ok(PageStamp::new(page.tracker.generation_cell(page.index), generation))
    }

    /// Appends the start of the next page to the bytes.
    fn second_page(&mut self, linear: u64, bytes: &mut Bytes) -> Outcome<SecondPage> {
        let gpa = self.fetch_address((linear & PAGE_MASK).wrapping_add(PAGE))?;
        let mut next = Bytes { buffer: [0; PAGE as usize + MAX_LENGTH], len: 0 };
        let stamp = self.watch_code(gpa, true, &mut next)?;
        bytes.buffer[bytes.len..bytes.len + next.len].copy_from_slice(&next.buffer[..next.len]);
        bytes.len += next.len;
        Ok(SecondPage { gpa, stamp })
    }

    /// No CPU keeps a fast write path to a page that now holds decoded code.
    fn drop_writes_everywhere(&mut self) {
        self.tlbs.drop_writes();
        self.control.set_in_guest(false);
        self.shared.drop_writes_elsewhere(self.id);
        self.enter_guest();
    }

    /// Waits until no other CPU is turning the page at `gpa` into code.
    fn wait_for_watch(&mut self, gpa: u64) {
        self.control.set_in_guest(false);
        self.shared.wait_while(|| self.shared.is_watched_elsewhere(self.id, gpa));
        self.enter_guest();
    }
}

impl SecondPage {
    fn stamp_holds(&self) -> bool {
        self.stamp.holds()
    }
}

/// Decodes up to `limit` instructions, as far as the bytes go.
fn decode(bytes: &Bytes, rip: u64, code: CodeSize, limit: usize) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(code.bitness(), &bytes.buffer[..bytes.len], rip, DecoderOptions::NONE);
    let mut instructions = Vec::with_capacity(limit.min(16));
    while instructions.len() < limit && decoder.can_decode() {
        let insn = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        instructions.push(insn);
        if ends_block(&insn) {
            break;
        }
    }
    instructions
}

fn ends_block(insn: &Instruction) -> bool {
    insn.is_invalid() || insn.flow_control() != FlowControl::Next || system::ends_block(insn)
}
