//! Monitors that run the [`crate::payload`]: ours and QEMU's, as lean as each can be started.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::payload;

/// RAM of the guest, MiB.
pub const RAM_MIB: u32 = 128;

/// How QEMU is told to make guest RAM, so that its mapping can be told from the monitor's own memory.
const QEMU_RAM: &str = "memory-backend-memfd,id=guest-ram,size=128M";

/// A monitor with an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Monitor {
    /// Ours, software CPU
    Soft,
    /// The same without filters of system calls
    SoftUnfiltered,
    /// Ours on KVM
    Kvm,
    /// QEMU's microvm on KVM
    QemuKvm,
    /// QEMU's microvm with its software CPU
    QemuTcg,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Monitor::Soft => "queztl-hv soft",
            Monitor::SoftUnfiltered => "queztl-hv soft, unfiltered",
            Monitor::Kvm => "queztl-hv kvm",
            Monitor::QemuKvm => "qemu kvm",
            Monitor::QemuTcg => "qemu tcg",
        })
    }
}

impl Monitor {
    /// Whether it is one of ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Monitor::Soft | Monitor::SoftUnfiltered | Monitor::Kvm)
    }

    /// The peer that does the same work.
    pub fn peer(self) -> Option<Monitor> {
        match self {
            Monitor::Soft | Monitor::SoftUnfiltered => Some(Monitor::QemuTcg),
            Monitor::Kvm => Some(Monitor::QemuKvm),
            Monitor::QemuKvm | Monitor::QemuTcg => None,
        }
    }

    fn command(self, queztl: &Path, kernel: &Path) -> Command {
        let mut command = match self {
            Monitor::Soft | Monitor::SoftUnfiltered | Monitor::Kvm => {
                let mut command = Command::new(queztl);
                let accel = if self == Monitor::Kvm { "kvm" } else { "soft" };
                let seccomp = if self == Monitor::SoftUnfiltered { "off" } else { "on" };
                command.args(["run", "--seccomp", seccomp]);
                command.args(["--accel", accel, "--ram", &format!("{RAM_MIB}M"), "--kernel"]).arg(kernel);
                command
            }
            Monitor::QemuKvm | Monitor::QemuTcg => {
                let mut command = Command::new("qemu-system-x86_64");
                let accel = if self == Monitor::QemuKvm { "kvm" } else { "tcg" };
                command.args(["-M", "microvm,memory-backend=guest-ram", "-object", QEMU_RAM, "-accel", accel]);
                command.args(["-m", &RAM_MIB.to_string(), "-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-serial", "stdio", "-kernel"]).arg(kernel);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// Starts the guest and waits for its byte, for `limit` at the longest.
    ///
    /// # Errors
    /// The monitor does not start, or the byte does not come.
    pub fn start(self, queztl: &Path, kernel: &Path, limit: Duration) -> Result<Running> {
        let mut command = self.command(queztl, kernel);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {self}"))?;
        let output = child.stdout.take();
        let mut running = Running { child, to_first_byte: Duration::ZERO };
        let mut output = output.with_context(|| format!("{self} has no output"))?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            let came = output.read_exact(&mut byte).is_ok() && byte[0] == payload::BYTE;
            // The receiver has gone if it took too long; the pipe stays open, so that the monitor has a reader.
            let _ = sender.send((came, Instant::now(), output));
        });
        match receiver.recv_timeout(limit) {
            Ok((true, at, _)) => running.to_first_byte = at - start,
            Ok(_) => bail!("{self} ended before the guest wrote its byte"),
            Err(_) => bail!("{self}: the guest wrote no byte within {limit:?}"),
        }
        Ok(running)
    }
}

/// A monitor whose guest has written its byte and sleeps. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// From the start of the process.
    pub to_first_byte: Duration,
}

impl Running {
    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The middle of the values, if there are any.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn a_monitor_that_ends_early_is_told() {
        let error =
            Monitor::Soft.start(Path::new("/bin/true"), Path::new("kernel"), Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("ended before"), "{error}");
    }
}
