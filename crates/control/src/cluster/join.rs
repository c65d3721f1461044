//! A daemon becomes a node: of a cluster that it makes, or of one that there is.
//!
//! ```text
//! no node ── key, certificate, settings beside their place ── one rename ──> node ── hello ──> member
//! ```
//! A daemon that is killed before the rename is no node, and its key is used again; one that is killed after it says its hello
//! when it is started. If the founder does not know it then, it is no node any more.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use queztl_api::{Admission, AdmissionRequest, Code, InitNode, JoinNode, Name, NodeHello, Problem, Timestamp};
use queztl_client::{Address, Client, NodeTls, Options};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::folder::{ADMITTED, AUTHORITY, AUTHORITY_KEY, Folder, NODE, NODE_KEY, Settings};
use super::identity::{self, Authority, Fingerprint, Identity};
use super::members::{Member, Members};
use super::token::JoinToken;
use super::{DEFAULT_PORT, Joined, bind, coordinator, health, wrong_coordinator};
use crate::manager::Core;

/// How long the founder may take for one answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// What the coordinator is called where it is the founder's store.
const AT_FOUNDER: &str = "founder";

/// Where a node is to listen, and where others reach it.
struct Place {
    listener: std::net::TcpListener,
    listen: SocketAddr,
    address: String,
}

impl Core {
    /// Makes a cluster; this daemon is its founder.
    pub(crate) fn init_node(self: &Arc<Self>, request: InitNode) -> Result<(), Problem> {
        let _changing = self.cluster.changing();
        self.check_alone()?;
        let name = name(request.name)?;
        let etcd = match &request.coordinator {
            Some(address) => {
                let servers = address.strip_prefix("etcd://").ok_or_else(wrong_coordinator)?;
                Some(crate::etcd::Etcd::new(servers).ok_or_else(wrong_coordinator)?)
            }
            None => None,
        };
        let place = place(request.listen.as_deref(), request.advertise.as_deref(), None)?;
        let cluster = hex::encode(crate::vms::naming::random_bytes::<8>()?);
        let settings = Settings {
            cluster: cluster.clone(),
            name: name.clone(),
            listen: place.listen,
            address: place.address.clone(),
            founder: name.clone(),
            founder_address: place.address.clone(),
            coordinator: request.coordinator.unwrap_or_else(|| AT_FOUNDER.into()),
        };
        let folder = Folder::new(&self.config.home);
        let (authority_key, key) = (identity::new_key()?, identity::new_key()?);
        let pem = authority_key.serialize_pem();
        let authority = Authority::new(&cluster, authority_key);
        let certificate = authority.sign(&name, key.der_bytes())?;
        let member = Member {
            name,
            address: place.address.clone(),
            certificate: fingerprint_of(&certificate)?,
            joined_at: Timestamp::now(),
            draining: false,
        };
        // What the coordinator has of a cluster that nobody is in yet does no harm.
        let add = |coordinator: &dyn coordinator::Coordinator| Members { cluster: &cluster, coordinator }.add(&member);
        match etcd {
            Some(etcd) => add(&coordinator::Shared(etcd))?,
            None => add(&coordinator::Embedded(&self.store))?,
        }
        let files = [
            (AUTHORITY_KEY, pem),
            (AUTHORITY, authority.certificate()?),
            (NODE_KEY, key.serialize_pem()),
            (NODE, certificate),
        ];
        files.iter().try_for_each(|(file, text)| folder.prepare(file, text))?;
        folder.commit(&settings)?;
        let joined = Arc::new(Joined::load(self, &folder, settings)?);
        self.refresh(&joined)?;
        self.begin_as_node(joined, place)
    }

    /// Makes this daemon a node of the cluster that a token is from.
    pub(crate) fn join_node(self: &Arc<Self>, request: JoinNode) -> Result<(), Problem> {
        let _changing = self.cluster.changing();
        self.check_alone()?;
        let token: JoinToken = request
            .token
            .parse()
            .map_err(|error: super::token::TokenError| Problem::invalid("token", error.to_string()))?;
        let name = name(request.name)?;
        let place = place(request.listen.as_deref(), request.advertise.as_deref(), Some(&token.address))?;
        let folder = Folder::new(&self.config.home);
        let key = kept_key(&folder)?;
        let admission = self.ask_founder(&token, &name, &key)?;
        // What comes from the founder is checked before it is kept.
        let identity = Identity::new(&admission.certificate, &admission.authority, &key)?;
        if identity::fingerprint(&identity.authority) != token.authority {
            return Err(Problem::new(Code::Host, "the founder gives out another authority than the token's"));
        }
        identity.server()?;
        let settings = Settings {
            cluster: token.cluster.clone(),
            name,
            listen: place.listen,
            address: place.address.clone(),
            founder: token.founder.clone(),
            founder_address: token.address.clone(),
            coordinator: admission.coordinator,
        };
        folder.prepare(AUTHORITY, &admission.authority)?;
        folder.prepare(NODE, &admission.certificate)?;
        folder.commit(&settings)?;
        let entered = Joined::load(self, &folder, settings).and_then(|joined| {
            self.say_hello(&joined)?;
            self.refresh(&joined)?;
            Ok(Arc::new(joined))
        });
        match entered {
            Ok(joined) => self.begin_as_node(joined, place),
            Err(problem) => {
                folder.take_back()?;
                Err(problem)
            }
        }
    }

    /// The founder is told where this node is, and has it among the members from then on.
    pub(super) fn say_hello(&self, joined: &Joined) -> Result<(), Problem> {
        let founder = joined.meet(joined.settings.founder.as_str(), &joined.settings.founder_address)?;
        let hello = NodeHello { address: joined.settings.address.clone() };
        self.of_founder(joined.settings.founder_address.as_str(), founder.hello(&hello))?;
        joined.admitted.store(true, Ordering::Release);
        Folder::new(&self.config.home).write(ADMITTED, "")
    }

    fn begin_as_node(self: &Arc<Self>, joined: Arc<Joined>, place: Place) -> Result<(), Problem> {
        self.greet(&joined, place.listener);
        self.cluster.set(Some(joined.clone()));
        health::start(self, joined)
    }

    fn check_alone(&self) -> Result<(), Problem> {
        let Some(joined) = self.cluster.joined() else { return Ok(()) };
        let text = format!(
            "this daemon is the node {} of a cluster already: `queztl-hv node leave` ends that",
            joined.settings.name
        );
        Err(Problem::new(Code::State, text))
    }

    fn ask_founder(&self, token: &JoinToken, name: &Name, key: &KeyPair) -> Result<Admission, Problem> {
        let wrong = |error: &dyn std::fmt::Display| Problem::invalid("token", error.to_string());
        let address: Address = format!("https://{}", token.address).parse().map_err(|error| wrong(&error))?;
        let config = Arc::new(identity::stranger(token.authority)?);
        let server_name = identity::server_name(&token.cluster, token.founder.as_str());
        let tls = NodeTls { config, server_name };
        let client = Client::new(address, Options { node: Some(tls), ..Options::default() });
        let client = client.map_err(|error| wrong(&error))?;
        let request = AdmissionRequest {
            secret: token.secret.clone(),
            name: name.clone(),
            public_key: hex::encode(key.der_bytes()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: Timestamp::now(),
        };
        self.of_founder(&token.address, client.admission(&request))
    }

    /// What the founder answers.
    fn of_founder<T>(
        &self,
        address: &str,
        asked: impl Future<Output = Result<T, queztl_client::Error>>,
    ) -> Result<T, Problem> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
        let error = match answer.unwrap_or(Err(queztl_client::Error::Silent(PATIENCE))) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if let Some(problem) = error.problem() {
            return Err(problem.clone());
        }
        let text = coordinator::queztl_client_error(&error);
        if ["NotValidYet", "Expired"].iter().any(|word| text.contains(word)) {
            let text =
                "the founder's certificate is not valid now: the clock of this host or of the founder's is wrong";
            return Err(Problem::new(Code::Host, text));
        }
        Err(Problem::new(Code::Host, format!("the cluster's founder cannot be reached at {address}: {text}")))
    }
}

/// The key of an attempt before, which its token may be bound to, or a new one.
fn kept_key(folder: &Folder) -> Result<KeyPair, Problem> {
    if let Some(pem) = folder.prepared(NODE_KEY)
        && let Ok(key) = identity::read_key(&pem)
    {
        return Ok(key);
    }
    let key = identity::new_key()?;
    folder.prepare(NODE_KEY, &key.serialize_pem())?;
    Ok(key)
}

/// What a certificate is known by.
pub(super) fn fingerprint_of(pem: &str) -> Result<Fingerprint, Problem> {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
    let wrong = |error| Problem::new(Code::Internal, format!("a certificate that was just made is none: {error}"));
    Ok(identity::fingerprint(&certificate.map_err(wrong)?))
}

/// The name that is wished, or the host's.
fn name(wished: Option<Name>) -> Result<Name, Problem> {
    let name = match wished {
        Some(name) => name,
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
            let label: String = host.split('.').next().unwrap_or_default().replace('_', "-");
            let unnamed =
                |_| Problem::invalid("name", "the host has no name that a node could have: give one with --name");
            label.trim_end_matches('-').parse().map_err(unnamed)?
        }
    };
    identity::check_name(&name)?;
    Ok(name)
}

/// `host:port`.
pub(super) fn check_address(address: &str) -> Result<(), Problem> {
    let parsed = format!("https://{address}").parse::<Address>();
    match parsed {
        Ok(Address::Https { .. }) if address.len() <= 255 => Ok(()),
        _ => Err(Problem::invalid("advertise", format!("{address:?} is no address of a host: write host:port"))),
    }
}

/// Listens, and finds out where others reach that.
fn place(listen: Option<&str>, advertise: Option<&str>, peer: Option<&str>) -> Result<Place, Problem> {
    let wished = listen.map_or(Ok(SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))), str::parse);
    let wished =
        wished.map_err(|_| Problem::invalid("listen", "is an address of this host and a port: 10.0.0.1:7444"))?;
    let listener = bind(wished)?;
    let listen = listener.local_addr().unwrap_or(wished);
    let address = match advertise {
        Some(address) if has_port(address) => address.to_owned(),
        Some(address) => format!("{address}:{}", listen.port()),
        None => {
            let ip = if listen.ip().is_unspecified() { own_address(peer)? } else { listen.ip() };
            SocketAddr::new(ip, listen.port()).to_string()
        }
    };
    check_address(&address)?;
    Ok(Place { listener, listen, address })
}

fn has_port(address: &str) -> bool {
    let port = address.rsplit_once(':').map(|(host, port)| (!host.contains(':') || host.ends_with(']'), port));
    port.is_some_and(|(host, port)| host && port.parse::<u16>().is_ok())
}

/// The address from which this host speaks to another one; nothing is sent.
fn own_address(peer: Option<&str>) -> Result<IpAddr, Problem> {
    // Of a network that nobody has (RFC 5737): its route is the default one.
    let peer = peer.unwrap_or("198.51.100.1:9");
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    let unknown = "this host's address is not known: say with --advertise where other nodes reach it";
    found.map(|address| address.ip()).map_err(|_| Problem::invalid("advertise", unknown))
}
