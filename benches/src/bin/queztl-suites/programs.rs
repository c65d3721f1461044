//! How long everyday programs take: one root, one script, several machines.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use queztl_bench::machine::Machine;
use queztl_bench::results::{self, Column};
use queztl_bench::table;

use super::Host;
use super::debian::{self, Script};

/// RAM of the guests, MiB.
const RAM_MIB: u32 = 1024;

/// What runs, where.
#[derive(Debug, clap::Args)]
pub struct ProgramsArgs {
    /// Machines to compare, each with as many vCPUs as its name says
    #[arg(long, value_delimiter = ',', default_value = "host,tcg,interpreter,soft")]
    machines: Vec<Machine>,

    /// Runs of each program; the shortest counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,

    /// Programs to run [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Prints the table; true if all machines computed the same.
pub fn run(host: &Host, arguments: &ProgramsArgs) -> Result<bool> {
    if let Some(name) = arguments.names.iter().find(|name| !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
    {
        bail!("`{name}` is no name of a program");
    }
    let told = format!("{} {}", arguments.repeats, arguments.names.join(" "));
    let script = Script { shell: "/bin/bash", name: "programs.sh", arguments: &told };
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let disk = debian::disk(directory.path())?;
    let mut columns = Vec::new();
    for machine in &arguments.machines {
        eprintln!("running on {machine} …");
        columns.push(column(host, *machine, &script, &disk, directory.path())?);
    }
    print!("{}", table::render(&columns));
    let differences = results::differences(&columns);
    differences.iter().for_each(|difference| println!("DIFFERENT: {difference}"));
    Ok(differences.is_empty())
}

fn column(host: &Host, machine: Machine, script: &Script<'_>, disk: &Path, directory: &Path) -> Result<Column> {
    let (output, boot) = if machine == Machine::Host {
        (script.natively(disk, directory)?, None)
    } else {
        // The number of vCPUs is the machine's own.
        let run = script.in_guest(&Host { vcpus: machine.vcpus(), ..host.clone() }, machine, disk, RAM_MIB)?;
        (run.output, Some(run.boot))
    };
    let column = Column::parse(machine, &output, boot);
    ensure!(!column.figures.is_empty(), "{machine} printed no figures:\n{output}");
    Ok(column)
}
