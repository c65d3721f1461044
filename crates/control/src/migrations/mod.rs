//! Machines that go to another daemon, and that come from one.
//!
//! ```text
//!  source's process ── migrate.sock ── daemon ══ WebSockets of the API ══ daemon ── incoming.sock ── target's process
//! ```
//! The processes speak with each other ([`queztl_vmm::migration`]); the daemons carry the bytes, and with them what
//! authenticates and encrypts them.
//!
//! Promises:
//! - the machine is lost by neither daemon's end nor a broken connection: it runs at the source, or at the target, or stands
//!   still at the source until the target's daemon has said whether it runs there;
//! - the source forgets the machine only once the target has it.

mod arrive;
mod leave;
mod relay;

pub(crate) use relay::Relay;

/// Where the process of a leaving machine finds its daemon, in the machine's directory.
const LEAVING_SOCKET: &str = "migrate.sock";
