//! What Linux sees of the NUMA nodes that it is given: the kernel of profile `full`, on the software CPU.

mod common;

use common::{linux_of, queztl};
use queztl_guest_image::Profile;

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
