//! The daemon's process.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use queztl_control::api::{Certificate, Limits, Listen, ServeConfig, Server};
use queztl_control::{Config, Manager};
use tokio::signal::unix::{SignalKind, signal};

use super::notify;
use super::place::Place;
use crate::cli::ServeArgs;
use crate::report::{Failure, chain};
use crate::status::Status;

/// For work in threads when the daemon ends.
const LAST_WORK: Duration = Duration::from_secs(3);

/// Serves until it is told to end, by SIGTERM or SIGINT. Machines run on.
pub fn run(place: &Place, args: ServeArgs) -> Result<Status, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("daemon").build();
    let runtime = runtime.map_err(|error| Failure::host(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(serve(place, args));
    // What still runs in threads, such as the build of a guest kernel, would hold the end up for minutes; the next daemon
    // finishes or undoes it.
    runtime.shutdown_timeout(LAST_WORK);
    result
}

async fn serve(place: &Place, args: ServeArgs) -> Result<Status, Failure> {
    // Heard from now on, so that an early signal is not lost.
    let ended = ended()?;
    let telemetry = telemetry(place, args.config.as_deref())?;
    let mut config = Config::new(&place.home).map_err(|error| {
        Failure::host(format!("this program does not find itself, which is to run machines: {error}"))
    })?;
    config.telemetry = telemetry;
    // The manager's lock tells a second daemon that there is one; so it comes before the socket.
    let manager = Arc::new(Manager::open(config).await.map_err(|error| Failure::host(chain(&error)))?);
    let server = Server::bind(manager.clone(), config_of(place, args)?).await;
    let server = server.map_err(|error| Failure::host(chain(&error)))?;
    tracing::info!(socket = %place.socket.display(), tcp = ?server.tcp_addresses(), "serving");
    notify::ready();
    server.run(ended).await;
    notify::stopping();
    manager.close().await;
    tracing::info!("ended; machines run on");
    Ok(Status::Success)
}

/// What is looked for, and who is told.
fn telemetry(place: &Place, file: Option<&Path>) -> Result<queztl_telemetry::Config, Failure> {
    let config = match file {
        Some(file) => queztl_telemetry::Config::read(file),
        None => queztl_telemetry::Config::read_if_there(&place.home.join("daemon.toml")),
    };
    config.map_err(|error| Failure::usage(error.to_string()))
}

/// Is over when the process is asked to end.
fn ended() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::host(format!("cannot listen for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn config_of(place: &Place, args: ServeArgs) -> Result<ServeConfig, Failure> {
    let certificate = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => Certificate::Files { certificate, key },
        _ => Certificate::SelfSigned { directory: place.home.join("tls") },
    };
    let mut listeners = Vec::new();
    if is_activated() {
        listeners.push(Listen::Activated { certificate: Some(certificate.clone()) });
    } else {
        make_folder_of(&place.socket)?;
        listeners.push(Listen::Unix { path: place.socket.clone(), group: args.group });
    }
    let tls = |address| Listen::Tls { address, certificate: certificate.clone() };
    listeners.extend(args.listen.into_iter().map(tls));
    Ok(ServeConfig { listeners, limits: Limits::default(), dashboard: Some(place.home.join("dashboard.json")) })
}

/// Whether a service manager has opened the sockets (`sd_listen_fds(3)`).
fn is_activated() -> bool {
    let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    pid == Some(std::process::id()) && std::env::var_os("LISTEN_FDS").is_some()
}

/// The socket's folder; who may enter it is for the socket's own mode to say.
fn make_folder_of(socket: &Path) -> Result<(), Failure> {
    let Some(folder) = socket.parent().filter(|folder| !folder.exists()) else { return Ok(()) };
    let made = fs::create_dir_all(folder.parent().unwrap_or(folder))
        .and_then(|()| DirBuilder::new().mode(0o755).recursive(true).create(folder));
    made.map_err(|error| Failure::host(format!("cannot make {}: {error}", folder.display())))
}
