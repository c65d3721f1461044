//! Clones of a running Linux guest, as the daemon makes them: time, processor time and memory of each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use queztl_agent_client::{Agent, Exec, Io, Limits};
use queztl_api::{CloneRequest, CreateVm, Name, Operation, OperationState, Problem, Vm, VmSpec};
use queztl_control::{Config, Manager, Service};

/// What runs.
#[derive(Debug, clap::Args)]
pub struct ClonesArgs {
    /// Clones of each request
    #[arg(long, value_delimiter = ',', default_value = "10,100")]
    counts: Vec<u32>,

    /// RAM of the guest, MiB
    #[arg(long, default_value_t = 256)]
    ram: u64,

    /// Seconds that clones are left alone before their memory is looked at
    #[arg(long, default_value_t = 5)]
    idle: u64,
}

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Prints the table.
///
/// # Errors
/// There is no guest kernel, or something of it fails.
pub fn run(arguments: &ClonesArgs, queztl: &Path) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let home = tempfile::tempdir()?;
    runtime.block_on(async {
        let mut config = Config::new(home.path())?;
        config.program = queztl.canonicalize().context("cannot find queztl-hv")?;
        let manager = Manager::open(config).await?;
        let result = compare(arguments, &manager).await;
        // Whatever has gone wrong, no machine stays behind.
        for vm in manager.vms().await.unwrap_or_default() {
            let deleted = manager.delete(&vm.id, true).await;
            end(&manager, deleted).await?;
        }
        manager.close().await;
        result
    })
}

async fn compare(arguments: &ClonesArgs, manager: &Manager) -> Result<()> {
    let spec = VmSpec { ram_bytes: arguments.ram << 20, accel: "soft".into(), ..VmSpec::default() };
    let name: Name = "parent".parse()?;
    end(manager, manager.create(CreateVm { name, spec, start: true }).await).await?;
    let parent = manager.vm("parent").await?;
    exec_all(manager, std::slice::from_ref(&parent)).await?;
    println!(
        "clones of a running guest with {} MiB, soft; each is told who it is, and answers a command",
        arguments.ram
    );
    println!(
        "{:>7}{:>14}{:>16}{:>18}{:>18}{:>14}",
        "clones", "all told", "all answered", "daemon CPU each", "process CPU each", "PSS each"
    );
    for count in &arguments.counts {
        let before = own_cpu();
        let start = Instant::now();
        let request = CloneRequest { count: *count, ..CloneRequest::default() };
        let made = end(manager, manager.clone_vm("parent", request).await).await?;
        let told = start.elapsed();
        let daemon = own_cpu() - before;
        let clones: Vec<Vm> = serde_json::from_value(made.result.context("no clones")?)?;
        exec_all(manager, &clones).await?;
        let answered = start.elapsed();
        let pids: Vec<u32> = clones.iter().filter_map(|clone| clone.runtime.as_ref()).map(|run| run.pid).collect();
        let processes: f64 = pids.iter().map(|pid| cpu_of(*pid)).sum();
        tokio::time::sleep(Duration::from_secs(arguments.idle)).await;
        let pss: u64 = pids.iter().map(|pid| pss_kib(*pid)).sum();
        let each = f64::from(*count);
        println!(
            "{:>7}{:>11.0} ms{:>13.0} ms{:>15.1} ms{:>15.1} ms{:>10.2} MiB",
            count,
            told.as_secs_f64() * 1e3,
            answered.as_secs_f64() * 1e3,
            daemon * 1e3 / each,
            processes * 1e3 / each,
            pss as f64 / 1024.0 / each
        );
        for clone in &clones {
            end(manager, manager.delete(&clone.id, true).await).await?;
        }
    }
    Ok(())
}

/// Waits for the end of an operation, which must be a good one.
async fn end(manager: &Manager, begun: Result<Operation, Problem>) -> Result<Operation> {
    let operation = manager.wait_operation(&begun?.id, LIMIT).await?;
    match operation.state {
        OperationState::Succeeded => Ok(operation),
        state => bail!("an operation is {state:?}: {}", operation.problem.map_or_else(String::new, |p| p.detail)),
    }
}

/// Runs a command in each, all at once.
async fn exec_all(manager: &Manager, vms: &[Vm]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for vm in vms {
        let vsock = manager.endpoints(&vm.id).await?.vsock;
        tasks.spawn_blocking(move || {
            let limits = Limits { connect: LIMIT, answer: LIMIT };
            let exec = Exec { argv: vec![b"true".to_vec()], ..Exec::default() };
            Agent::connect(&vsock, &limits)?.exec(&exec, Io::default())
        });
    }
    while let Some(answered) = tasks.join_next().await {
        answered??;
    }
    Ok(())
}

/// Processor time of this process, seconds.
fn own_cpu() -> f64 {
    cpu_of(std::process::id())
}

/// Processor time of a process, seconds (proc(5), `stat`: fields 14 and 15 in hundredths).
fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may have blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
