//! Loaders against images made here: what they put where, and what they refuse.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use queztl_guest_memory::{GuestMemory, GuestRam};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;

const TEXT: u64 = 0x100_0000;
const MIB: u64 = 1 << 20;

/// An ELF file with one loadable segment for each (physical address, contents, bytes in memory), and notes.
struct ElfBuilder {
    class: u8,
    entry: u64,
    segments: Vec<(u64, Vec<u8>, u64)>,
    notes: Vec<u8>,
}

impl ElfBuilder {
    fn linux() -> ElfBuilder {
        let text: Vec<u8> = (0..0x3000u32).map(|i| (i % 251) as u8).collect();
        let mut elf = ElfBuilder { class: 2, entry: TEXT, segments: vec![(TEXT, text, 0x8000)], notes: Vec::new() };
        elf.note(b"Linux\0", 0x101, &[0; 4]);
        elf
    }

    fn note(&mut self, owner: &[u8], kind: u32, data: &[u8]) {
        self.notes.extend((owner.len() as u32).to_le_bytes());
        self.notes.extend((data.len() as u32).to_le_bytes());
        self.notes.extend(kind.to_le_bytes());
        for part in [owner, data] {
            self.notes.extend(part);
            self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        }
    }

    fn build(&self) -> Vec<u8> {
        let is_64 = self.class == 2;
        let (header_bytes, entry_bytes) = if is_64 { (64, 56) } else { (52, 32) };
        let word = |out: &mut Vec<u8>, value: u64| match is_64 {
            true => out.extend(value.to_le_bytes()),
            false => out.extend((value as u32).to_le_bytes()),
        };
        let count = self.segments.len() + 1;
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file[4] = self.class;
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(if is_64 { 62u16 } else { 3 }.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        word(&mut file, self.entry);
        word(&mut file, header_bytes);
        word(&mut file, 0);
        file.extend(0u32.to_le_bytes());
        file.extend((header_bytes as u16).to_le_bytes());
        file.extend((entry_bytes as u16).to_le_bytes());
        file.extend((count as u16).to_le_bytes());
        file.resize(header_bytes as usize, 0);
        let mut offset = 0x1000u64;
        let notes = (4u32, (0u64, self.notes.clone(), self.notes.len() as u64));
        let loads = self.segments.iter().cloned().map(|s| (1u32, s));
        let mut data = Vec::new();
        for (kind, (address, bytes, memory)) in std::iter::once(notes).chain(loads) {
            let linear = if kind == 1 { address | 0x4000_0000 } else { 0 };
            file.extend(kind.to_le_bytes());
            if is_64 {
                file.extend(5u32.to_le_bytes());
            }
            for value in [offset, linear, address, bytes.len() as u64, memory] {
                word(&mut file, value);
            }
            if !is_64 {
                file.extend(5u32.to_le_bytes());
            }
            word(&mut file, 4);
            offset += bytes.len() as u64;
            data.extend(bytes);
        }
        file.resize(0x1000, 0);
        file.extend(data);
        file
    }
}

/// A bzImage around a payload as it is.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x201] = 0x6a;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23c].copy_from_slice(&100u32.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0x1000u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[0x258..0x260].copy_from_slice(&TEXT.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    file.resize(0x1400, 0x90);
    file.extend(payload);
    file
}

fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let words = [0x1bad_b002, flags, checksum].into_iter().chain(addresses.iter().copied());
    words.flat_map(u32::to_le_bytes).collect()
}

fn multiboot_elf() -> ElfBuilder {
    let mut text = multiboot_header(3, &[]);
    text.resize(0x100, 0xcc);
    ElfBuilder { class: 1, entry: 0x10_0020, segments: vec![(0x10_0000, text, 0x2000)], notes: Vec::new() }
}

struct Bench {
    dir: TempDir,
    ram: GuestRam,
}

impl Bench {
    fn new(ram_bytes: u64) -> Bench {
        Bench { dir: tempfile::tempdir().unwrap(), ram: GuestRam::new(ram_bytes).unwrap() }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn memory(&self) -> &GuestMemory {
        self.ram.memory()
    }

    fn load(&self, kernel: &[u8]) -> Result<InitialState, Error> {
        self.load_with(kernel, &[], "console=ttyS0", Protocol::Auto)
    }

    fn load_with(
        &self,
        kernel: &[u8],
        initrd: &[PathBuf],
        cmdline: &str,
        protocol: Protocol,
    ) -> Result<InitialState, Error> {
        let kernel = self.file("kernel", kernel);
        let rng_seed = Some([7; 32]);
        load(&BootConfig { kernel: &kernel, initrd, cmdline, rsdp: Some(0xe_0000), protocol, rng_seed }, self.memory())
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn u32(&self, address: u64) -> u32 {
        self.memory().read_obj(GuestAddress(address)).unwrap()
    }

    fn u64(&self, address: u64) -> u64 {
        self.memory().read_obj(GuestAddress(address)).unwrap()
    }

    fn string(&self, address: u64) -> String {
        let bytes = self.bytes(address, 256);
        String::from_utf8(bytes.split(|b| *b == 0).next().unwrap().to_vec()).unwrap()
    }
}

#[test]
fn an_elf_kernel_is_entered_in_64_bit_mode_with_its_zero_page() {
    let bench = Bench::new(64 * MIB);
    let state = bench.load(&ElfBuilder::linux().build()).unwrap();
    assert_eq!((state.rip, state.rsi, state.mode), (TEXT, 0x7000, Mode::Long { cr3: 0x9000 }));
    assert_eq!(bench.bytes(TEXT, 3), [0, 1, 2]);
    assert_eq!(bench.bytes(TEXT + 0x2fff, 2), [(0x2fffu32 % 251) as u8, 0]);
    assert_eq!(bench.bytes(0x7202, 4), b"HdrS");
    assert_eq!(bench.u64(0x7070), 0xe_0000);
    assert_eq!(bench.string(bench.u32(0x7228).into()), "console=ttyS0");
    assert_eq!(bench.u64(state.gdt.base + 0x10), state.cs.descriptor());
}

#[test]
fn the_zero_page_lists_usable_ram_without_bios_area_and_hole() {
    let bench = Bench::new(4 << 30);
    bench.load(&ElfBuilder::linux().build()).unwrap();
    let entries = (0..u64::from(bench.bytes(0x71e8, 1)[0])).map(|i| 0x72d0 + 20 * i);
    let map: Vec<_> = entries.map(|at| (bench.u64(at), bench.u64(at + 8), bench.u32(at + 16))).collect();
    assert_eq!(
        map,
        [(0, 0x9fc00, 1), (0x9fc00, 0x60400, 2), (0x10_0000, 0xbff0_0000, 1), (0x1_0000_0000, 0x4000_0000, 1)]
    );
}

#[test]
fn the_page_tables_map_the_first_4_gib_to_themselves() {
    let bench = Bench::new(64 * MIB);
    let cr3 = bench.load(&ElfBuilder::linux().build()).unwrap().cr3();
    for address in [0u64, 0x123_4567, 0xfee0_0000, 0xffff_ffff] {
        let pdpt = bench.u64(cr3 + (address >> 39 & 511) * 8) & !0xfff;
        let pd = bench.u64(pdpt + (address >> 30 & 511) * 8) & !0xfff;
        let entry = bench.u64(pd + (address >> 21 & 511) * 8);
        assert_eq!(entry, address & !0x1f_ffff | 0x83);
    }
}

#[test]
fn a_random_seed_reaches_the_kernel_as_setup_data() {
    let bench = Bench::new(64 * MIB);
    bench.load(&ElfBuilder::linux().build()).unwrap();
    let entry = bench.u64(0x7250);
    assert_eq!((bench.u64(entry), bench.u32(entry + 8), bench.u32(entry + 12)), (0, 9, 32));
    assert_eq!(bench.bytes(entry + 16, 32), [7; 32]);
}

#[test]
fn an_initrd_lies_page_aligned_at_the_top_of_low_ram() {
    let bench = Bench::new(64 * MIB);
    let initrd = bench.file("initrd", &[0xab; 5001]);
    bench.load_with(&ElfBuilder::linux().build(), &[initrd], "", Protocol::Auto).unwrap();
    let (start, len) = (bench.u32(0x7218).into(), bench.u32(0x721c));
    assert_eq!((start, len), (64 * MIB - 0x2000, 5004));
    assert_eq!(bench.bytes(start, 5001), [0xab; 5001]);
}

#[test]
fn several_initrds_are_concatenated_at_multiples_of_four() {
    let bench = Bench::new(64 * MIB);
    let initrds = [bench.file("a", b"abcde"), bench.file("b", b"xyz")];
    bench.load_with(&ElfBuilder::linux().build(), &initrds, "", Protocol::Auto).unwrap();
    assert_eq!(bench.bytes(bench.u32(0x7218).into(), 12), b"abcde\0\0\0xyz\0");
    assert_eq!(bench.u32(0x721c), 12);
}

#[test]
fn an_initrd_stays_below_the_limit_in_the_setup_header() {
    let bench = Bench::new(3 << 30);
    let initrd = bench.file("initrd", &[1; 100]);
    let kernel = bzimage(&compress("gzip", &ElfBuilder::linux().build()));
    bench.load_with(&kernel, &[initrd], "", Protocol::Auto).unwrap();
    assert_eq!(bench.u32(0x7218), 0x7fff_f000);
}

fn compress(format: &str, data: &[u8]) -> Vec<u8> {
    match format {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "bzip2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "xz" => {
            let options = lzma_rust2::XzOptions::with_preset(1);
            let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "lzma" => {
            let options = lzma_rust2::LzmaOptions::with_preset(6);
            let mut encoder = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "lz4" => {
            let mut out = vec![0x02, 0x21, 0x4c, 0x18];
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                out.extend((block.len() as u32).to_le_bytes());
                out.extend(block);
            }
            out
        }
        "zstd" => zstd::encode_all(data, 3).unwrap(),
        _ => panic!("unknown format {format}"),
    }
}

#[test]
fn a_bzimage_of_every_known_compression_gives_the_kernel_inside() {
    let elf = ElfBuilder::linux().build();
    for format in ["gzip", "bzip2", "lzma", "xz", "lz4", "zstd"] {
        let bench = Bench::new(64 * MIB);
        let mut payload = compress(format, &elf);
        if format != "gzip" {
            payload.extend((elf.len() as u32).to_le_bytes());
        }
        let state = bench.load(&bzimage(&payload)).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_eq!((state.rip, state.rsi), (TEXT, 0x7000), "{format}");
        assert_eq!(bench.bytes(TEXT, 0x3000), elf[elf.len() - 0x3000..], "{format}");
        assert_eq!(bench.bytes(0x71f1, 1), [1], "{format}: the header is the bzImage's own");
    }
}

#[test]
fn a_kernel_of_many_lz4_blocks_loads_whole() {
    let bench = Bench::new(64 * MIB);
    let mut elf = ElfBuilder::linux();
    elf.segments[0].1 = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
    elf.segments[0].2 = 20_000_000;
    bench.load(&bzimage(&compress("lz4", &elf.build()))).unwrap();
    assert_eq!(bench.u32(TEXT + 4 * 4_999_999), 4_999_999);
}

#[test]
fn a_bzimage_of_unknown_compression_is_entered_to_decompress_itself() {
    let bench = Bench::new(64 * MIB);
    let state = bench.load(&bzimage(&[0x89; 64])).unwrap();
    assert_eq!((state.rip, state.rsi), (TEXT + 0x200, 0x7000));
    assert_eq!(bench.bytes(TEXT + 0x1000, 64), [0x89; 64]);
}

#[test]
fn a_32_bit_bzimage_is_entered_in_protected_mode() {
    let bench = Bench::new(64 * MIB);
    let mut kernel = bzimage(&[0x89; 64]);
    kernel[0x236] = 0;
    let state = bench.load(&kernel).unwrap();
    assert_eq!((state.rip, state.mode), (TEXT, Mode::Protected));
}

#[test]
fn linux_with_a_pvh_note_prefers_its_own_protocol_unless_asked() {
    let bench = Bench::new(64 * MIB);
    let mut elf = ElfBuilder::linux();
    elf.note(b"Xen\0", 18, &(TEXT + 0x100).to_le_bytes());
    assert_eq!(bench.load(&elf.build()).unwrap().rip, TEXT);

    let bench = Bench::new(64 * MIB);
    let initrd = bench.file("initrd", &[0xab; 100]);
    let state = bench.load_with(&elf.build(), &[initrd], "quiet", Protocol::Pvh).unwrap();
    assert_eq!((state.rip, state.rbx, state.mode), (TEXT + 0x100, 0x6000, Mode::Protected));
    assert_eq!((bench.u32(0x6000), bench.u32(0x6004), bench.u32(0x600c)), (0x336e_c578, 1, 1));
    assert_eq!(bench.string(bench.u64(0x6018)), "quiet");
    assert_eq!(bench.u64(0x6020), 0xe_0000);
    let module = bench.u64(0x6010);
    assert_eq!(bench.bytes(bench.u64(module), 100), [0xab; 100]);
    let (map, count) = (bench.u64(0x6028), bench.u32(0x6030));
    assert_eq!((bench.u64(map), bench.u64(map + 8), bench.u32(map + 16), count), (0, 0x9fc00, 1, 3));
}

#[test]
fn other_kernels_with_a_pvh_note_are_entered_by_it() {
    let bench = Bench::new(64 * MIB);
    let mut elf = ElfBuilder::linux();
    elf.notes.clear();
    elf.note(b"Xen\0", 18, &((TEXT + 0x100) as u32).to_le_bytes());
    assert_eq!(bench.load(&elf.build()).unwrap().rip, TEXT + 0x100);
}

#[test]
fn a_multiboot_elf_gets_memory_map_command_line_and_modules() {
    let bench = Bench::new(64 * MIB);
    let modules = [bench.file("one", b"first"), bench.file("two", b"second")];
    let state = bench.load_with(&multiboot_elf().build(), &modules, "a b", Protocol::Auto).unwrap();
    assert_eq!((state.rip, state.rax, state.mode), (0x10_0020, 0x2bad_b002, Mode::Protected));
    let info = state.rbx;
    assert_eq!(bench.u32(info) & 0x4d, 0x4d);
    assert_eq!((bench.u32(info + 4), bench.u32(info + 8)), (639, 63 * 1024));
    assert_eq!(bench.string(bench.u32(info + 16).into()), "a b");
    assert_eq!(bench.u32(info + 20), 2);
    let second = u64::from(bench.u32(info + 24)) + 16;
    let (start, end) = (bench.u32(second), bench.u32(second + 4));
    assert_eq!(start % 4096, 0);
    assert_eq!(bench.bytes(start.into(), (end - start) as usize), b"second");
    assert!(bench.string(bench.u32(second + 8).into()).ends_with("/two"));
    let map = u64::from(bench.u32(info + 48));
    assert_eq!(bench.u32(info + 44), 3 * 24);
    assert_eq!((bench.u32(map), bench.u64(map + 4), bench.u64(map + 12), bench.u32(map + 20)), (20, 0, 0x9fc00, 1));
}

#[test]
fn a_multiboot_file_with_its_own_addresses_is_loaded_by_them() {
    let bench = Bench::new(64 * MIB);
    let mut file = vec![0x11; 0x40];
    file.extend(multiboot_header(1 << 16, &[0x20_0010, 0x20_0000, 0x20_0100, 0x20_1000, 0x20_0040]));
    file.resize(0x200, 0x22);
    let state = bench.load(&file).unwrap();
    assert_eq!(state.rip, 0x20_0040);
    assert_eq!(bench.u32(0x20_0010), 0x1bad_b002);
    assert_eq!(bench.bytes(0x20_00ff, 2), [0x22, 0]);
}

#[test]
fn multiboot_demands_that_cannot_be_met_are_refused() {
    let bench = Bench::new(64 * MIB);
    let mut elf = multiboot_elf();
    elf.segments[0].1 = multiboot_header(1 << 9, &[]);
    assert!(message(bench.load(&elf.build())).contains("0x200"));
}

fn message(result: Result<InitialState, Error>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn missing_files_and_directories_are_named() {
    let bench = Bench::new(64 * MIB);
    let config =
        |kernel| BootConfig { kernel, initrd: &[], cmdline: "", rsdp: None, protocol: Protocol::Auto, rng_seed: None };
    let missing = message(load(&config(Path::new("/nonexistent/vmlinux")), bench.memory()));
    assert!(missing.contains("/nonexistent/vmlinux") && missing.contains("No such file"), "{missing}");
    assert!(message(load(&config(bench.dir.path()), bench.memory())).contains("not a regular file"));
    let initrd = [PathBuf::from("/nonexistent/initrd")];
    let error = bench.load_with(&ElfBuilder::linux().build(), &initrd, "", Protocol::Auto);
    assert!(message(error).contains("/nonexistent/initrd"));
}

#[test]
fn empty_and_random_files_are_of_no_known_kind() {
    let bench = Bench::new(16 * MIB);
    for file in [vec![], vec![0; 100_000], b"#!/bin/sh\n".to_vec()] {
        assert!(matches!(bench.load(&file), Err(Error::UnknownFormat { .. })));
    }
}

#[test]
fn kernels_cut_short_anywhere_are_refused() {
    let elf = ElfBuilder::linux().build();
    let packed = bzimage(&compress("zstd", &elf));
    for kernel in [elf, packed] {
        for part in 1..32 {
            let bench = Bench::new(64 * MIB);
            let len = kernel.len() * part / 32;
            assert!(bench.load(&kernel[..len]).is_err(), "{len} of {} bytes", kernel.len());
        }
    }
}

#[test]
fn a_damaged_payload_is_reported_with_its_compression() {
    let mut payload = compress("xz", &ElfBuilder::linux().build());
    let middle = payload.len() / 2;
    payload[middle..middle + 20].fill(0x5a);
    let bench = Bench::new(64 * MIB);
    assert!(message(bench.load(&bzimage(&payload))).contains("xz"));
}

#[test]
fn kernels_for_other_processors_are_refused() {
    let mut kernel = ElfBuilder::linux().build();
    kernel[18] = 183;
    let bench = Bench::new(64 * MIB);
    assert!(message(bench.load(&kernel)).contains("183"));
}

#[test]
fn an_entry_before_linear_addresses_that_wrap_around_is_no_panic() {
    let mut kernel = ElfBuilder::linux().build();
    // The entry point, and the linear address of the first segment, whose program header is the second.
    kernel[24..32].copy_from_slice(&8_u64.to_le_bytes());
    kernel[64 + 56 + 16..64 + 56 + 24].copy_from_slice(&(u64::MAX - 7).to_le_bytes());
    let bench = Bench::new(64 * MIB);
    let state = bench.load(&kernel).unwrap();
    assert_eq!(state.rip, TEXT + 16);
}

#[test]
fn segments_outside_ram_say_how_much_ram_is_needed() {
    let bench = Bench::new(8 * MIB);
    assert!(message(bench.load(&ElfBuilder::linux().build())).contains("give the guest at least 17 MiB"));
}

#[test]
fn overlapping_segments_are_refused() {
    let bench = Bench::new(64 * MIB);
    let mut elf = ElfBuilder::linux();
    elf.segments.push((TEXT + 0x7fff, vec![1], 1));
    assert!(message(bench.load(&elf.build())).contains("overlap"));
    let mut elf = ElfBuilder::linux();
    elf.segments.push((0x7000, vec![1], 1));
    assert!(message(bench.load(&elf.build())).contains("boot structures"));
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let bench = Bench::new(64 * MIB);
    let kernel = ElfBuilder::linux().build();
    bench.load_with(&kernel, &[], &"x".repeat(2047), Protocol::Auto).unwrap();
    assert!(message(bench.load_with(&kernel, &[], &"x".repeat(2048), Protocol::Auto)).contains("2047"));
    let packed = bzimage(&compress("gzip", &kernel));
    assert!(message(bench.load_with(&packed, &[], &"x".repeat(101), Protocol::Auto)).contains("100"));
    assert!(matches!(bench.load_with(&kernel, &[], "a\0b", Protocol::Auto), Err(Error::CmdlineZero)));
}

#[test]
fn an_initrd_that_does_not_fit_says_how_much_ram_is_needed() {
    let bench = Bench::new(32 * MIB);
    let path = bench.file("initrd", b"");
    fs::File::options().write(true).open(&path).unwrap().set_len(100 * MIB).unwrap();
    let kernel = ElfBuilder::linux().build();
    let error = message(bench.load_with(&kernel, std::slice::from_ref(&path), "", Protocol::Auto));
    assert!(error.contains("100 MiB does not fit") && error.contains("at least 117 MiB"), "{error}");

    let enough = Bench::new(117 * MIB);
    enough.load_with(&kernel, std::slice::from_ref(&path), "", Protocol::Auto).unwrap();

    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let error = message(bench.load_with(&kernel, &[path], "", Protocol::Auto));
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn protocols_the_file_does_not_have_are_refused() {
    let bench = Bench::new(64 * MIB);
    let kernel = ElfBuilder::linux().build();
    assert!(message(bench.load_with(&kernel, &[], "", Protocol::Pvh)).contains("PVH"));
    assert!(message(bench.load_with(&kernel, &[], "", Protocol::Multiboot)).contains("Multiboot"));
}

/// `QUEZTL_TEST_KERNEL=/boot/vmlinuz cargo test -p queztl-vmm -- --ignored a_stock`
#[test]
#[ignore = "needs a kernel: set QUEZTL_TEST_KERNEL to its path"]
fn a_stock_kernel_loads() {
    let kernel = std::env::var_os("QUEZTL_TEST_KERNEL").map(PathBuf::from).expect("QUEZTL_TEST_KERNEL is set");
    let bench = Bench::new(256 * MIB);
    let config =
        BootConfig { kernel: &kernel, initrd: &[], cmdline: "", rsdp: None, protocol: Protocol::Auto, rng_seed: None };
    let started = std::time::Instant::now();
    let state = load(&config, bench.memory()).unwrap();
    println!("loaded in {:?}, entry {:#x}", started.elapsed(), state.rip);
    assert!(bench.bytes(state.rip, 16).iter().any(|byte| *byte != 0));
}

fn valid_images() -> Vec<Vec<u8>> {
    let elf = ElfBuilder::linux().build();
    let mut pvh = ElfBuilder::linux();
    pvh.notes.clear();
    pvh.note(b"Xen\0", 18, &TEXT.to_le_bytes());
    let mut images = vec![elf.clone(), pvh.build(), multiboot_elf().build(), bzimage(&[0x89; 64])];
    images.extend(["gzip", "lzma", "xz", "lz4", "zstd", "bzip2"].map(|f| bzimage(&compress(f, &elf))));
    images
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_load_or_are_refused_but_never_panic(
        which in 0usize..10,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = valid_images().swap_remove(which);
        let headers = image.len().min(0x400);
        for (place, value, anywhere) in changes {
            let len = if anywhere { image.len() } else { headers };
            let place = place.index(len);
            image[place] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let bench = Bench::new(32 * MIB);
        for protocol in [Protocol::Auto, Protocol::Linux, Protocol::Pvh, Protocol::Multiboot] {
            if let Err(error) = bench.load_with(&image, &[], "", protocol) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }

    #[test]
    fn hostile_elf_fields_never_panic(
        offset in any::<u64>(), physical in any::<u64>(), file_bytes in any::<u64>(), memory_bytes in any::<u64>(),
        small in any::<bool>(),
    ) {
        let mut image = ElfBuilder::linux().build();
        let mask = if small { 0x1ff_ffff } else { u64::MAX };
        for (at, value) in [(8, offset), (24, physical), (32, file_bytes), (40, memory_bytes)] {
            let at = 64 + 56 + at;
            image[at..at + 8].copy_from_slice(&(value & mask).to_le_bytes());
        }
        let bench = Bench::new(32 * MIB);
        let _ = bench.load(&image);
    }
}
