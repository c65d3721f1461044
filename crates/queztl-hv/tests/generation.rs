//! A guest that goes on as a copy of itself is told so, and its kernel seeds the random generator anew.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use queztl_vmm::config::{MachineConfig, Outcome};
use queztl_vmm::machine::Machine;

const PATIENCE: Duration = Duration::from_secs(90);

fn machine(kernel: &Path, initrd: &Path, output: &Path, script: &str) -> MachineConfig {
    let cmdline = format!("console=ttyS0 quiet queztl.run=\"{script}\"");
    let config = serde_json::json!({
        "kernel": kernel, "initrd": [initrd], "cmdline": cmdline, "ram_bytes": 128 << 20, "console": "none",
        "serial": { "file": output },
    });
    serde_json::from_value(config).unwrap()
}

/// Waits until the guest has written `text`.
#[track_caller]
fn wait_for(output: &Path, text: &str) {
    let start = Instant::now();
    loop {
        let written = std::fs::read_to_string(output).unwrap_or_default();
        if written.contains(text) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{text:?} never came: {written}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_changed_generation_identifier_reseeds_the_guest() {
    let Some((kernel, initrd)) = common::linux() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("serial");
    // The brackets keep the pattern from matching itself: the command line is in the log, too.
    let script = "reseeds() { dmesg | grep -c 'reseede[d] due to virtual machine fork'; }; echo at first: $(reseeds); \
                  for n in 1 2; do until [ $(reseeds) = $n ]; do sleep 0.05; done; echo reseeded: $n; done";
    let machine = Machine::new(machine(&kernel, &initrd, &output, script)).unwrap();
    let handle = machine.handle();
    let running = std::thread::spawn(move || machine.run(Some(PATIENCE)).unwrap());

    wait_for(&output, "at first: 0");
    handle.change_generation([0x11; 16]).unwrap();
    wait_for(&output, "reseeded: 1");
    handle.change_generation([0x22; 16]).unwrap();

    assert_eq!(running.join().unwrap(), Outcome::PowerOff);
    wait_for(&output, "reseeded: 2");
}
