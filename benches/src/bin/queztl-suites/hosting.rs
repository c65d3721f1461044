//! Our daemon as a service of a Debian guest with systemd, and guests of that guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use queztl_bench::image::{GuestFile, Image, guest_folder};
use queztl_bench::machine::{Boot, Machine};
use queztl_guest_image::debian::DebianImage;

use super::debian::{ENTER, copy_of_disk, system};
use super::{Host, pairs};

/// Where files for the Debian disk lie in the guest that writes it.
const STAGED: &str = "root/staged";

/// True if all checks passed.
pub fn run(host: &Host) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let system = system(&DebianImage::default())?;
    let disk = copy_of_disk(&system, directory.path())?;
    eprintln!("writing the program to the disk …");
    install(host, &disk, directory.path())?;
    eprintln!("running the daemon in the guest …");
    let (kernel, initramfs, append) = (&*system.kernel, &*system.initrd, &*system.append);
    let vcpus = Some(host.vcpus);
    let script = "/root/trial.sh";
    let boot = Boot { kernel, initramfs, script, ram_mib: 2048, vcpus, disk: Some(&disk), append };
    let run = Machine::Soft.run(&host.queztl, &boot, host.limit)?;
    let outcomes = pairs(&run.output, "check");
    let failed = outcomes.values().filter(|outcome| *outcome != "ok").count();
    let times = pairs(&run.output, "time");
    times.iter().for_each(|(name, milliseconds)| println!("{name}: {milliseconds} ms"));
    println!("{} checks passed, {failed} failed, in {:.0} s", outcomes.len() - failed, run.took.as_secs_f64());
    // The guest of the guest comes last.
    let whole = times.contains_key("guest-of-a-guest-boots");
    if failed > 0 || !whole {
        println!("{}", run.output);
    }
    Ok(failed == 0 && whole)
}

/// Puts this program, what guests of it boot, and the trial on the disk.
fn install(host: &Host, disk: &Path, directory: &Path) -> Result<()> {
    let program = directory.join("queztl-hv");
    let status =
        Command::new("strip").arg("-o").arg(&program).arg(&host.queztl).status().context("cannot start strip")?;
    ensure!(status.success(), "cannot strip {}", host.queztl.display());
    let small = Image::prepare(&[])?;
    let kernel = small.kernel.parent().and_then(Path::file_name).context("the kernel lies in no store")?;
    let store = format!("var/lib/queztl/kernels/{}", kernel.to_string_lossy());
    let units = guest_folder().join("../dist/systemd");
    let file = |from: PathBuf, to: &str| GuestFile { from, to: format!("{STAGED}/{to}") };
    let image = Image::prepare(&[
        file(program, "usr/local/bin/queztl-hv"),
        file(units.join("queztl.service"), "etc/systemd/system/queztl.service"),
        file(units.join("queztl.socket"), "etc/systemd/system/queztl.socket"),
        file(small.kernel.clone(), &format!("{store}/vmlinux")),
        file(small.kernel.with_file_name("kernel.json"), &format!("{store}/kernel.json")),
        file(small.kernel.with_file_name("config"), &format!("{store}/config")),
        // The root file system of guests is made of it.
        file(PathBuf::from("/bin/busybox"), "usr/bin/busybox"),
        file(guest_folder().join("hosting/trial.sh"), "root/trial.sh"),
    ])?;
    let script = format!("{ENTER}; cp -a /{STAGED}/. /mnt/ && sync && echo installed");
    let boot = host.guest(&image, &script, 1024, Some(disk));
    let run = Machine::Soft.run(&host.queztl, &boot, host.limit)?;
    ensure!(run.output.contains("\ninstalled"), "the disk could not be written:\n{}", run.output);
    Ok(())
}
