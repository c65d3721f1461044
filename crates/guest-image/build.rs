//! Compiles the guest's init program, which the root file system carries, with the compiler that builds this crate.
//!
//! It is no crate of its own: it has no standard library and no tests that could run on the host.

use std::path::{Path, PathBuf};
use std::process::Command;

const LINK_ARGUMENTS: [&str; 3] = ["-nostdlib", "-nostartfiles", "-static"];

fn main() {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"));
    let sources = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../../guest/rootfs");
    println!("cargo::rerun-if-changed={}", sources.join("init.rs").display());
    println!("cargo::rerun-if-changed={}", sources.join("params.rs").display());
    let output = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.args(["--edition", "2024", "--crate-name", "init", "--target", "x86_64-unknown-linux-gnu"]);
    compiler.args(["-D", "warnings", "-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"]);
    compiler.args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"]);
    for argument in LINK_ARGUMENTS {
        compiler.arg("-C").arg(format!("link-arg={argument}"));
    }
    let status = compiler.arg("-o").arg(&output).arg(sources.join("init.rs")).status();
    let status = status.unwrap_or_else(|error| panic!("cannot start the Rust compiler: {error}"));
    assert!(status.success(), "the guest's init program does not compile; the messages are above");
}
