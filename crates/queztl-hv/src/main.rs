//! `queztl-hv`: runs Linux virtual machines from the command line.
//!
//! Every command ends with a documented exit status ([`status`]) and, when it fails, one line on standard error
//! ([`report`]).

mod cli;
mod control;
mod daemon;
mod doctor;
mod guest;
mod image;
mod kernel;
mod output;
mod report;
mod run;
mod status;
mod topology;
mod values;
mod verbs;
mod vmm;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use clap_complete::env::{CompleteEnv, Shells};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use cli::{Cli, Command};
use report::Failure;
use status::Status;

/// Set by the completion scripts, to the shell's name.
const COMPLETE: &str = "QUEZTL_COMPLETE";

fn main() -> ExitCode {
    let started = Instant::now();
    // A machine that this process may run has to know the host's counter, and the sooner this begins the less it waits.
    queztl_vmm::clock::start_measuring();
    if std::env::var_os(COMPLETE).is_some() {
        // A shell asks what could follow; it is answered and the process ends here.
        CompleteEnv::with_factory(Cli::command).var(COMPLETE).complete();
    }
    let status = match Cli::try_parse() {
        Ok(cli) => execute(cli, started).unwrap_or_else(Failure::report),
        Err(error) if !error.use_stderr() => {
            // Help or version: clap knows whether standard output takes colours. A reader that went away is no failure.
            let _ = error.print();
            Status::Success
        }
        Err(error) => Failure::arguments(&error).report(),
    };
    status.into()
}

fn execute(mut cli: Cli, started: Instant) -> Result<Status, Failure> {
    if !cli::hand_down(cli.daemon, &mut cli.command) {
        let text = "this command goes through no daemon: leave out --address, --token-file and --ca";
        return Err(Failure::usage(text));
    }
    match cli.command {
        // It keeps its log elsewhere.
        Command::Vmm { .. } => {}
        Command::Daemon(_) => log_of_daemon(cli.verbose),
        _ => log_to_stderr(cli.verbose),
    }
    match cli.command {
        Command::Vmm { directory: Some(directory), lock_fd, .. } => vmm::run(&directory, lock_fd, cli.verbose, started),
        Command::Vmm { .. } => vmm::serve_as_zygote(cli.verbose),
        Command::Run(args) => run::run(*args, started),
        Command::Kernel { command } => kernel::execute(command),
        Command::Machine(command) => verbs::execute(command),
        Command::Daemon(args) => daemon::execute(args),
        Command::Image(args) => image::execute(args),
        Command::Control(args) => control::execute(args),
        Command::Exec(args) => verbs::exec(&args),
        Command::Copy(args) => verbs::copy(&args),
        Command::Doctor { output } => doctor::execute(output),
        Command::Completion { shell } => completion(shell).map(|script| print(&script)),
        Command::Man => manual().map(|page| print(&page)),
    }
}

/// The script that has a shell ask this program what could follow: names of machines and images too.
fn completion(shell: Shell) -> Result<String, Failure> {
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string()).ok_or_else(|| Failure::usage("the shell is not known"))?;
    let mut script = Vec::new();
    let written = completer.write_registration(COMPLETE, "queztl_hv", "queztl-hv", "queztl-hv", &mut script);
    written.map_err(|error| Failure::host(format!("cannot write the script: {error}")))?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// The manual page of the program, then those of its commands.
fn manual() -> Result<String, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    render_manual(&command, &mut page).map_err(|error| Failure::host(format!("cannot write the manual: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

fn render_manual(command: &clap::Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone()).render(page)?;
    command.get_subcommands().filter(|sub| sub.get_name() != "help").try_for_each(|sub| render_manual(sub, page))
}

/// Prints on standard output; false if nobody reads it any more.
fn try_print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Prints on standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Status {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Failure::host(format!("cannot write to standard output: {error}")).report()
        }
        _ => Status::Success,
    }
}

fn log_to_stderr(verbose: u8) {
    tracing_subscriber::registry().with(to_stderr(verbose, "")).init();
}

/// A daemon tells besides who has changed what, and sends its log to whoever collects it.
fn log_of_daemon(verbose: u8) {
    let export = queztl_telemetry::export::layer().with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(to_stderr(verbose, ",queztl::audit=info")).with(export).init();
}

fn to_stderr<S: tracing::Subscriber + for<'a> LookupSpan<'a>>(verbose: u8, more: &str) -> impl Layer<S> {
    let level = format!("{}{more}", ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))]);
    // RUST_LOG refines what -v asks for; a mistake in it must not stop a virtual machine.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_target(false)
        .compact()
        .with_filter(filter)
}
