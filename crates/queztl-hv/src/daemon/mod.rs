//! `queztl-hv daemon`: the daemon itself, and a look at it.
//!
//! Without a sub-command this process becomes the daemon. It is started by hand, by systemd, or by the first command that
//! needs it ([`autostart`]). Virtual machines are processes of their own: they outlive it, and the next one finds them again.

pub mod autostart;
mod notify;
pub mod place;
mod serve;

use std::time::{Duration, Instant};

use queztl_api::Info;
use queztl_client::{Address, Client, Options};
use serde::Serialize;

use crate::cli::{DaemonCommand, DaemonRunArgs, OutputFormat};
use crate::output::{self, Show, table};
use crate::report::{Failure, chain};
use crate::status::Status;
use place::Place;

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Executes a `daemon` command.
pub fn execute(args: DaemonRunArgs) -> Result<Status, Failure> {
    let place = Place::find()?;
    match args.command {
        None => serve::run(&place, args.serve),
        Some(DaemonCommand::Status { output }) => status(&place, output.format),
        Some(DaemonCommand::Stop) => stop(&place).map(|_| Status::Success),
        Some(DaemonCommand::Restart) => {
            stop(&place)?;
            autostart::ensure(&place).map(|()| Status::Success)
        }
    }
}

/// A daemon, as `daemon status` shows it.
#[derive(Debug, Serialize)]
struct Daemon {
    running: bool,
    address: String,
    home: String,
    log: String,
    #[serde(flatten)]
    info: Option<Info>,
}

impl Show for Daemon {
    fn table(&self, _wide: bool) -> String {
        let state = if self.running { "running" } else { "not running: the next command that needs it starts it" };
        let mut fields = vec![("daemon", state.to_owned())];
        if let Some(info) = &self.info {
            fields.push(("version", info.version.clone()));
            fields.push(("process", info.pid.to_string()));
            let usable = info.accelerators.iter().filter(|accelerator| accelerator.usable);
            fields.push(("accelerators", usable.map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")));
        }
        fields.extend([("address", self.address.clone()), ("home", self.home.clone()), ("log", self.log.clone())]);
        table::fields(&fields)
    }

    fn names(&self) -> Vec<String> {
        vec![self.address.clone()]
    }
}

/// Shows whether it runs; the status tells too.
fn status(place: &Place, format: OutputFormat) -> Result<Status, Failure> {
    let running = autostart::listens(&place.socket)?;
    let daemon = Daemon {
        running,
        address: Address::Unix(place.socket.clone()).to_string(),
        home: place.home.display().to_string(),
        log: place.log().display().to_string(),
        info: if running { Some(info(place)?) } else { None },
    };
    let printed = output::print(&daemon, format)?;
    Ok(if running { printed } else { Status::Failure })
}

fn info(place: &Place) -> Result<Info, Failure> {
    let client = Client::new(Address::Unix(place.socket.clone()), Options::default());
    let client = client.map_err(|error| Failure::host(chain(&error)))?;
    let info = crate::verbs::runtime()?.block_on(client.info());
    info.map_err(|error| Failure::host(chain(&error)))
}

/// Ends it, if it runs, and waits until it has.
fn stop(place: &Place) -> Result<(), Failure> {
    if !autostart::listens(&place.socket)? {
        return Ok(());
    }
    let pid = i32::try_from(info(place)?.pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::host("the daemon does not know its own process"))?;
    let failed = |error| Failure::host(format!("cannot end the daemon (process {pid:?}): {error}"));
    // The descriptor stands for this process alone, even if it ends and its number is given to another.
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(failed)?;
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::TERM).map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Ok(0) => return Err(Failure::host(format!("the daemon does not end; see {}", place.log().display()))),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
