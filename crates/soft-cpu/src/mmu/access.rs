//! Loads, stores and operand spans.

use queztl_guest_memory::line_mask;

use super::tlb::{LARGE, TlbSet};
use super::walk::Privilege;
use super::{Access, PAGE, PAGE_MASK};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};

/// A value that one instruction moves: u8, u16, u32 or u64.
pub(crate) trait Word: Copy {
    const SIZE: u64;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
}

macro_rules! word {
    ($($type:ty),*) => {$(
        impl Word for $type {
            const SIZE: u64 = size_of::<$type>() as u64;
            #[inline(always)]
            fn from_u64(value: u64) -> Self { value as $type }
            #[inline(always)]
            fn to_u64(self) -> u64 { u64::from(self) }
        }
    )*};
}
word!(u8, u16, u32, u64);

/// The bytes of an operand, made reachable by host instructions.
///
/// `pointer` leads straight into guest RAM where the whole operand lies in one page of it, else to a copy in the CPU's
/// bounce buffer, which [`Cpu::commit`] writes back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub pointer: *mut u8,
    address: u64,
    len: u32,
    bounced: bool,
    /// The RAM page holds decoded code: writes must be reported.
    watched: bool,
}

impl Cpu {
    /// Loads a value with the present rights.
    #[inline(always)]
    pub(crate) fn load<T: Word>(&mut self, address: u64) -> Outcome<T> {
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let entry = unsafe { &(*self.tlb).entries[TlbSet::slot(address)] };
        if entry.read == address.wrapping_add(T::SIZE - 1) & PAGE_MASK {
            // SAFETY: a filled entry leads to a mapped page of guest RAM, and the value ends within it.
            return Ok(unsafe { (address.wrapping_add(entry.addend) as *const T).read_unaligned() });
        }
        self.load_slow(address, T::SIZE).map(T::from_u64)
    }

    /// Stores a value with the present rights. On a fault nothing was written.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&mut self, address: u64, value: T) -> Outcome<()> {
        // SAFETY: as in `load`.
        let entry = unsafe { &(*self.tlb).entries[TlbSet::slot(address)] };
        if entry.write == address.wrapping_add(T::SIZE - 1) & PAGE_MASK {
            // SAFETY: as in `load`; a write entry leads to a page that is dirty in the log and holds no decoded code.
            unsafe { (address.wrapping_add(entry.addend) as *mut T).write_unaligned(value) };
            return Ok(());
        }
        self.store_slow(address, T::SIZE, value.to_u64())
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, address: u64, size: u64) -> Outcome<u64> {
        self.check_alignment(address, size)?;
        let mut bytes = [0; 8];
        self.read_bytes(address, &mut bytes[..size as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, address: u64, size: u64, value: u64) -> Outcome<()> {
        self.check_alignment(address, size)?;
        self.write_bytes(address, &value.to_le_bytes()[..size as usize])
    }

    /// #AC for a misaligned access under alignment checks.
    fn check_alignment(&mut self, address: u64, size: u64) -> Outcome<()> {
        if address.is_multiple_of(size) || !self.checks_alignment() {
            return Ok(());
        }
        self.fail(Exception::with_error(vector::AC, 0))
    }

    /// Reads up to 512 bytes at a linear address, from RAM or devices.
    pub(crate) fn read_bytes(&mut self, address: u64, bytes: &mut [u8]) -> Outcome<()> {
        let first = ((PAGE - address % PAGE) as usize).min(bytes.len());
        // Both pages are translated before anything is read: a device must not see half an access that faults.
        let gpa = self.resolve(address, Access::Read)?;
        if first < bytes.len() {
            let next = self.resolve(self.wrap(address.wrapping_add(first as u64)), Access::Read)?;
            let (head, tail) = bytes.split_at_mut(first);
            self.read_physical(gpa, head);
            self.read_physical(next, tail);
        } else {
            self.read_physical(gpa, bytes);
        }
        Ok(())
    }

    /// Writes up to 512 bytes at a linear address, to RAM or devices; all of them or, on a fault, none.
    pub(crate) fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Outcome<()> {
        let first = ((PAGE - address % PAGE) as usize).min(bytes.len());
        let gpa = self.resolve(address, Access::Write)?;
        if first < bytes.len() {
            let next = self.resolve(self.wrap(address.wrapping_add(first as u64)), Access::Write)?;
            let (head, tail) = bytes.split_at(first);
            self.write_physical(gpa, head);
            self.write_physical(next, tail);
        } else {
            self.write_physical(gpa, bytes);
        }
        Ok(())
    }

    /// Linear addresses are 32 bits wide outside 64-bit mode, but those of the tables of long mode never are.
    fn wrap(&self, address: u64) -> u64 {
        let wide = self.code_size == crate::cpu::CodeSize::Bits64 || self.system_access && self.long_mode();
        if wide { address } else { address & 0xffff_ffff }
    }

    /// Translates with the present rights and caches the result; returns the guest-physical address.
    fn resolve(&mut self, address: u64, access: Access) -> Outcome<u64> {
        let privilege = self.privilege();
        let translation = self.translate(address, access, privilege)?;
        self.cache(address, translation.gpa, translation.kind, access);
        Ok(translation.gpa)
    }

    fn cache(&mut self, address: u64, gpa: u64, kind: u64, access: Access) {
        if self.checks_alignment() {
            return;
        }
        let Some(page) = self.guest_ram().host_page(gpa) else { return };
        if access == Access::Write {
            page.tracker.set_dirty(page.index);
            if page.tracker.code_lines(page.index) != 0 {
                return;
            }
        }
        // SAFETY: `tlb` points to one of the CPU's own sets.
        unsafe { (*self.tlb).fill(address, page.host, access, kind) };
    }

    /// Reads guest-physical bytes within one page.
    pub(crate) fn read_physical(&mut self, gpa: u64, bytes: &mut [u8]) {
        if let Some(page) = self.guest_ram().host_page(gpa) {
            // SAFETY: the caller stays within the page, which is mapped.
            unsafe {
                copy(page.host.add((gpa % PAGE) as usize), bytes.as_mut_ptr(), bytes.len());
            }
            return;
        }
        for_device_parts(gpa, bytes.len(), |offset, len| {
            let part = &mut bytes[offset..offset + len];
            self.outside(|platform, id| platform.mmio_read(id, gpa + offset as u64, part));
        });
    }

    /// Writes guest-physical bytes within one page, reporting the write.
    pub(crate) fn write_physical(&mut self, gpa: u64, bytes: &[u8]) {
        if let Some(page) = self.guest_ram().host_page(gpa) {
            // SAFETY: the caller stays within the page, which is mapped.
            unsafe { copy(bytes.as_ptr(), page.host.add((gpa % PAGE) as usize), bytes.len()) };
            if page.tracker.wrote(page.index, line_mask(gpa, bytes.len() as u64)) {
                self.code_changed();
            }
            return;
        }
        for_device_parts(gpa, bytes.len(), |offset, len| {
            let part = &bytes[offset..offset + len];
            self.outside(|platform, id| platform.mmio_write(id, gpa + offset as u64, part));
        });
    }

    /// Makes `len` (at most 512) bytes at `address` readable by host instructions.
    #[inline(always)]
    pub(crate) fn span_read(&mut self, address: u64, len: u64) -> Outcome<Span> {
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let entry = unsafe { &(*self.tlb).entries[TlbSet::slot(address)] };
        if entry.read == address.wrapping_add(len - 1) & PAGE_MASK {
            return Ok(Span::direct(address, entry.addend, len));
        }
        self.span_slow(address, len, Access::Read)
    }

    /// Makes `len` (at most 512) bytes at `address` writable (and readable) by host instructions; [`Cpu::commit`] must
    /// follow the write. All rights are checked here, so the write cannot fault.
    #[inline(always)]
    pub(crate) fn span_write(&mut self, address: u64, len: u64) -> Outcome<Span> {
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let entry = unsafe { &(*self.tlb).entries[TlbSet::slot(address)] };
        if entry.write == address.wrapping_add(len - 1) & PAGE_MASK {
            return Ok(Span::direct(address, entry.addend, len));
        }
        self.span_slow(address, len, Access::Write)
    }

    #[cold]
    #[inline(never)]
    fn span_slow(&mut self, address: u64, len: u64, access: Access) -> Outcome<Span> {
        debug_assert!(len <= 512);
        if len <= 8 && len.is_power_of_two() {
            self.check_alignment(address, len)?;
        }
        let gpa = self.resolve(address, access)?;
        let crosses = address % PAGE + len > PAGE;
        if let (Some(page), false) = (self.guest_ram().host_page(gpa), crosses) {
            let watched = access == Access::Write && page.tracker.code_lines(page.index) != 0;
            // SAFETY: the operand lies within the page.
            let pointer = unsafe { page.host.add((gpa % PAGE) as usize) };
            return Ok(Span { pointer, address, len: len as u32, bounced: false, watched });
        }
        if crosses {
            let next = self.wrap((address & PAGE_MASK).wrapping_add(PAGE));
            self.resolve(next, access)?;
        }
        let mut bytes = [0; 512];
        if access == Access::Read || self.all_ram(address, len) {
            self.read_bytes(address, &mut bytes[..len as usize])?;
        }
        self.bounce.0[..len as usize].copy_from_slice(&bytes[..len as usize]);
        Ok(Span { pointer: self.bounce.0.as_mut_ptr(), address, len: len as u32, bounced: true, watched: false })
    }

    /// Like [`Cpu::span_write`] for an instruction that also reads its operand: device memory is read once.
    #[inline(always)]
    pub(crate) fn span_modify(&mut self, address: u64, len: u64) -> Outcome<Span> {
        let span = self.span_write(address, len)?;
        if span.bounced && !self.all_ram(address, len) {
            let mut bytes = [0; 512];
            self.read_bytes(address, &mut bytes[..len as usize])?;
            self.bounce.0[..len as usize].copy_from_slice(&bytes[..len as usize]);
        }
        Ok(span)
    }

    /// Whether the bytes, which are mapped, lie in RAM only.
    fn all_ram(&mut self, address: u64, len: u64) -> bool {
        let last = self.wrap(address.wrapping_add(len - 1));
        [address, last]
            .iter()
            .all(|&a| self.resolve(a, Access::Read).is_ok_and(|gpa| self.guest_ram().host_page(gpa).is_some()))
    }

    /// Finishes a write through a span of [`Cpu::span_write`] or [`Cpu::span_modify`].
    #[inline(always)]
    pub(crate) fn commit(&mut self, span: Span) -> Outcome<()> {
        if span.bounced || span.watched {
            return self.commit_slow(span);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn commit_slow(&mut self, span: Span) -> Outcome<()> {
        let len = span.len as usize;
        if span.bounced {
            let bytes: [u8; 512] = self.bounce.0;
            return self.write_bytes(span.address, &bytes[..len]);
        }
        let gpa = self.resolve(span.address, Access::Write)?;
        if let Some(page) = self.guest_ram().host_page(gpa)
            && page.tracker.wrote(page.index, line_mask(gpa, len as u64))
        {
            self.code_changed();
        }
        Ok(())
    }

    /// The bytes at `address` if they lie in one page of RAM, for runs of reads within that page.
    pub(crate) fn ram_read(&mut self, address: u64, len: u64) -> Outcome<Option<Span>> {
        let span = self.span_read(address, len)?;
        Ok((!span.bounced).then_some(span))
    }

    /// The same for runs of writes; [`Cpu::commit`] of the [`Span::extended`] span must follow.
    pub(crate) fn ram_write(&mut self, address: u64, len: u64) -> Outcome<Option<Span>> {
        let span = self.span_write(address, len)?;
        Ok((!span.bounced).then_some(span))
    }

    /// Loads with supervisor rights whatever the privilege level: descriptor tables and task state.
    pub(crate) fn load_system<T: Word>(&mut self, address: u64) -> Outcome<T> {
        self.as_supervisor(|cpu| cpu.load(address))
    }

    /// Stores with supervisor rights whatever the privilege level.
    pub(crate) fn store_system<T: Word>(&mut self, address: u64, value: T) -> Outcome<()> {
        self.as_supervisor(|cpu| cpu.store(address, value))
    }

    /// Translates for instruction fetch; returns the guest-physical address.
    pub(crate) fn fetch_address(&mut self, address: u64) -> Outcome<u64> {
        // SAFETY: `tlb` points to one of the CPU's own sets.
        let entry = unsafe { &(*self.tlb).exec[TlbSet::exec_slot(address)] };
        if entry.tag == address & PAGE_MASK {
            return Ok(entry.page | (address % PAGE));
        }
        let privilege = if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        let translation = self.translate(address, Access::Execute, privilege)?;
        let page = translation.gpa & PAGE_MASK;
        // SAFETY: as above.
        unsafe { (*self.tlb).fill_exec(address, page, translation.kind) };
        Ok(translation.gpa)
    }
}

impl Span {
    /// The span of a run of elements that lies in the same page.
    pub fn extended(self, address: u64, len: u64) -> Span {
        Span { address, len: len as u32, ..self }
    }

    #[inline(always)]
    fn direct(address: u64, addend: u64, len: u64) -> Span {
        let pointer = address.wrapping_add(addend) as *mut u8;
        Span { pointer, address, len: len as u32, bounced: false, watched: false }
    }
}

/// Copies between guest RAM and the host with single moves for the sizes that guests rely on being atomic.
///
/// # Safety
/// Both sides are valid for `len` bytes.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both sides.
    unsafe {
        match len {
            1 => *to = *from,
            2 => to.cast::<u16>().write_unaligned(from.cast::<u16>().read_unaligned()),
            4 => to.cast::<u32>().write_unaligned(from.cast::<u32>().read_unaligned()),
            8 => to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned()),
            _ => std::ptr::copy(from, to, len),
        }
    }
}

/// Splits a device access of any length into the lengths that devices know, calling `part(offset, length)`.
fn for_device_parts(gpa: u64, len: usize, mut part: impl FnMut(usize, usize)) {
    let mut offset = 0;
    while offset < len {
        let left = len - offset;
        let aligned = 1 << (gpa + offset as u64).trailing_zeros().min(3);
        // A whole access of a usual size goes through in one piece, aligned or not.
        let size =
            if offset == 0 && matches!(left, 1 | 2 | 4 | 8) { left } else { aligned.min(prev_power_of_two(left)) };
        part(offset, size);
        offset += size;
    }
}

fn prev_power_of_two(value: usize) -> usize {
    1 << value.ilog2()
}

/// Without paging every address is its own page; the entries leave when paging is switched on.
const _: () = assert!(LARGE != 0);
