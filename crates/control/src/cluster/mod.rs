//! Daemons that know each other: who is a node, how nodes meet, and how each is.
//!
//! ```text
//!  founder ── authority's key, invitations ──────────────┐ admits
//!  every node ── its key and certificate ── port 7444 ───┴── mutual TLS ── every node
//!       │ members: copied each second from the coordinator (founder's store, or etcd)
//!       └ health: each node asks each other one, each second
//! ```
//! Promises:
//! - on the nodes' port a request comes from a member, by its certificate, or it is one for admission; a member that was
//!   removed is refused by each node once that has looked at the members again, within two seconds while the coordinator
//!   answers;
//! - a token admits one node: who has used it with one key can use it again with that key alone;
//! - joining is all or nothing: a daemon that is killed while it joins is a node afterwards, or can join again with the same
//!   token;
//! - a cluster whose coordinator or founder is away goes on with the members that it knows.

pub(crate) mod coordinator;
mod drain;
mod folder;
mod health;
mod identity;
mod invite;
mod join;
mod leave;
pub(crate) mod members;
mod nodes;
#[cfg(test)]
mod tests;
mod token;

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use queztl_api::{Code, EventKind, Name, NodeStatus, Problem, Timestamp};
use queztl_client::{Address, Client, NodeTls, Options};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::manager::Core;
use crate::service::NodePort;
use coordinator::{Coordinator, CoordinatorError, Embedded, Founder, Shared};
use folder::{ADMITTED, AUTHORITY, AUTHORITY_KEY, Folder, MEMBERS, NODE, NODE_KEY, Settings};
use identity::{Authority, Fingerprint, Identity};
pub(crate) use invite::Invitation;
use members::{Member, Members};
pub(crate) use nodes::is_name;

/// The port of nodes whose address names none.
const DEFAULT_PORT: u16 = 7444;
/// The members are not asked for more often, whoever comes.
const FRESH: Duration = Duration::from_millis(200);
/// A node that has not answered for so long is unreachable.
const UNREACHABLE: Duration = Duration::from_secs(3);

/// This daemon's part of a cluster, if it has one.
#[derive(Default)]
pub(crate) struct Cluster {
    joined: RwLock<Option<Arc<Joined>>>,
    port: watch::Sender<Option<NodePort>>,
    /// Held while the daemon becomes a node, or ceases to be one.
    changing: Mutex<()>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("joined", &self.joined().is_some()).finish_non_exhaustive()
    }
}

/// What a node has.
pub(crate) struct Joined {
    pub settings: Settings,
    own: Fingerprint,
    /// PEM.
    authority_certificate: String,
    authority_fingerprint: Fingerprint,
    /// At the founder.
    authority: Option<Authority>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    etcd: Option<crate::etcd::Etcd>,
    /// Where the coordinator is the founder's store, at the others.
    founder: Option<Client>,
    /// The founder has this node among the members.
    admitted: AtomicBool,
    /// It is no node any more.
    over: AtomicBool,
    view: RwLock<View>,
    clients: Mutex<HashMap<(Name, String), Arc<Client>>>,
}

/// What is known of the others.
#[derive(Debug, Default)]
struct View {
    members: Vec<Member>,
    refreshed: Option<Instant>,
    /// The coordinator does not know this node.
    removed: bool,
    seen: BTreeMap<Name, Seen>,
    /// Others that do not answer.
    silent: Vec<Name>,
}

#[derive(Debug, Clone)]
struct Seen {
    status: NodeStatus,
    at: Timestamp,
    when: Instant,
}

impl Cluster {
    pub(crate) fn joined(&self) -> Option<Arc<Joined>> {
        self.joined.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, joined: Option<Arc<Joined>>) {
        *self.joined.write().unwrap_or_else(PoisonError::into_inner) = joined;
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where nodes are to be greeted.
    pub(crate) fn port(&self) -> watch::Receiver<Option<NodePort>> {
        self.port.subscribe()
    }

    fn need(&self) -> Result<Arc<Joined>, Problem> {
        self.joined()
            .ok_or_else(|| Problem::new(Code::State, "this daemon is in no cluster: see queztl-hv node --help"))
    }
}

impl Joined {
    /// The node whose files these are.
    fn load(core: &Core, folder: &Folder, settings: Settings) -> Result<Joined, Problem> {
        let key = identity::read_key(&folder.read(NODE_KEY)?)?;
        let authority_certificate = folder.read(AUTHORITY)?;
        let identity = Identity::new(&folder.read(NODE)?, &authority_certificate, &key)?;
        let authority = match settings.founder == settings.name {
            true => {
                // Without its key the cluster goes on, and admits nobody any more.
                let key = folder.read(AUTHORITY_KEY).and_then(|pem| identity::read_key(&pem));
                let lost = |problem: &Problem| tracing::warn!(%problem, "no node can be admitted any more");
                key.inspect_err(lost).ok().map(|key| Authority::new(&settings.cluster, key))
            }
            false => None,
        };
        let etcd = match settings.coordinator.strip_prefix("etcd://") {
            Some(servers) => Some(crate::etcd::Etcd::new(servers).ok_or_else(wrong_coordinator)?),
            None => None,
        };
        let client = Arc::new(identity.client()?);
        let is_founder = settings.founder == settings.name;
        let mut joined = Joined {
            own: identity.fingerprint(),
            authority_certificate,
            authority_fingerprint: identity::fingerprint(&identity.authority),
            authority,
            server: Arc::new(identity.server()?),
            client,
            etcd,
            founder: None,
            admitted: AtomicBool::new(is_founder || folder.has(ADMITTED)),
            over: AtomicBool::new(false),
            view: RwLock::default(),
            clients: Mutex::default(),
            settings,
        };
        if joined.etcd.is_none() && !is_founder {
            joined.founder = Some(joined.meet(joined.settings.founder.as_str(), &joined.settings.founder_address)?);
        }
        if let Ok(known) = folder.read(MEMBERS)
            && let Ok(members) = serde_json::from_str(&known)
        {
            joined.view_mut().members = members;
        }
        if is_founder && joined.etcd.is_none() {
            joined.view_mut().members = joined.with(core, |members| members.all()).map_err(members::out_of_reach)?;
        }
        Ok(joined)
    }

    fn view(&self) -> std::sync::RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn view_mut(&self) -> std::sync::RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A client of another node.
    fn meet(&self, name: &str, address: &str) -> Result<Client, Problem> {
        let address = format!("https://{address}").parse::<Address>();
        let address = address.map_err(|error| Problem::invalid("address", error.to_string()))?;
        let server_name = identity::server_name(&self.settings.cluster, name);
        let tls = NodeTls { config: self.client.clone(), server_name };
        let client = Client::new(address, Options { node: Some(tls), ..Options::default() });
        client.map_err(|error| Problem::new(Code::Internal, error.to_string()))
    }

    /// Does something with what the nodes agree on.
    fn agreed<T>(&self, core: &Core, work: impl FnOnce(&dyn Coordinator) -> T) -> T {
        match (&self.etcd, &self.founder) {
            (Some(etcd), _) => work(&Shared(etcd.clone())),
            (None, Some(client)) => work(&Founder { client, runtime: &core.runtime }),
            (None, None) => work(&Embedded(&core.store)),
        }
    }

    fn with<T>(&self, core: &Core, work: impl FnOnce(&Members<'_>) -> T) -> T {
        self.agreed(core, |coordinator| work(&Members { cluster: &self.settings.cluster, coordinator }))
    }

    fn member(&self, name: &str) -> Option<Member> {
        self.view().members.iter().find(|member| member.name.as_str() == name).cloned()
    }

    /// The member with this certificate, as far as it is known.
    fn member_with(&self, certificate: &Fingerprint) -> Option<Member> {
        self.view().members.iter().find(|member| member.certificate == *certificate).cloned()
    }

    /// This node, as the members know it.
    fn own(&self) -> Option<Member> {
        self.member_with(&self.own)
    }
}

impl Core {
    /// This daemon was a node when the one before ended: it is one again.
    pub(crate) fn open_cluster(self: &Arc<Self>) -> Result<(), Problem> {
        let folder = Folder::new(&self.config.home);
        let Some(settings) = folder.settings()? else { return Ok(()) };
        let joined = Arc::new(Joined::load(self, &folder, settings)?);
        self.cluster.set(Some(joined.clone()));
        if let Err(problem) = self.open_port(&joined) {
            tracing::warn!(%problem, "nodes cannot be greeted yet");
        }
        health::start(self, joined)
    }

    /// Listens for other nodes where the settings say.
    fn open_port(&self, joined: &Joined) -> Result<(), Problem> {
        let listener = bind(joined.settings.listen)?;
        self.greet(joined, listener);
        Ok(())
    }

    fn greet(&self, joined: &Joined, listener: TcpListener) {
        let port = NodePort { listener: Arc::new(listener), config: joined.server.clone() };
        self.cluster.port.send_replace(Some(port));
    }

    /// Asks for the members anew.
    fn refresh(&self, joined: &Joined) -> Result<(), Problem> {
        match joined.with(self, |members| members.all()) {
            Ok(members) => self.learn(joined, members),
            Err(CoordinatorError::Founder(error))
                if error.problem().is_some_and(|problem| problem.code == Code::Unauthenticated) =>
            {
                joined.view_mut().removed = joined.admitted.load(Ordering::Acquire);
                Ok(())
            }
            Err(error) => Err(members::out_of_reach(error)),
        }
    }

    /// Takes note of the members, and tells of what is new.
    fn learn(&self, joined: &Joined, members: Vec<Member>) -> Result<(), Problem> {
        let before = {
            let mut view = joined.view_mut();
            view.refreshed = Some(Instant::now());
            let is_member = members.iter().any(|member| member.certificate == joined.own);
            view.removed = !is_member && joined.admitted.load(Ordering::Acquire);
            if view.members == members {
                return Ok(());
            }
            view.seen.retain(|name, _| members.iter().any(|member| member.name == *name));
            view.silent.retain(|name| members.iter().any(|member| member.name == *name));
            std::mem::replace(&mut view.members, members.clone())
        };
        if !joined.is_over() {
            let text = serde_json::to_string(&members).unwrap_or_default();
            Folder::new(&self.config.home).write(MEMBERS, &text)?;
        }
        self.store.write(|change| {
            for (kind, message) in news(&before, &members) {
                change.event(kind, message)?;
            }
            Ok(())
        })
    }

    /// The member whose certificate this is.
    pub(crate) fn node_with(&self, certificate: &Fingerprint) -> Option<Name> {
        let joined = self.cluster.joined()?;
        if let Some(member) = joined.member_with(certificate) {
            return Some(member.name);
        }
        // It may have joined a moment ago.
        let is_old = joined.view().refreshed.is_none_or(|at| at.elapsed() > FRESH);
        if is_old && self.refresh(&joined).is_err() {
            return None;
        }
        joined.member_with(certificate).map(|member| member.name)
    }
}

/// What has changed between two lists of members.
fn news(before: &[Member], after: &[Member]) -> Vec<(EventKind, String)> {
    let find = |all: &[Member], name: &Name| all.iter().find(|member| member.name == *name).cloned();
    let mut news = Vec::new();
    for member in after {
        let node = member.name.to_string();
        match find(before, &member.name) {
            None => news.push((EventKind::NodeJoined { node: node.clone() }, format!("node {node} has joined"))),
            Some(old) if old.draining != member.draining => {
                let (state, what) = match member.draining {
                    true => (queztl_api::NodeState::Draining, "takes no new machines"),
                    false => (queztl_api::NodeState::Ready, "takes machines again"),
                };
                news.push((EventKind::NodeChanged { node: node.clone(), state }, format!("node {node} {what}")));
            }
            Some(_) => {}
        }
    }
    for member in before.iter().filter(|member| find(after, &member.name).is_none()) {
        let node = member.name.to_string();
        news.push((EventKind::NodeLeft { node: node.clone() }, format!("node {node} has left")));
    }
    news
}

fn bind(address: std::net::SocketAddr) -> Result<TcpListener, Problem> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let hint = "choose another address or port with --listen";
    listener.map_err(|error| Problem::new(Code::Host, format!("cannot listen on {address}: {error}; {hint}")))
}

fn wrong_coordinator() -> Problem {
    Problem::invalid("coordinator", "is etcd://host:port,host:port, or left out for this daemon's own store")
}
