//! Alerts and logs on their way to a real server.

mod alerts;
mod logs;
mod server;
