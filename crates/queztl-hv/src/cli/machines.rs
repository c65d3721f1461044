//! The verbs about machines: all that go through the daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;
use queztl_api::Name;
use queztl_vmm::config::{AccelChoice, Pages, RateLimit};

use super::Command;
use super::node::{NODE_EXAMPLES, NodeArgs};
use super::output::OutputArg;
use super::protection::{ProtectArgs, ProtectionArgs, UnprotectArgs};
use crate::topology::{self, PinArg};
use crate::values::machine::{self, CheckpointsArg, DiskArg, RateArg};
use crate::values::{self, NetArg};
use crate::verbs::names;

pub const WAIT_HELP: &str = "\
Ctrl-C while it works: the work goes on, and the daemon has it; a second Ctrl-C leaves. `queztl-hv operations` shows it,
`queztl-hv operations cancel ID` ends it.";

pub const SPAWN_EXAMPLES: &str = "\
Examples:
  queztl-hv spawn web-1 --vcpus 2 --ram 2GB
  queztl-hv spawn db-1 --image debian --disk size=20G --net user --label tier=db
  queztl-hv exec web-1 -- uname -a";

const CONSOLE_KEYS: &str = "\
Keys, when standard input is a terminal:
  Ctrl-A d       detach; the machine goes on
  Ctrl-A Ctrl-A  send one Ctrl-A to the guest (Ctrl-A a as well)
  Ctrl-A h       list these keys";

const TOP_KEYS: &str = "\
Keys: c, m, r, w, n, s sort by processor time, memory, disk reads, disk writes, name, state; i turns the order round;
q or Ctrl-C leaves.";

/// How the daemon is met.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Daemon")]
pub struct DaemonArgs {
    /// unix:/path/of/socket or https://host:port [default: $QUEZTL_ADDRESS, else this host's daemon, which is started if it
    /// does not run]
    #[arg(long, value_name = "ADDRESS", display_order = 895, global = true)]
    pub address: Option<String>,

    /// File with the token for a daemon on another host [default: the token itself in $QUEZTL_TOKEN]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, display_order = 896, global = true)]
    pub token_file: Option<PathBuf>,

    /// PEM file with the daemon's certificate, or its authority's [default: $QUEZTL_CA, else the host's authorities]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, display_order = 897, global = true)]
    pub ca: Option<PathBuf>,
}

impl DaemonArgs {
    /// Takes what was said before the verb, where the verb itself says nothing.
    fn complete(&mut self, leading: LeadingArgs) {
        let LeadingArgs { address, token_file, ca } = leading;
        self.address = self.address.take().or(address);
        self.token_file = self.token_file.take().or(token_file);
        self.ca = self.ca.take().or(ca);
    }
}

/// The same, before the verb.
#[derive(Debug, Default, PartialEq, Eq, Args)]
pub struct LeadingArgs {
    /// As after the verb, for commands that go through the daemon
    #[arg(
        id = "leading-address",
        long = "address",
        value_name = "ADDRESS",
        display_order = 895,
        hide_short_help = true
    )]
    pub address: Option<String>,

    /// As after the verb
    #[arg(id = "leading-token", long = "token-file", value_name = "FILE", value_hint = ValueHint::FilePath,
        display_order = 896, hide_short_help = true)]
    pub token_file: Option<PathBuf>,

    /// As after the verb
    #[arg(id = "leading-ca", long = "ca", value_name = "FILE", value_hint = ValueHint::FilePath, display_order = 897,
        hide_short_help = true)]
    pub ca: Option<PathBuf>,
}

/// Machines that a verb is about.
#[derive(Debug, Args)]
pub struct Vms {
    /// Names or identifiers
    #[arg(value_name = "VM", required = true, value_parser = machine::vm, add = ArgValueCandidates::new(names::vms))]
    pub vms: Vec<String>,
}

/// The machine that a verb is about.
#[derive(Debug, Args)]
pub struct OneVm {
    /// Name or identifier
    #[arg(value_name = "VM", value_parser = machine::vm, add = ArgValueCandidates::new(names::vms))]
    pub vm: String,
}

#[derive(Debug, Args)]
pub struct Verb<T: Args> {
    #[command(flatten)]
    pub args: T,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

impl MachineCommand {
    fn daemon(&mut self) -> &mut DaemonArgs {
        match self {
            MachineCommand::Spawn(verb) => &mut verb.daemon,
            MachineCommand::Benchmark(verb) => &mut verb.daemon,
            MachineCommand::Alerts(verb) => &mut verb.daemon,
            MachineCommand::Create(verb) => &mut verb.daemon,
            MachineCommand::Start(verb) => &mut verb.daemon,
            MachineCommand::Stop(verb) => &mut verb.daemon,
            MachineCommand::Kill(verb) => &mut verb.daemon,
            MachineCommand::Pause(verb) => &mut verb.daemon,
            MachineCommand::Resume(verb) => &mut verb.daemon,
            MachineCommand::Reboot(verb) => &mut verb.daemon,
            MachineCommand::Delete(verb) => &mut verb.daemon,
            MachineCommand::List(verb) => &mut verb.daemon,
            MachineCommand::Info(verb) => &mut verb.daemon,
            MachineCommand::Set(verb) => &mut verb.daemon,
            MachineCommand::Limits(verb) => &mut verb.daemon,
            MachineCommand::Console(verb) => &mut verb.daemon,
            MachineCommand::Logs(verb) => &mut verb.daemon,
            MachineCommand::Top(verb) => &mut verb.daemon,
            MachineCommand::Dashboard(verb) => &mut verb.daemon,
            MachineCommand::Events(verb) => &mut verb.daemon,
            MachineCommand::Snapshot(verb) => &mut verb.daemon,
            MachineCommand::Snapshots(verb) => &mut verb.daemon,
            MachineCommand::Restore(verb) => &mut verb.daemon,
            MachineCommand::Clone(verb) => &mut verb.daemon,
            MachineCommand::Migrate(verb) => &mut verb.daemon,
            MachineCommand::Protect(verb) => &mut verb.daemon,
            MachineCommand::Protection(verb) => &mut verb.daemon,
            MachineCommand::Unprotect(verb) => &mut verb.daemon,
            MachineCommand::Operations(verb) => &mut verb.daemon,
            MachineCommand::Token(verb) => &mut verb.daemon,
            MachineCommand::Node(verb) => &mut verb.daemon,
        }
    }
}

/// Hands what was said before a verb to the verb; false if the command goes through no daemon.
pub fn hand_down(leading: LeadingArgs, command: &mut Command) -> bool {
    let daemon = match command {
        _ if leading == LeadingArgs::default() => return true,
        Command::Machine(command) => command.daemon(),
        Command::Image(args) => &mut args.daemon,
        Command::Exec(args) => &mut args.target.daemon,
        Command::Copy(args) => &mut args.target.daemon,
        _ => return false,
    };
    daemon.complete(leading);
    true
}

#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Make a machine, start it and wait until it runs
    #[command(after_help = SPAWN_EXAMPLES, after_long_help = format!("{SPAWN_EXAMPLES}\n\n{WAIT_HELP}"))]
    Spawn(Box<Verb<CreateArgs>>),

    /// Make a machine
    #[command(after_long_help = WAIT_HELP)]
    Create(Box<Verb<CreateArgs>>),

    /// Start machines
    Start(Verb<Vms>),

    /// Ask guests to switch themselves off, and switch them off after a grace
    Stop(Verb<StopArgs>),

    /// End machines at once, as a power cut does
    Kill(Verb<Vms>),

    /// Stop vCPUs and devices of machines where they are
    Pause(Verb<Vms>),

    /// Let paused machines go on
    Resume(Verb<Vms>),

    /// Stop machines and start them again
    Reboot(Verb<StopArgs>),

    /// Delete machines with their disks and snapshots
    Delete(Verb<DeleteArgs>),

    /// List machines
    #[command(visible_alias = "ls")]
    List(Verb<ListArgs>),

    /// Show all that is known of machines
    Info(Verb<InfoArgs>),

    /// Change what machines are called, their labels, and what becomes of them
    Set(Verb<SetArgs>),

    /// Show a machine's limits, or change them; a running machine follows at once
    Limits(Box<Verb<LimitsArgs>>),

    /// Attach the terminal to a machine's console
    #[command(after_help = CONSOLE_KEYS)]
    Console(Verb<ConsoleArgs>),

    /// Print what a machine's console has printed
    Logs(Verb<LogsArgs>),

    /// Watch all machines in a table
    #[command(after_help = TOP_KEYS)]
    Top(Verb<TopArgs>),

    /// Open the dashboard in a browser, with a login that works once
    Dashboard(Verb<DashboardArgs>),

    /// Show what is not as it should be, and what was
    Alerts(Verb<AlertsArgs>),

    /// Show what happened, or watch it happen
    Events(Verb<EventsArgs>),

    /// Take a snapshot of a machine: memory, devices and disks at one point in time
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Snapshot(Verb<SnapshotArgs>),

    /// List a machine's snapshots
    Snapshots(Verb<SnapshotsArgs>),

    /// Put a machine back to where a snapshot was taken
    Restore(Verb<RestoreArgs>),

    /// Make running copies of a machine, as it is now or from a snapshot
    Clone(Verb<CloneArgs>),

    /// Bring a running machine to another daemon
    Migrate(Verb<MigrateArgs>),

    /// Copy a running machine to other daemons, one of which goes on when this one is gone
    Protect(Verb<ProtectArgs>),

    /// Show how a machine is protected
    Protection(Verb<ProtectionArgs>),

    /// End a machine's protection; it goes on
    Unprotect(Verb<UnprotectArgs>),

    /// Make a cluster of daemons, join one, look at its nodes, empty them, leave
    #[command(after_help = NODE_EXAMPLES)]
    Node(Verb<NodeArgs>),

    /// List the daemon's work, wait for it or cancel it
    Operations(Verb<OperationsArgs>),

    /// Measure this host and the daemon, and compare what was measured
    Benchmark(Verb<BenchmarkArgs>),

    /// Make, list and delete the tokens of clients on other hosts
    Token(Verb<TokenArgs>),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// 1 to 63 letters, digits, dots, hyphens and underscores
    #[arg(value_name = "NAME")]
    pub name: Name,

    /// First disk: an overlay on this image of the store; --disk image=NAME says the same
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(names::images))]
    pub image: Option<Name>,

    /// Disk: a file or block device of the host, an overlay on an image of the store, or an empty disk (repeatable)
    #[arg(
        long = "disk",
        value_name = "FILE|image=NAME|size=SIZE[,size=SIZE][,ro][,serial=ID][,bps=SIZE][,iops=N]",
        value_parser = machine::disk
    )]
    pub disks: Vec<DiskArg>,

    /// Network device: none, user or tap=NAME, with limits as for `run` (repeatable) [default: none]
    #[arg(long = "net", value_name = "none|user|tap=NAME[,rx-bps=SIZE][,tx-bps=SIZE]", value_parser = values::net)]
    pub nets: Vec<NetArg>,

    /// Kernel of the host [default: the one built by `queztl-hv kernel build`]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk of the host (repeatable) [default, without --kernel: the one built here]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Vec<PathBuf>,

    /// Kernel command line; without --kernel it is appended to our own
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Number of vCPUs, at most 256
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::vcpus)]
    pub vcpus: u32,

    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::ram, help = "RAM, such as 512M or 2GB; at most 512G")]
    pub ram: u64,

    /// The host pages that RAM is made of
    #[arg(long, value_name = "hugepages=2M|thp|none", default_value = "hugepages=none", value_parser = topology::memory)]
    pub memory: Pages,

    /// Memory that can be added while it runs, by `queztl-hv limits VM --memory SIZE`
    #[arg(long, value_name = "MAX", default_value = "0", value_parser = values::size)]
    pub memory_hotplug: u64,

    /// Memory that the guest is asked to give back from the start
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = values::size)]
    pub balloon: u64,

    /// Limit of the entropy device
    #[arg(long, value_name = "bps=SIZE", value_parser = values::rate_limit)]
    pub rng: Option<RateLimit>,

    /// What executes the guest, as for `run`
    #[arg(long, value_name = "auto|kvm|soft[,…]", default_value = "auto", value_parser = machine::accel)]
    pub accel: (String, AccelChoice),

    /// Keep vCPUs on CPUs of the host, as for `run`
    #[arg(long = "pin", value_name = "CPUS|VCPUS=CPUS[,…]", value_parser = topology::pin)]
    pub pins: Vec<PinArg>,

    #[command(flatten)]
    pub cpu: CpuArgs,

    #[command(flatten)]
    pub policy: PolicyArgs,

    #[command(flatten)]
    pub output: OptionalOutput,
}

/// What a machine gets of the host's processors.
#[derive(Debug, Args)]
pub struct CpuArgs {
    /// Its share where processors are short: 1 to 10000, 100 is usual
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cpu_weight: Option<u32>,

    /// The most it may use, in percent of one processor: 150 is one and a half; none for no limit
    #[arg(long, value_name = "PERCENT|none", value_parser = machine::quota)]
    pub cpu_quota: Option<machine::QuotaArg>,
}

/// What becomes of a machine.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A label (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = machine::label)]
    pub labels: Vec<(String, String)>,

    /// What happens when the guest or its process crashes
    #[arg(long, value_enum, value_name = "stay|restart|restore", hide_possible_values = true)]
    pub on_crash: Option<OnCrashArg>,

    /// Take snapshots by itself: every=10m,keep=5; none ends it
    #[arg(long, value_name = "every=TIME,keep=N|none", value_parser = machine::checkpoints)]
    pub checkpoint: Option<CheckpointsArg>,

    /// Start it when the daemon starts
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub autostart: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnCrashArg {
    /// It stays as it is
    Stay,
    /// It boots again
    Restart,
    /// It goes on from its newest good snapshot
    Restore,
}

/// For verbs that print the name of what they made unless more is wanted.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OptionalOutput {
    /// How to print what was made
    #[arg(short = 'o', long = "output", value_enum, default_value_t = super::OutputFormat::Name, value_name = "FORMAT", display_order = 890)]
    pub format: super::OutputFormat,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub vms: Vms,

    /// How long the guest may take, such as 10s or 2m; then it is switched off [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = machine::seconds)]
    pub grace: Option<u64>,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub vms: Vms,

    /// Also those that run
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only machines with this label, or with this label and value (repeatable: all must fit)
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,

    /// Only machines in this state: running, stopped, … (repeatable)
    #[arg(short, long = "state", value_name = "STATE", value_parser = machine::state)]
    pub states: Vec<queztl_api::VmState>,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    pub vms: Vms,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Another name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Take a label away (repeatable)
    #[arg(long, value_name = "KEY")]
    pub remove_label: Vec<String>,

    #[command(flatten)]
    pub policy: PolicyArgs,
}

#[derive(Debug, Args)]
pub struct LimitsArgs {
    #[command(flatten)]
    pub vm: OneVm,

    #[command(flatten)]
    pub cpu: CpuArgs,

    /// Keep vCPUs on CPUs of the host; none lets all go everywhere
    #[arg(long = "pin", value_name = "CPUS|VCPUS=CPUS[,…]|none", value_parser = machine::pin)]
    pub pins: Vec<machine::PinOrNone>,

    /// What the guest is asked to give back to the host; 0 for nothing
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub balloon: Option<u64>,

    /// What the guest is asked to use of its hot-pluggable memory
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub memory: Option<u64>,

    /// Rate limit of a device: disk0=bps=50M,iops=1000 or net0-tx=none (repeatable)
    #[arg(long = "rate", value_name = "DEVICE=none|bps=SIZE,iops=N[,…]", value_parser = machine::rate)]
    pub rates: Vec<RateArg>,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Only watch: keys stay here, and Ctrl-C ends it
    #[arg(short, long)]
    pub read_only: bool,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Go on as more is printed
    #[arg(short, long)]
    pub follow: bool,

    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<u64>,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Time between two looks, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = values::seconds)]
    pub delay: std::time::Duration,

    /// Leave after so many looks; without a terminal, each is printed
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub iterations: Option<u32>,

    /// What to sort by
    #[arg(short, long, value_enum, default_value_t, value_name = "KEY")]
    pub sort: crate::verbs::top::Sort,
}

#[derive(Debug, Args)]
pub struct BenchmarkArgs {
    #[command(subcommand)]
    pub command: BenchmarkCommand,
}

#[derive(Debug, Subcommand)]
pub enum BenchmarkCommand {
    /// Run benchmarks and print their figures
    #[command(after_long_help = WAIT_HELP)]
    Run {
        /// Which (repeatable) [default: all]
        #[arg(long = "suite", value_name = "SUITE", value_enum)]
        suites: Vec<SuiteArg>,

        /// How often each is made; the median counts
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
        rounds: u32,

        /// Text for people: what is different this time
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// List runs
    List {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show the figures of a run
    Show {
        #[arg(value_name = "ID")]
        id: String,

        #[command(flatten)]
        output: OutputArg,
    },
    /// Show two runs beside each other
    Compare {
        #[arg(value_name = "BEFORE")]
        before: String,

        #[arg(value_name = "AFTER")]
        after: String,
    },
    /// Forget runs
    Delete {
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SuiteArg {
    /// A new machine, until its first output and until its agent answers
    Boot,
    /// Ten clones of a running machine
    Clone,
    /// A snapshot of a running machine
    Snapshot,
    /// A disk at its queue, without a guest
    Disk,
}

#[derive(Debug, Args)]
pub struct AlertsArgs {
    /// Also those that are over
    #[arg(short, long)]
    pub all: bool,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on as more happens
    #[arg(short, long)]
    pub follow: bool,

    /// How many past ones to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub lines: u32,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,

    /// Name or identifier of the machine
    #[arg(value_name = "VM", required = true, value_parser = machine::vm, add = ArgValueCandidates::new(names::vms))]
    pub vm: Option<String>,

    /// What to call it [default: made from the time]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Save only what has changed since the last one
    #[arg(short, long)]
    pub incremental: bool,

    /// A note
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,

    #[command(flatten)]
    pub output: OptionalOutput,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Delete snapshots of a machine
    Delete {
        #[command(flatten)]
        vm: OneVm,

        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Read all of their memory and compare it with its checksums; for one's own daemon on this host
    #[arg(long)]
    pub check: bool,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// The snapshot
    #[arg(value_name = "NAME")]
    pub name: Name,
}

#[derive(Debug, Args)]
pub struct CloneArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// How many
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,

    /// Start from this snapshot [default: the running machine as it is]
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<Name>,

    /// The clones are called so with a number behind [default: the machine's own name]
    #[arg(long, value_name = "PREFIX")]
    pub name: Option<Name>,

    /// Do not wait until the agents in the clones have taken their new identities
    #[arg(long)]
    pub no_agent: bool,

    #[command(flatten)]
    pub output: OptionalOutput,
}

#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// The other daemon: a node's name, https://host:port, or unix:/path/of/socket on the same host
    #[arg(long, value_name = "NODE|ADDRESS", add = ArgValueCandidates::new(names::nodes))]
    pub to: String,

    /// File with a token of that daemon, scope admin; needed over https
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to_token_file: Option<PathBuf>,

    /// PEM file with that daemon's certificate, or its authority's [default: the host's authorities]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to_ca: Option<PathBuf>,

    /// Connections for memory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub stripes: u32,

    /// Rounds of copying at most before the machine stands still for the last one
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Disk files that it writes to are the same ones there, by the same paths: open them there rather than copy them
    #[arg(long)]
    pub shared_disks: bool,

    /// When its memory goes
    #[arg(long, value_name = "MODE", value_enum, default_value_t = MigrationModeArg::PreCopy)]
    pub mode: MigrationModeArg,

    /// Do not ask whether it is understood what a lost host means while memory goes after the machine
    #[arg(long)]
    pub yes: bool,

    /// Seconds that the target waits for pages from a source that cannot be reached, before it gives the machine up
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub patience: u32,

    #[command(flatten)]
    pub output: OutputArg,
}

/// When memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrationModeArg {
    /// Before the machine, in rounds
    PreCopy,
    /// After it: it runs there at once, and fetches pages when it touches them
    PostCopy,
    /// Before it; after it what does not become less in that way
    Auto,
}

#[derive(Debug, Args)]
pub struct OperationsArgs {
    #[command(subcommand)]
    pub command: Option<OperationsCommand>,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub enum OperationsCommand {
    /// Show one
    Show {
        #[arg(value_name = "ID")]
        id: String,

        #[command(flatten)]
        output: OutputArg,
    },
    /// Wait until they are over; the status tells whether all succeeded
    Wait {
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// End them, and undo what they have done
    Cancel {
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct DashboardArgs {
    /// What the page may do: read looks, operate uses machines, admin does everything
    #[arg(long, value_enum, default_value = "admin")]
    pub scope: ScopeArg,

    /// Print the address and start no browser
    #[arg(long)]
    pub no_open: bool,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print its secret, this once
    Create {
        #[arg(value_name = "NAME")]
        name: Name,

        /// read looks, operate uses machines, admin does everything
        #[arg(long, value_enum, default_value = "operate")]
        scope: ScopeArg,

        /// When it ends, such as 30d [default: never]
        #[arg(long, value_name = "TIME", value_parser = machine::seconds)]
        expires: Option<u64>,

        #[command(flatten)]
        output: OutputArg,
    },
    /// List the tokens, without their secrets
    List {
        #[command(flatten)]
        output: OutputArg,
    },
    /// Delete tokens; who has them is refused from now on
    Delete {
        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    Read,
    Operate,
    Admin,
}
