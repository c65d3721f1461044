//! `queztl-hv kernel`: guest kernels built and listed, and what `run` boots when it is given no kernel.

use std::io::Write;
use std::path::PathBuf;

use queztl_guest_image::{self as image, KernelBuild, KernelInfo, Profile};
use serde_json::json;

use crate::cli::{KernelBuildArgs, KernelCommand, OutputFormat, ProfileArg};
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

fn list(output: OutputFormat) -> Result<Status, Failure> {
    let kernels = image::kernels().map_err(failure)?;
    let text = match output {
        OutputFormat::Table => table(&kernels),
        OutputFormat::Json => format!("{:#}\n", json!(kernels)),
    };
    Ok(crate::print(&text))
}

fn table(kernels: &[KernelInfo]) -> String {
    if kernels.is_empty() {
        return "no kernels yet: queztl-hv kernel build makes one\n".to_owned();
    }
    let mut out = Vec::new();
    let widths = [12, 9, 24, 10];
    let mut row = |cells: [&str; 5]| {
        let [a, b, c, d, e] = cells;
        let [wa, wb, wc, wd] = widths;
        // Writing to memory cannot fail.
        let _ = writeln!(out, "{a:wa$}  {b:wb$}  {c:wc$}  {d:>wd$}  {e}");
    };
    row(["KEY", "PROFILE", "RELEASE", "SIZE", "FRAGMENTS"]);
    for kernel in kernels {
        let key: String = kernel.key.chars().take(12).collect();
        let configs = kernel.configs.join(", ");
        row([&key, kernel.profile.name(), &kernel.release, &mib(kernel.bytes), &configs]);
    }
    String::from_utf8_lossy(&out).lines().map(|line| format!("{}\n", line.trim_end())).collect()
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
