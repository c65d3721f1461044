//! Compiles the programs that the root file system carries, with the compiler that builds this crate: init and the agent.
//!
//! Init is no crate of its own: it has no standard library and no tests that could run on the host. The agent is one, and
//! is built by a cargo of its own, in a folder of its own: it is linked statically and for size, whatever this build is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINK_ARGUMENTS: [&str; 3] = ["-nostdlib", "-nostartfiles", "-static"];

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    build_init();
    build_agent();
}

fn variable(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"))
}

fn build_init() {
    let sources = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../../guest/rootfs");
    println!("cargo::rerun-if-changed={}", sources.join("init.rs").display());
    println!("cargo::rerun-if-changed={}", sources.join("params.rs").display());
    let output = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut compiler = Command::new(variable("RUSTC"));
    compiler.args(["--edition", "2024", "--crate-name", "init", "--target", TARGET]);
    compiler.args(["-D", "warnings", "-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"]);
    compiler.args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"]);
    for argument in LINK_ARGUMENTS {
        compiler.arg("-C").arg(format!("link-arg={argument}"));
    }
    let status = compiler.arg("-o").arg(&output).arg(sources.join("init.rs")).status();
    let status = status.unwrap_or_else(|error| panic!("cannot start the Rust compiler: {error}"));
    assert!(status.success(), "the guest's init program does not compile; the messages are above");
}

fn build_agent() {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    for part in ["guest/agent", "crates/agent-files", "crates/agent-protocol"] {
        println!("cargo::rerun-if-changed={}", root.join(part).join("src").display());
        println!("cargo::rerun-if-changed={}", root.join(part).join("Cargo.toml").display());
    }
    let folder = PathBuf::from(variable("OUT_DIR")).join("agent");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "--bin", "queztl-agent"]);
    cargo.arg("--manifest-path").arg(root.join("guest/agent/Cargo.toml")).arg("--target-dir").arg(&folder);
    // What the outer build was told about its own code (coverage, sanitizers, lints) is not for the guest's.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot start cargo: {error}"));
    assert!(status.success(), "the guest's agent does not compile; the messages are above");
    println!("cargo::rustc-env=QUEZTL_AGENT={}", folder.join(TARGET).join("guest/queztl-agent").display());
}
