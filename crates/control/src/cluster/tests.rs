//! Clusters of managers in one process: what admits, and what refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{
    AdmissionRequest, AgreedChange, Code, InitNode, JoinNode, NodeState, NodeTokenRequest, Problem, Timestamp,
};

use super::identity::{self, Authority, Identity};
use super::members::{Member, prefix};
use super::nodes::check_change;
use crate::api::{Limits, Listen, ServeConfig, Server};
use crate::{Config, Manager, Service};

/// More than anything here takes, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon without a process of its own.
struct Daemon {
    home: tempfile::TempDir,
    manager: Arc<Manager>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Daemon {
    async fn start() -> Daemon {
        let home = tempfile::Builder::new().prefix("q").tempdir_in("/tmp").unwrap();
        Daemon::in_home(home).await
    }

    async fn in_home(home: tempfile::TempDir) -> Daemon {
        let manager = Arc::new(Manager::open(Config::new(home.path()).unwrap()).await.unwrap());
        let listeners = vec![Listen::Unix { path: home.path().join("daemon.sock"), group: None }];
        let config = ServeConfig { listeners, limits: Limits::default(), dashboard: None };
        let server = Server::bind(manager.clone(), config).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Daemon { home, manager, stop: Some(stop), served: Some(served) }
    }

    async fn end(mut self) -> tempfile::TempDir {
        drop(self.stop.take());
        self.served.take().unwrap().await.unwrap();
        let Daemon { home, manager, .. } = self;
        manager.close().await;
        home
    }

    /// The next daemon of the same home.
    async fn restart(self) -> Daemon {
        Daemon::in_home(self.end().await).await
    }

    async fn init(&self, name: &str) {
        let request = InitNode { name: name.parse().ok(), listen: listen(), ..InitNode::default() };
        self.manager.init_node(request).await.unwrap();
    }

    async fn token(&self) -> String {
        self.manager.node_token(NodeTokenRequest::default()).await.unwrap().token
    }

    async fn join(&self, token: &str, name: &str) -> Result<(), Problem> {
        let (token, name) = (token.to_owned(), name.parse().ok());
        self.manager.join_node(JoinNode { token, name, listen: listen(), advertise: None }).await
    }

    async fn states(&self) -> Vec<(String, NodeState)> {
        self.manager.nodes().await.unwrap().into_iter().map(|node| (node.name.to_string(), node.state)).collect()
    }

    async fn becomes(&self, wanted: &[(&str, NodeState)]) {
        let wanted: Vec<(String, NodeState)> = wanted.iter().map(|(name, state)| ((*name).into(), *state)).collect();
        let started = Instant::now();
        loop {
            let states = self.states().await;
            if states == wanted {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{states:?} rather than {wanted:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn listen() -> Option<String> {
    Some("127.0.0.1:0".into())
}

use NodeState::{Draining, Left, Ready, Unreachable};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_join_know_each_other_and_leave() {
    let (a, b, c) = (Daemon::start().await, Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    b.join(&a.token().await, "b").await.unwrap();
    c.join(&a.token().await, "c").await.unwrap();
    for daemon in [&a, &b, &c] {
        daemon.becomes(&[("a", Ready), ("b", Ready), ("c", Ready)]).await;
    }

    // They remain so when a daemon is replaced, founder or not.
    let (a, b) = (a.restart().await, b.restart().await);
    for daemon in [&a, &b, &c] {
        daemon.becomes(&[("a", Ready), ("b", Ready), ("c", Ready)]).await;
    }

    c.manager.leave_cluster(false).await.unwrap();
    assert_eq!(c.states().await, []);
    a.becomes(&[("a", Ready), ("b", Ready)]).await;
    b.becomes(&[("a", Ready), ("b", Ready)]).await;
    // The name is free again.
    c.join(&a.token().await, "c").await.unwrap();
    b.becomes(&[("a", Ready), ("b", Ready), ("c", Ready)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_one_node_once() {
    let (a, b, c) = (Daemon::start().await, Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    let token = a.token().await;
    b.join(&token, "b").await.unwrap();

    let used = c.join(&token, "c").await.unwrap_err();
    assert!(used.detail.contains("used by b already"), "{used:?}");
    let taken = c.join(&a.token().await, "b").await.unwrap_err();
    assert!(taken.code == Code::Exists && taken.detail.contains("a node b already"), "{taken:?}");
    let damaged = c.join(&a.token().await.replace("qzj1_ey", "qzj1_fy"), "c").await.unwrap_err();
    assert!(damaged.detail.contains("damaged"), "{damaged:?}");
    let short = NodeTokenRequest { expires_in_seconds: Some(1) };
    let short = a.manager.node_token(short).await.unwrap().token;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let expired = c.join(&short, "c").await.unwrap_err();
    assert!(expired.detail.contains("expired"), "{expired:?}");
    assert_eq!(c.states().await, [], "it is no node, and no half of one");
    assert!(!c.home.path().join("cluster").exists());

    let elsewhere = b.manager.node_token(NodeTokenRequest::default()).await.unwrap_err();
    assert!(elsewhere.detail.contains("only a has the key"), "{elsewhere:?}");
    let twice = b.join(&a.token().await, "d").await.unwrap_err();
    assert!(twice.detail.contains("is the node b of a cluster already"), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_is_not_there_is_told_in_a_sentence() {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    let token = a.token().await;
    a.end().await;
    let gone = b.join(&token, "b").await.unwrap_err();
    assert!(gone.detail.contains("cannot be reached"), "{gone:?}");

    // Another cluster is where this one was.
    let mut other: super::token::JoinToken = token.parse().unwrap();
    let c = Daemon::start().await;
    c.init("a").await;
    let real: super::token::JoinToken = c.token().await.parse().unwrap();
    other.address = real.address;
    let wrong = b.join(&other.to_string(), "b").await.unwrap_err();
    assert!(wrong.detail.contains("another cluster"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_clocks_must_fit() {
    let a = Daemon::start().await;
    a.init("a").await;
    let token: super::token::JoinToken = a.token().await.parse().unwrap();
    let request = AdmissionRequest {
        secret: token.secret.clone(),
        name: "b".parse().unwrap(),
        public_key: hex::encode(rcgen::PublicKeyData::der_bytes(&identity::new_key().unwrap())),
        version: env!("CARGO_PKG_VERSION").into(),
        now: Timestamp::now(),
    };
    let asked = async |request: AdmissionRequest| a.manager.admission(request).await;

    let old = asked(AdmissionRequest { version: "0.0.1".into(), ..request.clone() }).await.unwrap_err();
    assert!(old.detail.contains("version"), "{old:?}");
    let late = request.now.checked_sub(jiff::SignedDuration::from_mins(10)).unwrap();
    let late = asked(AdmissionRequest { now: late, ..request.clone() }).await.unwrap_err();
    assert!(late.detail.contains("clocks"), "{late:?}");
    let upper = asked(AdmissionRequest { name: "B".parse().unwrap(), ..request.clone() }).await.unwrap_err();
    assert!(upper.detail.contains("lower-case"), "{upper:?}");
    for key in ["", "04", "zz", &"03".repeat(65)] {
        let public_key = key.to_owned();
        let wrong = asked(AdmissionRequest { public_key, ..request.clone() }).await.unwrap_err();
        assert_eq!(wrong.code, Code::Invalid, "{key:?}");
    }
    // The token is none the worse for it, and the same request is answered the same way.
    let first = asked(request.clone()).await.unwrap();
    assert_eq!(asked(request).await.unwrap(), first);
}

/// A daemon is killed between its own part and the founder's: the next one finishes, or is no node.
#[tokio::test(flavor = "multi_thread")]
async fn joining_is_all_or_nothing() {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    let token = a.token().await;
    b.join(&token, "b").await.unwrap();
    // As if it had died before its hello: the founder knows of no b.
    a.manager.remove_node("b").await.unwrap();
    std::fs::remove_file(b.home.path().join("cluster/admitted")).unwrap();
    let b = b.restart().await;
    let started = Instant::now();
    while b.home.path().join("cluster").exists() {
        assert!(started.elapsed() < PATIENCE, "it is still half a node: {:?}", b.states().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    b.join(&a.token().await, "b").await.unwrap();
    a.becomes(&[("a", Ready), ("b", Ready)]).await;

    // As if it had died after it.
    std::fs::remove_file(b.home.path().join("cluster/admitted")).unwrap();
    let b = b.restart().await;
    b.becomes(&[("a", Ready), ("b", Ready)]).await;
    assert!(b.home.path().join("cluster/admitted").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_refused_by_all() {
    let (a, b, c) = (Daemon::start().await, Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    b.join(&a.token().await, "b").await.unwrap();
    c.join(&a.token().await, "c").await.unwrap();
    for daemon in [&a, &b, &c] {
        daemon.becomes(&[("a", Ready), ("b", Ready), ("c", Ready)]).await;
    }
    // Which c keeps: nobody has told it anything yet.
    let joined = c.manager.core().cluster.joined().unwrap();
    let [to_a, to_b] = ["a", "b"].map(|name| joined.member(name).unwrap());
    let [to_a, to_b] = [to_a, to_b].map(|member| joined.meet(member.name.as_str(), &member.address).unwrap());
    to_a.node_status().await.unwrap();
    to_b.node_status().await.unwrap();

    // Not only the founder can.
    b.manager.remove_node("c").await.unwrap();

    for client in [to_a, to_b] {
        let started = Instant::now();
        loop {
            match client.node_status().await {
                Err(error) if error.problem().is_some_and(|problem| problem.code == Code::Unauthenticated) => break,
                other => assert!(started.elapsed() < PATIENCE, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // It finds out by itself.
    let started = Instant::now();
    while !c.states().await.iter().any(|(name, state)| name == "c" && *state == Left) {
        assert!(started.elapsed() < PATIENCE, "{:?}", c.states().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_nodes_port_a_stranger_gets_nothing_and_a_node_only_what_nodes_need() {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    b.join(&a.token().await, "b").await.unwrap();
    let joined = b.manager.core().cluster.joined().unwrap();
    let member = joined.member("a").unwrap();
    let node = joined.meet("a", &member.address).unwrap();
    let code = |error: queztl_client::Error| error.problem().map(|problem| problem.code);

    node.node_status().await.unwrap();
    assert_eq!(code(node.vms().await.unwrap_err()), Some(Code::Forbidden));
    assert_eq!(code(node.tokens().await.unwrap_err()), Some(Code::Forbidden));
    assert_eq!(code(node.remove_node("a").await.unwrap_err()), Some(Code::Forbidden));
    // It is not the one that it is taken for.
    let other = joined.meet("b", &member.address).unwrap();
    assert!(matches!(other.node_status().await.unwrap_err(), queztl_client::Error::Tls { .. }));

    // No certificate; one of another authority.
    let connect = |config: rustls::ClientConfig| {
        let server_name = identity::server_name(&joined.settings.cluster, "a");
        let tls = queztl_client::NodeTls { config: Arc::new(config), server_name };
        let options = queztl_client::Options { node: Some(tls), ..Default::default() };
        queztl_client::Client::new(format!("https://{}", member.address).parse().unwrap(), options).unwrap()
    };
    let stranger = connect(identity::stranger(joined.authority_fingerprint).unwrap());
    assert_eq!(code(stranger.node_status().await.unwrap_err()), Some(Code::Unauthenticated));
    let hello = queztl_api::NodeHello { address: "127.0.0.1:1".into() };
    assert_eq!(code(stranger.hello(&hello).await.unwrap_err()), Some(Code::Unauthenticated));
    let forged = connect(forged(&joined.settings.cluster, &joined.authority_certificate));
    assert_eq!(code(forged.node_status().await.unwrap_err()), None, "the connection is refused");
    let unasked = AdmissionRequest {
        secret: "0".repeat(64),
        name: "x".parse().unwrap(),
        public_key: format!("04{}", "00".repeat(64)),
        version: env!("CARGO_PKG_VERSION").into(),
        now: Timestamp::now(),
    };
    assert_eq!(code(stranger.admission(&unasked).await.unwrap_err()), Some(Code::State));
}

/// A client that trusts the cluster, and whose own certificate is for the cluster's node `b`, of another authority.
fn forged(cluster: &str, authority: &str) -> rustls::ClientConfig {
    let key = identity::new_key().unwrap();
    let other = Authority::new(cluster, identity::new_key().unwrap());
    let certificate = other.sign(&"b".parse().unwrap(), rcgen::PublicKeyData::der_bytes(&key)).unwrap();
    Identity::new(&certificate, authority, &key).unwrap().client().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_unreachable_and_one_that_is_drained_takes_no_machines() {
    let (a, mut b) = (Daemon::start().await, Daemon::start().await);
    a.init("a").await;
    b.join(&a.token().await, "b").await.unwrap();
    a.becomes(&[("a", Ready), ("b", Ready)]).await;

    let drained = b.manager.drain_node("b").await.unwrap();
    let ended = b.manager.wait_operation(&drained.id, PATIENCE).await.unwrap();
    assert!(ended.problem.is_none(), "{ended:?}");
    a.becomes(&[("a", Ready), ("b", Draining)]).await;
    let refused = b.manager.create(serde_json::from_str(r#"{"name":"one"}"#).unwrap()).await.unwrap_err();
    assert!(refused.detail.contains("takes no new machines"), "{refused:?}");
    a.manager.ready_node("b").await.unwrap();
    a.becomes(&[("a", Ready), ("b", Ready)]).await;

    let alone = a.manager.leave_cluster(false).await.unwrap_err();
    assert!(alone.detail.contains("has other nodes"), "{alone:?}");
    drop(b.stop.take());
    b.served.take().unwrap().await.unwrap();
    a.becomes(&[("a", Ready), ("b", Unreachable)]).await;
    a.manager.remove_node("b").await.unwrap();
    a.becomes(&[("a", Ready)]).await;
    a.manager.leave_cluster(false).await.unwrap();
    assert_eq!(a.states().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_etcd_the_members_outlive_the_founder() {
    let Some(etcd) = crate::etcd::fixture::Server::start() else { return };
    let (a, b, c) = (Daemon::start().await, Daemon::start().await, Daemon::start().await);
    let coordinator = Some(format!("etcd://{}", etcd.address));
    let request = InitNode { name: "a".parse().ok(), listen: listen(), coordinator, ..InitNode::default() };
    a.manager.init_node(request).await.unwrap();
    b.join(&a.token().await, "b").await.unwrap();
    c.join(&a.token().await, "c").await.unwrap();
    b.becomes(&[("a", Ready), ("b", Ready), ("c", Ready)]).await;
    drop(a);
    b.becomes(&[("a", Unreachable), ("b", Ready), ("c", Ready)]).await;

    b.manager.remove_node("a").await.unwrap();
    c.becomes(&[("b", Ready), ("c", Ready)]).await;
}

#[test]
fn nodes_change_members_that_there_are_and_nothing_else() {
    let member = Member {
        name: "b".parse().unwrap(),
        address: "127.0.0.1:1".into(),
        certificate: [1; 32],
        joined_at: Timestamp::UNIX_EPOCH,
        draining: false,
    };
    let text = |member: &Member| Some(serde_json::to_string(member).unwrap());
    let check = |key: &str, before, after| check_change("id", &AgreedChange { key: key.into(), before, after }).is_ok();
    let key = format!("{}b", prefix("id"));

    assert!(check(&key, text(&member), None));
    assert!(check(&key, text(&member), text(&Member { draining: true, ..member.clone() })));
    assert!(!check(&key, None, text(&member)), "it was not admitted");
    assert!(!check(&key, text(&member), text(&Member { certificate: [2; 32], ..member.clone() })));
    assert!(!check(&key, text(&member), text(&Member { name: "c".parse().unwrap(), ..member.clone() })));
    assert!(!check("id/other", text(&member), None));
    assert!(!check(&prefix("another"), text(&member), None));
}
