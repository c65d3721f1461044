//! ELF files, 32 and 64 bits, as far as a boot loader needs them (System V ABI, chapter 5). Every field is hostile.

use super::error::KernelError;
use super::image::{Image, read_array, read_exact};

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than any kernel has.
const MAX_HEADERS: u16 = 128;
/// More bytes of notes than any kernel has.
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// Word size of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Elf32,
    Elf64,
}

/// A part of the file that belongs into memory, or notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub file_bytes: u64,
    pub physical: u64,
    pub linear: u64,
    /// At least `file_bytes`; the difference is zero-filled.
    pub memory_bytes: u64,
    pub align: u64,
}

/// The headers of an ELF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    pub class: Class,
    pub entry: u64,
    /// Loadable segments that take memory, in the order of their file offsets.
    pub load: Vec<Segment>,
    notes: Vec<Segment>,
}

/// Whether the file starts as an ELF file does.
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

impl Elf {
    /// Reads the headers.
    pub fn parse(image: &mut dyn Image) -> Result<Elf, KernelError> {
        let ident: [u8; 20] = read_array(image, 0, "the ELF header")?;
        if !is_elf(&ident) {
            return Err(KernelError::Malformed { what: "it is no ELF file" });
        }
        let class = match (ident[4], ident[5]) {
            (1, 1) => Class::Elf32,
            (2, 1) => Class::Elf64,
            _ => {
                return Err(KernelError::Malformed { what: "its ELF header names an unknown word size or byte order" });
            }
        };
        if !matches!(u16_at(&ident, 16), ET_EXEC | ET_DYN) {
            return Err(KernelError::Malformed { what: "it is not an executable ELF file" });
        }
        match u16_at(&ident, 18) {
            EM_386 | EM_X86_64 => {}
            machine => return Err(KernelError::WrongMachine { machine }),
        }
        let header = Header::read(image, class)?;
        let mut elf = Elf { class, entry: header.entry, load: Vec::new(), notes: Vec::new() };
        for index in 0..u64::from(header.count) {
            elf.add_header(image, &header, index)?;
        }
        if elf.load.is_empty() {
            return Err(KernelError::Malformed { what: "it has no loadable segments" });
        }
        elf.load.sort_by_key(|segment| segment.offset);
        Ok(elf)
    }

    fn add_header(&mut self, image: &mut dyn Image, header: &Header, index: u64) -> Result<(), KernelError> {
        let outside = KernelError::Truncated { what: "its program headers" };
        let offset = header.table.checked_add(index * header.entry_bytes).ok_or(outside)?;
        let (kind, segment) = read_program_header(image, self.class, offset)?;
        match kind {
            PT_LOAD if segment.memory_bytes > 0 => {
                check_segment(image, &segment)?;
                self.load.push(segment);
            }
            PT_NOTE => self.notes.push(segment),
            _ => {}
        }
        Ok(())
    }

    /// The guest-physical address of the entry point. Kernels give it so; others, linked for high linear addresses,
    /// give the linear one, which is translated here.
    pub fn physical_entry(&self) -> Option<u64> {
        let inside = |start: u64, s: &Segment| self.entry.wrapping_sub(start) < s.memory_bytes;
        if self.load.iter().any(|s| inside(s.physical, s)) {
            return Some(self.entry);
        }
        let segment = self.load.iter().find(|s| inside(s.linear, s))?;
        // Linear addresses may wrap around where physical ones, which were checked, do not.
        Some(segment.physical + self.entry.wrapping_sub(segment.linear))
    }

    /// Looks for a note of `owner`, of `kind` or of any kind, and gives its first bytes, at most eight, as a number.
    ///
    /// Notes of a forward-only image are looked for only in its first bytes; what lies beyond counts as absent.
    pub fn find_note(&self, image: &mut dyn Image, owner: &[u8], kind: Option<u32>) -> Option<u64> {
        let notes = self.notes.iter().filter(|s| s.file_bytes <= MAX_NOTE_BYTES);
        for segment in notes {
            let end = segment.offset.saturating_add(segment.file_bytes);
            let mut bytes = vec![0; segment.file_bytes as usize];
            if !image.can_peek(end) || read_exact(image, segment.offset, &mut bytes, "its notes").is_err() {
                continue;
            }
            if let Some(value) = search_notes(&bytes, segment.align, owner, kind) {
                return Some(value);
            }
        }
        None
    }
}

struct Header {
    entry: u64,
    table: u64,
    entry_bytes: u64,
    count: u16,
}

impl Header {
    fn read(image: &mut dyn Image, class: Class) -> Result<Header, KernelError> {
        let (header, bytes) = match class {
            Class::Elf32 => {
                let h: [u8; 52] = read_array(image, 0, "the end of the ELF header")?;
                let (entry, table) = (u32_at(&h, 24).into(), u32_at(&h, 28).into());
                (Header { entry, table, entry_bytes: u16_at(&h, 42).into(), count: u16_at(&h, 44) }, 32)
            }
            Class::Elf64 => {
                let h: [u8; 64] = read_array(image, 0, "the end of the ELF header")?;
                let (entry, table) = (u64_at(&h, 24), u64_at(&h, 32));
                (Header { entry, table, entry_bytes: u16_at(&h, 54).into(), count: u16_at(&h, 56) }, 56)
            }
        };
        if header.entry_bytes < bytes || header.count == 0 || header.count > MAX_HEADERS {
            return Err(KernelError::Malformed { what: "its ELF program header table has an impossible size" });
        }
        Ok(header)
    }
}

fn read_program_header(image: &mut dyn Image, class: Class, offset: u64) -> Result<(u32, Segment), KernelError> {
    let what = "its program headers";
    Ok(match class {
        Class::Elf32 => {
            let h: [u8; 32] = read_array(image, offset, what)?;
            let word = |at| u64::from(u32_at(&h, at));
            let segment = Segment {
                offset: word(4),
                linear: word(8),
                physical: word(12),
                file_bytes: word(16),
                memory_bytes: word(20),
                align: word(28),
            };
            (u32_at(&h, 0), segment)
        }
        Class::Elf64 => {
            let h: [u8; 56] = read_array(image, offset, what)?;
            let segment = Segment {
                offset: u64_at(&h, 8),
                linear: u64_at(&h, 16),
                physical: u64_at(&h, 24),
                file_bytes: u64_at(&h, 32),
                memory_bytes: u64_at(&h, 40),
                align: u64_at(&h, 48),
            };
            (u32_at(&h, 0), segment)
        }
    })
}

fn check_segment(image: &dyn Image, segment: &Segment) -> Result<(), KernelError> {
    if segment.file_bytes > segment.memory_bytes {
        return Err(KernelError::Malformed { what: "a segment is larger in the file than in memory" });
    }
    let wraps = |start: u64, len: u64| start.checked_add(len).is_none();
    if wraps(segment.physical, segment.memory_bytes) || wraps(segment.offset, segment.file_bytes) {
        return Err(KernelError::Malformed { what: "a segment's addresses wrap around" });
    }
    if image.len().is_some_and(|len| segment.offset + segment.file_bytes > len) {
        return Err(KernelError::Truncated { what: "the end of a segment" });
    }
    Ok(())
}

fn search_notes(mut bytes: &[u8], align: u64, owner: &[u8], kind: Option<u32>) -> Option<u64> {
    let align = if align == 8 { 8 } else { 4 };
    while bytes.len() >= 12 {
        let name_len = u32_at(bytes, 0) as usize;
        let data_len = u32_at(bytes, 4) as usize;
        let this_kind = u32_at(bytes, 8);
        let data_start = 12usize.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let data_end = data_start.checked_add(data_len)?;
        let name = bytes.get(12..12 + name_len)?;
        let data = bytes.get(data_start..data_end)?;
        if name.strip_suffix(b"\0").unwrap_or(name) == owner && kind.is_none_or(|k| k == this_kind) {
            let mut value = [0; 8];
            let count = data.len().min(8);
            value[..count].copy_from_slice(&data[..count]);
            return Some(u64::from_le_bytes(value));
        }
        bytes = bytes.get(data_end.checked_next_multiple_of(align)?..)?;
    }
    None
}

/// Little-endian numbers at fixed places of headers whose size the caller has checked.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
