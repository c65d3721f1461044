//! What the threads of a protection share: the owner's decisions, the newest epoch, the backups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use queztl_distributed_ram::{Epoch, Node, Owner, Phase, Register, Release, Rule, Term, Version};
use queztl_guest_memory::Frozen;
use queztl_parallel_transfer::Sent;

use super::super::lock;
use super::super::snapshot::nanoseconds;
use super::{INTERVALS, SHARE};
use crate::control::{BackupFigures, ProtectOrder, Protection, ProtectionMode, ProtectionState, RegisterWish};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::journal::Write;
use crate::devices::virtio::net::outlet::Outlet;

/// So much that is written to a disk ends an epoch, in bytes.
const MUCH_BYTES: u64 = 8 << 20;
/// Between two looks at how much that is.
const LOOK: Duration = Duration::from_millis(5);

/// A protection from its beginning to its end.
pub(in super::super) struct Protecting {
    pub order: ProtectOrder,
    outlets: Vec<Arc<Outlet>>,
    /// The disks that the guest writes to.
    disks: Mutex<Vec<Arc<Block>>>,
    core: Mutex<Core>,
    changed: Condvar,
}

/// An epoch that is frozen and can be sent.
pub(in super::super) struct Sealed {
    pub version: Version,
    pub frozen: Frozen,
    pub state: Vec<u8>,
    pub at: Instant,
}

/// What an epoch wrote to disks.
pub(in super::super) struct DiskLog {
    epoch: Epoch,
    /// For each of them.
    pub disks: Vec<Vec<Write>>,
    bytes: u64,
}

pub(in super::super) struct Core {
    owner: Owner,
    /// Of the epochs that some backup lacks, the oldest first.
    logs: VecDeque<Arc<DiskLog>>,
    register: Register,
    /// How many acknowledgements are wished.
    acks: usize,
    mode: ProtectionMode,
    newest: Option<Arc<Sealed>>,
    backups: BTreeMap<Node, Backup>,
    /// The proposed rule was told to whoever writes the register: it must not be taken back.
    offered: bool,
    /// Acknowledgements were missing for too long.
    wants_exposure: bool,
    was_protected: bool,
    ended: bool,
    /// How long the last acknowledgement that counted took.
    cost: Duration,
    pub figures: Protection,
}

#[derive(Default)]
struct Backup {
    /// Somebody connects to it, or is connected.
    is_served: bool,
    wires: Vec<UnixStream>,
    is_connected: bool,
    figures: BackupFigures,
    /// Since when it has been at an epoch.
    busy_since: Option<Instant>,
    /// It has had a whole copy, also on a connection before this one.
    had_copy: bool,
    /// Since when there has been an epoch that it lacks.
    lacks_since: Option<Instant>,
    /// It is being given the disks, and takes part in no epochs.
    copies_disks: bool,
    /// Epochs up to this one are of no use to it: they were cut before it had all of the disks.
    begins_after: Option<Epoch>,
    /// What epochs after this one write to disks is kept for it.
    has_disks: Option<Epoch>,
}

impl Protecting {
    pub fn new(order: ProtectOrder, outlets: Vec<Arc<Outlet>>, disks: Vec<Arc<Block>>) -> Protecting {
        let core = Core {
            owner: Owner::new(&order.register, order.base),
            logs: VecDeque::new(),
            register: order.register.clone(),
            acks: order.acks,
            mode: order.mode,
            newest: None,
            backups: BTreeMap::new(),
            offered: false,
            wants_exposure: false,
            was_protected: false,
            ended: false,
            cost: Duration::ZERO,
            figures: Protection { epoch: order.base, ..Protection::default() },
        };
        Protecting { order, outlets, disks: Mutex::new(disks), core: Mutex::new(core), changed: Condvar::new() }
    }

    pub fn look<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&lock(&self.core))
    }

    /// Changes something, and lets out what may leave afterwards.
    pub fn change<T>(&self, change: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = lock(&self.core);
        let result = change(&mut core);
        self.settle(core);
        result
    }

    /// Does what follows from the present state.
    fn settle(&self, mut core: MutexGuard<'_, Core>) {
        if !core.ended {
            core.propose();
            self.let_out(&mut core);
        }
        drop(core);
        self.changed.notify_all();
    }

    fn let_out(&self, core: &mut Core) {
        if core.owner.is_fenced() {
            core.ended = true;
            return self.outlets.iter().for_each(|outlet| outlet.shut());
        }
        let epoch = core.owner.version().epoch + 1;
        match core.owner.release() {
            Release::All => self.outlets.iter().for_each(|outlet| outlet.open()),
            Release::UpTo(released) => {
                core.figures.released = released;
                for outlet in &self.outlets {
                    outlet.hold(epoch, usize::try_from(self.order.buffer_bytes).unwrap_or(usize::MAX));
                    outlet.release(released);
                }
            }
            Release::Nothing => {}
        }
    }

    pub fn has_ended(&self) -> bool {
        lock(&self.core).ended
    }

    /// Ends the protection; output leaves at once, unless the owner is fenced.
    pub fn end(&self) {
        let mut core = lock(&self.core);
        core.ended = true;
        core.backups.values().for_each(Backup::hang_up);
        if !core.owner.is_fenced() {
            self.outlets.iter().for_each(|outlet| outlet.open());
        }
        core.logs.clear();
        drop(core);
        self.disks().iter().for_each(|disk| disk.journal().stop());
        self.changed.notify_all();
    }

    /// Waits until epochs are of use; false when the protection has ended.
    pub fn wait_for_a_backup(&self) -> bool {
        let mut core = lock(&self.core);
        while !core.ended && !core.counts() && !core.backups.values().any(|backup| backup.is_connected) {
            core.newest = None;
            core = self.wait(core, Duration::from_secs(1));
        }
        !core.ended
    }

    /// The machine stands still and is being cut.
    pub fn begin_epoch(&self) -> Version {
        let mut core = lock(&self.core);
        core.owner.cut();
        let version = core.owner.version();
        core.figures.epoch = version.epoch;
        let disks: Vec<Vec<Write>> = self.disks().iter().map(|disk| disk.journal().take()).collect();
        if disks.iter().any(|writes| !writes.is_empty()) {
            let bytes = disks.iter().flatten().map(Write::bytes).sum();
            core.logs.push_back(Arc::new(DiskLog { epoch: version.epoch, disks, bytes }));
        }
        core.forget_logs();
        self.outlets.iter().for_each(|outlet| outlet.begin(version.epoch + 1));
        version
    }

    pub fn seal(&self, sealed: Sealed, pause_ns: u64) {
        self.change(|core| {
            core.figures.pause_ns = pause_ns;
            core.figures.pauses_ns += pause_ns;
            core.backups.values_mut().for_each(|backup| backup.lacks_from(sealed.at));
            core.newest = Some(Arc::new(sealed));
        });
    }

    /// The last epoch is not offered any more.
    pub fn drop_newest(&self) {
        lock(&self.core).newest = None;
    }

    /// Whether the newest epoch has got where it is to be, and the next one can follow; waits for that, but not for long.
    pub fn wait_for_release(&self, limit: Duration) -> bool {
        let mut core = lock(&self.core);
        if !core.is_done() && !core.ended {
            core = self.wait(core, limit);
        }
        let done = core.is_done() || core.ended;
        core.look_at_clock(Duration::from_millis(self.order.patience_ms));
        done
    }

    /// How full the fuller is: the buffer for output, or the time for an acknowledgement.
    pub fn fill(&self) -> f64 {
        let core = lock(&self.core);
        if core.ended || !core.counts() {
            return 0.0;
        }
        let waited =
            core.newest.as_ref().filter(|_| !core.is_done()).map_or(Duration::ZERO, |newest| newest.at.elapsed());
        drop(core);
        let bytes = self.outlets.iter().map(|outlet| outlet.waiting().bytes).max().unwrap_or(0).max(self.disk_bytes());
        let late = waited.as_secs_f64() * 1e3 / self.order.patience_ms.max(1) as f64;
        late.max(bytes as f64 / self.order.buffer_bytes.max(1) as f64)
    }

    pub fn note_throttle(&self, percent: u32) {
        lock(&self.core).figures.throttle_percent = percent;
    }

    /// Whether as much output waits as may.
    pub fn is_full(&self) -> bool {
        let waiting = self.outlets.iter().map(|outlet| outlet.waiting().bytes).max().unwrap_or(0);
        waiting.max(self.disk_bytes()).saturating_mul(4) >= self.order.buffer_bytes.saturating_mul(3)
    }

    /// From one cut to the next.
    pub fn interval(&self) -> Duration {
        let mut core = lock(&self.core);
        let chosen = (core.cost * SHARE).clamp(INTERVALS[0], INTERVALS[1]);
        let interval = self.order.interval_ms.map_or(chosen, Duration::from_millis);
        core.figures.interval_ns = nanoseconds(interval);
        interval
    }

    pub fn sleep_until(&self, end: Instant) {
        let mut core = lock(&self.core);
        while !core.ended {
            let left = end.saturating_duration_since(Instant::now());
            // An epoch that writes much is a short one.
            let disks = self.disks();
            if left.is_zero() || disks.iter().any(|disk| disk.journal().bytes() >= MUCH_BYTES) {
                return;
            }
            core = self.wait(core, if disks.is_empty() { left } else { left.min(LOOK) });
        }
    }

    /// Whether it is the caller who serves a backup from now on, until [`Protecting::lost`]: nobody else does.
    pub fn begin_serving(&self, node: Node) -> bool {
        let mut core = lock(&self.core);
        let backup = core.backups.entry(node).or_default();
        backup.figures.node = node;
        !std::mem::replace(&mut backup.is_served, true)
    }

    /// Keeps a connection, to end it with the protection.
    pub fn keep(&self, node: Node, wire: UnixStream) {
        let mut core = lock(&self.core);
        if core.ended {
            let _ = wire.shutdown(Shutdown::Both);
        }
        core.backups.entry(node).or_default().wires.push(wire);
    }

    pub fn connected(&self, node: Node) {
        self.change(|core| {
            let backup = core.backups.entry(node).or_default();
            backup.is_connected = true;
            backup.figures = BackupFigures { node, ..BackupFigures::default() };
        });
    }

    pub fn lost(&self, node: Node, why: String) {
        self.change(|core| {
            let figures = BackupFigures { node, failed: Some(why), ..BackupFigures::default() };
            let had_copy = core.backups.get(&node).is_some_and(|before| before.had_copy);
            let lacks_since = core.backups.get(&node).and_then(|before| before.lacks_since);
            let mut backup = Backup { figures, had_copy, lacks_since, ..Backup::default() };
            backup.lacks_from(Instant::now());
            core.backups.insert(node, backup);
            core.owner.forget(node);
            core.forget_logs();
        });
    }

    pub fn disks(&self) -> Vec<Arc<Block>> {
        lock(&self.disks).clone()
    }

    pub fn has_disks(&self) -> bool {
        !lock(&self.disks).is_empty()
    }

    /// What is written to disks is remembered from now on, until the end.
    pub fn remember_writes(&self) {
        self.disks().iter().for_each(|disk| disk.journal().start());
    }

    /// Goes on with other disks, if these are others: what was written to them meanwhile is not known, so all backups begin
    /// anew.
    pub fn renew_disks(&self, disks: Vec<Arc<Block>>) -> bool {
        let before = self.disks();
        let same = before.len() == disks.len() && before.iter().zip(&disks).all(|(old, new)| Arc::ptr_eq(old, new));
        if same {
            return false;
        }
        *lock(&self.disks) = disks;
        self.remember_writes();
        self.change(|core| {
            core.backups.values().for_each(Backup::hang_up);
            core.logs.clear();
        });
        true
    }

    /// A backup is being given the disks.
    pub fn begin_disks(&self, node: Node) {
        self.change(|core| {
            if let Some(backup) = core.backups.get_mut(&node) {
                backup.copies_disks = true;
            }
        });
    }

    /// From now on, what is written to disks is kept for a backup: all of the epoch that is being made, too.
    pub fn keep_writes(&self, node: Node) {
        let mut core = lock(&self.core);
        let epoch = core.owner.version().epoch;
        if let Some(backup) = core.backups.get_mut(&node) {
            backup.has_disks = Some(epoch);
        }
    }

    /// A backup has been given the disks, of no one moment: the epochs after this one make them whole.
    pub fn end_disks(&self, node: Node) -> Epoch {
        self.change(|core| {
            let epoch = core.owner.version().epoch;
            if let Some(backup) = core.backups.get_mut(&node) {
                (backup.copies_disks, backup.begins_after) = (false, Some(epoch));
            }
            epoch
        })
    }

    /// Waits for the next cut.
    pub fn wait_for_cut(&self) -> Result<(), crate::protection::Error> {
        let mut core = lock(&self.core);
        let before = core.owner.version().epoch;
        while core.owner.version().epoch == before {
            if core.ended {
                return Err(crate::protection::Error::Protocol("the protection has ended"));
            }
            core = self.wait(core, LOOK);
        }
        Ok(())
    }

    /// What a backup lacks of the writes up to an epoch.
    pub fn writes_for(&self, node: Node, epoch: Epoch) -> Vec<Arc<DiskLog>> {
        let core = lock(&self.core);
        let from = core.backups.get(&node).and_then(|backup| backup.has_disks);
        core.logs.iter().filter(|log| Some(log.epoch) > from && log.epoch <= epoch).cloned().collect()
    }

    /// Writes to disks that some backup lacks.
    fn disk_bytes(&self) -> u64 {
        let running: u64 = self.disks().iter().map(|disk| disk.journal().bytes()).sum();
        running + lock(&self.core).logs.iter().map(|log| log.bytes).sum::<u64>()
    }

    /// The newest epoch, once it is newer than `sent`; `None` at the end.
    pub fn wait_for_newer(&self, node: Node, sent: Option<Epoch>) -> Option<Arc<Sealed>> {
        let mut core = lock(&self.core);
        if let Some(backup) = core.backups.get_mut(&node) {
            backup.busy_since = None;
        }
        loop {
            if core.ended {
                return None;
            }
            let newer = core.newest.clone().filter(|newest| Some(newest.version.epoch) > sent);
            if let Some(newest) = newer {
                if let Some(backup) = core.backups.get_mut(&node) {
                    backup.busy_since = Some(Instant::now());
                }
                return Some(newest);
            }
            core = self.wait(core, Duration::from_secs(1));
        }
    }

    pub fn acknowledged(&self, node: Node, version: Version, sent: Sent, took: Duration) {
        self.change(|core| {
            core.owner.acknowledge(node, version);
            core.cost = (core.cost * 7 + took) / 8;
            let is_newest = core.newest.as_ref().is_none_or(|newest| newest.version == version);
            let lag = core.newest.as_ref().filter(|newest| newest.version == version).map(|newest| newest.at.elapsed());
            let figures = &mut core.figures;
            figures.lag_ns = nanoseconds(lag.unwrap_or(took));
            figures.epoch_bytes = sent.data_bytes;
            figures.data_bytes += sent.data_bytes;
            figures.wire_bytes += sent.wire_bytes;
            if let Some(backup) = core.backups.get_mut(&node) {
                backup.has_disks = backup.has_disks.map(|_| version.epoch);
                backup.figures.epoch = Some(version.epoch);
                backup.figures.round_trip_ns = nanoseconds(took);
                backup.had_copy = true;
                // What it lacks was cut after it had begun to be sent this one.
                backup.lacks_since = (!is_newest).then(|| Instant::now().checked_sub(took)).flatten();
            }
            core.forget_logs();
        });
    }

    pub fn figures(&self) -> Protection {
        let mut core = lock(&self.core);
        core.look_at_clock(Duration::from_millis(self.order.patience_ms));
        let mut figures = core.figures.clone();
        figures.wish = core.wish();
        figures.state = core.state();
        figures.register = Some(core.register.clone());
        figures.backups = core.backups.values().map(Backup::figures).collect();
        for waiting in self.outlets.iter().map(|outlet| outlet.waiting()) {
            figures.waiting_frames += waiting.frames;
            figures.waiting_bytes += waiting.bytes;
            figures.dropped_frames += waiting.dropped;
        }
        figures
    }

    fn wait<'a>(&self, core: MutexGuard<'a, Core>, limit: Duration) -> MutexGuard<'a, Core> {
        match self.changed.wait_timeout(core, limit) {
            Ok((core, _)) => core,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }
}

impl Core {
    pub fn term(&self) -> Term {
        self.owner.term()
    }

    pub fn is_fenced(&self) -> bool {
        self.owner.is_fenced()
    }

    pub fn counts(&self) -> bool {
        self.register.phase == Phase::Protected
    }

    pub fn saw_term(&mut self, term: Term) {
        self.owner.saw_term(term);
    }

    /// How many acknowledgements are wished.
    pub fn require_acks(&mut self, acks: usize) {
        self.acks = acks;
    }

    /// This is what the register says, and nobody is writing it.
    pub fn adopt(&mut self, register: &Register) {
        self.owner.adopt(register);
        if self.owner.is_fenced() {
            return;
        }
        self.register = register.clone();
        self.was_protected |= register.phase == Phase::Protected;
        self.wants_exposure &= register.phase != Phase::Alone;
        if self.offered {
            self.owner.withdraw();
            self.offered = false;
        }
    }

    /// Proposes the rule that fits the backups that are there, if it is another one than that in force.
    fn propose(&mut self) {
        let members: BTreeSet<Node> =
            self.backups.iter().filter(|(_, b)| b.is_connected && b.figures.epoch.is_some()).map(|(n, _)| *n).collect();
        let rule = Rule { members, acks: self.acks };
        let in_force = self.counts() && self.register.members == rule.members && self.register.acks == rule.acks;
        let enough = rule.members.len() >= self.acks && !self.wants_exposure;
        if self.offered {
            return;
        }
        match self.owner.proposed() {
            Some(proposed) if *proposed == rule && enough => {}
            _ if enough && !in_force => self.owner.propose(rule),
            Some(_) => self.owner.withdraw(),
            None => {}
        }
    }

    /// What is to be written into the register. A rule that is told stays proposed until the register is adopted.
    fn wish(&mut self) -> Option<RegisterWish> {
        if self.ended {
            return None;
        }
        if self.wants_exposure && self.counts() {
            return Some(RegisterWish::Expose {});
        }
        let rule = self.owner.proposed().filter(|_| self.owner.may_write())?;
        let wish = RegisterWish::Protect { members: rule.members.iter().copied().collect(), acks: rule.acks };
        self.offered = true;
        Some(wish)
    }

    /// Forgets what no backup lacks.
    fn forget_logs(&mut self) {
        let oldest = self.backups.values().filter_map(|backup| backup.has_disks).min();
        self.logs.retain(|log| oldest.is_some_and(|oldest| log.epoch > oldest));
    }

    /// Whether the next epoch can follow the newest.
    fn is_done(&self) -> bool {
        let Some(newest) = &self.newest else { return true };
        match self.owner.releasable() {
            Release::UpTo(epoch) if self.counts() => epoch >= newest.version.epoch,
            // While copies are made, each epoch goes to all that are there.
            _ => {
                let newest = Some(newest.version.epoch);
                let waits =
                    |backup: &&Backup| backup.is_connected && !backup.copies_disks && backup.begins_after < newest;
                self.backups.values().filter(waits).all(|backup| backup.figures.epoch >= newest)
            }
        }
    }

    /// Gives up whom nothing is heard of.
    fn look_at_clock(&mut self, patience: Duration) {
        let late = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > patience);
        // The first epoch is all of the memory, and takes its time.
        self.backups.values().filter(|b| b.figures.epoch.is_some() && late(b.busy_since)).for_each(Backup::hang_up);
        let overdue = self.newest.as_ref().is_some_and(|newest| newest.at.elapsed() > patience) && !self.is_done();
        let missing = self.backups.values().filter(|backup| backup.is_connected).count() < self.acks;
        if self.mode == ProtectionMode::BestEffort && self.counts() && (overdue || missing) {
            self.wants_exposure = true;
        }
    }

    fn state(&self) -> ProtectionState {
        match (self.owner.is_fenced(), self.register.phase) {
            (true, _) => ProtectionState::Fenced,
            _ if self.ended => ProtectionState::Off,
            (_, Phase::Protected) => ProtectionState::Protected,
            _ if self.was_protected => ProtectionState::Degraded,
            _ => ProtectionState::Copying,
        }
    }
}

impl Backup {
    fn figures(&self) -> BackupFigures {
        let behind_ns = self.lacks_since.map_or(0, |since| nanoseconds(since.elapsed()));
        BackupFigures { behind_ns, ..self.figures.clone() }
    }

    /// There is something that it lacks.
    fn lacks_from(&mut self, at: Instant) {
        if self.had_copy && self.lacks_since.is_none() {
            self.lacks_since = Some(at);
        }
    }

    /// Ends the connections: whoever waits on them ends, too.
    fn hang_up(&self) {
        self.wires.iter().for_each(|wire| drop(wire.shutdown(Shutdown::Both)));
    }
}
