//! What the guests boot: the small kernel and an initramfs with the benchmark programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use queztl_guest_image::rootfs::{self, ExtraFile};
use queztl_guest_image::{Store, Terminal, default_kernel};

/// The files of one comparison.
#[derive(Debug)]
pub struct Image {
    /// The kernel all guests boot.
    pub kernel: PathBuf,
    /// The initramfs all guests boot.
    pub initramfs: PathBuf,
    /// The host's own copy of the benchmark programs.
    pub cpubench: PathBuf,
    /// The host's own copy of the instruction checks.
    pub cpucheck: PathBuf,
}

/// Builds the programs into `directory`; finds or builds kernel and initramfs.
pub fn prepare(directory: &Path) -> Result<Image> {
    let cpubench = build(directory, "cpubench")?;
    let cpucheck = build(directory, "cpucheck")?;
    let mut progress = Terminal::new();
    let kernel = default_kernel(&mut progress)?.vmlinux;
    let mut extra = Vec::new();
    for program in [&cpubench, &cpucheck] {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let content = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        extra.push(ExtraFile { path: format!("bin/{name}"), mode: 0o755, content });
    }
    let initramfs = rootfs::build(&Store::open()?, &extra, &mut progress)?.initramfs;
    Ok(Image { kernel, initramfs, cpubench, cpucheck })
}

fn build(directory: &Path, program: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest/programs/build.sh");
    let target = directory.join(program);
    let output = Command::new("sh").arg(script).arg(program).arg(&target).output().context("cannot start sh")?;
    if !output.status.success() {
        bail!(
            "building {program} failed (it needs gcc and a static C library):\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(target)
}
