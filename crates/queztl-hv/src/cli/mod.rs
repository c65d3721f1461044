//! The command line: what can be asked, and how it explains itself.

mod control;
mod daemon;
mod image;
mod kernel;
mod machines;
mod node;
mod output;
mod protection;
mod run;

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};
use clap_complete::Shell;

pub use control::{ControlArgs, ControlCommand};
pub use daemon::{DaemonCommand, DaemonRunArgs, ServeArgs};
pub use image::{ImageArgs, ImageCommand, ImageStoreCommand};
pub use kernel::{KernelBuildArgs, KernelCommand, ProfileArg};
pub use machines::{
    AlertsArgs, BenchmarkCommand, CloneArgs, ConsoleArgs, CreateArgs, DaemonArgs, DashboardArgs, DeleteArgs,
    EventsArgs, InfoArgs, LeadingArgs, LimitsArgs, ListArgs, LogsArgs, MachineCommand, MigrateArgs, MigrationModeArg,
    OnCrashArg, OperationsArgs, OperationsCommand, PolicyArgs, RestoreArgs, ScopeArg, SetArgs, SnapshotArgs,
    SnapshotCommand, SnapshotsArgs, StopArgs, SuiteArg, TokenCommand, TopArgs, Verb, Vms, hand_down,
};
pub use node::NodeCommand;
pub use output::{OutputArg, OutputFormat};
pub use protection::{Interval, ProtectArgs, ProtectMode, ProtectionArgs, UnprotectArgs};
pub use run::RunArgs;

use crate::guest::{CopyArgs, ExecArgs};
use control::CONTROL_EXAMPLES;
use image::IMAGE_HELP;
use run::RUN_KEYS;

const EXIT_STATUSES: &str = "\
Exit statuses:
   0  the guest powered itself off, or the command succeeded
   2  the arguments are wrong, or a file they name cannot be used
   4  the host or the VMM failed
   6  the guest panicked
   8  triple fault in the guest
  10  the time given with --timeout is over
  12  stopped from outside: Ctrl-A x, SIGINT, SIGTERM or SIGHUP
  14  a thread made a system call that is not on its list, and the process was ended (--seccomp)
 odd  the guest wrote v to the --debug-exit port: the status is (v << 1) | 1, of which a host keeps eight bits";

const EXEC_STATUSES: &str = "\
Exit status: the command's; 125 if queztl-hv failed, 126 if the program cannot be run, 127 if there is none, 128 + n if
signal n ended it. Wrong arguments of queztl-hv itself: 2.

Examples:
  queztl-hv run --vsock /tmp/vm.vsock
  queztl-hv exec --vsock /tmp/vm.vsock -- uname -a
  queztl-hv exec --vsock /tmp/vm.vsock --tty -- sh";

/// Runs Linux virtual machines.
#[derive(Debug, Parser)]
#[command(name = "queztl-hv", version, about, after_help = EXIT_STATUSES, max_term_width = 120)]
pub struct Cli {
    /// Tell more on standard error: once for what is done, twice for debugging, thrice for everything
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 900)]
    pub verbose: u8,

    #[command(flatten)]
    pub daemon: LeadingArgs,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one virtual machine in the foreground, its console on the terminal
    #[command(after_help = RUN_KEYS, after_long_help = format!("{RUN_KEYS}\n\n{EXIT_STATUSES}"))]
    Run(Box<RunArgs>),

    #[command(flatten)]
    Machine(MachineCommand),

    /// Run the daemon that has the machines; other commands start it when they need it
    Daemon(DaemonRunArgs),

    /// Build guest kernels and list them
    Kernel {
        #[command(subcommand)]
        command: KernelCommand,
    },

    /// Make, describe, check, convert and resize disk images: files, and images of the daemon's store
    #[command(after_help = IMAGE_HELP)]
    Image(ImageArgs),

    /// Look at a running virtual machine and change it, through the socket of `run --control`
    #[command(after_help = CONTROL_EXAMPLES)]
    Control(ControlArgs),

    /// Run a command in a guest, through its agent; the exit status is the command's
    #[command(after_help = EXEC_STATUSES)]
    Exec(Box<ExecArgs>),

    /// Copy files and directories into a guest and out of it, through its agent
    Copy(Box<CopyArgs>),

    /// Check whether this host can run virtual machines, and name the mend for what is missing
    Doctor {
        /// How to print the findings
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: OutputFormat,
    },

    /// Run the virtual machine of a directory without a terminal, as the daemon does; see docs/cli.md
    #[command(hide = true)]
    Vmm {
        /// Holds machine.json, and gets sockets, logs and exit.json
        #[arg(value_name = "DIR", required_unless_present = "zygote")]
        directory: Option<PathBuf>,

        /// Number of an open descriptor of DIR/vmm.lock that has the lock already
        #[arg(long, value_name = "FD")]
        lock_fd: Option<i32>,

        /// Begin processes of machines for the daemon at standard input
        #[arg(long, conflicts_with_all = ["directory", "lock_fd"])]
        zygote: bool,
    },

    /// Print a completion script for a shell
    Completion {
        #[arg(value_enum)]
        shell: Shell,
    },

    /// Print the manual page, as troff
    Man,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, MachineCommand, hand_down};

    #[test]
    fn the_description_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    fn daemon_of(words: &[&str]) -> Option<(Option<String>, bool)> {
        let mut cli = Cli::try_parse_from([&["queztl-hv"], words].concat()).unwrap();
        hand_down(cli.daemon, &mut cli.command).then(|| match cli.command {
            Command::Machine(MachineCommand::List(verb)) => (verb.daemon.address, verb.daemon.ca.is_some()),
            Command::Image(args) => (args.daemon.address, args.daemon.ca.is_some()),
            _ => (None, false),
        })
    }

    #[test]
    fn a_daemon_is_named_before_the_verb_or_after_it() {
        let named = |ca| Some((Some("https://a:1".to_owned()), ca));
        assert_eq!(daemon_of(&["list", "--address", "https://a:1"]), named(false));
        assert_eq!(daemon_of(&["--address", "https://a:1", "list"]), named(false));
        assert_eq!(
            daemon_of(&["--address", "https://b:1", "--ca", "x", "list", "--address", "https://a:1"]),
            named(true)
        );
        assert_eq!(daemon_of(&["--address", "https://a:1", "image", "list"]), named(false));
        assert_eq!(daemon_of(&["--address", "https://a:1", "doctor"]), None);
        assert_eq!(daemon_of(&["doctor"]), Some((None, false)));
    }
}
