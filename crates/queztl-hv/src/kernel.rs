//! `queztl-hv kernel`: guest kernels built and listed, and what `run` boots when it is given no kernel.

use std::path::PathBuf;

use queztl_guest_image::{self as image, KernelBuild, KernelInfo, Profile};

use crate::cli::{KernelBuildArgs, KernelCommand, OutputFormat, ProfileArg};
use crate::output::{self, List, Row};
use crate::report::{Failure, chain};
use crate::status::Status;

/// Executes a `kernel` command.
pub fn execute(command: KernelCommand) -> Result<Status, Failure> {
    match command {
        KernelCommand::Build(args) => build(args),
        KernelCommand::List { output } => list(output),
    }
}

/// What `run` boots when it is given nothing: kernel and initial RAM disk, made first if they do not exist.
pub fn defaults() -> Result<(PathBuf, PathBuf), Failure> {
    let mut progress = image::Terminal::new();
    let kernel = image::default_kernel(&mut progress).map_err(failure)?;
    let rootfs = image::default_rootfs(&mut progress).map_err(failure)?;
    Ok((kernel.vmlinux, rootfs.initramfs))
}

fn build(args: KernelBuildArgs) -> Result<Status, Failure> {
    let wanted = KernelBuild { source: args.source, profile: profile(args.profile), configs: args.configs };
    let kernel = wanted.run(&mut image::Terminal::new()).map_err(failure)?;
    let how = match kernel.built {
        true => format!("built in {} s", kernel.info.build_seconds),
        false => "already built".to_owned(),
    };
    eprintln!("kernel {} ({}), {}, {how}", kernel.info.release, kernel.info.profile.name(), mib(kernel.info.bytes));
    Ok(crate::print(&format!("{}\n", kernel.vmlinux.display())))
}

fn list(format: OutputFormat) -> Result<Status, Failure> {
    let kernels = image::kernels().map_err(failure)?;
    output::print(&List(&kernels), format)
}

impl Row for KernelInfo {
    const NONE: &'static str = "no kernels yet: queztl-hv kernel build makes one";
    const HEADS: &'static [&'static str] = &["KEY", "PROFILE", "RELEASE", "SIZE", "FRAGMENTS"];
    const MORE: &'static [&'static str] = &["SOURCE", "COMPILER"];

    fn cells(&self) -> Vec<String> {
        let key = self.key.chars().take(12).collect();
        let (profile, source) = (self.profile.name().to_owned(), self.source.display().to_string());
        vec![
            key,
            profile,
            self.release.clone(),
            mib(self.bytes),
            self.configs.join(", "),
            source,
            self.compiler.clone(),
        ]
    }

    fn name(&self) -> String {
        self.key.clone()
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn profile(arg: ProfileArg) -> Profile {
    match arg {
        ProfileArg::Minimal => Profile::Minimal,
        ProfileArg::Rt => Profile::Rt,
        ProfileArg::Full => Profile::Full,
    }
}

/// What the user named cannot be used, or the host cannot build.
fn failure(error: image::Error) -> Failure {
    match &error {
        image::Error::Source { .. } | image::Error::Fragment { .. } | image::Error::Dropped { .. } => {
            Failure::usage(chain(&error))
        }
        _ => Failure::host(chain(&error)),
    }
}
