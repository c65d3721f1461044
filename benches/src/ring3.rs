//! The speed of a guest's ring 3 on KVM against the host's: the same instructions in both places.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use queztl_system_tests::Machine;

use crate::image::{build_program, guest_folder};
use crate::monitor::median;

/// What runs.
#[derive(Debug, clap::Args)]
pub struct Ring3Args {
    /// Runs of each, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(120);

/// One slice of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    ticks: u64,
    checksum: u64,
}

/// Prints the figures.
///
/// # Errors
/// The programs cannot be built, the guest does not run on this host, or it computed something else than the host.
pub fn run(arguments: &Ring3Args, queztl: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = build_program(folder.path(), "ring3")?;
    let image = build_payload(folder.path())?;
    let machine = Machine::Queztl { program: queztl.to_owned(), accel: "kvm".to_owned() };
    let (mut host, mut guest) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        let output = Command::new(&program).output().context("the host's program does not start")?;
        host.extend(slices(&String::from_utf8_lossy(&output.stdout)));
        let report = machine.run(&image, 1, LIMIT)?;
        report.verdict().map_err(anyhow::Error::msg)?;
        guest.extend(slices(&report.output));
    }
    ensure!(!host.is_empty() && !guest.is_empty(), "no slice of the work was timed");
    let checksum = host[0].checksum;
    ensure!(host.iter().chain(&guest).all(|slice| slice.checksum == checksum), "the guest computed something else");
    let ticks = |slices: &[Slice]| slices.iter().map(|slice| slice.ticks as f64 / 1e6).collect::<Vec<_>>();
    let (mut host, mut guest) = (ticks(&host), ticks(&guest));
    println!("ring 3 on KVM, {} slices each, million time-stamp counter ticks a slice", host.len());
    println!("{:<10}{:>10}{:>10}{:>10}", "", "host", "guest", "speed");
    let middle = (median(&mut host).unwrap_or(f64::NAN), median(&mut guest).unwrap_or(f64::NAN));
    let tenth = (host[host.len() / 10], guest[guest.len() / 10]);
    for (name, (host, guest)) in [("least", (host[0], guest[0])), ("p10", tenth), ("median", middle)] {
        println!("{name:<10}{host:>10.2}{guest:>10.2}{:>9.1} %", host / guest * 100.0);
    }
    Ok(())
}

fn build_payload(folder: &Path) -> Result<std::path::PathBuf> {
    let image = folder.join("ring3.guest");
    let guests = guest_folder();
    let mut command = Command::new("sh");
    command.arg(guests.join("tests/build.sh")).arg(guests.join("payloads/ring3.c")).arg(&image);
    let output = command.output().context("cannot start sh")?;
    ensure!(
        output.status.success(),
        "building the guest failed (it needs gcc and binutils):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(image)
}

/// The lines `slice TICKS CHECKSUM` of an output.
fn slices(output: &str) -> Vec<Slice> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let slice = |line: &str| {
        let mut words = line.trim_end().strip_prefix("slice ")?.split(' ');
        Some(Slice { ticks: number(words.next()?)?, checksum: number(words.next()?)? })
    };
    output.lines().filter_map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_read_and_other_lines_left_out() {
        let expected = [Slice { ticks: 0x1f, checksum: 2 }];
        assert_eq!(slices("hello\r\nslice 0x1f 0x2\r\nslice 3\nok all\n"), expected);
    }
}
