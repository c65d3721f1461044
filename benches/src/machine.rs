//! The machines that are compared, and how guests run on them.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

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
    /// Ours without its translator, one vCPU
    Interpreter,
    /// Ours on KVM, one vCPU
    Kvm,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |v| v.get_name()))
    }
}

/// What a guest boots and does.
#[derive(Debug, Clone)]
pub struct Boot<'a> {
    /// An ELF kernel.
    pub kernel: &'a Path,
    /// The small root file system with what the script needs.
    pub initramfs: &'a Path,
    /// Shell commands, without double quotes; the guest powers off after them.
    pub script: &'a str,
    /// RAM in MiB.
    pub ram_mib: u32,
    /// Number of vCPUs; the machine's own unless given.
    pub vcpus: Option<u32>,
    /// A raw disk image, `/dev/vda`.
    pub disk: Option<&'a Path>,
    /// More for the kernel's command line.
    pub append: &'a str,
}

/// What a guest did.
#[derive(Debug, Clone)]
pub struct Run {
    /// From the start of the process to the first command.
    pub boot: Duration,
    /// From the first command to the last.
    pub took: Duration,
    /// What the serial console showed.
    pub output: String,
}

impl Machine {
    /// How many vCPUs it has unless told.
    pub fn vcpus(self) -> u32 {
        if matches!(self, Machine::Tcg2 | Machine::Soft2) { 2 } else { 1 }
    }

    /// Runs a guest to the end of its script, for `limit` at the longest.
    ///
    /// # Errors
    /// The host is no guest; the machine does not start, does not come up or does not finish.
    pub fn run(self, queztl: &Path, boot: &Boot<'_>, limit: Duration) -> Result<Run> {
        run_guest(self.command(queztl, boot)?, limit)
    }

    fn command(self, queztl: &Path, boot: &Boot<'_>) -> Result<Command> {
        // `stty` waits until the serial line has sent everything; the end of the session would drop the rest.
        let script = format!("echo {READY}; {}; echo {DONE}; stty -echo", boot.script);
        let append = format!("console=ttyS0 quiet queztl.net=off {} queztl.run=\"{script}\"", boot.append);
        let vcpus = boot.vcpus.unwrap_or(self.vcpus()).to_string();
        let mut command = match self {
            Machine::Host => bail!("the host runs no guest"),
            Machine::Tcg | Machine::Tcg2 => {
                let thread = if self == Machine::Tcg { "tcg,thread=single" } else { "tcg,thread=multi" };
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-accel", thread, "-cpu", "max", "-m", &boot.ram_mib.to_string(), "-smp", &vcpus]);
                command.args(["-nographic", "-no-reboot", "-display", "none", "-nic", "none", "-append", &append]);
                command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(boot.initramfs);
                if let Some(disk) = boot.disk {
                    command.arg("-blockdev").arg(format!("driver=file,node-name=disk,filename={}", disk.display()));
                    // The small kernel knows virtio's register pages only, which this machine has.
                    command.args(["-machine", "microvm", "-device", "virtio-blk-device,drive=disk"]);
                }
                command
            }
            Machine::Soft | Machine::Soft2 | Machine::Interpreter | Machine::Kvm => {
                let accel = match self {
                    Machine::Kvm => "kvm",
                    Machine::Interpreter => "soft,translator=off",
                    _ => "soft",
                };
                let mut command = Command::new(queztl);
                command.args(["run", "--accel", accel, "--ram", &format!("{}M", boot.ram_mib), "--vcpus", &vcpus]);
                command.args(["--serial", "stdio", "--append", &append]);
                command.arg("--kernel").arg(boot.kernel).arg("--initrd").arg(boot.initramfs);
                if let Some(disk) = boot.disk {
                    command.arg("--disk").arg(disk);
                }
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
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

/// Runs a guest until it says that it is done.
fn run_guest(mut command: Command, limit: Duration) -> Result<Run> {
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
    Ok(Run { boot: ready - start, took: ready.elapsed(), output })
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
