//! Machines with a guest of a few instructions, from boot to snapshot and on.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use super::*;
use crate::accel::probe::KvmSupport;
use crate::config::{AccelChoice, ConsoleChoice, DiskConfig, SerialOutput, SoftClock, SoftOptions, SoftTranslator};
use crate::control::{Reason, Refusal, SnapshotReport};
use crate::snapshot::{self, MEMORY_FILE, STATE_FILE, TABLE_FILE};

const LONG: Duration = Duration::from_secs(20);
const RAM_BYTES: u64 = 4 << 20;

/// Sums up what comes over the serial line, in a register and in memory, echoes it, and ends with the sum at `q`:
///
/// ```text
///       xor ebx, ebx
/// wait: mov dx, 0x3fd; in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx
///       cmp al, 'q'; je end
///       imul ebx, ebx, 31; movzx ecx, al; add ebx, ecx; mov [0x200000], ebx; mov ebx, [0x200000]
///       out dx, al; jmp wait
/// end:  mov eax, ebx; and al, 0x7f; out 0xf4, al; hlt
/// ```
const CODE: [u8; 50] = [
    0x31, 0xdb, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, b'q', 0x74,
    0x17, 0x6b, 0xdb, 0x1f, 0x0f, 0xb6, 0xc8, 0x01, 0xcb, 0x89, 0x1d, 0x00, 0x00, 0x20, 0x00, 0x8b, 0x1d, 0x00, 0x00,
    0x20, 0x00, 0xee, 0xeb, 0xd7, 0x89, 0xd8, 0x24, 0x7f, 0xe6, 0xf4, 0xf4,
];

/// What the guest ends with after this input.
fn sum(input: &str) -> u8 {
    input.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) as u8 & 0x7f
}

/// A Multiboot kernel.
fn kernel(folder: &Path) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    let load = 0x10_0000;
    let words = [MAGIC, ADDRESSES, 0u32.wrapping_sub(MAGIC + ADDRESSES), load, load, 0, 0, load + 32];
    let mut file: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    file.extend(CODE);
    let path = folder.join("guest");
    std::fs::write(&path, file).unwrap();
    path
}

/// Its serial line leads to the file `NAME.out`.
fn config(folder: &Path, accel: AccelChoice, name: &str) -> MachineConfig {
    let config = json!({
        "kernel": kernel(folder),
        "ram_bytes": RAM_BYTES,
        "vcpus": 2,
        "accel": accel,
        "console": "serial",
        "serial": SerialOutput::File(folder.join(format!("{name}.out"))),
        "debug_exit": 0xf4,
        "hotplug_bytes": 2 << 20,
    });
    serde_json::from_value(config).unwrap()
}

/// Every accelerator of this host; says which there is not.
fn accelerators() -> Vec<AccelChoice> {
    let soft = |translator| AccelChoice::Soft(SoftOptions { translator, ..SoftOptions::default() });
    let mut all = vec![soft(SoftTranslator::Off), soft(SoftTranslator::Eager)];
    match KvmSupport::probe() {
        KvmSupport::Missing(missing) => println!("skipped: KVM: {missing}"),
        _ => all.push(AccelChoice::Kvm),
    }
    all
}

fn soft() -> AccelChoice {
    AccelChoice::Soft(SoftOptions::default())
}

/// A machine that runs in a thread of its own.
struct Running {
    handle: MachineHandle,
    output: PathBuf,
    thread: JoinHandle<Result<Outcome, Error>>,
}

impl Running {
    fn start(machine: Machine) -> Running {
        let SerialOutput::File(output) = lock(&machine.shared.config).serial.clone() else { panic!("a file") };
        let handle = machine.handle();
        Running { handle, output, thread: std::thread::spawn(|| machine.run(Some(LONG))) }
    }

    fn boot(config: MachineConfig) -> Running {
        Running::start(Machine::new(config).unwrap())
    }

    fn restored(config: MachineConfig, folder: &Path) -> Running {
        Running::start(Machine::restore(config, Snapshot::open(folder).unwrap(), None).unwrap())
    }

    /// Sends input and waits until the guest has echoed all of it.
    #[track_caller]
    fn send(&self, input: &str) {
        let before = self.echoed();
        let mut rest = input.as_bytes();
        let start = Instant::now();
        while !rest.is_empty() || self.echoed() < before + input.len() {
            rest = &rest[self.handle.input(rest)..];
            assert!(start.elapsed() < LONG, "the guest takes no input");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn echoed(&self) -> usize {
        std::fs::read(&self.output).map_or(0, |text| text.len())
    }

    #[track_caller]
    fn ends_with(self, sum: u8) {
        while self.handle.input(b"q") == 0 {
            std::thread::yield_now();
        }
        assert_eq!(self.thread.join().unwrap().unwrap(), Outcome::DebugExit(sum));
    }

    fn snapshot(&self, folder: &Path) -> SnapshotReport {
        self.handle.snapshot(&order(folder)).unwrap()
    }

    /// A snapshot with only the memory that has changed since the one at `base`.
    fn snapshot_on(&self, base: &Path, folder: &Path) -> SnapshotReport {
        let order = SnapshotOrder { base: Some(base.to_path_buf()), ..order(folder) };
        self.handle.snapshot(&order).unwrap()
    }

    fn stop(self) {
        self.handle.stop();
        assert_eq!(self.thread.join().unwrap().unwrap(), Outcome::Stopped);
    }
}

fn order(folder: &Path) -> SnapshotOrder {
    SnapshotOrder { directory: folder.to_path_buf(), ..SnapshotOrder::default() }
}

/// The names in a directory, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_restored_guest_goes_on_where_it_was_and_so_does_the_one_it_was_taken_from() {
    for accel in accelerators() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("snapshot");
        let first = Running::boot(config(folder.path(), accel, "first"));
        first.send("some words");
        let report = first.snapshot(&place);
        assert!(report.pause_ns > 0 && report.memory_bytes > 0 && report.memory_bytes < RAM_BYTES, "{report:?}");
        assert_eq!(names(&place), [MEMORY_FILE, TABLE_FILE, STATE_FILE]);
        first.send(" more");

        let twins = ["second", "third"].map(|name| Running::restored(config(folder.path(), accel, name), &place));
        twins[0].send(", others");
        twins[1].send("!");

        first.ends_with(sum("some words more"));
        let [second, third] = twins;
        second.ends_with(sum("some words, others"));
        third.ends_with(sum("some words!"));
    }
}

#[test]
fn every_copy_has_a_generation_identifier_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshot");
    let id = |handle: &MachineHandle| super::read(&handle.shared.live).as_ref().unwrap().generation.get().unwrap();
    let first = Running::boot(config(folder.path(), soft(), "first"));
    first.send("a");
    let at_first = id(&first.handle);
    first.snapshot(&place);

    let restore = |identity| {
        let snapshot = Snapshot::open(&place).unwrap();
        Machine::restore(config(folder.path(), soft(), "copy"), snapshot, identity).unwrap().handle()
    };
    let told = Identity { generation_id: [7; 16], macs: Vec::new() };
    let copies = [restore(None), restore(None), restore(Some(&told))].map(|handle| id(&handle));

    assert_eq!(id(&first.handle), at_first);
    assert_eq!(copies[2], [7; 16]);
    let different: std::collections::HashSet<_> = copies.iter().chain([&at_first]).collect();
    assert_eq!(different.len(), 4, "{at_first:x?}, {copies:x?}");
    first.stop();
}

#[test]
fn a_snapshot_of_a_restored_machine_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::boot(config(folder.path(), soft(), "0"));
    let mut sent = String::new();
    for round in 0..5 {
        let place = folder.path().join(format!("snapshot-{round}"));
        running.send("ab");
        sent.push_str("ab");
        running.snapshot(&place);
        running.stop();
        running = Running::restored(config(folder.path(), soft(), &format!("{}", round + 1)), &place);
    }
    running.ends_with(sum(&sent));
}

#[test]
fn the_guests_time_goes_on_and_never_back() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshot");
    let first = Running::boot(config(folder.path(), soft(), "first"));
    first.send("x");
    first.snapshot(&place);
    first.stop();
    let saved = Snapshot::open(&place).unwrap().state.clock;
    std::thread::sleep(Duration::from_millis(20));

    let machine = Machine::restore(config(folder.path(), soft(), "second"), Snapshot::open(&place).unwrap(), None);

    let machine = machine.unwrap();
    let live = super::read(&machine.shared.live).clone().unwrap();
    let passed_ns = live.board.clock().tsc_to_ns(live.board.clock().tsc() - saved.ticks);
    assert_eq!(live.board.clock().tsc_hz(), saved.hz);
    assert!(passed_ns < LONG.as_nanos() as u64, "{passed_ns} ns");
}

#[test]
fn a_paused_machine_stays_paused_and_a_running_one_does_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::boot(config(folder.path(), soft(), "first"));
    running.send("a");
    let stay_paused = true;
    running.handle.snapshot(&SnapshotOrder { stay_paused, ..order(&folder.path().join("one")) }).unwrap();
    assert!(running.handle.shared.vcpus.is_paused());
    running.snapshot(&folder.path().join("two"));
    assert!(running.handle.shared.vcpus.is_paused());
    running.handle.resume();
    running.send("b");
    running.ends_with(sum("ab"));

    let twin = Running::restored(config(folder.path(), soft(), "second"), &folder.path().join("two"));
    twin.ends_with(sum("a"));
}

#[test]
fn what_cannot_be_taken_is_refused_and_the_guest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::boot(config(folder.path(), soft(), "first"));
    running.send("a");
    std::fs::create_dir(folder.path().join("taken")).unwrap();
    let before = names(folder.path());
    for place in ["taken", "no/such/place", "guest/file"] {
        let refused = running.handle.snapshot(&order(&folder.path().join(place))).unwrap_err();
        assert_eq!(refused.reason, Reason::Invalid, "{refused}");
    }
    assert_eq!(names(folder.path()), before);
    running.send("b");
    running.ends_with(sum("ab"));
}

#[test]
fn a_machine_whose_time_is_made_of_instructions_has_no_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let counted = SoftOptions { clock: SoftClock::Instructions, ..SoftOptions::default() };
    let running = Running::boot(config(folder.path(), AccelChoice::Soft(counted), "first"));
    let Refusal { reason, message } = running.handle.snapshot(&order(&folder.path().join("one"))).unwrap_err();
    assert!(reason == Reason::Invalid && message.contains("instructions"), "{message}");
    running.stop();
}

/// A snapshot and the folder around it.
fn snapshot() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("snapshot");
    let running = Running::boot(config(folder.path(), soft(), "first"));
    running.send("some words");
    running.snapshot(&place);
    running.stop();
    (folder, place)
}

#[test]
fn a_snapshot_of_another_machine_is_refused_with_what_differs() {
    let (folder, place) = snapshot();
    let right = config(folder.path(), soft(), "second");
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [0; 4096]).unwrap();
    let disk = DiskConfig { path: disk, ..DiskConfig::default() };
    let wrong = [
        ("vCPUs", MachineConfig { vcpus: 1, ..right.clone() }),
        ("bytes of RAM", MachineConfig { ram_bytes: 8 << 20, ..right.clone() }),
        ("hot-plug", MachineConfig { hotplug_bytes: 0, ..right.clone() }),
        ("disks", MachineConfig { disks: vec![disk], ..right.clone() }),
        ("socket devices", MachineConfig { vsock: Some(folder.path().join("v")), ..right.clone() }),
        ("consoles", MachineConfig { console: ConsoleChoice::Virtio, ..right.clone() }),
        ("debug exit", MachineConfig { debug_exit: None, ..right.clone() }),
    ];
    for (what, config) in wrong {
        let refused = Machine::restore(config, Snapshot::open(&place).unwrap(), None).err().unwrap().to_string();
        assert!(refused.contains(what), "{refused}");
    }
    assert!(Machine::restore(right, Snapshot::open(&place).unwrap(), None).is_ok());
}

#[test]
fn what_is_no_snapshot_of_ours_is_refused_with_a_reason() {
    let (folder, place) = snapshot();
    let state = std::fs::read(place.join(STATE_FILE)).unwrap();
    let with = |state: &[u8]| {
        std::fs::write(place.join(STATE_FILE), state).unwrap();
        Snapshot::open(&place).unwrap_err()
    };
    let text = String::from_utf8(state.clone()).unwrap();

    assert!(matches!(Snapshot::open(folder.path()), Err(snapshot::Error::Foreign(_))));
    assert!(matches!(with(b"{\"vcpus\": 3}"), snapshot::Error::Foreign(_)));
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(with(newer.as_bytes()), snapshot::Error::Newer { found: 2, known: 1 }));
    for end in [0, 1, 30, 60, 200, text.len() / 2, text.len() - 1] {
        with(&state[..end]);
    }
    std::fs::write(place.join(STATE_FILE), &state).unwrap();
    assert!(Snapshot::open(&place).is_ok());
}

#[test]
fn memory_that_was_cut_off_or_changed_its_table_is_refused() {
    let (_folder, place) = snapshot();
    let table = std::fs::read(place.join(TABLE_FILE)).unwrap();
    for at in [0, 9, table.len() / 2, table.len() - 1] {
        let mut damaged = table.clone();
        damaged[at] ^= 0x10;
        std::fs::write(place.join(TABLE_FILE), damaged).unwrap();
        assert!(matches!(Snapshot::open(&place), Err(snapshot::Error::Memory(_))), "byte {at}");
    }
    std::fs::write(place.join(TABLE_FILE), table).unwrap();
    assert!(Snapshot::open(&place).is_ok());
    let memory = std::fs::File::options().write(true).open(place.join(MEMORY_FILE)).unwrap();
    for bytes in [RAM_BYTES, 4096, 0] {
        memory.set_len(bytes).unwrap();
        assert!(Snapshot::open(&place).unwrap_err().to_string().contains("cut off"));
    }
}

#[test]
fn incremental_snapshots_have_what_changed_and_need_what_they_build_on() {
    for accel in accelerators() {
        let folder = tempfile::tempdir().unwrap();
        let place = |number: usize| folder.path().join(format!("snapshot-{number}"));
        let running = Running::boot(config(folder.path(), accel, "first"));
        let mut sent = "ab".to_owned();
        running.send("ab");
        let full = running.snapshot(&place(0));
        for round in 1..4 {
            running.send("cd");
            sent.push_str("cd");
            let report = running.snapshot_on(&place(round - 1), &place(round));
            assert!(report.memory_bytes > 0 && report.memory_bytes < full.memory_bytes, "{report:?} after {full:?}");
        }
        running.send("not in it");
        // One whose base is that of a machine restored from it.
        let again = Running::restored(config(folder.path(), accel, "again"), &place(3));
        again.send("ef");
        again.snapshot_on(&place(3), &place(4));
        again.stop();
        running.stop();

        let last = Running::restored(config(folder.path(), accel, "last"), &place(4));
        last.send("g");
        last.ends_with(sum(&format!("{sent}efg")));
        std::fs::remove_dir_all(place(1)).unwrap();
        assert!(Snapshot::open(&place(4)).is_err());
        assert!(Snapshot::open(&place(0)).is_ok());
    }
}

#[test]
fn a_base_of_another_machine_or_elsewhere_is_refused() {
    let (folder, place) = snapshot();
    let running = Running::boot(config(folder.path(), soft(), "other"));
    running.send("a");
    let wrong = |base: &Path| {
        let order = SnapshotOrder { base: Some(base.to_path_buf()), ..order(&folder.path().join("new")) };
        running.handle.snapshot(&order).unwrap_err().message
    };
    assert!(wrong(&place).contains("descend"), "{}", wrong(&place));
    assert!(wrong(Path::new("/elsewhere/base")).contains("beside"));
    assert!(wrong(&folder.path().join("nothing")).contains("no snapshot"));
    assert_eq!(names(folder.path()), ["first.out", "guest", "other.out", "snapshot"]);
    running.send("b");
    running.ends_with(sum("ab"));
}

#[test]
fn forks_and_their_parent_never_see_each_others_writes() {
    for accel in accelerators() {
        let folder = tempfile::tempdir().unwrap();
        let parent = Running::boot(config(folder.path(), accel, "parent"));
        let mut sent = String::new();
        let mut children = Vec::new();
        for round in 0..3 {
            let text = format!("round {round} ");
            parent.send(&text);
            sent.push_str(&text);
            let place = folder.path().join(format!("fork-{round}"));
            let (report, files) = parent.handle.fork(&place, &[]).unwrap();
            assert!(report.pause_ns > 0);
            let files: Vec<_> = files.into_iter().map(std::fs::File::from).collect();
            for twin in ["a", "b"] {
                let files = files.iter().map(|file| file.try_clone().unwrap()).collect();
                let fork = Snapshot::open_fork(&place, files).unwrap();
                let config = config(folder.path(), accel, &format!("{round}{twin}"));
                let child = Running::start(Machine::restore(config, fork, None).unwrap());
                children.push((child, format!("{sent}{twin}"), twin));
            }
        }
        parent.send("the end");
        for (child, _, twin) in &children {
            child.send(twin);
        }
        parent.ends_with(sum(&format!("{sent}the end")));
        for (child, text, _) in children {
            child.ends_with(sum(&text));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Every byte of the state file counts.
    #[test]
    fn a_state_file_with_a_changed_byte_is_refused(place in any::<Index>(), change in 1..=255_u8) {
        static STATE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let (_folder, place) = snapshot();
            std::fs::read(place.join(STATE_FILE)).unwrap()
        });
        let mut state = STATE.clone();
        let place = place.index(state.len());
        state[place] ^= change;
        prop_assert!(!matches!(snapshot::decode(&state), Some(Ok(_))));
    }
}

#[test]
fn more_than_255_vcpus_start_in_x2apic_mode() {
    let soft = crate::accel::soft::Soft::new(SoftOptions::default());
    for (count, x2apic) in [(255, false), (256, true)] {
        let bench = crate::accel::testing::Bench::on(&soft, &[], count);
        let mut vcpus: Vec<_> = (0..count).map(|id| bench.vm.create_vcpu(id).unwrap()).collect();
        assembly::choose_apic_mode(&mut vcpus).unwrap();
        let bases = vcpus.iter().map(|vcpu| vcpu.local_apic().unwrap().base);
        assert!(bases.into_iter().all(|base| (base & crate::irqchip::BASE_X2APIC != 0) == x2apic), "{count} vCPUs");
    }
}
