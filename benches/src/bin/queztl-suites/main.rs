//! `queztl-suites`: other people's tests in guests of ours, and everyday programs compared with the host.
//!
//! - `selftests`: the kernel's own x86 self tests (`tools/testing/selftests/x86`), on QEMU's software CPU and on ours; what
//!   passes there must pass here.
//! - `stress`: `stress-ng --verify` in Debian's user land under our kernel.
//! - `userland`: gcc, python3, perl, openssl and others in a Debian root, in a guest and natively in the same root; every
//!   result must be equal. The native half needs root, for a loop mount and chroot.
//! - `programs`: how long programs of that root take on the host, on QEMU's software CPU and on ours, as a table.
//! - `kernel`: a Linux kernel compiled in a guest and natively; every byte must be equal.
//! - `hosting`: our daemon as a service of a Debian guest, with systemd and control groups of version 2, and guests of that
//!   guest.

mod debian;
mod hosting;
mod kernel;
mod programs;
mod selftests;
mod userland;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use queztl_bench::image::Image;
use queztl_bench::machine::Boot;
use queztl_bench::queztl_beside_this_program;

/// Runs other people's tests in guests.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The queztl-hv program [default: the one built beside this program]
    #[arg(long, value_name = "FILE", global = true)]
    queztl: Option<PathBuf>,

    /// Seconds that one guest may take
    #[arg(long, default_value_t = 1800, global = true)]
    limit: u64,

    /// Number of vCPUs
    #[arg(long, default_value_t = 2, global = true)]
    vcpus: u32,

    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The kernel's x86 self tests
    Selftests(selftests::SelftestsArgs),
    /// stress-ng with verification
    Stress(userland::StressArgs),
    /// Results of everyday programs against the host's
    Userland,
    /// How long everyday programs take, beside the host and QEMU
    Programs(programs::ProgramsArgs),
    /// A Linux kernel compiled in a guest, and natively
    Kernel(kernel::KernelArgs),
    /// The daemon under systemd in a guest, and guests of the guest
    Hosting,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("queztl-suites: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let queztl = match &arguments.queztl {
        Some(path) => path.clone(),
        None => queztl_beside_this_program().context("cannot find queztl-hv; name it with --queztl")?,
    };
    let host = Host { queztl, limit: Duration::from_secs(arguments.limit), vcpus: arguments.vcpus };
    match &arguments.suite {
        Suite::Selftests(suite) => selftests::run(&host, suite),
        Suite::Stress(suite) => userland::stress(&host, suite),
        Suite::Userland => userland::run(&host),
        Suite::Programs(suite) => programs::run(&host, suite),
        Suite::Kernel(suite) => kernel::run(&host, suite),
        Suite::Hosting => hosting::run(&host),
    }
}

/// What all suites run with.
#[derive(Clone)]
struct Host {
    queztl: PathBuf,
    /// For one guest.
    limit: Duration,
    vcpus: u32,
}

impl Host {
    /// A guest with the small kernel.
    fn guest<'a>(&self, image: &'a Image, script: &'a str, ram_mib: u32, disk: Option<&'a Path>) -> Boot<'a> {
        let vcpus = Some(self.vcpus);
        Boot { kernel: &image.kernel, initramfs: &image.initramfs, script, ram_mib, vcpus, disk, append: "" }
    }
}

fn results(output: &str) -> BTreeMap<String, String> {
    pairs(output, "result")
}

/// The names and values of lines `WORD NAME VALUE`.
fn pairs(output: &str, word: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [first, name, value] = words[..] else { return None };
        (first == word).then(|| (name.to_owned(), value.to_owned()))
    };
    output.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_pairs_of_name_and_value() {
        assert_eq!(results("result gzip 0123\nnoise\n"), BTreeMap::from([("gzip".to_owned(), "0123".to_owned())]));
    }
}
