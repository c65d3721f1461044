//! Everyday programs in a Debian root: what they compute, and whether they stand stress.

use anyhow::{Context, Result};
use queztl_bench::machine::Machine;

use super::debian::{self, Script};
use super::{Host, results};

/// RAM of the guests, MiB.
const RAM_MIB: u32 = 1024;

/// How hard.
#[derive(Debug, clap::Args)]
pub struct StressArgs {
    /// Seconds for each stressor
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

/// True if every stressor of stress-ng found its own results right.
pub fn stress(host: &Host, arguments: &StressArgs) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let disk = debian::disk(directory.path())?;
    let told = format!("{} {}", arguments.seconds, host.vcpus);
    let script = Script { shell: "/bin/sh", name: "stress.sh", arguments: &told };
    let run = script.in_guest(host, Machine::Soft, &disk, RAM_MIB)?;
    let mut failed = 0;
    let mut passed = 0;
    for line in run.output.lines().filter(|line| line.starts_with("stress ")) {
        println!("{line}");
        if line.ends_with(" ok") { passed += 1 } else { failed += 1 }
    }
    println!("{passed} stressors passed, {failed} failed, in {:.0} s", run.took.as_secs_f64());
    if failed > 0 || passed == 0 {
        println!("{}", run.output);
    }
    Ok(failed == 0 && passed > 0)
}

/// True if every program computes in a guest what it computes on the host.
pub fn run(host: &Host) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let disk = debian::disk(directory.path())?;
    let script = Script { shell: "/bin/sh", name: "compare.sh", arguments: "" };
    eprintln!("running natively …");
    let native = results(&script.natively(&disk, directory.path())?);
    eprintln!("running in the guest …");
    let run = script.in_guest(host, Machine::Soft, &disk, RAM_MIB)?;
    let ours = results(&run.output);
    let mut equal = 0;
    for (name, value) in &native {
        match ours.get(name) {
            Some(other) if other == value && !value.starts_with("failed") => equal += 1,
            other => println!("DIFFERENT: {name}: natively {value}, in the guest {}", other.map_or("nothing", |o| o)),
        }
    }
    println!("{equal} of {} results are equal; {:.0} s in the guest", native.len(), run.took.as_secs_f64());
    if equal != native.len() {
        println!("{}", run.output);
    }
    Ok(equal == native.len() && native.contains_key("end"))
}
