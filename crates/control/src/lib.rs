//! The manager of virtual machines.
//!
//! ```text
//!  api/ (HTTP, WebSocket) ──> Service ──> manager: store, supervisor, operations, images, snapshots, metrics
//!                                            │ one process for each machine, reached through its directory
//!                                            v
//!                                         queztl-hv vmm DIR
//! ```
//! [`Service`] is the seam: the API knows nothing of processes and files, the manager nothing of HTTP. [`Manager`] is the
//! service that runs machines.

mod alerts;
pub mod api;
mod benchmarks;
mod cgroup;
mod checkpoints;
mod clones;
mod cluster;
mod etcd;
mod events;
mod images;
mod manager;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod metrics;
mod migrations;
mod operations;
mod protections;
mod service;
mod snapshots;
mod store;
mod supervisor;
mod tokens;
mod vms;

pub use images::image_path;
pub use manager::{Config, Manager, OpenError};
pub use protections::Signs;
pub use service::{DaemonFigures, Endpoints, EventStream, HostFigures, NodePort, Recorded, Service};
pub use store::StoreError;
