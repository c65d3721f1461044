//! The founder admits nodes.
//!
//! ```text
//! invited ── admission: secret, key ──> redeemed by that key ── hello with the certificate ──> member
//! ```

use queztl_api::{Admission, AdmissionRequest, Code, Name, NodeHello, NodeToken, NodeTokenRequest, Problem, Timestamp};
use serde::{Deserialize, Serialize};

use super::identity::{self, Fingerprint};
use super::members::{self, Member};
use super::token::JoinToken;
use super::{Joined, join};
use crate::manager::Core;
use crate::store::INVITATIONS;
use crate::vms::naming::random_bytes;

/// How long a token is good that nobody has said a time for.
const USUAL_SECONDS: u64 = 3600;
/// The longest, a month.
const MAX_SECONDS: u64 = 31 * 24 * 3600;
/// Most tokens at a time.
const MAX_INVITATIONS: usize = 1000;
/// How far clocks may be apart.
const CLOCKS: i64 = 300;
/// Who has redeemed a token may take so much longer to come, in seconds.
const GRACE: i64 = 600;

/// A token that was given out, by the hash of its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Invitation {
    pub expires_at: Timestamp,
    pub redeemed: Option<Redeemed>,
    /// Who has redeemed it is, or was, a member.
    #[serde(default)]
    pub spent: bool,
}

/// Who has used it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Redeemed {
    pub name: Name,
    pub public_key: String,
    /// PEM.
    pub certificate: String,
    #[serde(with = "hex::serde")]
    pub fingerprint: Fingerprint,
}

fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(Code::State, detail)
}

fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

impl Core {
    /// A token for one new node.
    pub(crate) fn node_token(&self, request: NodeTokenRequest) -> Result<NodeToken, Problem> {
        let joined = self.cluster.need()?;
        if joined.authority.is_none() {
            let founder = &joined.settings.founder;
            return Err(refused(format!("only {founder} has the key that admits nodes: make the token there")));
        }
        let seconds = request.expires_in_seconds.unwrap_or(USUAL_SECONDS);
        if !(1..=MAX_SECONDS).contains(&seconds) {
            return Err(Problem::invalid("expires_in_seconds", "is from a second to 31 days"));
        }
        let now = Timestamp::now();
        let expires_at = later(now, seconds.cast_signed());
        let secret = hex::encode(random_bytes::<32>()?);
        self.store.write(|change| {
            for (key, old) in change.list_with(INVITATIONS, "")? {
                if later(old.expires_at, GRACE) < now {
                    change.remove(INVITATIONS, &key)?;
                }
            }
            if change.count(INVITATIONS)? >= MAX_INVITATIONS {
                return Err(Problem::new(
                    Code::Busy,
                    format!("there are {MAX_INVITATIONS} tokens: let some end first"),
                ));
            }
            Ok(change.put(INVITATIONS, &hash(&secret), &Invitation { expires_at, redeemed: None, spent: false })?)
        })?;
        let token = JoinToken {
            cluster: joined.settings.cluster.clone(),
            founder: joined.settings.name.clone(),
            address: joined.settings.address.clone(),
            authority: joined.authority_fingerprint,
            secret,
        };
        Ok(NodeToken { token: token.to_string(), expires_at })
    }

    /// A daemon with a token gets its certificate. It is no member yet.
    pub(crate) fn admission(&self, request: AdmissionRequest) -> Result<Admission, Problem> {
        let joined = self.cluster.need()?;
        let authority =
            joined.authority.as_ref().ok_or_else(|| refused("this node admits nobody: it is not the founder"))?;
        let own = env!("CARGO_PKG_VERSION");
        if request.version != own {
            let text =
                format!("the cluster is of version {own}, and this is {}: use the same program", request.version);
            return Err(refused(text));
        }
        let apart = Timestamp::now().duration_since(request.now).as_secs();
        if apart.abs() > CLOCKS {
            return Err(refused(format!(
                "the clocks of the two hosts are {} s apart: set them right first",
                apart.abs()
            )));
        }
        identity::check_name(&request.name)?;
        let public_key = hex::decode(&request.public_key);
        let public_key = public_key.map_err(|_| Problem::invalid("public_key", "is no hexadecimal number"))?;
        let taken = joined.with(self, |members| members.all()).map_err(members::out_of_reach)?;
        let taken = taken.into_iter().find(|member| member.name == request.name);
        let redeemed = self.store.write(|change| {
            let key = hash(&request.secret);
            let found = change.get(INVITATIONS, &key)?;
            let text =
                "the token is not known to the cluster: make a new one with `queztl-hv node token` at the founder";
            let mut invitation = found.ok_or_else(|| refused(text))?;
            if invitation.expires_at < Timestamp::now() {
                return Err(refused(
                    "the token has expired: make a new one with `queztl-hv node token` at the founder",
                ));
            }
            let is_member =
                |redeemed: &Redeemed| taken.as_ref().is_some_and(|member| member.certificate == redeemed.fingerprint);
            match &invitation.redeemed {
                Some(redeemed)
                    if redeemed.public_key != request.public_key || invitation.spent && !is_member(redeemed) =>
                {
                    let text = format!("the token was used by {} already: each admits one node", redeemed.name);
                    return Err(refused(text));
                }
                Some(redeemed) if redeemed.name == request.name => return Ok(redeemed.clone()),
                _ => {}
            }
            if taken.is_some() {
                return Err(members::taken(&request.name));
            }
            let certificate = authority.sign(&request.name, &public_key)?;
            let fingerprint = join::fingerprint_of(&certificate)?;
            let (name, public_key) = (request.name.clone(), request.public_key.clone());
            let redeemed = Redeemed { name, public_key, certificate, fingerprint };
            invitation.redeemed = Some(redeemed.clone());
            change.put(INVITATIONS, &key, &invitation)?;
            Ok(redeemed)
        })?;
        Ok(Admission {
            certificate: redeemed.certificate,
            authority: joined.authority_certificate.clone(),
            coordinator: joined.settings.coordinator.clone(),
        })
    }

    /// A node says where it is. The first time, it becomes a member.
    pub(crate) fn hello(&self, certificate: &Fingerprint, hello: &NodeHello) -> Result<(), Problem> {
        let joined = self.cluster.need()?;
        join::check_address(&hello.address)?;
        let known = joined.with(self, |members| members.all()).map_err(members::out_of_reach)?;
        let known = known.into_iter().find(|member| member.certificate == *certificate);
        match known {
            Some(member) if member.address == hello.address => {}
            Some(member) => {
                let moved = Member { address: hello.address.clone(), ..member.clone() };
                joined.with(self, |members| members.change(&member, Some(&moved)))?;
            }
            None => {
                let (key, member) = self.invited(&joined, certificate, hello)?;
                joined.with(self, |members| members.add(&member))?;
                // Once removed, it does not come back with it.
                self.store.write(|change| {
                    let Some(invitation) = change.get(INVITATIONS, &key)? else { return Ok(()) };
                    Ok(change.put(INVITATIONS, &key, &Invitation { spent: true, ..invitation })?)
                })?;
            }
        }
        self.refresh(&joined)
    }

    /// The member that somebody with this certificate becomes, and the invitation that says so.
    fn invited(
        &self,
        joined: &Joined,
        certificate: &Fingerprint,
        hello: &NodeHello,
    ) -> Result<(String, Member), Problem> {
        let unknown = || Problem::new(Code::Unauthenticated, "the certificate is of no node of this cluster");
        if joined.authority.is_none() {
            return Err(unknown());
        }
        let redeemed = self.store.list(INVITATIONS)?.into_iter().find_map(|(key, invitation)| {
            let open = !invitation.spent && later(invitation.expires_at, GRACE) >= Timestamp::now();
            let redeemed = invitation.redeemed.filter(|redeemed| open && redeemed.fingerprint == *certificate)?;
            Some((key, redeemed))
        });
        let (key, redeemed) = redeemed.ok_or_else(unknown)?;
        let member = Member {
            name: redeemed.name,
            address: hello.address.clone(),
            certificate: *certificate,
            joined_at: Timestamp::now(),
            draining: false,
        };
        Ok((key, member))
    }
}
