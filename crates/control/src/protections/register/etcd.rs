//! Registers in etcd, through the JSON gateway that every etcd of version 3 has beside its gRPC: three kinds of requests need no
//! library for it.
//!
//! Reads are linearizable, which is etcd's default; a change is a transaction that compares the value. Connections are not
//! encrypted: etcd is reached over a network that only the hosts are in, or through a tunnel.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Entry, Store, StoreError};

/// What all keys begin with.
const PREFIX: &str = "queztl/registers/";
/// How long one of the servers may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer.
const MAX_BYTES: u64 = 256 << 10;

/// A cluster.
#[derive(Debug)]
pub(super) struct EtcdStore {
    /// `host:port` of its servers.
    servers: Vec<String>,
}

impl EtcdStore {
    /// The cluster of these servers, `host:port,host:port…`; `None` if these are none.
    pub fn new(servers: &str) -> Option<EtcdStore> {
        let servers: Vec<String> = servers.trim_end_matches('/').split(',').map(str::to_owned).collect();
        let valid = |server: &String| {
            let port = server.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
            port.is_some_and(|port| port.is_ok()) && server.chars().all(|c| c.is_ascii_graphic() && c != '/')
        };
        servers.iter().all(valid).then_some(EtcdStore { servers })
    }

    /// Asks one server after the other.
    fn ask(&self, path: &str, body: &Value) -> Result<Value, StoreError> {
        let mut failed = io::Error::other("there is no server");
        for server in &self.servers {
            match post(server, path, &body.to_string()) {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = error,
            }
        }
        Err(StoreError::Etcd { servers: self.servers.join(","), source: failed })
    }

    fn content(&self, what: &'static str) -> StoreError {
        StoreError::Etcd { servers: self.servers.join(","), source: io::Error::other(what) }
    }
}

impl Store for EtcdStore {
    fn read(&self, group: &str) -> Result<Option<Entry>, StoreError> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": key(group) }))?;
        let Some(value) = answer["kvs"][0]["value"].as_str() else { return Ok(None) };
        let text = STANDARD.decode(value).map_err(|_| self.content("a value is no base64"))?;
        serde_json::from_slice(&text).map(Some).map_err(|_| self.content("the register holds something else"))
    }

    fn swap(&self, group: &str, before: Option<&Entry>, after: &Entry) -> Result<bool, StoreError> {
        let (key, after) = (key(group), value(after));
        let compare = match before {
            Some(before) => json!({ "key": key, "target": "VALUE", "result": "EQUAL", "value": value(before) }),
            None => json!({ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }),
        };
        let put = json!({ "request_put": { "key": key, "value": after } });
        let answer = self.ask("/v3/kv/txn", &json!({ "compare": [compare], "success": [put] }))?;
        if answer["header"].is_null() {
            return Err(self.content("the answer is none of etcd's"));
        }
        Ok(answer["succeeded"].as_bool().unwrap_or(false))
    }
}

fn key(group: &str) -> String {
    STANDARD.encode(format!("{PREFIX}{group}"))
}

/// The same value gives the same text.
fn value(entry: &Entry) -> String {
    STANDARD.encode(serde_json::to_vec(entry).unwrap_or_default())
}

/// One request on a connection of its own. HTTP 1.0: the answer ends with the connection, and comes in one piece.
fn post(server: &str, path: &str, body: &str) -> io::Result<Value> {
    let address = server.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the server has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).map_err(io::Error::other)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    let status = head.split_ascii_whitespace().nth(1);
    if status != Some("200") {
        return Err(io::Error::other(format!("the server answers {}", head.lines().next().unwrap_or(""))));
    }
    Ok(serde_json::from_str(body)?)
}
