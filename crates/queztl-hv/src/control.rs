//! `queztl-hv control`: a running machine, looked at and changed through its socket.

use std::fmt::Write;
use std::path::PathBuf;

use queztl_vmm::config::{Rate, RateLimit};
use queztl_vmm::control::{
    Client, ClientError, Reason, Refusal, Request, RunState, SnapshotReport, Status as MachineStatus,
};

use crate::cli::{ControlArgs, ControlCommand};
use crate::output::{self, Made};
use crate::report::{Failure, chain};
use crate::status::Status;

/// Sends the command's request and prints what comes back.
pub fn execute(args: ControlArgs) -> Result<Status, Failure> {
    let mut client = Client::connect(&args.path).map_err(failure)?;
    let request = match args.command {
        ControlCommand::Status { output: format } => {
            let status = client.status().map_err(failure)?;
            let names = vec![status.pid.to_string()];
            return output::print(&Made { table: table(&status), names, value: status }, format);
        }
        ControlCommand::Snapshot { directory, base, stay_paused } => {
            let (directory, base) = (absolute(directory)?, base.map(absolute).transpose()?);
            let request = Request::Snapshot { directory, base, disks: Vec::new(), stay_paused };
            let report = client.snapshot(&request).map_err(failure)?;
            return Ok(crate::print(&told(&report)));
        }
        ControlCommand::Pause => Request::Pause {},
        ControlCommand::Resume => Request::Resume {},
        ControlCommand::Stop => Request::Stop {},
        ControlCommand::Power => Request::PowerButton {},
        ControlCommand::Reset => Request::Reset {},
        ControlCommand::Balloon { size } => Request::Balloon { target_bytes: size },
        ControlCommand::Memory { size } => Request::Memory { requested_bytes: size },
        ControlCommand::Limit { device, limit } => Request::Limit { device, limit },
    };
    client.command(&request).map_err(failure)?;
    Ok(Status::Success)
}

/// The machine may run in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|error| Failure::usage(format!("{path:?}: {error}")))
}

fn told(report: &SnapshotReport) -> String {
    let (pause, total) = (report.pause_ns as f64 / 1e6, report.total_ns as f64 / 1e6);
    format!("{} of memory in {total:.0} ms; the machine stood still for {pause:.1} ms\n", mib(report.memory_bytes))
}

/// A wrong path, name or size is the user's to mend.
fn failure(error: ClientError) -> Failure {
    let text = chain(&error);
    match error {
        ClientError::Connect { .. }
        | ClientError::Refused(Refusal { reason: Reason::Invalid | Reason::Missing, .. }) => Failure::usage(text),
        _ => Failure::host(text),
    }
}

fn table(status: &MachineStatus) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to memory cannot fail.
        let _ = writeln!(out, "{name:<16}{value}");
    };
    let state = match status.state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Restarting => "restarting",
    };
    row("state", state.to_owned());
    row("process", format!("{}, {}", status.pid, status.accelerator));
    row("up", format!("{:.1} s, {} restarts", status.uptime_ms as f64 / 1e3, status.restarts));
    let times: Vec<String> = status.vcpus.iter().map(|vcpu| format!("{:.2}", vcpu.cpu_ns as f64 / 1e9)).collect();
    row("vCPUs", format!("{}: {} s of processor time", times.len(), times.join(" + ")));
    let memory = &status.memory;
    row("RAM", format!("{}, {} resident on the host", mib(memory.ram_bytes), mib(memory.resident_bytes)));
    let balloon = &memory.balloon;
    row("balloon", format!("{} of {} wanted", mib(balloon.actual_bytes), mib(balloon.target_bytes)));
    if let Some(hotplug) = &memory.hotplug {
        let (plugged, wanted) = (mib(hotplug.plugged_bytes), mib(hotplug.requested_bytes));
        row("hot-plugged", format!("{plugged} of {wanted} wanted, at most {}", mib(hotplug.max_bytes)));
    }
    if let Some(guest) = &memory.guest {
        let known = |bytes: Option<u64>| bytes.map_or("?".to_owned(), mib);
        let (total, free) = (known(guest.total_bytes), known(guest.free_bytes));
        row("guest's view", format!("{free} free, {} available of {total}", known(guest.available_bytes)));
    }
    for limit in &status.limits {
        row(&limit.device, format!("{}, {} waits", limit_text(&limit.limit), limit.waits));
    }
    out
}

fn limit_text(limit: &RateLimit) -> String {
    let rate = |rate: &Option<Rate>, unit: &str, number: fn(u64) -> String| {
        rate.map(|rate| format!("{} {unit} (burst {})", number(rate.per_second), number(rate.burst)))
    };
    let bytes = rate(&limit.bytes, "a second", mib);
    let requests = rate(&limit.requests, "requests a second", |count| count.to_string());
    let parts: Vec<String> = bytes.into_iter().chain(requests).collect();
    if parts.is_empty() { "no limit".to_owned() } else { parts.join(", ") }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
