//! A client of the daemon's API.
//!
//! Promises:
//! - one method for each route, with the types of `queztl-api`; what the daemon refuses arrives as its [`Problem`];
//! - a connection is kept for the next request and made anew when the daemon has closed it; a request that changes something
//!   carries an idempotency key, so that one sent a second time is not carried out twice (but for the making of tokens, whose
//!   answer the daemon must not keep, and for what may be done twice);
//! - nothing that the daemon sends is read without a bound, and a daemon that does not answer is told after [`ANSWER`];
//! - a token never travels over a connection without encryption: addresses are Unix sockets or `https`.
//!
//! ```no_run
//! # async fn example() -> Result<(), queztl_client::Error> {
//! let client = queztl_client::Client::new("unix:/run/queztl/daemon.sock".parse()?, Default::default())?;
//! for vm in client.vms().await? {
//!     println!("{} {:?}", vm.name, vm.state);
//! }
//! # Ok(())
//! # }
//! ```
//! [`Problem`]: queztl_api::Problem

mod address;
mod body;
mod client;
mod connection;
mod error;
mod follow;
mod path;
mod routes;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use address::{Address, AddressError};
pub use client::{ANSWER, Client, NodeTls, Options};
pub use error::Error;
pub use routes::Parts;
pub use stream::{Events, Message, Session, SessionSink, SessionSource};
pub use tls::{connector, server_name};
