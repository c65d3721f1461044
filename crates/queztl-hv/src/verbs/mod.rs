//! The verbs that go through the daemon: machines, snapshots, images of the store, operations, tokens.
//!
//! ```text
//! verb ──> session: address, token ──> daemon (started if it is this host's and does not run)
//!              │ request ──> operation ──> followed: progress on a terminal, quiet in a pipe
//!              └──> output: table, JSON, YAML, names
//! ```
//! Each verb about several machines asks for all of them at once and says one line for each that failed. Only these verbs
//! start a runtime; `queztl-hv run` has none.

mod alerts;
mod benchmarks;
mod clones;
mod console;
mod copy;
mod create;
mod dashboard;
mod events;
mod exec;
mod images;
mod keyboard;
mod lifecycle;
mod limits;
mod list;
mod migrate;
pub mod names;
mod nodes;
mod operations;
mod protection;
mod rows;
mod session;
mod snapshots;
mod tokens;
pub mod top;
mod wait;

pub use copy::copy;
pub use exec::exec;
pub use images::{Stored, in_store};
pub use session::{Session, runtime};

use clap::Args;

use crate::cli::{DaemonArgs, ImageStoreCommand, MachineCommand, Verb};
use crate::report::Failure;
use crate::status::Status;

/// Executes a verb.
pub fn execute(command: MachineCommand) -> Result<Status, Failure> {
    match command {
        MachineCommand::Spawn(verb) => with(*verb, async |session, args| create::spawn(session, args).await),
        MachineCommand::Create(verb) => with(*verb, async |session, args| create::create(session, args).await),
        MachineCommand::Start(verb) => with(verb, async |session, args| lifecycle::start(session, &args).await),
        MachineCommand::Stop(verb) => with(verb, async |session, args| lifecycle::stop(session, &args).await),
        MachineCommand::Kill(verb) => with(verb, async |session, args| lifecycle::kill(session, &args).await),
        MachineCommand::Pause(verb) => with(verb, async |session, args| lifecycle::pause(session, &args).await),
        MachineCommand::Resume(verb) => with(verb, async |session, args| lifecycle::resume(session, &args).await),
        MachineCommand::Reboot(verb) => with(verb, async |session, args| lifecycle::reboot(session, &args).await),
        MachineCommand::Delete(verb) => with(verb, async |session, args| lifecycle::delete(session, &args).await),
        MachineCommand::List(verb) => with(verb, async |session, args| list::list(session, &args).await),
        MachineCommand::Info(verb) => with(verb, async |session, args| list::info(session, &args).await),
        MachineCommand::Set(verb) => with(verb, async |session, args| limits::set(session, args).await),
        MachineCommand::Limits(verb) => with(*verb, async |session, args| limits::limits(session, args).await),
        MachineCommand::Console(verb) => with(verb, async |session, args| console::attach(session, &args).await),
        MachineCommand::Logs(verb) => with(verb, async |session, args| console::logs(session, &args).await),
        MachineCommand::Top(verb) => with(verb, async |session, args| top::top(session, &args).await),
        MachineCommand::Alerts(verb) => with(verb, async |session, args| alerts::alerts(session, &args).await),
        MachineCommand::Events(verb) => with(verb, async |session, args| events::events(session, &args).await),
        MachineCommand::Snapshot(verb) => with(verb, async |session, args| snapshots::snapshot(session, args).await),
        MachineCommand::Snapshots(verb) => with(verb, async |session, args| snapshots::list(session, &args).await),
        MachineCommand::Restore(verb) => with(verb, async |session, args| snapshots::restore(session, &args).await),
        MachineCommand::Migrate(verb) => with(verb, async |session, args| migrate::migrate(session, args).await),
        MachineCommand::Protect(verb) => with(verb, async |session, args| protection::protect(session, args).await),
        MachineCommand::Protection(verb) => {
            with(verb, async |session, args| protection::protection(session, &args).await)
        }
        MachineCommand::Unprotect(verb) => {
            with(verb, async |session, args| protection::unprotect(session, &args).await)
        }
        MachineCommand::Clone(verb) => with(verb, async |session, args| clones::clone(session, args).await),
        MachineCommand::Operations(verb) => {
            with(verb, async |session, args| operations::operations(session, args).await)
        }
        MachineCommand::Benchmark(verb) => {
            with(verb, async |session, args| benchmarks::benchmark(session, args.command).await)
        }
        MachineCommand::Dashboard(verb) => with(verb, async |session, args| dashboard::dashboard(session, &args).await),
        MachineCommand::Node(verb) => with(verb, async |session, args| nodes::node(session, args.command).await),
        MachineCommand::Token(verb) => with(verb, async |session, args| tokens::token(session, args.command).await),
    }
}

/// Executes an `image` command about the store.
pub fn images(command: ImageStoreCommand, daemon: &DaemonArgs) -> Result<Status, Failure> {
    with_daemon(daemon, async |session| images::execute(session, command).await)
}

/// The same for a command that takes files too, with names of the store.
pub fn stored(command: Stored, daemon: &DaemonArgs) -> Result<Status, Failure> {
    with_daemon(daemon, async |session| images::stored(session, command).await)
}

/// Runs a verb with its arguments and a session.
fn with<T: Args>(
    verb: Verb<T>,
    run: impl AsyncFnOnce(&Session, T) -> Result<Status, Failure>,
) -> Result<Status, Failure> {
    let Verb { args, daemon } = verb;
    with_daemon(&daemon, async |session| run(session, args).await)
}

/// Runs something with a session.
fn with_daemon(
    daemon: &DaemonArgs,
    verb: impl AsyncFnOnce(&Session) -> Result<Status, Failure>,
) -> Result<Status, Failure> {
    let session = Session::new(daemon)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        session.greet().await?;
        verb(&session).await
    });
    // A thread that waits for a key must not hold up the end.
    runtime.shutdown_background();
    result
}
