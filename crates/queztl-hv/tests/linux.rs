//! Our own kernel on the software CPU, from its entry to its end.

mod common;

use std::process::Output;

use common::{linux, queztl};

/// Runs our kernel with more arguments and `append` on its command line; `None` if no kernel is built here.
fn boot(append: &str, arguments: &[&str]) -> Option<Output> {
    let (kernel, initrd) = linux()?;
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--ram", "256M"]).args(arguments);
    if !arguments.contains(&"--timeout") {
        command.args(["--timeout", "100"]);
    }
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    command.args(["--append", &format!("console=ttyS0 quiet {append}")]);
    Some(command.output().expect("the program starts"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_command_runs_and_the_guest_powers_off() {
    let Some(output) = boot("queztl.run=\"echo answer $((6 * 7))\"", &[]) else { return };

    assert!(text(&output).contains("answer 42"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn four_processors_come_up() {
    let Some(output) = boot("queztl.run=\"echo processors $(nproc)\"", &["--vcpus", "4"]) else { return };

    assert!(text(&output).contains("processors 4"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_kernel_can_be_entered_by_pvh() {
    let Some(output) = boot("queztl.run=\"echo entered\"", &["--protocol", "pvh"]) else { return };

    assert!(text(&output).contains("entered"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_kernel_panic_has_a_status_of_its_own() {
    let Some(output) = boot("rdinit=/nothing init=/nothing root=/dev/nothing", &[]) else { return };

    assert_eq!(output.status.code(), Some(6), "{output:?}");
}

#[test]
fn what_the_guest_writes_to_its_disk_is_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();

    let script = "queztl.run=\"echo -n written | dd of=/dev/vda bs=512 seek=3 conv=fsync\"";
    let Some(output) = boot(script, &["--disk", disk.to_str().unwrap()]) else { return };

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(&std::fs::read(&disk).unwrap()[3 * 512..][..7], b"written");
}

#[test]
fn a_restart_boots_again() {
    let Some(output) = boot("queztl.run=\"echo round; reboot -f\"", &["--timeout", "15"]) else { return };

    assert!(text(&output).matches("round").count() >= 2, "{output:?}");
    assert_eq!(output.status.code(), Some(10));
}
