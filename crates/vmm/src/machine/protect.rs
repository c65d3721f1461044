//! The machine survives its host: the primary's side of [`crate::protection`].
//!
//! ```text
//!  thread "protection":  cut ──> newest epoch ──> wait until it may leave ──> wait for the interval's end ──> cut …
//!  thread "backup N":    connect ──> the newest epoch, as the difference to what this backup has ──> its answer ──> …
//!  thread "brake":       too much waits ──> the vCPUs rest for a part of the time ([`brake`])
//! ```
//! Each cut is a freeze, as for a snapshot ([`super::snapshot`]). A backup that is slow takes part in fewer epochs, and holds
//! nobody up as long as enough others acknowledge. What may leave is decided by [`Owner`] alone; whoever keeps the register
//! (the daemon) is told what to write by [`MachineHandle::protection`], and says what is written by [`MachineHandle::adopt`].

mod brake;
mod core;
mod disks;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::events::End;
use super::snapshot::{Cut, chain, give_back, nanoseconds};
use super::{MachineHandle, lock, read};
use crate::control::{BackupPlace, ProtectOrder, Protection, ProtectionMode, Reason, Refusal};
use crate::migration::MAX_STRIPES;
use crate::protection::{Begin, Link, Offer, Reply};
use crate::snapshot;
use queztl_distributed_ram::{Node, Phase, Register};

pub(super) use self::core::Protecting;
use self::core::Sealed;

/// Between two looks at buffers and clocks while an acknowledgement is awaited.
const TURN: Duration = Duration::from_millis(2);
/// The shortest and the longest interval that is chosen.
const INTERVALS: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// Between two attempts to cut a machine that cannot be cut now.
const RETRY: Duration = Duration::from_millis(20);
/// The share of its time that a backup's connection may be busy: one part in so many.
const SHARE: u32 = 3;
/// Between announcements of a new place, in milliseconds.
const ANNOUNCEMENTS_MS: [u64; 4] = [50, 100, 300, 1000];
/// Backups at most.
const MAX_BACKUPS: usize = 8;

impl MachineHandle {
    /// Begins to copy the machine to backups, epoch by epoch.
    ///
    /// # Errors
    /// It cannot be protected, or is already.
    pub fn protect(&self, order: ProtectOrder) -> Result<(), Refusal> {
        let invalid = |message: String| Err(Refusal::new(Reason::Invalid, message));
        if !(1..=MAX_STRIPES).contains(&order.stripes) {
            return invalid(format!("memory is sent over 1 to {MAX_STRIPES} connections, not {}", order.stripes));
        }
        let count = order.backups.len();
        if order.acks == 0 || order.acks > count || count > MAX_BACKUPS {
            let text =
                "acknowledgements are at least one, and no more than there are backups, of which there are 8 at most";
            return invalid(format!("{} acknowledgements of {count} backups cannot be: {text}", order.acks));
        }
        if order.register.phase != Phase::Alone {
            return invalid("protection begins with an owner that is alone".into());
        }
        let throttle = brake::throttle(&order.throttle)?;
        let nets = read(&self.shared.live).as_ref().map(|live| live.nets.clone());
        let nets = nets.ok_or_else(|| Refusal::new(Reason::Busy, "the guest is restarting: try again"))?;
        let outlets = nets.iter().map(|net| net.outlet().clone()).collect();
        let places = order.backups.clone();
        let protecting = Arc::new(Protecting::new(order, outlets, self.written_disks()));
        {
            let mut current = lock(&self.shared.protection);
            if current.as_ref().is_some_and(|current| !current.has_ended()) {
                return Err(Refusal::new(Reason::Busy, "the machine is protected already: unprotect it first"));
            }
            protecting.remember_writes();
            *current = Some(protecting.clone());
        }
        let (handle, braked) = (self.clone(), protecting.clone());
        spawn("brake".into(), move || brake::run(&handle, &braked, throttle))?;
        let handle = self.clone();
        spawn("protection".into(), move || handle.run_epochs(&protecting))?;
        places.into_iter().try_for_each(|place| self.add_backup(place))
    }

    /// A backup is there, or there again.
    ///
    /// # Errors
    /// The machine is not protected.
    pub fn add_backup(&self, place: BackupPlace) -> Result<(), Refusal> {
        let protecting = self.protecting()?;
        let handle = self.clone();
        let name = format!("backup {}", place.node);
        spawn(name, move || handle.serve_backup(&protecting, &place))
    }

    /// So many acknowledgements are wished from now on.
    ///
    /// # Errors
    /// The machine is not protected, or there can be no so many.
    pub fn require_acks(&self, acks: usize) -> Result<(), Refusal> {
        if !(1..=MAX_BACKUPS).contains(&acks) {
            let text = format!("{acks} acknowledgements cannot be: there are 1 to {MAX_BACKUPS} backups");
            return Err(Refusal::new(Reason::Invalid, text));
        }
        self.protecting()?.change(|core| core.require_acks(acks));
        Ok(())
    }

    /// This is what the register says now. Nobody is writing it.
    ///
    /// # Errors
    /// The machine is not protected.
    pub fn adopt(&self, register: &Register) -> Result<(), Refusal> {
        self.protecting()?.change(|core| core.adopt(register));
        Ok(())
    }

    /// How the protection goes, and what is to be written into the register.
    pub fn protection(&self) -> Protection {
        self.protecting().map(|protecting| protecting.figures()).unwrap_or_default()
    }

    /// Ends the protection: output leaves at once again. The register must say so before.
    ///
    /// # Errors
    /// The machine is not protected, or the register says that copies count.
    pub fn unprotect(&self) -> Result<(), Refusal> {
        let protecting = self.protecting()?;
        if protecting.look(|core| core.counts()) {
            let text = "copies count as long as the register says so: expose the owner first";
            return Err(Refusal::new(Reason::Invalid, text));
        }
        protecting.end();
        Ok(())
    }

    /// Tells the networks where the machine is now; again for a while, since something that the owner before was allowed to
    /// send may come late and tell otherwise.
    pub fn announce(&self) {
        self.announce_once();
        let handle = self.clone();
        let again = spawn("announce".into(), move || {
            for pause in ANNOUNCEMENTS_MS {
                std::thread::sleep(Duration::from_millis(pause));
                handle.announce_once();
            }
        });
        if let Err(refusal) = again {
            tracing::warn!(%refusal, "the networks are told once where the machine is");
        }
    }

    fn announce_once(&self) {
        if let Some(live) = read(&self.shared.live).as_ref() {
            live.nets.iter().for_each(|net| net.outlet().announce(reverse_arp(net.mac().0)));
        }
    }

    fn protecting(&self) -> Result<Arc<Protecting>, Refusal> {
        let current = lock(&self.shared.protection).clone().filter(|current| !current.has_ended());
        current.ok_or_else(|| Refusal::new(Reason::Missing, "the machine is not protected"))
    }

    /// Cuts epochs until the protection ends.
    fn run_epochs(&self, protecting: &Protecting) {
        while protecting.wait_for_a_backup() {
            let began = Instant::now();
            if let Err(refusal) = self.cut_epoch(protecting) {
                tracing::debug!(%refusal, "no epoch now");
                std::thread::sleep(RETRY);
                continue;
            }
            self.await_release(protecting);
            protecting.sleep_until(began + protecting.interval());
        }
        protecting.drop_newest();
        if protecting.look(|core| core.is_fenced()) {
            tracing::error!("another term has another owner: the machine ends here, and nothing of it leaves any more");
            self.shared.events.note(End::Moved);
        }
    }

    /// One epoch: what was written since the last one is frozen, and offered to all.
    fn cut_epoch(&self, protecting: &Protecting) -> Result<(), Refusal> {
        protecting.drop_newest();
        if let Some(live) = read(&self.shared.live).as_ref() {
            give_back(&live.ram);
        }
        let mut version = None;
        let Cut { state, frozen, pause, .. } =
            self.cut_with(&[], false, || version = Some(protecting.begin_epoch()))?;
        let version = version.ok_or_else(|| Refusal::new(Reason::Failed, "the machine was not cut"))?;
        if protecting.renew_disks(self.written_disks()) {
            return Err(Refusal::new(Reason::Busy, "the guest has restarted: its disks are copied again"));
        }
        let state = snapshot::encode(&state)?;
        protecting.seal(Sealed { version, frozen, state, at: Instant::now() }, nanoseconds(pause));
        Ok(())
    }

    /// Waits until the newest epoch may leave. Meanwhile a guest that says too much is made to stand still.
    fn await_release(&self, protecting: &Protecting) {
        let mut stalled = false;
        while !protecting.wait_for_release(TURN) {
            let pauses = protecting.order.mode == ProtectionMode::Pause && !self.shared.vcpus.is_paused();
            if !stalled && pauses && protecting.is_full() {
                stalled = self.pause().is_ok();
                protecting.change(|core| core.figures.stalled = stalled);
            }
        }
        if stalled {
            self.resume();
            protecting.change(|core| core.figures.stalled = false);
        }
    }

    /// Brings epochs to one backup until its connection or the protection ends.
    fn serve_backup(&self, protecting: &Protecting, place: &BackupPlace) {
        let node = place.node;
        // Who is told twice that a backup is there does not end what it has begun.
        if !protecting.begin_serving(node) {
            return;
        }
        let result = self.connect_backup(protecting, place).and_then(|mut link| {
            protecting.connected(node);
            send_epochs(protecting, node, &mut link)
        });
        let why = match result {
            Ok(()) => "the protection has ended".to_owned(),
            Err(error) => chain(&error),
        };
        tracing::info!(node, why, "a backup is not served any more");
        protecting.lost(node, why);
    }

    fn connect_backup(&self, protecting: &Protecting, place: &BackupPlace) -> Result<Link, crate::protection::Error> {
        let runs = self.ram_runs().map_err(|refusal| crate::protection::Error::Refused(refusal.message))?;
        let sizes = protecting.disks().iter().map(|disk| disk.disk().topology().size_bytes).collect();
        let begin = Begin::new(protecting.look(|core| core.term()), runs, protecting.order.stripes, sizes);
        Link::open(&place.socket, &begin, |wire: UnixStream| protecting.keep(place.node, wire))
    }
}

/// Sends the newest epoch, again and again. Ends with the protection.
fn send_epochs(protecting: &Protecting, node: Node, link: &mut Link) -> Result<(), crate::protection::Error> {
    let (mut base, mut refused) = (None, false);
    let mut sent_last = disks::copy(protecting, node, link)?;
    while let Some(epoch) = protecting.wait_for_newer(node, sent_last) {
        let began = Instant::now();
        let image = epoch.frozen.image();
        // After a restart of the guest, RAM has nothing in common with what was.
        let from = base.filter(|(_, layer)| image.descends_from(*layer));
        disks::send_writes(protecting, node, epoch.version.epoch, link)?;
        let offer = Offer { version: epoch.version, image, state: &epoch.state };
        let (reply, sent) = link.send(&offer, from)?;
        match reply {
            Reply::Acknowledged(version) => {
                base = epoch.frozen.top().map(|top| (version.epoch, top));
                (sent_last, refused) = (Some(version.epoch), false);
                protecting.acknowledged(node, version, sent, began.elapsed());
            }
            Reply::Fenced(term) => protecting.change(|core| core.saw_term(term)),
            Reply::NeedsAll if refused || protecting.has_disks() => {
                return Err(crate::protection::Error::NoBase(epoch.version.epoch));
            }
            Reply::NeedsAll => (base, refused) = (None, true),
        }
    }
    Ok(())
}

/// "Here I am", for the switches: a reverse ARP request (RFC 903), as machines that move send it.
fn reverse_arp(mac: [u8; 6]) -> Vec<u8> {
    const REVERSE_ARP: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    const SHORTEST: usize = 60;
    let mut frame = vec![0; queztl_network::HEADER_BYTES];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(REVERSE_ARP);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend(mac);
    frame.resize(queztl_network::HEADER_BYTES + SHORTEST, 0);
    frame
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    let thread = std::thread::Builder::new().name(name).spawn(body);
    thread.map(drop).map_err(|error| Refusal::new(Reason::Failed, format!("no thread for a protection: {error}")))
}
