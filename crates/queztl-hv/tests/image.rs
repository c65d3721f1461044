//! Disk images on the command line, and a guest that runs from one.

mod common;

use std::path::Path;

use common::{linux, one_line, output, queztl};
use tempfile::tempdir;

fn image(folder: &Path, arguments: &[&str]) -> std::process::Output {
    queztl().current_dir(folder).arg("image").args(arguments).output().unwrap()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = image(folder, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_image_is_made_grown_checked_and_described() {
    let folder = tempdir().unwrap();
    succeed(folder.path(), &["create", "base.qcow2", "1G"]);
    succeed(folder.path(), &["create", "child.qcow2", "--backing", "base.qcow2"]);
    succeed(folder.path(), &["resize", "child.qcow2", "2G"]);

    let info: serde_json::Value =
        serde_json::from_str(&succeed(folder.path(), &["info", "child.qcow2", "-o", "json"])).unwrap();
    let check = succeed(folder.path(), &["check", "child.qcow2"]);

    assert_eq!(info["disk_bytes"], 2u64 << 30);
    assert_eq!(info["chain"].as_array().unwrap().len(), 2);
    assert!(check.contains("0 errors"), "{check}");
}

#[test]
fn what_would_lose_data_is_refused_in_a_sentence() {
    let folder = tempdir().unwrap();
    succeed(folder.path(), &["create", "a.qcow2", "1G"]);
    for arguments in
        [&["create", "a.qcow2", "1G"][..], &["resize", "a.qcow2", "1M"], &["convert", "a.qcow2", "a.qcow2"]]
    {
        let output = image(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        one_line(&output);
    }
}

#[test]
fn damage_is_named_and_has_a_status() {
    let folder = tempdir().unwrap();
    succeed(folder.path(), &["create", "a.qcow2", "1G"]);
    let path = folder.path().join("a.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    bytes[l1..l1 + 8].copy_from_slice(&(1u64 << 40).to_be_bytes());
    std::fs::write(&path, bytes).unwrap();

    let output = image(folder.path(), &["check", "a.qcow2"]);

    assert_eq!(output.status.code(), Some(2));
    assert!(one_line(&output).contains("damaged"));
}

#[test]
fn a_disk_that_only_looks_like_an_image_is_not_opened_as_one() {
    let folder = tempdir().unwrap();
    succeed(folder.path(), &["create", "a.qcow2", "1M"]);
    std::fs::rename(folder.path().join("a.qcow2"), folder.path().join("disk.img")).unwrap();
    let kernel = common::guest(folder.path(), &[0xf4]);

    let disk = folder.path().join("disk.img");
    let run = output(["run", "--kernel", kernel.to_str().unwrap(), "--disk", disk.to_str().unwrap()]);

    assert_eq!(run.status.code(), Some(2));
    assert!(one_line(&run).contains("format=raw"));
}

#[test]
fn a_guest_writes_to_its_overlay_and_the_base_stays() {
    let Some((kernel, initrd)) = linux() else { return };
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("base.img"), vec![b'b'; 4 << 20]).unwrap();
    succeed(folder.path(), &["create", "disk.qcow2", "--backing", "base.img"]);
    let script = "dd if=/dev/vda bs=4 skip=1 count=1 2>/dev/null; echo; \
                  yes guest | dd of=/dev/vda bs=64k seek=5 count=8 iflag=fullblock conv=fsync; \
                  dd if=/dev/vda bs=6 skip=54613 count=2 2>/dev/null";
    let mut run = queztl();
    run.current_dir(folder.path()).args(["run", "--accel", "soft", "--ram", "256M", "--timeout", "100"]);
    run.args(["--disk", "disk.qcow2"]).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    let output = run.args(["--append", &format!("console=ttyS0 quiet queztl.run=\"{script}\"")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    succeed(folder.path(), &["convert", "disk.qcow2", "copy.img"]);
    let copy = std::fs::read(folder.path().join("copy.img")).unwrap();

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text.contains("bbbb") && text.contains("guest"), "{text}");
    assert!(copy[..5 << 16].iter().all(|byte| *byte == b'b'));
    assert!(copy[5 << 16..13 << 16].starts_with(b"guest\nguest\n"));
    assert_eq!(std::fs::read(folder.path().join("base.img")).unwrap(), vec![b'b'; 4 << 20]);
    assert!(succeed(folder.path(), &["check", "disk.qcow2"]).contains("0 errors, 0 clusters lost"));
}
