//! What a backup's daemon is told: to keep a copy, who the others are, and how the machine is protected by whoever goes on with it.

use std::path::Path;
use std::time::Duration;

use queztl_api::{BackupAddress, BackupOrder, BackupPeer, Code, Problem, ProtectRequest, ReceiveRequest};
use queztl_client::Client;

use super::{Guarded, there};
use crate::cluster::is_name;
use crate::manager::Core;
use crate::vms::Machine;

/// How long a daemon may take to make ready.
const LIMIT: Duration = Duration::from_secs(10);
/// A daemon's own socket: in its home, but for the host's own.
const SOCKET: &str = "daemon.sock";
const SYSTEM: [&str; 2] = ["/var/lib/queztl", "/run/queztl/daemon.sock"];
/// Addresses that are remembered.
const MAX_KNOWN: usize = 16;

impl Guarded {
    /// How many daemons are to keep copies.
    pub(super) fn wanted(&self) -> usize {
        self.request.backup_count.map_or(self.backups.len(), |count| count as usize)
    }

    /// How many copies must have what leaves, once so many are there.
    pub(super) fn acks(&self) -> usize {
        self.request.acks.map_or(self.wanted(), |acks| acks as usize).min(self.wanted())
    }

    /// What is to be done if the protection has to begin again here.
    pub(super) fn wish(&self) -> ProtectRequest {
        let known = self.request.backups.iter().chain(&self.spares);
        ProtectRequest { backups: different(known, None), ..self.request.clone() }
    }

    /// What is to be done by `node` if it goes on with the machine; this daemon's own address is `own`.
    fn wish_of(&self, node: u32, own: Option<&BackupAddress>) -> Option<Box<ProtectRequest>> {
        let theirs = self.places().find(|(other, _)| *other == node).map(|(_, address)| address.clone());
        let known = self.request.backups.iter().chain(own).chain(&self.spares);
        let backups = different(known, theirs.as_ref());
        let wish = ProtectRequest { backups, own: theirs, ..self.request.clone() };
        self.request.again.then(|| Box::new(wish))
    }

    fn order(&self, node: u32, term: u64, own: Option<&BackupAddress>) -> BackupOrder {
        let peer = |(node, address): (u32, &BackupAddress)| BackupPeer { node, address: address.clone() };
        BackupOrder {
            node,
            term,
            register: self.request.register.clone(),
            lease_ms: self.request.lease_ms,
            silence_ms: self.request.silence_ms,
            peers: self.places().filter(|(other, _)| *other != node).map(peer).collect(),
            again: self.wish_of(node, own),
        }
    }
}

/// Each once, and one not at all.
fn different<'a>(
    known: impl Iterator<Item = &'a BackupAddress>,
    without: Option<&BackupAddress>,
) -> Vec<BackupAddress> {
    let mut all: Vec<BackupAddress> = Vec::new();
    for address in known.filter(|address| without.is_none_or(|without| without.to != address.to)) {
        if all.len() < MAX_KNOWN && !all.iter().any(|one| one.to == address.to) {
            all.push(address.clone());
        }
    }
    all
}

impl Core {
    /// What `node` is told of a machine by the owner of this term.
    pub(super) fn request_to(&self, machine: &Machine, guarded: &Guarded, node: u32, term: u64) -> ReceiveRequest {
        let record = machine.record();
        let own = self.own_address(&guarded.request);
        ReceiveRequest {
            id: record.id,
            name: record.name,
            spec: record.spec,
            macs: record.macs.iter().map(ToString::to_string).collect(),
            shared: Vec::new(),
            backup: Some(guarded.order(node, term, own.as_ref())),
        }
    }

    /// Has a daemon wait for a machine, or hear what is new of its group.
    pub(super) fn invite(&self, client: &Client, request: &ReceiveRequest) -> Result<(), Problem> {
        let asked = async { tokio::time::timeout(LIMIT, client.receive(request)).await };
        match self.runtime.block_on(asked) {
            Ok(told) => told.map(drop).map_err(|error| there(&error)),
            Err(_) => {
                let text = format!("the other daemon has not answered within {} s", LIMIT.as_secs());
                Err(Problem::new(Code::Timeout, text))
            }
        }
    }

    /// How the others reach this daemon, as far as that is known.
    fn own_address(&self, request: &ProtectRequest) -> Option<BackupAddress> {
        if request.own.is_some() {
            return request.own.clone();
        }
        if request.backups.iter().all(|backup| is_name(&backup.to)) {
            return self.own_name().map(|name| BackupAddress::to(name.as_str()));
        }
        let here = request.backups.iter().all(|backup| backup.to.starts_with("unix:"));
        here.then(|| BackupAddress::to(format!("unix:{}", socket_of(&self.config.home).display())))
    }
}

fn socket_of(home: &Path) -> std::path::PathBuf {
    let [system, socket] = SYSTEM.map(Path::new);
    if home == system { socket.to_owned() } else { home.join(SOCKET) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(backups: &[&str], spares: &[&str]) -> Guarded {
        let addresses = |names: &[&str]| names.iter().map(|to| BackupAddress::to(*to)).collect();
        let request = ProtectRequest {
            acks: Some(2),
            backup_count: u32::try_from(backups.len()).ok(),
            ..ProtectRequest::new(addresses(backups), "file:/r")
        };
        let numbers = (1..).take(backups.len()).collect();
        Guarded { request, node: 0, backups: numbers, spares: addresses(spares), ending: false }
    }

    fn names(request: &ProtectRequest) -> Vec<&str> {
        request.backups.iter().map(|backup| &*backup.to).collect()
    }

    #[test]
    fn who_goes_on_can_ask_the_others_the_owner_before_and_those_before_it() {
        let guarded = guarded(&["b", "c"], &["d", "c"]);

        let order = guarded.order(2, 7, Some(&BackupAddress::to("a")));

        let wish = order.again.unwrap();
        assert_eq!(names(&wish), ["b", "a", "d"]);
        assert_eq!((wish.acks, wish.backup_count), (Some(2), Some(2)), "as many as were asked for");
        assert_eq!(wish.own, Some(BackupAddress::to("c")));
        assert_eq!((order.node, order.term, order.peers.len()), (2, 7, 1));
    }

    #[test]
    fn a_protection_for_once_tells_nobody_how_to_go_on() {
        let mut once = guarded(&["b"], &[]);
        once.request.again = false;
        assert_eq!(once.order(1, 1, None).again, None);
    }

    #[test]
    fn what_begins_again_here_knows_all_that_were_asked_before() {
        assert_eq!(names(&guarded(&["b", "c"], &["d", "b"]).wish()), ["b", "c", "d"]);
    }
}
