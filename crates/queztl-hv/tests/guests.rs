//! The behaviour of processor and machine, tested by small guests: see `guest/tests` and `docs/testing.md`.

use std::path::Path;
use std::time::Duration;

use queztl_system_tests::{BuildError, Guest, Machine};

const LIMIT: Duration = Duration::from_secs(120);

fn run(topic: &'static str, vcpus: u32) {
    let guest = Guest { topic, vcpus };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let image = match guest.build(directory) {
        Ok(image) => image,
        Err(missing @ BuildError::MissingTool(_)) => return eprintln!("skipped: {missing}"),
        Err(error) => panic!("{error}"),
    };
    let machine = Machine::from_environment(Path::new(env!("CARGO_BIN_EXE_queztl-hv")));
    let report = machine.run(&image, vcpus, LIMIT).unwrap_or_else(|error| panic!("{error}"));
    println!("{topic}: {} cases hold", report.passed);
    for skipped in &report.skipped {
        println!("  skipped {skipped}");
    }
    report.verdict().unwrap_or_else(|failures| panic!("{topic}: {failures}"));
}

macro_rules! guests {
    ($($topic:ident: $vcpus:expr,)*) => {
        $(#[test]
        fn $topic() {
            run(stringify!($topic), $vcpus);
        })*
    };
}

guests! {
    paging: 1,
    tlb: 1,
    exceptions: 1,
    syscalls: 1,
    iret: 1,
    shadows: 1,
    selfmod: 1,
    apic: 1,
    pic: 1,
    string: 1,
    compat: 1,
    legacy: 1,
    fpu: 1,
    cpuid: 1,
    smp: 4,
    crossmod: 2,
    atomics: 4,
}
