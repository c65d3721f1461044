//! Seeds: small inputs that reach what random bytes rarely do. Made here, so that no file must be kept.

/// The seeds of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "boot" => boot(),
        "cpu" => cpu(),
        "devices" => devices(),
        "disks" => disks(),
        "frames" => vec![frame(60), frame(1514), [frame(60), frame(61)].concat(), vec![0xff; 4], vec![0, 0, 0, 0]],
        "handshake" => {
            [&b"CONNECT 1024\n"[..], b"connect 4294967295\r\n", b"CONNECT\n", b"CONNECT 1 2\n"].map(Vec::from).into()
        }
        "migration" => migration(),
        "qcow2" => qcow2(),
        "qhp" => qhp(),
        "states" => states(),
        _ => Vec::new(),
    }
}

/// A switch with a run and a state, what is missing, and records.
fn migration() -> Vec<Vec<u8>> {
    let switch = |runs: u32| format!("{{\"token\":\"{:032}\",\"patience_ms\":1000,\"runs\":{runs}}}\n", 7).into_bytes();
    let run = |offset: u64, bytes: u64| [offset.to_le_bytes(), bytes.to_le_bytes()].concat();
    let record = |kind: u64, number: u64| [run(kind, number), run(0, 0)].concat();
    vec![
        [switch(1), run(4096, 8192), b"state".to_vec()].concat(),
        [switch(2), run(0, 4096), run(0, 4096)].concat(),
        [b"{\"runs\":2}\n".to_vec(), run(0, 4096), run(8192, 4096)].concat(),
        [b"{\"runs\":1}\n".to_vec(), run(u64::MAX - 4095, 4096)].concat(),
        record(1, 4096),
        record(1, u64::MAX),
        record(2, 9),
    ]
}

fn frame(bytes: u32) -> Vec<u8> {
    let mut frame = bytes.to_be_bytes().to_vec();
    frame.resize(4 + bytes as usize, 0x5a);
    frame
}

/// Greetings, then streams that are opened, filled, granted, reset and ended, by either side.
fn qhp() -> Vec<Vec<u8>> {
    let mut greeting = b"QHP\n\x01\x00\x01\x00\x01\0\0\0\0\0\0\0".to_vec();
    greeting.extend(words(&[1 << 16, 1000, 4000, 4]));
    greeting.resize(64 + 32, 0);
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let flags: &[u8] = if kind == 1 { &[flags] } else { &[] };
        [&[1, kind - 1][..], flags, &[stream], &(payload.len() as u16).to_le_bytes(), payload].concat()
    };
    let (open, own) = (|stream| frame(1, 1, stream, &[9; 600]), vec![5, 0x80, 1, 4, 1, 2, 3, 4]);
    let raw = [&[0][..], &words(&[4, 0x0001_0001, 1, 0]), &[1, 2, 3, 4]].concat();
    let scripts = [
        vec![],
        [open(1), frame(1, 2, 1, &[1; 100]), vec![7, 1]].concat(),
        [open(1), open(3), open(5), frame(1, 0, 1, &[1; 400]), frame(1, 0, 1, &[1])].concat(),
        [own, frame(2, 0, 1, &[255, 255, 255, 127]), frame(2, 0, 0, &[255; 4])].concat(),
        [open(1), frame(3, 0, 1, b"\x01\0\0\0gone"), frame(1, 0, 1, &[1])].concat(),
        [frame(4, 0, 0, &[1; 8]), frame(5, 0, 0, &[1; 8]), frame(6, 0, 0, &[])].concat(),
        [open(1), vec![6, 1, 1, 0, 0, 0], raw].concat(),
    ];
    let seed = |side: u8, script: &Vec<u8>| [&[side], &greeting[..], script].concat();
    [0, 1].iter().flat_map(|side| scripts.iter().map(move |script| seed(*side, script))).collect()
}

/// A disk of 64 KiB; data, zeroes, both, one beyond the end, and one that is torn.
fn disks() -> Vec<Vec<u8>> {
    let change = |disk: u32, offset: u64, length: u64, kind: u8, data: &[u8]| {
        [&disk.to_le_bytes()[..], &offset.to_le_bytes(), &length.to_le_bytes(), &[kind], data].concat()
    };
    let (data, zero) = (change(0, 512, 64, 0, &[7; 64]), change(0, 0, 65536, 1, &[]));
    let both = [&data[..], &zero].concat();
    let wrong = [change(0, 65536, 1, 1, &[]), change(1, 0, 1, 1, &[]), change(0, u64::MAX, u64::MAX, 1, &[])];
    let torn = data[..40].to_vec();
    let head = [&[1][..], &65536_u64.to_le_bytes()].concat();
    let all = [data, zero, both, torn].into_iter().chain(wrong);
    all.map(|changes| [&head[..], &changes].concat()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

/// A kernel of each kind, as small as it can be.
fn boot() -> Vec<Vec<u8>> {
    let with_choice = |choice: u8, kernel: Vec<u8>| [vec![choice], kernel].concat();
    let mut seeds: Vec<Vec<u8>> = (0..8).map(|choice| with_choice(choice, elf())).collect();
    seeds.extend([0, 3, 7].map(|choice| with_choice(choice, multiboot())));
    for magic in
        [&b"\x1f\x8b\x08\x00"[..], b"BZh9", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\x5d\x00\x00"]
    {
        seeds.extend([0, 5].map(|choice| with_choice(choice, bzimage(magic))));
    }
    seeds.push(with_choice(1, bzimage(&elf())));
    seeds
}

fn multiboot() -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002_u32, 1 << 16);
    let mut image = words(&[magic, flags, 0_u32.wrapping_sub(magic + flags), 0x10_0000, 0x10_0000, 0, 0, 0x10_0020]);
    image.extend([0xf4; 16]);
    image
}

/// ELF with one segment and a PVH note.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
    file.extend([2, 0, 62, 0]);
    file.extend(words(&[1, 0x100_0000, 0, 64, 0, 0, 0, 0]));
    file.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD and PT_NOTE: type, flags, offset, virtual and physical address, size in file and memory, alignment.
    file.extend(words(&[1, 5, 176, 0, 0x100_0000, 0, 0x100_0000, 0, 16, 0, 0x1000, 0, 0x1000, 0]));
    file.extend(words(&[4, 4, 192, 0, 0, 0, 0, 0, 20, 0, 20, 0, 4, 0]));
    file.extend([0xf4; 16]);
    file.extend(words(&[4, 4, 18]));
    file.extend(b"Xen\0");
    file.extend(words(&[0x100_0000]));
    file
}

/// The header of Linux's boot protocol 2.15 with `payload` as its compressed kernel.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let mut put = |offset: usize, value: &[u8]| file[offset..offset + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1f4, &words(&[0x40]));
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x230, &words(&[0x20_0000]));
    put(0x234, &[1, 0x15, 0x3f, 0]);
    put(0x248, &words(&[0, payload.len() as u32]));
    put(0x258, &words(&[0x100_0000, 0, 0x20_0000]));
    file.extend(payload);
    file.resize(0x800, 0);
    file
}

/// Some instructions of each kind, in each mode.
fn cpu() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 14] = [
        b"\x48\x01\xd8\x48\x89\x03\xc3",
        b"\x0f\x58\xc1\x66\x0f\x6f\x03\xc5\xfc\x58\xc2",
        b"\xd9\xe8\xdb\xe3\xdd\x1e\xd9\x3e",
        b"\xf3\xa4\xf3\xab\xf2\xae",
        b"\x0f\x20\xc0\x0f\x22\xc0\x0f\x01\x16\x0f\x00\xd8",
        b"\x0f\x30\x0f\x32\x0f\xa2\x0f\x31",
        b"\xcd\x20\xcf\x48\xcf\x0f\x05\x0f\x07",
        b"\xf0\x0f\xb1\x0b\xf0\x48\x0f\xc7\x0e",
        b"\x8e\xd8\x0f\xb2\x26\xea\x00\x80\x00\x00\x08\x00",
        b"\x0f\xae\x06\x0f\xae\x0e\x0f\xc7\x26",
        b"\xc8\x10\x00\x1f\xc9\x60\x61\x9c\x9d",
        b"\xe4\x20\xe6\x20\xec\xee\x6c\x6e\xf3\x6c",
        b"\x67\x66\x8b\x44\x24\x10\x2e\x3e\x64\x65\x8b\x00",
        b"\xeb\xfe\xe8\x00\x00\x00\x00\xff\xe0",
    ];
    let registers =
        words(&[0x1000, 0x2_0000, 3, 0x3_0000, 0, 0x7000, 0x4_0000, 0x5_0000, 8, 9, 10, 11, 12, 13, 14, 15]);
    let modes = [0_u8, 1, 2, 3, 4, 5, 0x83];
    let seed = |mode: u8, code: &[u8]| [&[mode][..], &registers, code].concat();
    modes.iter().flat_map(|mode| codes.iter().map(move |code| seed(*mode, code))).collect()
}

/// For each device: proper requests, a loop, a table of tables, 4 GiB.
fn devices() -> Vec<Vec<u8>> {
    let descriptor = |slot: u8, address: u32, len: u16, flags: u8, next: u8| {
        [&[0, 0, slot][..], &address.to_le_bytes(), &len.to_le_bytes(), &[flags, next]].concat()
    };
    let offer = |queue: u8| vec![3, queue, 0, 0];
    let header = |kind: u8| [vec![5, 0, 0, 0, 2, 0, 16, kind], vec![0; 15]].concat();
    let request = |kind| {
        let parts =
            [descriptor(0, 0x2_0000, 16, 1, 1), descriptor(1, 0x3_0000, 512, 3, 2), descriptor(2, 0x4_0000, 1, 2, 0)];
        [header(kind), parts.concat(), offer(0)].concat()
    };
    let looping = [descriptor(0, 0x2_0000, 64, 1, 1), descriptor(1, 0x2_0000, 64, 1, 0), offer(0)].concat();
    let indirect = [descriptor(0, 0x2_0000, 32, 4, 0), offer(0), vec![6, 0]].concat();
    let huge = [vec![0x40, 0, 0, 0, 0, 1, 0], vec![0xff; 4], vec![0, 0], offer(0)].concat();
    let outside = [vec![0x80, 0, 0], vec![0xff; 8], vec![8, 0, 2, 0], offer(0)].concat();
    let again = [vec![9, 0], vec![0xff; 8], offer(1)].concat();
    let mut scripts =
        vec![request(0), request(1), request(4), request(8), request(11), looping, indirect, huge, outside, again];
    let start = |device: u8| [vec![device], vec![0xff; 8]].concat();
    let statistics = [
        vec![5],
        vec![0],
        0x2_0000_u32.to_le_bytes().to_vec(),
        vec![20, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        [&[0, 2][..], &descriptor(0, 0x2_0000, 20, 0, 0)[2..]].concat(),
        offer(2),
        vec![10, 0],
    ];
    let typed =
        [vec![10, 8], b"console\n".to_vec(), descriptor(0, 0x2_0000, 64, 2, 0), offer(0), vec![10, 1, 90, 0, 30]];
    scripts.extend([statistics.concat(), typed.concat()]);
    (0..7).flat_map(|device| scripts.iter().map(move |script| [start(device), script.clone()].concat())).collect()
}

/// An image of 512-byte clusters: header, reference counts and their table, both levels of tables, data.
fn qcow2() -> Vec<Vec<u8>> {
    const CLUSTER: usize = 512;
    const COPIED: u64 = 1 << 63;
    let cluster = |number: u64| number * CLUSTER as u64;
    let image = |version: u32, disk_bytes: u64, entry: u64| {
        let mut file = vec![0; 7 * CLUSTER];
        let mut put = |offset: usize, value: &[u8]| file[offset..offset + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &9_u32.to_be_bytes());
        put(24, &disk_bytes.to_be_bytes());
        // Level one: entries, place. Reference counts: place of their table, its clusters.
        put(36, &1_u32.to_be_bytes());
        put(40, &cluster(3).to_be_bytes());
        put(48, &cluster(1).to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        if version == 3 {
            put(96, &4_u32.to_be_bytes());
            put(100, &104_u32.to_be_bytes());
        }
        put(CLUSTER, &cluster(2).to_be_bytes());
        (0..7).for_each(|cluster| put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes()));
        put(3 * CLUSTER, &(cluster(4) | COPIED).to_be_bytes());
        put(4 * CLUSTER, &(cluster(5) | COPIED).to_be_bytes());
        put(4 * CLUSTER + 8, &entry.to_be_bytes());
        put(5 * CLUSTER, &[0xa5; 2 * CLUSTER]);
        file
    };
    let request = |kind: u8, sector: u8| [&[kind, sector][..], &[0; 7]].concat();
    let scripts = [
        vec![],
        vec![request(0x00, 0), request(0x70, 0), request(0x12, 0), request(0xf2, 1), request(0x15, 0)],
        vec![request(0x13, 0), request(0x1b, 1), request(0x14, 2), request(0x0a, 63), request(0x05, 0)],
    ];
    // A cluster of data, zeroes, a compressed one, one outside of the file.
    let entries = [cluster(6) | COPIED, 1, (1 << 62) | cluster(6), (1 << 40) | COPIED, 0];
    let images = entries.map(|entry| image(3, cluster(64), entry));
    let images = images.into_iter().chain([image(2, cluster(64), 0), image(3, cluster(1), 0)]);
    images
        .flat_map(|image| {
            scripts.each_ref().map(|script| [vec![script.len() as u8], script.concat(), image.clone()].concat())
        })
        .collect()
}

/// Some changes with numbers at the edges, and a guest that goes on.
fn states() -> Vec<Vec<u8>> {
    let change = |place: u16, value: u64| [&place.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let guest = [
        vec![0, 0x43, 0x00, 0x34, 0, 0x40, 0x00, 0x10, 0, 0x40, 0x00, 0x27],
        vec![2, 0x14, 0x30, 0, 0, 0, 3, 0x0f, 0xff, 1, 0, 0, 3, 0x32, 0x40, 0, 2, 0, 3, 0x38, 0xff, 0xff, 0, 0],
        vec![0x44, 4, 0x04, 4, 5, b'x', 7, 0, 0, 0x10, 0, 6, 0x86, 7, 0xff, 0xff, 0xff, 0],
    ]
    .concat();
    let mut seeds = vec![[vec![0], guest.clone()].concat()];
    for place in (0..400).step_by(4) {
        for value in [0, u64::MAX] {
            let changes =
                [change(place, value), change(place + 1, 1), change(place + 2, 0xff), change(place + 3, value)];
            seeds.push([vec![4], changes.concat(), guest.clone()].concat());
        }
    }
    seeds
}
