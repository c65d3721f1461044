//! The manager of virtual machines.
//!
//! ```text
//!  api/ (HTTP, WebSocket) ──> Service ──> manager: store, supervisor, operations, images, snapshots, metrics
//!                                            │ one process for each machine, reached through its directory
//!                                            v
//!                                         queztl-hv vmm DIR
//! ```
//! [`Service`] is the seam: the API knows nothing of processes and files, the manager nothing of HTTP.

pub mod api;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod service;

pub use service::{Endpoints, EventStream, Recorded, Service};
