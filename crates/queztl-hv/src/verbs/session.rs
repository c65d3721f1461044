//! The connection of a verb with its daemon.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use queztl_api::{Code, Vm, VmState};
use queztl_client::{Address, Client, Error, Options};
use tokio::runtime::{Builder, Runtime};

use crate::cli::DaemonArgs;
use crate::daemon::autostart;
use crate::daemon::place::Place;
use crate::output::text::word;
use crate::report::{Failure, chain};

/// A runtime of this thread alone.
///
/// # Errors
/// The host has no descriptors left.
pub fn runtime() -> Result<Runtime, Failure> {
    let built = Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::host(format!("cannot start: {error}")))
}

/// The daemon that a verb talks to.
#[derive(Debug)]
pub struct Session {
    pub client: Client,
    /// The daemon's home, if it is this user's own.
    home: Option<PathBuf>,
}

impl Session {
    /// The daemon that is asked for, or this user's own, which is started if it does not run.
    ///
    /// # Errors
    /// An address or token that cannot be; a daemon that cannot be started.
    pub fn new(args: &DaemonArgs) -> Result<Session, Failure> {
        let session = Session::without_start(args)?;
        if session.home.is_some() {
            autostart::ensure(&Place::find()?)?;
        }
        Ok(session)
    }

    /// The same without starting anything.
    ///
    /// # Errors
    /// As for [`Session::new`].
    pub fn without_start(args: &DaemonArgs) -> Result<Session, Failure> {
        let given = args.address.clone().or_else(|| variable("QUEZTL_ADDRESS"));
        let (address, home) = match given {
            Some(text) => (text.parse::<Address>().map_err(Failure::usage)?, None),
            None => {
                let place = Place::find()?;
                (Address::Unix(place.socket), Some(place.home))
            }
        };
        let authority = args.ca.clone().or_else(|| variable("QUEZTL_CA").map(PathBuf::from));
        let options = Options { token: token(args.token_file.as_deref())?, authority, ..Options::default() };
        let client = Client::new(address, options).map_err(failure)?;
        Ok(Session { client, home })
    }

    /// Looks who is there. A daemon of another version is told, not refused: the version of the API is in its paths.
    ///
    /// # Errors
    /// Nobody is there, or not for us.
    pub async fn greet(&self) -> Result<(), Failure> {
        let info = self.client.info().await.map_err(failure)?;
        if info.version != env!("CARGO_PKG_VERSION") {
            eprintln!(
                "queztl-hv: warning: the daemon is of version {}, this is {}: queztl-hv daemon restart starts the new one",
                info.version,
                env!("CARGO_PKG_VERSION")
            );
        }
        Ok(())
    }

    /// The machine, if it runs.
    ///
    /// # Errors
    /// There is none, or it does not run; what to do.
    pub async fn running(&self, vm: &str) -> Result<Vm, Failure> {
        let vm = self.client.vm(vm).await.map_err(failure)?;
        let name = &vm.name;
        match vm.state {
            VmState::Running | VmState::Starting => Ok(vm),
            VmState::Paused => Err(Failure::usage(format!("{name} is paused: queztl-hv resume {name} lets it go on"))),
            state => {
                let state = word(&state);
                Err(Failure::usage(format!("{name} does not run ({state}): queztl-hv start {name} starts it")))
            }
        }
    }

    /// The names of machines by their identifiers.
    ///
    /// # Errors
    /// The daemon does not tell.
    pub async fn names(&self) -> Result<HashMap<String, String>, Failure> {
        let vms = self.client.vms().await.map_err(failure)?;
        Ok(vms.into_iter().map(|vm| (vm.id, vm.name.to_string())).collect())
    }

    /// The daemon's home, if it is this user's own.
    pub fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// The virtio sockets of a machine of this host that this user can reach.
    pub fn vsock(&self, id: &str) -> Option<PathBuf> {
        // An identifier comes from the daemon and names one folder.
        let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let path = self.home.as_ref()?.join("vms").join(id).join("vsock.sock");
        (is_name && rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_ok()).then_some(path)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(path) = file else { return Ok(variable("QUEZTL_TOKEN")) };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Failure::usage(format!("cannot read the token in {}: {error}", path.display())))?;
    Ok(Some(text.trim().to_owned()))
}

/// What the daemon or the connection says, with the status that it deserves.
pub fn failure(error: Error) -> Failure {
    let by_user = match &error {
        Error::Problem(problem) => return of_problem(problem),
        Error::Address(_) | Error::Token | Error::Certificates { .. } => true,
        _ => false,
    };
    let text = chain(&error);
    if by_user { Failure::usage(text) } else { Failure::host(text) }
}

/// What lists the things of the kind that there is none of.
fn who_knows(detail: &str) -> &'static str {
    let lists = [
        ("virtual machine", "; queztl-hv list shows those there are"),
        ("image", "; queztl-hv image list shows those there are"),
        ("snapshot", "; queztl-hv snapshots VM shows those there are"),
        ("operation", "; queztl-hv operations shows those of the last day"),
        ("token", "; queztl-hv token list shows those there are"),
        ("node", "; queztl-hv node list shows those there are"),
    ];
    let kind = detail.strip_prefix("there is no ").unwrap_or_default();
    lists.iter().find(|(name, _)| kind.starts_with(name)).map_or("", |(_, hint)| hint)
}

/// A refusal: wrong wishes are the user's to mend, the rest is the host's.
pub fn of_problem(problem: &queztl_api::Problem) -> Failure {
    match problem.code {
        Code::Busy | Code::Host | Code::Timeout | Code::Internal => Failure::host(problem),
        Code::Cancelled => Failure::stopped(problem),
        Code::NotFound => Failure::usage(format!("{problem}{}", who_knows(&problem.detail))),
        Code::Unauthenticated => {
            // The daemon tells how a token is sent; who types needs to know where to put it.
            Failure::usage(format!(
                "{}: give a token in QUEZTL_TOKEN or with --token-file; queztl-hv token create on the daemon's host makes one",
                problem.title
            ))
        }
        _ => Failure::usage(problem),
    }
}
