//! The same guest between two QEMUs, by QMP.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::LIMIT;
use super::migration::Move;
use crate::payload::{self, Writer};

/// How long a QEMU may try: one that does not converge never ends by itself.
const MOVE_LIMIT: Duration = Duration::from_secs(20);

/// Moves the guest; with `channels`, over so many connections (multifd).
pub(super) fn migrate(writer: &Writer, channels: u32) -> Result<Move> {
    let folder = tempfile::tempdir()?;
    let kernel = payload::write_program(folder.path(), "writer", &writer.code()?)?;
    let mut source = Qemu::start(folder.path(), "source", &kernel, writer, &[])?;
    let mut target = Qemu::start(folder.path(), "target", &kernel, writer, &["-incoming", "defer"])?;
    source.hears()?;
    for qemu in [&mut source, &mut target] {
        if channels > 0 {
            let on = json!([{ "capability": "multifd", "state": true }]);
            qemu.ask("migrate-set-capabilities", json!({ "capabilities": on }))?;
            qemu.ask("migrate-set-parameters", json!({ "multifd-channels": channels }))?;
        }
        // As much as the host can.
        qemu.ask("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))?;
    }
    let address = format!("unix:{}", folder.path().join("move").display());
    target.ask("migrate-incoming", json!({ "uri": address }))?;
    source.ask("migrate", json!({ "uri": address }))?;
    let start = Instant::now();
    loop {
        let told = source.ask("query-migrate", json!({}))?;
        let number = |of: &Value, name: &str| of[name].as_f64().unwrap_or_default();
        match told["status"].as_str() {
            Some("completed") => {
                let sent_mib = number(&told["ram"], "transferred") / f64::from(1 << 20);
                return Ok(Move { total: number(&told, "total-time"), gap: number(&told, "downtime"), sent_mib });
            }
            Some("failed" | "cancelled") => bail!("does not move: {told}"),
            _ if start.elapsed() > MOVE_LIMIT => bail!("does not come to an end within {MOVE_LIMIT:?}"),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

struct Qemu {
    child: Child,
    answers: BufReader<UnixStream>,
}

impl Qemu {
    fn start(folder: &Path, name: &str, kernel: &Path, writer: &Writer, more: &[&str]) -> Result<Qemu> {
        let socket: PathBuf = folder.join(name);
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-M",
            "q35",
            "-cpu",
            "max",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        command.args(["-serial", "stdio", "-m", &writer.ram_mib.to_string(), "-kernel"]).arg(kernel);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display())).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let child = child.context("no qemu-system-x86_64")?;
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > LIMIT => return Err(error).context("qemu does not answer"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut qemu = Qemu { child, answers: BufReader::new(stream) };
        qemu.line()?;
        qemu.ask("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    /// Waits until the guest has filled its memory, and reads on, so that it never waits.
    fn hears(&mut self) -> Result<()> {
        let mut output = self.child.stdout.take().context("qemu has no output")?;
        output.read_exact(&mut [0])?;
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let question = json!({ "execute": command, "arguments": arguments });
        self.answers.get_mut().write_all(question.to_string().as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if !answer["error"].is_null() {
                bail!("{command}: {}", answer["error"]["desc"]);
            }
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("qemu has ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
