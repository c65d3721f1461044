//! Who a clone is, as its guest knows it.
//!
//! Addresses and the VM generation id are the process's to change, before the guest runs; the host name, the clock and the
//! entropy go through the agent as soon as it runs.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use queztl_agent_client::{Agent, Identity, Limits, Time};
use queztl_api::{Code, Problem};

use crate::manager::Core;
use crate::vms::Machine;
use crate::vms::naming::random_bytes;

/// How long an agent may take to answer; many guests may wake up at once.
const LIMIT: Duration = Duration::from_secs(30);
/// What a guest's generator is seeded with.
const ENTROPY_BYTES: usize = 64;

impl Core {
    /// Tells a guest who it is, and waits until it knows.
    pub(crate) fn introduce(&self, machine: &Machine) -> Result<(), Problem> {
        let name = machine.record().name;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let identity = Identity {
            host_name: Some(name.as_str().as_bytes().to_vec()),
            clock: Some(Time { seconds, nanoseconds: now.subsec_nanos() }),
            entropy: Some(random_bytes::<ENTROPY_BYTES>()?.to_vec()),
        };
        let limits = Limits { connect: LIMIT, answer: LIMIT };
        let told = Agent::connect(&machine.folder.vsock(), &limits).and_then(|mut agent| agent.set_identity(&identity));
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
