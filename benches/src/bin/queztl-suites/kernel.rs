//! A Linux kernel compiled in a guest, and natively in the same root.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use queztl_bench::machine::Machine;
use queztl_guest_image::debian::DebianImage;
use queztl_guest_image::{Terminal, default_kernel};

use super::debian::{self, Script};
use super::{Host, pairs, results};

/// RAM of the guest, MiB.
const RAM_MIB: u32 = 3072;
/// What compiling takes.
const PACKAGES: [&str; 10] =
    ["gcc", "libc6-dev", "make", "binutils", "flex", "bison", "bc", "perl", "libelf-dev", "libssl-dev"];
/// Of the disk: the system, the source and what is made of it.
const DISK_BYTES: u64 = 6 << 30;

/// How much of it.
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    /// What to make of the minimal kernel
    #[arg(value_name = "TARGET", default_value = "vmlinux")]
    targets: Vec<String>,

    /// What computes in the guest
    #[arg(long, default_value = "soft")]
    machine: Machine,
}

/// True if the same bytes came out.
pub fn run(host: &Host, arguments: &KernelArgs) -> Result<bool> {
    for target in &arguments.targets {
        let plain = target.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        ensure!(plain, "`{target}` is no target of the kernel's make");
    }
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let system =
        debian::system(&DebianImage { packages: PACKAGES.map(str::to_owned).to_vec(), disk_bytes: DISK_BYTES })?;
    let disk = debian::copy_of_disk(&system, directory.path())?;
    eprintln!("putting the kernel's source on the disk …");
    add_source(&disk, directory.path())?;
    let second = directory.path().join("native.raw");
    debian::copy_sparse(&disk, &second)?;
    let told = format!("{} {}", host.vcpus, arguments.targets.join(" "));
    let script = Script { shell: "/bin/sh", name: "kernel.sh", arguments: &told };
    eprintln!("compiling natively …");
    let native = script.natively(&second, directory.path())?;
    std::fs::remove_file(&second).context("cannot remove a disk")?;
    eprintln!("compiling in the guest …");
    let ours = script.in_guest(host, arguments.machine, &disk, RAM_MIB)?.output;
    judge(&native, &ours)
}

/// Puts source and configuration of the minimal kernel into `/root` of the disk.
fn add_source(disk: &Path, directory: &Path) -> Result<()> {
    let kernel = default_kernel(&mut Terminal::new())?;
    let source = kernel.info.source.display().to_string();
    ensure!(!source.contains('\''), "the path of the kernel's source has a quote in it: {source}");
    let unpack = if kernel.info.source.is_dir() {
        "cp -a '{}/.' ."
    } else {
        "tar --no-same-owner --strip-components=1 -xf '{}'"
    };
    let commands = format!(
        "mount -o loop \"$1\" \"$2\" && cd \"$2/root\" && mkdir linux build && cp \"$3\" build/.config && cd linux && {}",
        unpack.replace("{}", &source)
    );
    debian::on_disk(&commands, disk, directory, &kernel.config).map(drop)
}

fn judge(native: &str, ours: &str) -> Result<bool> {
    let (wanted, found) = (results(native), results(ours));
    let different = wanted.iter().filter(|(name, sum)| found.get(*name) != Some(sum)).count();
    wanted
        .iter()
        .filter(|(name, sum)| found.get(*name) != Some(sum))
        .for_each(|(name, _)| println!("DIFFERENT: {name}"));
    let seconds = |output: &str| pairs(output, "time").get("seconds").cloned().unwrap_or_else(|| "?".to_owned());
    println!(
        "{} of {} files are equal; {} s natively, {} s in the guest",
        wanted.len() - different,
        wanted.len(),
        seconds(native),
        seconds(ours)
    );
    let whole = wanted.contains_key("end") && wanted.len() > 1;
    if different > 0 || !whole {
        println!("{native}\n{ours}");
    }
    Ok(different == 0 && whole)
}
