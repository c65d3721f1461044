//! The kernel's own x86 self tests, on QEMU's software CPU and on ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use queztl_bench::image::{GuestFile, Image, guest_folder};
use queztl_bench::machine::Machine;

use super::Host;

/// Exit status of a kernel self test that does not apply (`KSFT_SKIP`).
const SKIPPED: i32 = 4;

/// What runs, where.
#[derive(Debug, clap::Args)]
pub struct SelftestsArgs {
    /// Kernel source
    #[arg(long, value_name = "DIR|TARBALL", default_value = "/usr/src/linux-source-6.12.tar.xz")]
    source: PathBuf,

    /// Machines to run on; the first is the yardstick
    #[arg(long, value_delimiter = ',', default_value = "tcg-2,soft-2")]
    machines: Vec<Machine>,
}

/// Prints the table; true if everything that passes on the first machine passes on the others.
pub fn run(host: &Host, arguments: &SelftestsArgs) -> Result<bool> {
    let machines = &arguments.machines;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let names = build(&arguments.source, directory.path())?;
    let files: Vec<GuestFile> =
        names.iter().map(|n| GuestFile { from: directory.path().join(n), to: format!("root/{n}") }).collect();
    let image = Image::prepare(&files)?;
    let script =
        format!("cd /root; for t in {}; do timeout 60 ./$t >/tmp/log 2>&1; echo selftest $t $?; done", names.join(" "));
    let mut columns = Vec::new();
    for machine in machines {
        eprintln!("running {} self tests on {machine} …", names.len());
        let boot = host.guest(&image, &script, 1024, None);
        let run = machine.run(&host.queztl, &boot, host.limit)?;
        columns.push(statuses(&run.output));
    }
    print!("{}", table(&names, machines, &columns));
    let worse = names.iter().any(|name| {
        let status = |column: &BTreeMap<String, i32>| column.get(name).copied();
        columns
            .split_first()
            .is_some_and(|(first, rest)| status(first) == Some(0) && rest.iter().any(|c| status(c) != Some(0)))
    });
    Ok(!worse)
}

fn build(source: &Path, output: &Path) -> Result<Vec<String>> {
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

fn table(names: &[String], machines: &[Machine], columns: &[BTreeMap<String, i32>]) -> String {
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
        let text = table(&["iopl".to_owned()], &[Machine::Tcg], &[BTreeMap::new()]);
        assert!(text.lines().nth(1).unwrap().ends_with("missing"), "{text}");
    }
}
