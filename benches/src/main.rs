//! `queztl-bench`: compares Queztl with its peers, side by side, in one run, on one host.
//!
//! Without a command it compares processors; `docs/benchmarks.md` tells what each comparison does and how to read it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use queztl_bench::api::{self, ApiArgs};
use queztl_bench::block::{self, BlockArgs};
use queztl_bench::clones::{self, ClonesArgs};
use queztl_bench::cpu::{self, CpuArgs};
use queztl_bench::hosts::migration::{self, MigrationArgs};
use queztl_bench::hosts::protection::{self, ProtectionArgs};
use queztl_bench::overhead::{self, OverheadArgs};
use queztl_bench::qhp::{self, QhpArgs};
use queztl_bench::queztl_beside_this_program;
use queztl_bench::ring3::{self, Ring3Args};
use queztl_bench::snapshots::{self, SnapshotsArgs};
use queztl_bench::start::{self, StartArgs};

/// Compares Queztl with its peers, in one run.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The queztl-hv program [default: the one built beside this program]
    #[arg(long, value_name = "FILE", global = true)]
    queztl: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Comparison>,

    #[command(flatten)]
    cpu: CpuArgs,
}

#[derive(Debug, Subcommand)]
enum Comparison {
    /// The software CPU with the host and with QEMU's (what runs without a command)
    Cpu(CpuArgs),
    /// Process start to the guest's first byte, with QEMU
    Start(StartArgs),
    /// Memory of a monitor with one idle guest, with QEMU
    Overhead(OverheadArgs),
    /// Compute speed of ring 3 on KVM, with the host
    Ring3(Ring3Args),
    /// Disk requests at the virtqueue, with fio
    Block(BlockArgs),
    /// Snapshots and forks of a guest that writes: pauses, and restores to the first byte
    Snapshots(SnapshotsArgs),
    /// Clones of a running Linux guest, through the daemon: time, CPU and memory of each
    Clones(ClonesArgs),
    /// What protection costs a guest that writes, and how soon it goes on elsewhere
    Protection(ProtectionArgs),
    /// A guest that writes moves to another daemon, with QEMU
    Migration(MigrationArgs),
    /// QHP with bare sockets and gRPC: round trips and throughput
    Qhp(QhpArgs),
    /// The daemon's API with a bare server: latency of requests, events a second
    Api(ApiArgs),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("queztl-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True unless machines that should agree did not.
fn run(arguments: Arguments) -> Result<bool> {
    let queztl = arguments.queztl.clone().or_else(queztl_beside_this_program);
    let queztl = || queztl.clone().context("cannot find queztl-hv; name it with --queztl");
    match arguments.command.unwrap_or(Comparison::Cpu(arguments.cpu)) {
        Comparison::Cpu(cpu) => return cpu::run(&cpu, &queztl()?),
        Comparison::Start(start) => start::run(&start, &queztl()?)?,
        Comparison::Overhead(overhead) => overhead::run(&overhead, &queztl()?)?,
        Comparison::Ring3(ring3) => ring3::run(&ring3, &queztl()?)?,
        Comparison::Block(block) => block::run(&block)?,
        Comparison::Snapshots(snapshots) => snapshots::run(&snapshots, &queztl()?)?,
        Comparison::Clones(clones) => clones::run(&clones, &queztl()?)?,
        Comparison::Protection(protection) => protection::run(&protection, &queztl()?)?,
        Comparison::Migration(migration) => migration::run(&migration, &queztl()?)?,
        Comparison::Qhp(qhp) => qhp::run(&qhp)?,
        Comparison::Api(api) => api::run(&api)?,
    }
    Ok(true)
}
