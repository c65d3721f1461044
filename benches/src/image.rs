//! What the guests boot: the small kernel and an initramfs with the programs of the run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use queztl_guest_image::rootfs::{self, ExtraFile};
use queztl_guest_image::{Store, Terminal, default_kernel};

/// What guests of one run boot.
#[derive(Debug)]
pub struct Image {
    /// The kernel all guests boot.
    pub kernel: PathBuf,
    /// The initramfs all guests boot.
    pub initramfs: PathBuf,
}

/// A file for the guest: where it lies here, where it shall lie there (without the leading slash).
#[derive(Debug, Clone)]
pub struct GuestFile {
    /// On the host.
    pub from: PathBuf,
    /// In the guest; executable there.
    pub to: String,
}

impl Image {
    /// Finds or builds the kernel, and an initramfs with `files` in it.
    ///
    /// # Errors
    /// A file cannot be read; kernel or initramfs cannot be made.
    pub fn prepare(files: &[GuestFile]) -> Result<Image> {
        let mut progress = Terminal::new();
        let kernel = default_kernel(&mut progress)?.vmlinux;
        let mut extra = Vec::new();
        for file in files {
            let content = std::fs::read(&file.from).with_context(|| format!("cannot read {}", file.from.display()))?;
            extra.push(ExtraFile { path: file.to.clone(), mode: 0o755, content });
        }
        let initramfs = rootfs::build(&Store::open()?, &extra, &mut progress)?.initramfs;
        Ok(Image { kernel, initramfs })
    }
}

/// The folder of the repository with what guests are made of.
pub fn guest_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest")
}

/// Builds one of `guest/programs` into `directory`.
///
/// # Errors
/// The compiler is missing or refuses the source; its output is in the error.
pub fn build_program(directory: &Path, program: &str) -> Result<PathBuf> {
    let target = directory.join(program);
    let script = guest_folder().join("programs/build.sh");
    let output = Command::new("sh").arg(script).arg(program).arg(&target).output().context("cannot start sh")?;
    if !output.status.success() {
        bail!(
            "building {program} failed (it needs gcc and a static C library):\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(target)
}
