//! Machines that survive their host: copies at other daemons, one of which goes on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Copies a running machine to other daemons, again and again, so that one of them goes on when this one is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtectRequest {
    /// The daemons that keep copies; nodes of the cluster are chosen where none are named.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub backups: Vec<BackupAddress>,
    /// How many daemons keep copies: of those that are named the first, and the others stand in for one that stays away; all of
    /// them where it is left out. Where none are named, the nodes with the most free memory, and one where it is left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 8)]
    pub backup_count: Option<u32>,
    /// How many copies must have what the guest says before it is let out; all of them where it is left out.
    #[serde(default)]
    pub acks: Option<u32>,
    /// Where the daemons agree on whose machine it is: `file:/directory`, which all of them see, or `etcd://host:port,host:port`;
    /// the cluster's coordinator where it is left out.
    #[serde(default)]
    pub register: String,
    /// What becomes of the guest when copies are out of reach.
    #[serde(default)]
    pub mode: ProtectionMode,
    /// From one copy to the next, in milliseconds; chosen from what a copy costs where it is left out.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10000)]
    pub interval_ms: Option<u32>,
    /// Output that may wait for each network device, in bytes.
    #[serde(default = "buffer_bytes")]
    #[schema(default = 67108864)]
    pub buffer_bytes: u64,
    /// Connections for memory to each daemon.
    #[serde(default = "stripes")]
    #[schema(minimum = 1, maximum = 16, default = 2)]
    pub stripes: u32,
    /// How full of waiting output the buffer is, or of waiting the time for an acknowledgement, when the guest begins to be slowed
    /// down, in percent.
    #[serde(default = "threshold")]
    #[schema(minimum = 0, maximum = 99, default = 60)]
    pub throttle_threshold: u32,
    /// The most that is taken of its vCPUs' time, in percent; 0 for nothing.
    #[serde(default = "max_throttle")]
    #[schema(minimum = 0, maximum = 99, default = 90)]
    pub max_throttle: u32,
    /// How it rises: `linear`, `exponential:STEEPNESS`, or `custom:` and lines of fill and throttle, from 0 to 1.
    #[serde(default = "curve")]
    #[schema(default = "linear")]
    pub curve: String,
    /// How long the register may stay as it is before another daemon takes the machine, in milliseconds.
    #[serde(default = "lease_ms")]
    #[schema(minimum = 100, maximum = 60000, default = 1000)]
    pub lease_ms: u32,
    /// How long this daemon may be silent before another one takes the machine, in milliseconds; more where longer silences are
    /// usual. A connection that breaks counts after a quarter of it.
    #[serde(default = "silence_ms")]
    #[schema(minimum = 20, maximum = 60000, default = 200)]
    pub silence_ms: u32,
    /// It stays protected: whoever goes on with it protects it again, and backups that stay away are replaced, by nodes of the
    /// cluster or by those that it had before. Otherwise it runs without after a failover.
    #[serde(default = "again")]
    #[schema(default = true)]
    pub again: bool,
    /// How the others reach this daemon, which keeps a copy when it is back after a failover. Not needed where all are nodes, or all
    /// on this host.
    #[serde(default)]
    pub own: Option<BackupAddress>,
}

impl ProtectRequest {
    /// A request with the usual settings.
    pub fn new(backups: Vec<BackupAddress>, register: impl Into<String>) -> ProtectRequest {
        ProtectRequest {
            backups,
            backup_count: None,
            acks: None,
            register: register.into(),
            mode: ProtectionMode::default(),
            interval_ms: None,
            buffer_bytes: buffer_bytes(),
            stripes: stripes(),
            throttle_threshold: threshold(),
            max_throttle: max_throttle(),
            curve: curve(),
            lease_ms: lease_ms(),
            silence_ms: silence_ms(),
            again: again(),
            own: None,
        }
    }
}

/// A daemon that keeps a copy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupAddress {
    /// A node's name, `https://host:port`, or `unix:/path` of one on the same host.
    pub to: String,
    /// A token of that daemon with scope `admin`; needed over https.
    #[serde(default)]
    pub token: Option<String>,
    /// Certificates to trust, PEM, rather than the host's usual authorities.
    #[serde(default)]
    pub authority: Option<String>,
}

impl BackupAddress {
    /// One that needs no token.
    pub fn to(address: impl Into<String>) -> BackupAddress {
        BackupAddress { to: address.into(), token: None, authority: None }
    }
}

impl std::fmt::Debug for BackupAddress {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupAddress").field("to", &self.to).finish_non_exhaustive()
    }
}

/// What becomes of a guest whose copies are out of reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionMode {
    /// Its output waits, and it stands still when too much does.
    #[default]
    Pause,
    /// It goes on without protection, and is protected again when it can be.
    BestEffort,
}

/// What a daemon that is to keep a copy needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupOrder {
    /// Its number in the group.
    pub node: u32,
    /// The period of the owner that says so. One that the register does not know is refused.
    pub term: u64,
    /// Where the daemons agree.
    pub register: String,
    /// How long the register may stay as it is, in milliseconds.
    pub lease_ms: u32,
    /// How long the owner may be silent, in milliseconds.
    #[serde(default = "silence_ms")]
    pub silence_ms: u32,
    /// The others that keep copies.
    pub peers: Vec<BackupPeer>,
    /// How it is protected by whoever goes on with it: its backups are those that can be asked. Left out if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Box<ProtectRequest>>,
}

/// Another daemon of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupPeer {
    /// Its number in the group.
    pub node: u32,
    /// How it is reached.
    pub address: BackupAddress,
}

/// Asks a daemon that keeps a copy to serve no owner of a lower term from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromiseRequest {
    /// The term that has been claimed.
    pub term: u64,
    /// Nothing is to be promised yet: is the owner taken for dead here, too?
    #[serde(default)]
    pub probe: bool,
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupPromise {
    /// False if a higher term was promised before; for a probe, whether the owner is taken for dead here, too.
    pub given: bool,
    /// The copy it has: the term of the owner that made it, and its number.
    pub copy: Option<CopyVersion>,
}

/// Which state a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyVersion {
    /// The period of the owner that cut it.
    pub term: u64,
    /// Its number.
    pub epoch: u64,
}

/// How a machine is protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protection {
    /// How it is.
    pub state: ProtectionState,
    /// What becomes of the guest when copies are out of reach.
    pub mode: ProtectionMode,
    /// How many copies must have what the guest says before it is let out.
    pub acks: u32,
    /// The period of this owner.
    pub term: u64,
    /// The last copy that was cut.
    pub epoch: u64,
    /// The newest copy whose output may leave.
    pub released: u64,
    /// From one cut to the next, in nanoseconds.
    pub interval_ns: u64,
    /// How long the guest stood still for the last cut, in nanoseconds.
    pub pause_ns: u64,
    /// From a cut to its acknowledgement, the last time, in nanoseconds.
    pub lag_ns: u64,
    /// Memory of the last copy.
    pub epoch_bytes: u64,
    /// Memory of all copies so far.
    pub data_bytes: u64,
    /// What that took on the wire.
    pub wire_bytes: u64,
    /// Output that waits.
    pub waiting_bytes: u64,
    /// How much may wait for each network device.
    pub buffer_bytes: u64,
    /// Frames that were dropped because too much waited.
    pub dropped_frames: u64,
    /// What is taken of the vCPUs' time, in percent.
    pub throttle_percent: u32,
    /// The guest stands still because too much waits.
    pub stalled: bool,
    /// How many daemons are to keep copies.
    pub wanted: u32,
    /// Why fewer do, and what was tried last: it is tried again.
    pub seeking: Option<String>,
    /// The daemons that keep copies.
    pub backups: Vec<BackupState>,
}

/// What a protection can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectionState {
    /// There is none.
    Off,
    /// It goes on here after a failover, and daemons that keep copies are sought; output leaves at once.
    Seeking,
    /// The first copies are being made; output leaves at once.
    Copying,
    /// Output leaves when copies have what it came from.
    Protected,
    /// Copies are out of reach; the machine goes on without.
    Degraded,
    /// Another daemon has the machine; nothing of it leaves here any more.
    Fenced,
}

/// One of the daemons that keep copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupState {
    /// Its address.
    pub to: String,
    /// The newest copy it has whole.
    pub epoch: Option<u64>,
    /// From the beginning of sending a copy to its acknowledgement, in nanoseconds.
    pub round_trip_ns: u64,
    /// For how long there has been something that it lacks, since it had its first copy, in nanoseconds; 0 if it has the newest.
    pub behind_ns: u64,
    /// Why it is out of reach.
    pub failed: Option<String>,
}

fn buffer_bytes() -> u64 {
    64 << 20
}

fn stripes() -> u32 {
    2
}

fn threshold() -> u32 {
    60
}

fn max_throttle() -> u32 {
    90
}

fn curve() -> String {
    "linear".into()
}

fn again() -> bool {
    true
}

fn lease_ms() -> u32 {
    1000
}

fn silence_ms() -> u32 {
    200
}
