//! The machines on which guests run.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Report;

/// Bytes of guest output that are kept; a guest that prints without end must not fill the host's memory.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// What runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// `queztl-hv` with this accelerator (the argument of `--accel`).
    Queztl {
        /// The program.
        program: PathBuf,
        /// `soft`, `soft,clock=instructions`, `kvm`, …
        accel: String,
    },
    /// QEMU's software CPU, to check the guests themselves.
    Qemu,
}

/// A guest could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program does not start.
    #[error("{program} does not start: {source}")]
    Start {
        /// The machine's program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The machine was killed after this time.
    #[error("the guest did not end within {limit:?}; its output:\n{output}")]
    Timeout {
        /// The time it had.
        limit: Duration,
        /// What it had printed.
        output: String,
    },
    /// Waiting for the machine failed.
    #[error("the machine could not be waited for: {0}")]
    Wait(io::Error),
}

impl Machine {
    /// The machine that the environment asks for: `QUEZTL_TEST_MACHINE=qemu` for QEMU, else `program` with the
    /// accelerator of `QUEZTL_TEST_ACCEL` (default `soft`).
    pub fn from_environment(program: &Path) -> Machine {
        if env::var_os("QUEZTL_TEST_MACHINE").as_deref() == Some(OsStr::new("qemu")) {
            return Machine::Qemu;
        }
        let accel = env::var("QUEZTL_TEST_ACCEL").unwrap_or_else(|_| "soft".to_owned());
        Machine::Queztl { program: program.to_owned(), accel }
    }

    /// Runs the guest `image` with 64 MiB of RAM until it writes its verdict to the debug exit port, for `limit` at the
    /// longest.
    pub fn run(&self, image: &Path, vcpus: u32, limit: Duration) -> Result<Report, RunError> {
        let mut command = self.command(image, vcpus);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| RunError::Start { program, source })?;
        let outputs = [collect(child.stdout.take()), collect(child.stderr.take())];
        let deadline = Instant::now() + limit;
        let status = loop {
            match child.try_wait().map_err(RunError::Wait)? {
                Some(status) => break Some(status),
                None if Instant::now() >= deadline => break None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            child.kill().and_then(|()| child.wait().map(drop)).map_err(RunError::Wait)?;
        }
        let output = outputs.map(|o| o.join().unwrap_or_default()).concat();
        match status {
            Some(status) => Ok(Report::parse(status.code(), &output)),
            None => Err(RunError::Timeout { limit, output }),
        }
    }

    fn command(&self, image: &Path, vcpus: u32) -> Command {
        match self {
            Machine::Queztl { program, accel } => {
                let mut command = Command::new(program);
                command.args(["run", "--debug-exit", "0xf4", "--serial", "stdio", "--ram", "64M", "--accel", accel]);
                command.args(["--append", "machine=queztl", "--vcpus", &vcpus.to_string(), "--kernel"]).arg(image);
                command
            }
            Machine::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-accel", "tcg", "-cpu", "max", "-m", "64", "-smp", &vcpus.to_string()]);
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-append", "machine=qemu"]);
                command.args(["-nographic", "-no-reboot", "-display", "none", "-kernel"]).arg(image);
                command
            }
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // An error ends the output early; what has come is what there is to report. The rest is drained so that
            // the machine does not block on a full pipe.
            let _ = pipe.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_does_not_end_is_killed_at_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("machine");
        std::fs::write(&program, "#!/bin/sh\necho ok one\nexec sleep 100\n").unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&program).status().unwrap();
        let machine = Machine::Queztl { program, accel: "soft".into() };
        let end = machine.run(Path::new("image"), 1, Duration::from_millis(300));
        assert!(matches!(end, Err(RunError::Timeout { .. })), "{end:?}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let machine = Machine::Queztl { program: PathBuf::from("/nonexistent/queztl-hv"), accel: "soft".into() };
        let error = machine.run(Path::new("image"), 1, Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/queztl-hv"), "{error}");
    }
}
