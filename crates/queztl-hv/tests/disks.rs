//! Disks that break under a running guest, and disks that may not be written: the guest gets an error, the user a sentence.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use common::{linux, one_line, output, queztl};

const DISK_BYTES: u64 = 8 << 20;

/// A machine with our kernel and one disk, whose guest runs `script`; `None` if no kernel is built here.
fn machine(disk: &str, script: &str) -> Option<Command> {
    let (kernel, initrd) = linux()?;
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--ram", "256M", "--timeout", "100", "--disk", disk]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["--append", &format!("console=ttyS0 quiet queztl.run=\"{script}\"")]);
    Some(command)
}

/// Reads what the guest says until it has said `word`.
fn wait_for(child: &mut Child, word: &str) -> String {
    let mut said = Vec::new();
    let output = child.stdout.as_mut().unwrap();
    while !String::from_utf8_lossy(&said).contains(word) {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&said)));
        said.extend(byte);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_disk_that_shrinks_under_a_guest_gives_it_errors_and_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![7; DISK_BYTES as usize]).unwrap();
    // The answers are put together by the guest, so that an echo of the command is none.
    let read = "dd if=/dev/vda of=/dev/null bs=64k count=1";
    let script = format!("{read} && echo be''fore; read line; {read} skip=64 || echo bro''ken; echo al''ive");
    let Some(mut command) = machine(disk.to_str().unwrap(), &script) else { return };
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "before");

    File::options().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();

    let said = wait_for(&mut child, "alive");
    assert!(said.contains("broken"), "{said}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_disk_that_may_not_grow_gives_the_guest_errors() {
    let folder = tempfile::tempdir().unwrap();
    // It grows with what is written, some of that in the device's own thread.
    let disk = folder.path().join("disk.qcow2");
    assert!(output(["image", "create", disk.to_str().unwrap(), "8M"]).status.success());
    let write = "dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync";
    let script = format!("echo re''ady; read line; {write} || echo bro''ken; echo al''ive");
    let Some(mut command) = machine(disk.to_str().unwrap(), &script) else { return };
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "ready");

    // From now on the process may not write behind the first MiB of any file; guest memory lies in files too, but is mapped.
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the process is our child and has not been waited for; the limit lives until the call returns.
    let set = unsafe { libc::prlimit(child.id() as i32, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();

    let said = wait_for(&mut child, "alive");
    assert!(said.contains("broken"), "{said}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The threads of a qcow2 disk do more than move bytes, and have the same short list of system calls.
#[test]
fn a_qcow2_disk_is_read_written_and_discarded_by_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.qcow2");
    let disk = disk.to_str().unwrap();
    assert!(output(["image", "create", disk, "8M"]).status.success());
    let script = "echo -n written | dd of=/dev/vda bs=512 seek=9000 conv=fsync; blkdiscard -o 0 -l 1048576 /dev/vda; \
                  blkdiscard -z -o 1048576 -l 1048576 /dev/vda; dd if=/dev/vda bs=512 skip=9000 count=1 | head -c 7; echo; \
                  dd if=/dev/vda of=/dev/null bs=64k && echo al''ive";
    let Some(mut command) = machine(disk, script) else { return };

    let output = command.output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text.contains("written") && text.contains("alive"), "{text}");
}

#[test]
fn a_disk_that_may_not_be_written_is_refused_unless_it_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::guest(folder.path(), &[0xf4]);
    let kernel = kernel.to_str().unwrap();
    // A program that runs may not be written, not even by root (execve(2), ETXTBSY).
    let disk = folder.path().join("disk.img");
    fs::copy("/bin/sleep", &disk).unwrap();
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(file.metadata().unwrap().len().next_multiple_of(512)).unwrap();
    drop(file);
    let mut program = Command::new(&disk).arg0("sleep").arg("60").spawn().unwrap();
    let disk = disk.to_str().unwrap();

    let refused = output(["run", "--accel", "soft", "--kernel", kernel, "--disk", disk]);
    let only_read =
        output(["run", "--accel", "soft", "--kernel", kernel, "--disk", &format!("{disk},ro"), "--timeout", "1"]);
    program.kill().unwrap();
    program.wait().unwrap();

    assert_eq!(refused.status.code(), Some(2));
    assert!(one_line(&refused).contains("may not be written"), "{}", one_line(&refused));
    assert_ne!(only_read.status.code(), Some(2), "{only_read:?}");
}
