//! RAM as a user asks for it: far more than the host has, and in NUMA nodes.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::payload::{out, then_sleep};
use common::{guest, linux_of, queztl};
use queztl_guest_image::Profile;
use queztl_guest_memory::MemoryFigures;
use queztl_vmm::accel::probe::KvmSupport;

const MIB: u64 = 1 << 20;

#[test]
fn half_a_tebibyte_of_ram_takes_what_the_guest_touches() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest(folder.path(), &then_sleep(out(0x3f8, b'!')));
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--ram", "512GB", "--timeout", "60", "--kernel"]).arg(kernel);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let figures = MemoryFigures::of_process(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    let figures = figures.unwrap();
    assert!((1..4 * MIB).contains(&figures.guest.resident), "{figures:?}");
    // Code and stacks take some; a byte for each page of RAM would be 128 MiB.
    assert!(figures.monitor.resident < 64 * MIB, "{figures:?}");
}

/// Writes four bytes across the border of two nodes at 32 MiB and gives the last of them as the status.
fn across_the_border() -> Vec<u8> {
    then_sleep(vec![
        0xc7, 0x05, 0xfe, 0xff, 0xff, 0x01, 1, 2, 3, 4, // mov dword [0x1fffffe], 0x04030201
        0xa0, 0x01, 0x00, 0x00, 0x02, // mov al, [0x2000001]
        0xe6, 0xf4, // out 0xf4, al
    ])
}

#[track_caller]
fn nodes_are_neighbours_on(accel: &str) {
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest(folder.path(), &across_the_border());
    let mut command = queztl();
    command.args(["run", "--accel", accel, "--debug-exit", "0xf4", "--timeout", "60", "--kernel"]).arg(kernel);
    let output = command.args(["--numa", "cpus=0,ram=32M", "--numa", "ram=32M"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4 << 1 | 1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_vcpu_of_the_software_accelerator_writes_across_two_nodes() {
    nodes_are_neighbours_on("soft");
}

#[test]
fn a_vcpu_of_kvm_writes_across_two_nodes() {
    match KvmSupport::probe() {
        KvmSupport::Missing(reason) => println!("skipped: {reason}"),
        _ => nodes_are_neighbours_on("kvm"),
    }
}

const NODES: [&str; 4] =
    ["--numa", "node=0,cpus=0,ram=256M", "--numa", "node=1,cpus=[1],ram=128M,host-node=0,distances=[0@31]"];

/// Prints CPUs, distances and RAM of each node, then the nodes, then how often the kernel was surprised. The brackets keep
/// the search from finding itself in the kernel's command line.
const LOOK: &str = "cd /sys/devices/system/node; for n in 0 1; do cat node$n/cpulist node$n/distance; \
                    grep MemTotal node$n/meminfo; done; cat online; dmesg | grep -c WARNIN[G]";

#[test]
fn linux_sees_the_nodes_with_their_cpus_ram_and_distances() {
    let Some((kernel, initrd)) = linux_of(Profile::Full) else { return };
    let append = format!("console=ttyS0 quiet queztl.run=\"{LOOK}\"");
    let mut command = queztl();
    command.args(["run", "--accel", "soft", "--vcpus", "2", "--timeout", "300"]).args(NODES);
    let output = command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).args(["--append", &append]).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));

    let lines: Vec<&str> = text.lines().skip_while(|line| *line != "0").collect();
    let [cpus0, distances0, ram0, cpus1, distances1, ram1, online, warnings, ..] = lines[..] else { panic!("{text}") };
    assert_eq!([cpus0, distances0, cpus1, distances1], ["0", "10 31", "1", "31 10"], "{text}");
    // The kernel keeps some for itself before it counts.
    let kib = |line: &str| line.split_whitespace().rev().nth(1).and_then(|kib| kib.parse::<u32>().ok()).unwrap();
    assert!((220 << 10..=256 << 10).contains(&kib(ram0)) && (110 << 10..=128 << 10).contains(&kib(ram1)), "{text}");
    assert_eq!((online, warnings), ("0-1", "0"), "{text}");
}
