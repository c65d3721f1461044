//! `queztl-suites`: other people's tests in guests of ours, and everyday programs compared with the host.
//!
//! - `selftests`: the kernel's own x86 self tests (`tools/testing/selftests/x86`), on QEMU's software CPU and on ours; what
//!   passes there must pass here.
//! - `stress`: `stress-ng --verify` in Debian's user land under our kernel.
//! - `userland`: gcc, python3, perl, openssl and others in a Debian root, in a guest and natively in the same root; every
//!   result must be equal. The native half needs root, for a loop mount and chroot.
//! - `hosting`: our daemon as a service of a Debian guest, with systemd and control groups of version 2, and guests of that
//!   guest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use queztl_bench::image::{GuestFile, Image, guest_folder};
use queztl_bench::machine::{Boot, Machine};
use queztl_bench::queztl_beside_this_program;
use queztl_guest_image::debian::{DebianImage, StockSystem};
use queztl_guest_image::{Store, Terminal};

/// Exit status of a kernel self test that does not apply (`KSFT_SKIP`).
const SKIPPED: i32 = 4;

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
    Selftests {
        /// Kernel source
        #[arg(long, value_name = "DIR|TARBALL", default_value = "/usr/src/linux-source-6.12.tar.xz")]
        source: PathBuf,
        /// Machines to run on; the first is the yardstick
        #[arg(long, value_delimiter = ',', default_value = "tcg-2,soft-2")]
        machines: Vec<Machine>,
    },
    /// stress-ng with verification
    Stress {
        /// Seconds for each stressor
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// Everyday programs against the host
    Userland,
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
    match &arguments.suite {
        Suite::Selftests { source, machines } => selftests(arguments, &queztl, source, machines),
        Suite::Stress { seconds } => stress(arguments, &queztl, *seconds),
        Suite::Userland => userland(arguments, &queztl),
        Suite::Hosting => hosting(arguments, &queztl),
    }
}

// ---- Kernel self tests ----

fn selftests(arguments: &Arguments, queztl: &Path, source: &Path, machines: &[Machine]) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let names = build_selftests(source, directory.path())?;
    let files: Vec<GuestFile> =
        names.iter().map(|n| GuestFile { from: directory.path().join(n), to: format!("root/{n}") }).collect();
    let image = Image::prepare(&files)?;
    let script =
        format!("cd /root; for t in {}; do timeout 60 ./$t >/tmp/log 2>&1; echo selftest $t $?; done", names.join(" "));
    let mut columns = Vec::new();
    for machine in machines {
        eprintln!("running {} self tests on {machine} …", names.len());
        let boot = guest(&image, &script, 1024, arguments.vcpus, None);
        let run = machine.run(queztl, &boot, Duration::from_secs(arguments.limit))?;
        columns.push(statuses(&run.output));
    }
    print!("{}", selftest_table(&names, machines, &columns));
    let worse = names.iter().any(|name| {
        let status = |column: &BTreeMap<String, i32>| column.get(name).copied();
        columns
            .split_first()
            .is_some_and(|(first, rest)| status(first) == Some(0) && rest.iter().any(|c| status(c) != Some(0)))
    });
    Ok(!worse)
}

fn build_selftests(source: &Path, output: &Path) -> Result<Vec<String>> {
    let unpacked = if source.is_dir() { source.to_owned() } else { unpack(source, output)? };
    let script = guest_folder().join("selftests/build.sh");
    let built = Command::new("sh").arg(script).arg(&unpacked).arg(output).output().context("cannot start sh")?;
    eprint!("{}", String::from_utf8_lossy(&built.stderr));
    ensure!(built.status.success(), "the self tests could not be built");
    let names: Vec<String> = String::from_utf8_lossy(&built.stdout).lines().map(str::to_owned).collect();
    ensure!(!names.is_empty(), "no self test could be built from {}", source.display());
    Ok(names)
}

/// Unpacks the parts of a kernel tarball that the self tests need.
fn unpack(tarball: &Path, directory: &Path) -> Result<PathBuf> {
    let target = directory.join("source");
    fs::create_dir(&target).context("cannot make a directory")?;
    let status = Command::new("tar")
        .arg("xf")
        .arg(tarball)
        .arg("-C")
        .arg(&target)
        .args(["--strip-components=1", "--wildcards"])
        .args(["*/tools/testing/selftests/x86/*", "*/tools/testing/selftests/*.h", "*/tools/include/*"])
        .arg("*/arch/x86/include/asm/*")
        .status()
        .context("cannot start tar")?;
    ensure!(status.success(), "cannot unpack {}", tarball.display());
    Ok(target)
}

fn statuses(output: &str) -> BTreeMap<String, i32> {
    let status = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["selftest", name, status] = words[..] else { return None };
        Some((name.to_owned(), status.parse().ok()?))
    };
    output.lines().filter_map(status).collect()
}

fn selftest_table(names: &[String], machines: &[Machine], columns: &[BTreeMap<String, i32>]) -> String {
    let mut text = format!("{:<28}", "self test");
    for machine in machines {
        text.push_str(&format!("{:>14}", machine.to_string()));
    }
    text.push('\n');
    for name in names {
        text.push_str(&format!("{name:<28}"));
        for column in columns {
            let word = match column.get(name) {
                Some(0) => "pass".to_owned(),
                Some(&SKIPPED) => "skip".to_owned(),
                Some(status) => format!("status {status}"),
                None => "missing".to_owned(),
            };
            text.push_str(&format!("{word:>14}"));
        }
        text.push('\n');
    }
    text
}

fn guest<'a>(image: &'a Image, script: &'a str, ram_mib: u32, vcpus: u32, disk: Option<&'a Path>) -> Boot<'a> {
    Boot { kernel: &image.kernel, initramfs: &image.initramfs, script, ram_mib, vcpus: Some(vcpus), disk, append: "" }
}

// ---- Debian user land ----

/// A copy of the Debian disk in `directory`, to be written to.
fn debian_disk(directory: &Path) -> Result<PathBuf> {
    copy_of_disk(&debian()?, directory)
}

fn debian() -> Result<StockSystem> {
    Ok(DebianImage::default().build(&Store::open()?, &mut Terminal::new())?)
}

fn copy_of_disk(system: &StockSystem, directory: &Path) -> Result<PathBuf> {
    let disk = system.disk.as_ref().context("the Debian image has no disk")?;
    let copy = directory.join("disk.raw");
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(disk).arg(&copy).status();
    ensure!(status.is_ok_and(|s| s.success()), "cannot copy {}", disk.display());
    Ok(copy)
}

/// Shell commands that make the Debian root on the disk usable at `/mnt`.
const ENTER: &str = "mount -t ext4 /dev/vda /mnt; mount -t proc proc /mnt/proc; mount -t sysfs sys /mnt/sys; \
                     mount --bind /dev /mnt/dev; mount -t tmpfs tmp /mnt/tmp";

fn stress(arguments: &Arguments, queztl: &Path, seconds: u32) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let disk = debian_disk(directory.path())?;
    let script = guest_folder().join("userland/stress.sh");
    let image = Image::prepare(&[GuestFile { from: script, to: "root/stress.sh".into() }])?;
    let commands = format!(
        "{ENTER}; cp /root/stress.sh /mnt/tmp/; chroot /mnt /bin/sh /tmp/stress.sh {seconds} {}",
        arguments.vcpus
    );
    let boot = guest(&image, &commands, 1024, arguments.vcpus, Some(&disk));
    let run = Machine::Soft.run(queztl, &boot, Duration::from_secs(arguments.limit))?;
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

fn userland(arguments: &Arguments, queztl: &Path) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let disk = debian_disk(directory.path())?;
    let script = guest_folder().join("userland/compare.sh");
    eprintln!("running natively …");
    let native = results(&natively(&disk, &script, directory.path())?);
    let image = Image::prepare(&[GuestFile { from: script, to: "root/compare.sh".into() }])?;
    let commands = format!("{ENTER}; cp /root/compare.sh /mnt/tmp/; chroot /mnt /bin/sh /tmp/compare.sh");
    eprintln!("running in the guest …");
    let boot = guest(&image, &commands, 1024, arguments.vcpus, Some(&disk));
    let run = Machine::Soft.run(queztl, &boot, Duration::from_secs(arguments.limit))?;
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

/// Runs the script in the disk's root on the host; the disk is as before afterwards.
fn natively(disk: &Path, script: &Path, directory: &Path) -> Result<String> {
    // The namespace takes the mounts with it, whatever happens.
    let commands = "mount -o loop \"$1\" \"$2\" && mount -t proc proc \"$2/proc\" && mount --bind /dev \"$2/dev\" && \
                    mount -t tmpfs tmp \"$2/tmp\" && cp \"$3\" \"$2/tmp/compare.sh\" && \
                    chroot \"$2\" /bin/sh /tmp/compare.sh";
    let root = directory.join("root");
    fs::create_dir(&root).context("cannot make a directory")?;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", commands, "sh"])
        .arg(disk)
        .arg(&root)
        .arg(script)
        .output()
        .context("cannot start unshare")?;
    if !output.status.success() {
        bail!("the native run failed (it needs root):\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

// ---- A host with systemd ----

/// Where files for the Debian disk lie in the guest that writes it.
const STAGED: &str = "root/staged";

fn hosting(arguments: &Arguments, queztl: &Path) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let system = debian()?;
    let disk = copy_of_disk(&system, directory.path())?;
    eprintln!("writing the program to the disk …");
    install(arguments, queztl, &disk, directory.path())?;
    eprintln!("running the daemon in the guest …");
    let (kernel, initramfs, append) = (&*system.kernel, &*system.initrd, &*system.append);
    let vcpus = Some(arguments.vcpus);
    let script = "/root/trial.sh";
    let boot = Boot { kernel, initramfs, script, ram_mib: 2048, vcpus, disk: Some(&disk), append };
    let run = Machine::Soft.run(queztl, &boot, Duration::from_secs(arguments.limit))?;
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
fn install(arguments: &Arguments, queztl: &Path, disk: &Path, directory: &Path) -> Result<()> {
    let program = directory.join("queztl-hv");
    let status = Command::new("strip").arg("-o").arg(&program).arg(queztl).status().context("cannot start strip")?;
    ensure!(status.success(), "cannot strip {}", queztl.display());
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
    let boot = guest(&image, &script, 1024, arguments.vcpus, Some(disk));
    let run = Machine::Soft.run(queztl, &boot, Duration::from_secs(arguments.limit))?;
    ensure!(run.output.contains("\ninstalled"), "the disk could not be written:\n{}", run.output);
    Ok(())
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
    fn statuses_are_read_among_other_lines() {
        let found = statuses("booting\nselftest iopl 0\r\nselftest ldt_gdt 1\nselftest broken\n");
        assert_eq!(found, BTreeMap::from([("iopl".to_owned(), 0), ("ldt_gdt".to_owned(), 1)]));
    }

    #[test]
    fn a_self_test_that_did_not_report_is_missing_in_the_table() {
        let text = selftest_table(&["iopl".to_owned()], &[Machine::Tcg], &[BTreeMap::new()]);
        assert!(text.lines().nth(1).unwrap().ends_with("missing"), "{text}");
    }

    #[test]
    fn results_are_pairs_of_name_and_value() {
        assert_eq!(results("result gzip 0123\nnoise\n"), BTreeMap::from([("gzip".to_owned(), "0123".to_owned())]));
    }
}
