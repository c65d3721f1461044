//! A disk that is full: what needs it fails, nothing else does, and nothing half done is left.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use queztl_api::{Code, ImportImage, OperationState, SnapshotRequest, VmState};
use queztl_control::Service;

use crate::common::*;

const MIB: usize = 1 << 20;

/// A small file system of its own; gone when dropped.
struct Small(PathBuf);

impl Small {
    /// `None`, and a word about it, where this process may not mount.
    fn mount(at: &Path, mib: usize) -> Option<Small> {
        let place = CString::new(at.as_os_str().as_bytes()).unwrap();
        let options = CString::new(format!("size={mib}m,mode=700")).unwrap();
        let kind = c"tmpfs".as_ptr();
        // SAFETY: all strings live and end with a zero.
        if unsafe { libc::mount(kind, place.as_ptr(), kind, 0, options.as_ptr().cast()) } != 0 {
            let error = std::io::Error::last_os_error();
            eprintln!("skipped: no small file system ({error}): run this as root");
            return None;
        }
        Some(Small(at.to_path_buf()))
    }

    fn free_bytes(&self) -> usize {
        let state = rustix::fs::statvfs(&self.0).unwrap();
        (state.f_bavail * state.f_frsize) as usize
    }

    /// Takes all but so many bytes, until [`Small::give_back`].
    fn leave(&self, bytes: usize) {
        let take = self.free_bytes().saturating_sub(bytes);
        // The last pages may not be there; that is as full as wished.
        let _ = std::fs::write(self.0.join("filler"), vec![1; take]);
    }

    fn give_back(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        kill_all(&self.0);
        let place = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: the string lives and ends with a zero.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_a_snapshot_at_any_step_and_the_machine_runs_on() {
    let home = Home::new();
    let Some(small) = Small::mount(home.folder.path(), 40) else { return };
    let manager = home.manager().await;
    let disk = queztl_api::Disk { size_bytes: Some(MIB as u64), ..Default::default() };
    let vm = spawn(&manager, "one", queztl_api::VmSpec { disks: vec![disk], ..counting(home.folder.path()) }).await;
    let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id));
    for free in [0, 16 << 10, 64 << 10, 256 << 10, 512 << 10, MIB, 4 * MIB, 10 * MIB] {
        small.leave(free);

        // It may not even begin.
        let begun = manager.snapshot("one", SnapshotRequest::default()).await;
        let operation = match begun {
            Ok(operation) => {
                let operation = manager.wait_operation(&operation.id, PATIENCE).await.unwrap();
                assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
                operation.problem
            }
            Err(problem) => Some(problem),
        };

        let problem = operation.unwrap();
        assert_eq!(problem.code, Code::Host, "{problem}");
        assert_eq!(pid(&manager.vm("one").await.unwrap()), pid(&vm));
        small.give_back();
        assert!(manager.snapshots("one").await.unwrap().is_empty());
        let left = std::fs::read_dir(folder.snapshots()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "with {free} bytes free: {problem}");
    }

    done(&manager, manager.snapshot("one", SnapshotRequest::default()).await).await;

    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Running);
    let name = manager.snapshots("one").await.unwrap()[0].name.clone();
    done(&manager, manager.restore("one", &name).await).await;
    done(&manager, manager.delete("one", true).await).await;
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_an_import_and_nothing_of_it_stays() {
    let home = Home::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(home.folder.path(), 24) else { return };
    let manager = home.manager().await;
    let source = elsewhere.path().join("source.raw");
    std::fs::write(&source, vec![7; 8 * MIB]).unwrap();
    let import = || ImportImage { name: "one".parse().unwrap(), path: source.clone(), format: None };
    for free in [0, 64 << 10, MIB, 4 * MIB] {
        small.leave(free);

        let problem = match manager.import_image(import()).await {
            Ok(operation) => manager.wait_operation(&operation.id, PATIENCE).await.unwrap().problem,
            Err(problem) => Some(problem),
        };

        assert_eq!(problem.unwrap().code, Code::Host);
        small.give_back();
        assert!(manager.images().await.unwrap().is_empty());
        assert_eq!(std::fs::read_dir(home.folder.path().join("disk-images")).unwrap().count(), 0);
    }

    done(&manager, manager.import_image(import()).await).await;

    assert_eq!(std::fs::read(home.folder.path().join("disk-images/one.raw")).unwrap(), vec![7; 8 * MIB]);
    manager.close().await;
}
