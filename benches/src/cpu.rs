//! Processors side by side.
//!
//! The same static program (`guest/programs/cpubench`) runs on the host, in guests of QEMU's software CPU and in guests
//! of our own, all guests with the same kernel and initramfs. Each line of the table is one benchmark; a checksum proves
//! that every machine did the same work.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::image::{GuestFile, Image, build_program};
use crate::machine::{Boot, Machine};
use crate::results::{self, Column};
use crate::table;
use anyhow::{Context, Result, bail};

/// RAM of the guests, MiB.
const RAM_MIB: u32 = 512;

/// What runs, on which machines.
#[derive(Debug, clap::Args)]
pub struct CpuArgs {
    /// Benchmarks to run [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Runs of each benchmark; the shortest counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,

    /// Boots of each machine; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    boots: u32,

    /// Machines to compare
    #[arg(long, value_delimiter = ',', default_value = "host,tcg,tcg-2,interpreter,soft,soft-2")]
    machines: Vec<Machine>,

    /// Seconds that one machine may take
    #[arg(long, default_value_t = 900)]
    limit: u64,

    /// Compare instruction results (cpucheck) as well
    #[arg(long)]
    check: bool,
}

/// The programs of the comparison, built for host and guests.
struct Programs {
    cpubench: PathBuf,
    cpucheck: PathBuf,
}

impl Programs {
    fn build(directory: &Path) -> Result<Programs> {
        Ok(Programs {
            cpubench: build_program(directory, "cpubench")?,
            cpucheck: build_program(directory, "cpucheck")?,
        })
    }

    fn files(&self) -> [GuestFile; 2] {
        [("bin/cpubench", &self.cpubench), ("bin/cpucheck", &self.cpucheck)]
            .map(|(to, from)| GuestFile { from: from.clone(), to: to.to_owned() })
    }
}

/// Prints the table; true when all machines agreed.
///
/// # Errors
/// Programs or guests cannot be built, or no machine could be measured.
pub fn run(arguments: &CpuArgs, queztl: &Path) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let programs = Programs::build(directory.path())?;
    let image = Image::prepare(&programs.files())?;
    let mut columns = Vec::new();
    for machine in &arguments.machines {
        eprintln!("running on {machine} …");
        let column = match machine {
            Machine::Host => on_host(&programs, arguments),
            guest => in_guest(*guest, queztl, &image, arguments),
        };
        match column {
            Ok(column) => columns.push(column),
            Err(error) => eprintln!("  {machine}: {error:#}"),
        }
    }
    anyhow::ensure!(!columns.is_empty(), "no machine could be measured");
    print!("{}", table::render(&columns));
    let differences = results::differences(&columns);
    for difference in &differences {
        println!("DIFFERENT: {difference}");
    }
    Ok(differences.is_empty() && columns.len() == arguments.machines.len())
}

fn on_host(programs: &Programs, arguments: &CpuArgs) -> Result<Column> {
    let mut command = Command::new(&programs.cpubench);
    command.arg("-r").arg(arguments.repeats.to_string()).args(&arguments.names);
    let mut output = output_of(command)?;
    if arguments.check {
        output.push_str(&output_of(Command::new(&programs.cpucheck))?);
    }
    Ok(Column::parse(Machine::Host, &output, None))
}

fn output_of(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed on the host: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn in_guest(machine: Machine, queztl: &Path, image: &Image, arguments: &CpuArgs) -> Result<Column> {
    let limit = Duration::from_secs(arguments.limit);
    let mut script = format!("cpubench -r {} {}", arguments.repeats, arguments.names.join(" "));
    if arguments.check {
        script.push_str("; cpucheck");
    }
    let idle = Boot {
        kernel: &image.kernel,
        initramfs: &image.initramfs,
        script: "true",
        ram_mib: RAM_MIB,
        vcpus: None,
        disk: None,
        append: "",
    };
    let mut boots = Vec::new();
    for _ in 0..arguments.boots {
        boots.push(machine.run(queztl, &idle, limit)?.boot);
    }
    boots.sort();
    let output = machine.run(queztl, &Boot { script: &script, ..idle }, limit)?.output;
    let column = Column::parse(machine, &output, boots.get(boots.len() / 2).copied());
    if column.figures.is_empty() {
        bail!("the guest printed no figures:\n{output}");
    }
    Ok(column)
}
