//! Snapshots that are not what they should be are refused with a reason, before anything is given up for them; and one that
//! an earlier program has stored is still good.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use queztl_api::{CloneRequest, Code, SnapshotRequest, VmState};
use queztl_control::{Manager, Service};

use crate::common::*;

/// Where the stored snapshot is.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/snapshot-v1")
}

/// What the guest of the stored snapshot says next.
const NEXT: char = 'd';

fn named(text: &str) -> SnapshotRequest {
    SnapshotRequest { name: Some(text.parse().unwrap()), ..SnapshotRequest::default() }
}

/// Waits until the guest has said something that is wanted, and gives all that it said.
async fn says(home: &Home, vm: &str, wanted: impl Fn(&str) -> bool) -> String {
    let log = queztl_vmm::process::Folder::new(home.vm_folder(vm)).console_log();
    let start = std::time::Instant::now();
    loop {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if wanted(&said) {
            return said;
        }
        assert!(start.elapsed() < PATIENCE, "the guest says {said:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// What a snapshot's file becomes.
type Change = fn(&[u8]) -> Vec<u8>;

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(text.contains(from));
    text.replacen(from, to, 1).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_truncated_foreign_and_newer_snapshots_are_refused_and_the_machine_runs_on() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "one", counting(home.folder.path())).await;
    says(&home, &vm.id, |said| said.len() > 1).await;
    done(&manager, manager.snapshot("one", named("good")).await).await;
    let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id)).snapshots().join("good");
    let changes: [(&str, &str, Change); 9] = [
        ("state.json", "cut off", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("state.json", "no snapshot of a machine", |_| Vec::new()),
        ("state.json", "checksum is wrong", |bytes| replace(bytes, "\"ticks\":", "\"ticks\": ")),
        ("state.json", "use a newer program", |bytes| replace(bytes, "\"version\":1", "\"version\":2")),
        ("state.json", "no snapshot of a machine", |bytes| replace(bytes, "queztl-snapshot", "another-program")),
        ("memory", "cut off", |bytes| bytes[..bytes.len() - 4096].to_vec()),
        ("memory.table", "damaged", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("memory.table", "damaged", |bytes| bytes.iter().map(|byte| byte ^ 0x55).collect()),
        ("memory.table", "damaged", |_| Vec::new()),
    ];
    for (file, reason, change) in changes {
        let path = folder.join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(&good)).unwrap();

        let refused = end(&manager, manager.restore("one", &"good".parse().unwrap()).await).await.problem.unwrap();
        let request =
            CloneRequest { snapshot: Some("good".parse().unwrap()), wait_for_agent: false, ..CloneRequest::default() };
        let cloned = end(&manager, manager.clone_vm("one", request).await).await.problem.unwrap();

        assert!(refused.code == Code::State && refused.detail.contains(reason), "{file}: {refused}");
        assert!(cloned.detail.contains(reason), "{file}: {cloned}");
        assert_eq!(pid(&manager.vm("one").await.unwrap()), pid(&vm));
        std::fs::write(&path, good).unwrap();
    }
    assert_eq!(manager.vms().await.unwrap().len(), 1);
    done(&manager, manager.restore("one", &"good".parse().unwrap()).await).await;
    done(&manager, manager.delete("one", true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_machine_is_refused_and_the_machine_runs_on() {
    let home = Home::new();
    let manager = home.manager().await;
    let one = spawn(&manager, "one", idle(home.folder.path())).await;
    let larger = queztl_api::VmSpec { ram_bytes: 32 << 20, ..idle(home.folder.path()) };
    let other = spawn(&manager, "other", larger).await;
    for vm in ["one", "other"] {
        done(&manager, manager.snapshot(vm, named("now")).await).await;
    }
    let of = |vm: &str| queztl_vmm::process::Folder::new(home.vm_folder(vm)).snapshots().join("now");
    std::fs::remove_dir_all(of(&one.id)).unwrap();
    std::fs::rename(of(&other.id), of(&one.id)).unwrap();

    let refused = end(&manager, manager.restore("one", &"now".parse().unwrap()).await).await.problem.unwrap();

    assert!(refused.code == Code::State && refused.detail.contains("bytes of RAM"), "{refused}");
    assert_eq!(pid(&manager.vm("one").await.unwrap()), pid(&one));
}

/// The stored snapshot takes the place of one of the same machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_snapshot_of_this_version_is_restored() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "one", small(home.folder.path())).await;
    done(&manager, manager.snapshot("one", named("stored")).await).await;
    done(&manager, manager.kill("one").await).await;
    let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id));
    unpack(&folder.snapshots().join("stored"));
    let before = std::fs::read_to_string(folder.console_log()).unwrap().len();

    let restored = end(&manager, manager.restore("one", &"stored".parse().unwrap()).await).await;

    if let Some(problem) = &restored.problem
        && problem.detail.contains("CPUID")
    {
        eprintln!("skipped: the stored snapshot is of a host of another kind: {problem}");
        return;
    }
    assert!(restored.problem.is_none(), "{restored:?}");
    let said = says(&home, &vm.id, |said| said.len() > before).await;
    assert_eq!(said[before..].chars().next(), Some(NEXT), "{said:?}");
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Running);
}

/// [`counting`] without much in its memory.
fn small(folder: &Path) -> queztl_api::VmSpec {
    let mut code = counting_code();
    // One word to fill, not three millions.
    code[6..10].copy_from_slice(&1u32.to_le_bytes());
    spec(kernel(folder, "small", &code))
}

/// Puts the stored snapshot in the place of another. The memory is stored as its pages that are not zero, each behind its
/// offset, so that the holes need no room.
fn unpack(place: &Path) {
    for name in ["state.json", "memory.table"] {
        std::fs::copy(fixture().join(name), place.join(name)).unwrap();
    }
    let memory = std::fs::File::options().write(true).truncate(true).open(place.join("memory")).unwrap();
    memory.set_len(16 << 20).unwrap();
    for page in std::fs::read(fixture().join("memory.pages")).unwrap().chunks_exact(8 + 4096) {
        let (offset, bytes) = page.split_at(8);
        memory.write_all_at(bytes, u64::from_le_bytes(offset.try_into().unwrap())).unwrap();
    }
}

/// Not a test: makes the stored snapshot. It is made once for each version of the format.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the stored snapshot anew"]
async fn store_a_snapshot() {
    // The state has the machine's paths in it.
    let folder = tempfile::Builder::new().prefix("queztl-fixture").rand_bytes(0).tempdir().unwrap();
    let home = Home { folder };
    let manager: Manager = home.manager().await;
    let vm = spawn(&manager, "one", small(home.folder.path())).await;
    says(&home, &vm.id, |said| said.ends_with(char::from(NEXT as u8 - 1))).await;
    done(&manager, manager.snapshot("one", named("stored")).await).await;
    let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id)).snapshots().join("stored");
    std::fs::create_dir_all(fixture()).unwrap();
    for name in ["state.json", "memory.table"] {
        std::fs::copy(folder.join(name), fixture().join(name)).unwrap();
    }
    let memory = std::fs::read(folder.join("memory")).unwrap();
    let pages = memory.chunks_exact(4096).zip(0u64..).filter(|(page, _)| page.iter().any(|byte| *byte != 0));
    let pages: Vec<u8> = pages.flat_map(|(page, number)| [&(number * 4096).to_le_bytes()[..], page].concat()).collect();
    std::fs::write(fixture().join("memory.pages"), pages).unwrap();
}
