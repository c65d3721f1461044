//! Who a clone is, as its guest knows it.
//!
//! Addresses and the VM generation id are the process's to change, before the guest runs; the host name, the clock and the
//! entropy go through the agent as soon as it runs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use queztl_agent_client::{Agent, Error, Identity, Limits, Time};
use queztl_api::{Code, Name, Problem};

use crate::manager::Core;
use crate::vms::Machine;
use crate::vms::naming::random_bytes;

/// How long an agent may take to answer; many guests may wake up at once.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the first attempt waits for an answer; the next one twice as long, and so on. What is told may be told again.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// What a guest's generator is seeded with.
const ENTROPY_BYTES: usize = 64;

impl Core {
    /// Tells a guest who it is, and waits until it knows.
    pub(crate) fn introduce(&self, machine: &Machine) -> Result<(), Problem> {
        let name = machine.record().name;
        let deadline = Instant::now() + LIMIT;
        let mut patience = FIRST_ANSWER;
        let told = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limits = Limits { connect: left, answer: patience.min(left) };
            let identity = identity(&name)?;
            match Agent::connect(&machine.folder.vsock(), &limits).and_then(|mut agent| agent.set_identity(&identity)) {
                // The guest may have forgotten this connection with those from before it was cloned.
                Err(Error::Closed | Error::Silent(_)) if Instant::now() < deadline => {
                    patience = patience.saturating_mul(2);
                }
                told => break told,
            }
        };
        told.map_err(|error| {
            let text = format!("{:?} was not told who it is: {error}", name.as_str());
            Problem::new(Code::Timeout, text)
        })
    }

    /// Tells a guest who it is, if it has an agent.
    pub(crate) fn introduce_soon(self: &Arc<Self>, machine: &Arc<Machine>) {
        let (core, machine) = (self.clone(), machine.clone());
        self.runtime.spawn_blocking(move || {
            if let Err(problem) = core.introduce(&machine) {
                tracing::info!(vm = machine.id, %problem, "a guest goes on without knowing who it is");
            }
        });
    }
}

/// A machine's identity, as of now.
fn identity(name: &Name) -> Result<Identity, Problem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    Ok(Identity {
        host_name: Some(name.as_str().as_bytes().to_vec()),
        clock: Some(Time { seconds, nanoseconds: now.subsec_nanos() }),
        entropy: Some(random_bytes::<ENTROPY_BYTES>()?.to_vec()),
    })
}
