//! Wrong arguments and unusable files: status 2 and one line that says what to do.

mod common;

use std::fs::{self, File};

use common::{one_line, output};

fn refused(args: &[&str], expected: &str) {
    let output = output(args);
    let line = one_line(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {line}");
    assert!(line.contains(expected), "{args:?}: {line}");
}

#[test]
fn a_missing_or_unknown_command_is_refused() {
    refused(&[], "a command is missing");
    refused(&["fly"], "fly");
    refused(&["kernel"], "missing");
}

#[test]
fn misspelt_options_get_a_hint() {
    refused(&["run", "--vcpu", "2"], "--vcpus");
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused(&["run", "--vcpus", "0"], "1 to 256");
    refused(&["run", "--vcpus", "257"], "1 to 256");
    refused(&["run", "--ram", "0"], "too little");
    refused(&["run", "--ram", "512"], "did you mean 512M?");
    refused(&["run", "--ram", "lots"], "512M, 2GB or 8GiB");
    refused(&["run", "--timeout", "-1"], "seconds");
    refused(&["run", "--debug-exit", "0x10000"], "0xffff");
}

#[test]
fn words_without_meaning_are_refused() {
    refused(&["run", "--accel", "warp"], "auto, kvm, soft");
    refused(&["run", "--net", "carrier-pigeon"], "tap=NAME");
    refused(&["run", "--serial", "file="], "file=PATH");
    refused(&["run", "--disk", "a.img,rw"], "ro, serial=ID");
    refused(&["run", "--disk", "a.img,format=vhd"], "raw and qcow2");
    refused(&["run", "--disk", "a.qcow2,backing=all"], "none, folder and any");
    refused(&["run", "--disk", "a.img,serial=123456789012345678901"], "20");
    refused(&["kernel", "build", "--profile", "maximal"], "minimal");
}

#[test]
fn ram_beyond_what_a_machine_can_have_is_refused() {
    refused(&["run", "--kernel", "/nonexistent", "--ram", "8000T"], "at most 512 GiB");
}

#[test]
fn ram_for_which_there_are_no_addresses_is_refused_in_a_sentence() {
    use std::os::unix::process::CommandExt;
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::guest(folder.path(), &[0xf4]);
    let mut command = common::queztl();
    command.args(["run", "--accel", "soft", "--ram", "64G", "--kernel"]).arg(kernel);
    // SAFETY: setrlimit is async-signal-safe and its argument lives on the stack.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 8 << 30, rlim_max: 8 << 30 };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("ulimit -v"), "{text}");
}

#[test]
fn nodes_pages_and_pins_that_cannot_be_are_refused() {
    let run = |more: &[&str], expected| refused(&[&["run", "--kernel", "/nonexistent"], more].concat(), expected);
    run(&["--memory", "hugepages=1G"], "hugepages=2M");
    run(&["--memory", "hugepages=2M", "--ram", "65M"], "multiple of 2 MiB");
    run(&["--numa", "cpus=0,ram=63M"], "whole units of 2 MiB");
    run(&["--numa", "ram=64M"], "vCPU 0 is in 0 NUMA nodes");
    run(&["--numa", "cpus=0-1,ram=64M"], "add vCPUs");
    run(&["--numa", "cpus=0,ram=64M", "--ram", "128M"], "make them the same");
    run(&["--numa", "cpus=0,ram=64M,distances=[1@20]"], "does not exist");
    run(&["--pin", "0=1023"], "choose from these");
    run(&["--pin", "1=0"], "the machine's vCPUs are 0 to 0");
    run(&["--pin", "0-1"], "2 CPUs for 1 vCPUs");
}

#[test]
fn a_missing_kernel_is_named() {
    refused(&["run", "--kernel", "/nonexistent/vmlinux"], "/nonexistent/vmlinux");
}

#[test]
fn kernels_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    let run = ["run", "--kernel", path.to_str().unwrap()];
    for content in [vec![], vec![0x5a; 100_000], b"\x7fELF".to_vec()] {
        fs::write(&path, content).unwrap();
        refused(&run, "kernel");
    }
    refused(&["run", "--kernel", folder.path().to_str().unwrap()], "not a regular file");
}

#[test]
fn an_initrd_larger_than_ram_says_how_much_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    File::create(&initrd).unwrap().set_len(100 << 20).unwrap();
    let kernel = common::guest(folder.path(), &[0xf4]);
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    refused(&["run", "--kernel", kernel, "--initrd", initrd, "--ram", "64M"], "at least 102 MiB");
    refused(&["run", "--kernel", kernel, "--initrd", "/nonexistent/initrd"], "/nonexistent/initrd");
}

#[test]
fn unusable_disks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::guest(folder.path(), &[0xf4]);
    let kernel = kernel.to_str().unwrap();
    refused(&["run", "--kernel", kernel, "--disk", "/nonexistent/disk"], "/nonexistent/disk");

    let odd = folder.path().join("odd.img");
    fs::write(&odd, [0; 700]).unwrap();
    refused(&["run", "--kernel", kernel, "--disk", odd.to_str().unwrap()], "512");
    refused(&["run", "--kernel", kernel, "--disk", "/proc/version"], "/proc/version");
}

#[test]
fn a_disk_that_another_process_writes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = common::guest(folder.path(), &[0xfa, 0xf4]);
    let path = folder.path().join("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.lock().unwrap();
    let disk = path.to_str().unwrap();
    refused(&["run", "--kernel", kernel.to_str().unwrap(), "--disk", disk, "--timeout", "5"], "disk.img");
    refused(&["run", "--kernel", kernel.to_str().unwrap(), "--disk", disk, "--disk", disk], "twice");
}
