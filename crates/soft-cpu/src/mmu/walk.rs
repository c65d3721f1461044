//! Page walks: 4-level, PAE and 32-bit paging (SDM vol. 3A chapter 4; APM vol. 2 chapter 5).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::tlb::{GLOBAL, LARGE};
use super::{Access, PAGE, PAGE_MASK, PHYSICAL_BITS, canonical};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome};
use crate::state::bits;
use queztl_guest_memory::line_mask;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const GLOBAL_BIT: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Address bits that this CPU does not have.
const RESERVED_ADDRESS: u64 = ADDRESS & !((1 << PHYSICAL_BITS) - 1);

/// Page-fault error code bits (SDM vol. 3A §4.7).
pub(crate) mod error {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// With whose rights an access is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    Supervisor,
    /// Supervisor with RFLAGS.AC set, which lifts SMAP.
    SupervisorAc,
    User,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// [`GLOBAL`] and [`LARGE`].
    pub kind: u64,
}

/// What the entries met on the way allow together.
#[derive(Clone, Copy)]
struct Rights {
    user: bool,
    writable: bool,
    executable: bool,
}

/// An entry, where it lies and how wide it is.
#[derive(Clone, Copy)]
struct Met {
    gpa: u64,
    value: u64,
}

/// The entries of one walk, root first.
struct Path {
    met: [Met; 4],
    len: usize,
    wide: bool,
}

impl Path {
    fn push(&mut self, gpa: u64, value: u64) {
        self.met[self.len] = Met { gpa, value };
        self.len += 1;
    }
}

impl Cpu {
    /// Translates `address` for `access`, setting accessed and dirty bits, or raises the fault that the access causes.
    pub(crate) fn translate(&mut self, address: u64, access: Access, privilege: Privilege) -> Outcome<Translation> {
        if self.cr0 & bits::CR0_PG == 0 {
            return Ok(Translation { gpa: address & 0xffff_ffff, kind: LARGE });
        }
        if self.long_mode() {
            if !canonical(address) {
                return self.fail(Exception::not_canonical(address));
            }
            return self.walk_wide(address, access, privilege, self.cr3 & ADDRESS, 4);
        }
        let address = address & 0xffff_ffff;
        if self.cr4 & bits::CR4_PAE != 0 {
            return self.walk_wide(address, access, privilege, self.cr3 & 0xffff_ffe0, 3);
        }
        self.walk_narrow(address, access, privilege)
    }

    /// Tables of 64-bit entries: `levels` is 4 for long mode, 3 for PAE.
    fn walk_wide(
        &mut self,
        address: u64,
        access: Access,
        privilege: Privilege,
        root: u64,
        levels: u32,
    ) -> Outcome<Translation> {
        'again: loop {
            let mut path = Path { met: [Met { gpa: 0, value: 0 }; 4], len: 0, wide: true };
            let mut rights = Rights { user: true, writable: true, executable: true };
            let mut table = root;
            let mut level = levels;
            loop {
                let shift = 12 + 9 * (level - 1);
                let entry_gpa = table + ((address >> shift) & 0x1ff) * 8;
                let entry = self.read_entry(entry_gpa, true);
                if entry & PRESENT == 0 {
                    return self.page_fault(address, access, privilege, 0);
                }
                // The four PAE root entries have no rights and no accessed bit (SDM vol. 3A §4.4.1).
                let pae_root = levels == 3 && level == 3;
                let large = entry & PAGE_SIZE != 0 && !pae_root;
                if self.reserved(entry, level, large, pae_root) {
                    return self.page_fault(address, access, privilege, error::PRESENT | error::RESERVED);
                }
                if !pae_root {
                    rights.user &= entry & USER != 0;
                    rights.writable &= entry & WRITABLE != 0;
                    rights.executable &= entry & NO_EXECUTE == 0;
                    path.push(entry_gpa, entry);
                }
                if level == 1 || large {
                    if !self.allowed(rights, access, privilege) {
                        return self.page_fault(address, access, privilege, error::PRESENT);
                    }
                    if !self.mark(&path, access) {
                        continue 'again;
                    }
                    let inside = (1_u64 << shift) - 1;
                    return Ok(self.leaf(entry & ADDRESS & !inside | address & inside, entry, level > 1));
                }
                table = entry & ADDRESS;
                level -= 1;
            }
        }
    }

    /// Two levels of 32-bit entries, with 4 MiB pages where CR4.PSE allows.
    fn walk_narrow(&mut self, address: u64, access: Access, privilege: Privilege) -> Outcome<Translation> {
        loop {
            let mut path = Path { met: [Met { gpa: 0, value: 0 }; 4], len: 0, wide: false };
            let directory_gpa = (self.cr3 & 0xffff_f000) + (address >> 22) * 4;
            let directory = self.read_entry(directory_gpa, false);
            if directory & PRESENT == 0 {
                return self.page_fault(address, access, privilege, 0);
            }
            path.push(directory_gpa, directory);
            let mut rights =
                Rights { user: directory & USER != 0, writable: directory & WRITABLE != 0, executable: true };
            let large = directory & PAGE_SIZE != 0 && self.cr4 & bits::CR4_PSE != 0;
            let leaf = if large {
                directory
            } else {
                let entry_gpa = (directory & 0xffff_f000) + ((address >> 12) & 0x3ff) * 4;
                let entry = self.read_entry(entry_gpa, false);
                if entry & PRESENT == 0 {
                    return self.page_fault(address, access, privilege, 0);
                }
                path.push(entry_gpa, entry);
                rights.user &= entry & USER != 0;
                rights.writable &= entry & WRITABLE != 0;
                entry
            };
            if !self.allowed(rights, access, privilege) {
                return self.page_fault(address, access, privilege, error::PRESENT);
            }
            if !self.mark(&path, access) {
                continue;
            }
            let gpa = if large {
                // PSE-36: bits 13–20 of the entry are bits 32–39 of the address.
                (leaf & 0xffc0_0000) | ((leaf >> 13) & 0xff) << 32 | (address & 0x3f_ffff)
            } else {
                (leaf & 0xffff_f000) | (address & 0xfff)
            };
            return Ok(self.leaf(gpa, leaf, large));
        }
    }

    fn leaf(&self, gpa: u64, entry: u64, large: bool) -> Translation {
        let global = entry & GLOBAL_BIT != 0 && self.cr4 & bits::CR4_PGE != 0;
        Translation { gpa, kind: if global { GLOBAL } else { 0 } | if large { LARGE } else { 0 } }
    }

    fn reserved(&self, entry: u64, level: u32, large: bool, pae_root: bool) -> bool {
        let no_execute_reserved = self.efer & bits::EFER_NXE == 0 && entry & NO_EXECUTE != 0;
        let size_reserved = match level {
            4 => entry & PAGE_SIZE != 0,
            // Bits between the PAT bit and the page's own address must be zero.
            3 if large => entry & 0x3fff_e000 != 0,
            2 if large => entry & 0x001f_e000 != 0,
            _ => false,
        };
        let root_reserved = pae_root && entry & (NO_EXECUTE | 0x1e6) != 0;
        entry & RESERVED_ADDRESS != 0 || no_execute_reserved || size_reserved || root_reserved
    }

    fn allowed(&self, rights: Rights, access: Access, privilege: Privilege) -> bool {
        let user = privilege == Privilege::User;
        if user && !rights.user {
            return false;
        }
        match access {
            Access::Execute => {
                let smep = !user && rights.user && self.cr4 & bits::CR4_SMEP != 0;
                rights.executable && !smep
            }
            Access::Read | Access::Write => {
                let smap = privilege == Privilege::Supervisor && rights.user && self.cr4 & bits::CR4_SMAP != 0;
                let write_protected =
                    access == Access::Write && !rights.writable && (user || self.cr0 & bits::CR0_WP != 0);
                !smap && !write_protected
            }
        }
    }

    /// Sets accessed bits on the path and the dirty bit on its last entry; false if an entry changed meanwhile, so that
    /// the walk must be made again.
    fn mark(&mut self, path: &Path, access: Access) -> bool {
        for (index, met) in path.met[..path.len].iter().enumerate() {
            let last = index + 1 == path.len;
            let wanted = ACCESSED | if last && access == Access::Write { DIRTY } else { 0 };
            if met.value & wanted != wanted && !self.update_entry(met.gpa, met.value, met.value | wanted, path.wide) {
                return false;
            }
        }
        true
    }

    /// Reads a page-table entry; all ones where there is no RAM, which is a reserved-bit fault.
    fn read_entry(&self, gpa: u64, wide: bool) -> u64 {
        let Some(page) = self.guest_ram().host_page(gpa) else {
            return if wide { u64::MAX } else { u64::from(u32::MAX) };
        };
        let offset = (gpa % PAGE) as usize;
        // SAFETY: entries are aligned to their size, so they lie within the page.
        unsafe {
            let pointer = page.host.add(offset);
            if wide {
                (*pointer.cast::<AtomicU64>()).load(Ordering::Relaxed)
            } else {
                u64::from((*pointer.cast::<AtomicU32>()).load(Ordering::Relaxed))
            }
        }
    }

    fn update_entry(&self, gpa: u64, old: u64, new: u64, wide: bool) -> bool {
        let Some(page) = self.guest_ram().host_page(gpa) else { return true };
        let offset = (gpa % PAGE) as usize;
        let order = Ordering::SeqCst;
        // SAFETY: entries are aligned to their size, so they lie within the page.
        let swapped = unsafe {
            let pointer = page.host.add(offset);
            if wide {
                (*pointer.cast::<AtomicU64>()).compare_exchange(old, new, order, order).is_ok()
            } else {
                (*pointer.cast::<AtomicU32>()).compare_exchange(old as u32, new as u32, order, order).is_ok()
            }
        };
        if swapped {
            page.tracker.wrote(page.index, line_mask(offset as u64, 8));
        }
        swapped
    }

    fn page_fault<T>(&mut self, address: u64, access: Access, privilege: Privilege, base: u32) -> Outcome<T> {
        let mut code = base;
        if access == Access::Write {
            code |= error::WRITE;
        }
        if privilege == Privilege::User {
            code |= error::USER;
        }
        let fetch_reported = self.efer & bits::EFER_NXE != 0 || self.cr4 & bits::CR4_SMEP != 0;
        if access == Access::Execute && fetch_reported {
            code |= error::FETCH;
        }
        self.fail(Exception::page_fault(address, code))
    }

    /// The guest-physical address behind `address` if it is mapped, without touching anything. For debuggers.
    pub fn probe(&self, address: u64) -> Option<u64> {
        if self.cr0 & bits::CR0_PG == 0 {
            return Some(address);
        }
        if !self.long_mode() {
            return None;
        }
        let mut table = self.cr3 & ADDRESS;
        for level in (1..=4).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = self.read_entry(table + ((address >> shift) & 0x1ff) * 8, true);
            if entry & PRESENT == 0 || entry & RESERVED_ADDRESS != 0 {
                return None;
            }
            if level == 1 || entry & PAGE_SIZE != 0 {
                let inside = (1_u64 << shift) - 1;
                return Some(entry & ADDRESS & PAGE_MASK & !inside | address & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }
}
