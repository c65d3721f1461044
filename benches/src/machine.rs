//! The machines that are compared, and how the programs run on them.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::Arguments;
use crate::image::Image;
use crate::results::{self, Column};

/// Printed by the guest when it is up, before the first benchmark.
const READY: &str = "bench-ready";
/// Printed by the guest when all is done.
const DONE: &str = "bench-done";
/// Lines of guest output that are kept.
const MAX_LINES: usize = 100_000;

/// Where the programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// The host's own processor
    Host,
    /// QEMU's software CPU, one vCPU
    Tcg,
    /// QEMU's software CPU, two vCPUs on two threads
    #[value(name = "tcg-2")]
    Tcg2,
    /// Ours, one vCPU
    Soft,
    /// Ours, two vCPUs
    #[value(name = "soft-2")]
    Soft2,
    /// Ours on KVM, one vCPU
    Kvm,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |v| v.get_name()))
    }
}

/// Runs everything on one machine.
pub fn measure(m: Machine, queztl: &Path, image: &Image, arguments: &Arguments, limit: Duration) -> Result<Column> {
    let names = arguments.names.join(" ");
    let mut script = format!("cpubench -r {} {names}", arguments.repeats);
    if arguments.check {
        script.push_str("; cpucheck");
    }
    if m == Machine::Host {
        let output = on_host(image, arguments)?;
        return Ok(Column {
            machine: m,
            figures: results::figures(&output),
            checks: results::checks(&output),
            boot: None,
        });
    }
    let mut boots = Vec::new();
    for _ in 0..arguments.boots {
        boots.push(run_guest(command(m, queztl, image, "true"), limit)?.0);
    }
    boots.sort();
    let (_, output) = run_guest(command(m, queztl, image, &script), limit)?;
    let figures = results::figures(&output);
    if figures.is_empty() {
        bail!("the guest printed no figures:\n{output}");
    }
    Ok(Column { machine: m, figures, checks: results::checks(&output), boot: boots.get(boots.len() / 2).copied() })
}

fn on_host(image: &Image, arguments: &Arguments) -> Result<String> {
    let mut command = Command::new(&image.cpubench);
    command.arg("-r").arg(arguments.repeats.to_string()).args(&arguments.names);
    let mut text = output_of(command)?;
    if arguments.check {
        text.push_str(&output_of(Command::new(&image.cpucheck))?);
    }
    Ok(text)
}

fn output_of(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed on the host: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(machine: Machine, queztl: &Path, image: &Image, script: &str) -> Command {
    // `stty` waits until the serial line has sent everything; the end of the session would drop the rest.
    let script = format!("echo {READY}; {script}; echo {DONE}; stty -echo");
    let append = format!("console=ttyS0 quiet queztl.net=off queztl.run=\"{script}\"");
    let vcpus = if matches!(machine, Machine::Tcg2 | Machine::Soft2) { "2" } else { "1" };
    let mut command = match machine {
        Machine::Tcg | Machine::Tcg2 => {
            let thread = if machine == Machine::Tcg { "tcg,thread=single" } else { "tcg,thread=multi" };
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-accel", thread, "-cpu", "max", "-m", "512", "-smp", vcpus]);
            command.args(["-nographic", "-no-reboot", "-display", "none", "-nic", "none"]);
            command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs).args(["-append", &append]);
            command
        }
        Machine::Host | Machine::Soft | Machine::Soft2 | Machine::Kvm => {
            let accel = if machine == Machine::Kvm { "kvm" } else { "soft" };
            let mut command = Command::new(queztl);
            command.args(["run", "--accel", accel, "--ram", "512M", "--vcpus", vcpus, "--serial", "stdio"]);
            command.arg("--kernel").arg(&image.kernel).arg("--initrd").arg(&image.initramfs);
            command.args(["--append", &append]);
            command
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Kills the machine, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a guest until it says that it is done; returns the time it took to be ready, and its output.
fn run_guest(mut command: Command, limit: Duration) -> Result<(Duration, String)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = Running(command.spawn().with_context(|| format!("cannot start {name}"))?);
    let (sender, lines) = channel();
    if let Some(output) = child.0.stdout.take() {
        thread::spawn(move || {
            // A line that is no text is no figure; the end of the output ends the thread.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send((Instant::now(), String::from_utf8_lossy(&line).into_owned())).is_err() {
                    break;
                }
            }
        });
    }
    let (ready, output) = collect(&lines, start + limit);
    let Some(ready) = ready else {
        drop(child.0.kill());
        let mut errors = String::new();
        if let Some(pipe) = child.0.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut std::io::Read::take(pipe, 1 << 16), &mut errors);
        }
        bail!("{name} did not come up; it printed:\n{output}{errors}");
    };
    if !output.lines().any(|line| line.trim_end().ends_with(DONE)) {
        bail!("{name} did not finish; it printed:\n{output}");
    }
    Ok((ready - start, output))
}

/// Collects lines until the guest is done, its output ends or the deadline has come.
fn collect(lines: &Receiver<(Instant, String)>, deadline: Instant) -> (Option<Instant>, String) {
    let mut ready = None;
    let mut output = String::new();
    for _ in 0..MAX_LINES {
        let (at, line) = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        };
        let line = line.trim_end();
        // Firmware may have left the cursor in the line.
        if ready.is_none() && line.ends_with(READY) {
            ready = Some(at);
        }
        output.push_str(line);
        output.push('\n');
        if line.ends_with(DONE) {
            break;
        }
    }
    (ready, output)
}
