//! A machine that is copied to backups while it runs, as the control socket speaks of it.

use std::path::PathBuf;

use queztl_distributed_ram::{Node, Phase, Register, Term};
use serde::{Deserialize, Serialize};

/// How a machine is to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectOrder {
    /// What the group agrees on now: this machine's process is its owner, alone.
    pub register: Register,
    pub backups: Vec<BackupPlace>,
    /// How many backups must have an epoch before its output leaves.
    pub acks: usize,
    pub mode: ProtectionMode,
    /// From one cut to the next, in milliseconds; chosen from what epochs cost where it is left out.
    #[serde(default)]
    pub interval_ms: Option<u64>,
    /// Output that may wait for each network device, in bytes.
    pub buffer_bytes: u64,
    /// Connections for memory to each backup, 1 to 16.
    pub stripes: u32,
    /// How long acknowledgements may be missing before the machine goes on without, in best-effort mode; and how long a
    /// backup may be silent before its connection is given up.
    pub patience_ms: u64,
    #[serde(default)]
    pub throttle: ThrottleOrder,
    /// Epochs begin after this one.
    #[serde(default)]
    pub base: u64,
}

/// How the guest is slowed down before too much of it waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThrottleOrder {
    /// Up to this fill nothing is slowed down.
    pub threshold_percent: u32,
    /// The most that is taken of the vCPUs' time; 0 takes nothing.
    pub max_percent: u32,
    /// What lies between: `linear`, `exponential:STEEPNESS`, or `custom:` and points, a line each.
    pub curve: String,
}

impl Default for ThrottleOrder {
    fn default() -> ThrottleOrder {
        ThrottleOrder { threshold_percent: 60, max_percent: 90, curve: "linear".into() }
    }
}

/// Where a backup is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupPlace {
    pub node: Node,
    /// A Unix socket that leads to it.
    pub socket: PathBuf,
}

/// What becomes of a guest whose epochs nobody acknowledges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionMode {
    /// It stands still when the buffer is full.
    #[default]
    Pause,
    /// It goes on without protection, and is protected again when it can be.
    BestEffort,
}

/// How the protection goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    pub state: ProtectionState,
    /// What whoever keeps the register is asked to write into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<RegisterWish>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub register: Option<Register>,
    /// The last cut, and the newest whose output may leave.
    pub epoch: u64,
    pub released: u64,
    pub interval_ns: u64,
    /// How long the guest stood still for the last cut, and for all of them.
    pub pause_ns: u64,
    pub pauses_ns: u64,
    /// From the last cut to its acknowledgement.
    pub lag_ns: u64,
    /// RAM that was sent, and what that took on the wire; of the last epoch, and of all.
    pub epoch_bytes: u64,
    pub data_bytes: u64,
    pub wire_bytes: u64,
    /// Output that waits, and what was dropped because too much did.
    pub waiting_frames: u64,
    pub waiting_bytes: u64,
    pub dropped_frames: u64,
    /// What is taken of the vCPUs' time.
    pub throttle_percent: u32,
    /// The guest stands still because too much output waits.
    pub stalled: bool,
    pub backups: Vec<BackupFigures>,
}

/// A backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFigures {
    pub node: Node,
    /// The newest epoch it has whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// From the beginning of sending an epoch to its acknowledgement, the last time.
    pub round_trip_ns: u64,
    /// For how long there has been an epoch that it lacks, since it had its first; 0 if it has the newest.
    #[serde(default)]
    pub behind_ns: u64,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A change of the register that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegisterWish {
    /// These have all that ever left.
    Protect { members: Vec<Node>, acks: usize },
    /// Acknowledgements are missing, and the machine is to go on without.
    Expose {},
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    #[default]
    Off,
    /// Copies are being made; output leaves at once.
    Copying,
    Protected,
    /// It was protected, and goes on without: output leaves at once.
    Degraded,
    /// Another term has another owner: nothing leaves any more.
    Fenced,
}

impl Protection {
    /// The owner's term.
    pub fn term(&self) -> Term {
        self.register.as_ref().map_or(0, |register| register.term)
    }

    /// Whether the register says that copies count.
    pub fn counts(&self) -> bool {
        self.register.as_ref().is_some_and(|register| register.phase == Phase::Protected)
    }
}
