//! How the others are: each is asked each second, by each.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use queztl_api::{Code, EventKind, Name, NodeState, NodeStatus, Problem, Timestamp};
use queztl_client::Client;

use super::folder::Folder;
use super::members::Member;
use super::{Joined, Seen, UNREACHABLE};
use crate::manager::Core;

/// Between two rounds.
const TURN: Duration = Duration::from_millis(700);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_millis(800);

/// Looks after the cluster until this daemon is no node any more.
pub(super) fn start(core: &Arc<Core>, joined: Arc<Joined>) -> Result<(), Problem> {
    let core = Arc::downgrade(core);
    let thread = std::thread::Builder::new().name("cluster".into()).spawn(move || look_after(&core, &joined));
    thread.map(drop).map_err(|error| Problem::new(Code::Host, format!("no thread for the cluster: {error}")))
}

fn look_after(core: &Weak<Core>, joined: &Arc<Joined>) {
    while !joined.is_over() {
        let Some(core) = core.upgrade().filter(|core| !core.is_closed()) else { return };
        core.turn(joined);
        drop(core);
        std::thread::sleep(TURN);
    }
}

impl Core {
    fn turn(self: &Arc<Self>, joined: &Arc<Joined>) {
        if !joined.admitted.load(Ordering::Acquire) && !self.enter(joined) {
            return;
        }
        if self.cluster.port.borrow().is_none() {
            // Somebody else had the port when this daemon started.
            let _changing = self.cluster.changing();
            if !joined.is_over() {
                let _ = self.open_port(joined);
            }
        }
        if let Err(problem) = self.refresh(joined) {
            tracing::debug!(%problem, "the members are those that were known");
        }
        self.ask_all(joined);
        if let Err(problem) = self.tell_of_changes(joined) {
            tracing::warn!(%problem, "a node's state cannot be noted");
        }
    }

    /// The daemon before has died while it joined: either the founder knows this node, or it is none.
    fn enter(&self, joined: &Arc<Joined>) -> bool {
        match self.say_hello(joined) {
            Ok(()) => true,
            Err(problem) if matches!(problem.code, Code::Unauthenticated | Code::Exists) => {
                let _changing = self.cluster.changing();
                tracing::warn!(%problem, "this daemon did not finish joining, and is no node");
                joined.over.store(true, Ordering::Release);
                self.cluster.port.send_replace(None);
                self.cluster.set(None);
                if let Err(problem) = Folder::new(&self.config.home).take_back() {
                    tracing::error!(%problem, "what is left of the attempt cannot be removed");
                }
                false
            }
            Err(problem) => {
                tracing::debug!(%problem, "the founder is still to be told of this node");
                false
            }
        }
    }

    fn ask_all(&self, joined: &Joined) {
        let others: Vec<Member> =
            joined.view().members.iter().filter(|member| member.certificate != joined.own).cloned().collect();
        let asked = others.iter().map(|member| async {
            let client = joined.client_of(member).ok()?;
            let status = tokio::time::timeout(PATIENCE, client.node_status()).await.ok()?.ok()?;
            Some((member.name.clone(), status))
        });
        let answers = self.runtime.block_on(futures_util::future::join_all(asked));
        let mut view = joined.view_mut();
        for (name, status) in answers.into_iter().flatten() {
            view.seen.insert(name, Seen { status, at: Timestamp::now(), when: Instant::now() });
        }
    }

    /// Events for those that were lost and found.
    fn tell_of_changes(&self, joined: &Joined) -> Result<(), Problem> {
        let now: Vec<Name> = {
            let view = joined.view();
            let others = view.members.iter().filter(|member| member.certificate != joined.own);
            others.filter(|member| !view.is_seen(&member.name)).map(|member| member.name.clone()).collect()
        };
        let before = std::mem::replace(&mut joined.view_mut().silent, now.clone());
        let lost = now.iter().filter(|name| !before.contains(name)).map(|name| (name, NodeState::Unreachable));
        let found = before.iter().filter(|name| !now.contains(name)).map(|name| (name, NodeState::Ready));
        let changes: Vec<(&Name, NodeState)> = lost.chain(found).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.store.write(|change| {
            for (name, state) in changes {
                let what = if state == NodeState::Ready { "answers" } else { "does not answer" };
                let kind = EventKind::NodeChanged { node: name.to_string(), state };
                change.event(kind, format!("node {name} {what}"))?;
            }
            Ok(())
        })
    }

    /// What this node says of itself.
    pub(crate) fn node_status(&self) -> NodeStatus {
        let host = self.daemon_figures().host;
        let mut status = NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpus: u32::try_from(host.cpus).unwrap_or(u32::MAX),
            memory_bytes: host.memory_bytes,
            memory_available_bytes: host.memory_available_bytes,
            ..NodeStatus::default()
        };
        for machine in self.machines.all() {
            let inner = machine.lock();
            if inner.signs.is_some() {
                status.copies += 1;
            } else if inner.live.is_some() {
                status.vms += 1;
                status.vcpus = status.vcpus.saturating_add(inner.record.spec.vcpus);
                status.vm_memory_bytes = status.vm_memory_bytes.saturating_add(inner.record.spec.ram_bytes);
                status.protections += u32::from(inner.record.protection.is_some());
            }
        }
        status
    }
}

impl super::View {
    pub(super) fn is_seen(&self, name: &Name) -> bool {
        self.seen.get(name).is_some_and(|seen| seen.when.elapsed() < UNREACHABLE)
    }
}

impl Joined {
    /// A client of a member, which keeps its connection.
    pub(super) fn client_of(&self, member: &Member) -> Result<Arc<Client>, Problem> {
        let key = (member.name.clone(), member.address.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.meet(member.name.as_str(), &member.address)?);
        clients.retain(|(name, _), _| *name != member.name);
        clients.insert(key, client.clone());
        Ok(client)
    }
}
