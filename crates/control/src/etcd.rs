//! etcd, through the JSON gateway that every etcd of version 3 has beside its gRPC: three kinds of requests need no library
//! for it.
//!
//! Reads are linearizable, which is etcd's default; a change is a transaction that compares the value. Connections are not
//! encrypted: etcd is reached over a network that only the hosts are in, or through a tunnel.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// How long one of the servers may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer.
const MAX_BYTES: u64 = 4 << 20;

/// An etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Etcd {
    /// `host:port` of its servers.
    servers: Vec<String>,
}

/// Why etcd has not answered.
#[derive(Debug, thiserror::Error)]
#[error("etcd at {servers} fails: {source}")]
pub(crate) struct EtcdError {
    servers: String,
    source: io::Error,
}

type Result<T> = std::result::Result<T, EtcdError>;

impl Etcd {
    /// The cluster of these servers, `host:port,host:port…`; `None` if these are none.
    pub fn new(servers: &str) -> Option<Etcd> {
        let servers: Vec<String> = servers.trim_end_matches('/').split(',').map(str::to_owned).collect();
        let valid = |server: &String| {
            let port = server.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
            port.is_some_and(|port| port.is_ok()) && server.chars().all(|c| c.is_ascii_graphic() && c != '/')
        };
        servers.iter().all(valid).then_some(Etcd { servers })
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.ask("/v3/kv/range", &json!({ "key": encode(key) }))?;
        let Some(pair) = answer["kvs"].get(0) else { return Ok(None) };
        self.pair(pair).map(|(_, value)| Some(value))
    }

    /// All keys that begin so, in their order, and their values.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let mut end = prefix.as_bytes().to_vec();
        // Keys are ASCII, so that there is a next byte.
        end.iter_mut().last().into_iter().for_each(|last| *last += 1);
        let answer = self.ask("/v3/kv/range", &json!({ "key": encode(prefix), "range_end": STANDARD.encode(end) }))?;
        answer["kvs"].as_array().into_iter().flatten().map(|pair| self.pair(pair)).collect()
    }

    /// Changes a value from `before` to `after`, of which `None` is no value; false if it is another one by now.
    pub fn swap(&self, key: &str, before: Option<&str>, after: Option<&str>) -> Result<bool> {
        let key = encode(key);
        let compare = match before {
            Some(before) => json!({ "key": key, "target": "VALUE", "result": "EQUAL", "value": encode(before) }),
            None => json!({ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }),
        };
        let change = match after {
            Some(after) => json!({ "request_put": { "key": key, "value": encode(after) } }),
            None => json!({ "request_delete_range": { "key": key } }),
        };
        let answer = self.ask("/v3/kv/txn", &json!({ "compare": [compare], "success": [change] }))?;
        if answer["header"].is_null() {
            return Err(self.content("the answer is none of etcd's"));
        }
        Ok(answer["succeeded"].as_bool().unwrap_or(false))
    }

    /// Asks one server after the other.
    fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let mut failed = io::Error::other("there is no server");
        for server in &self.servers {
            match post(server, path, &body.to_string()) {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = error,
            }
        }
        Err(EtcdError { servers: self.servers.join(","), source: failed })
    }

    fn pair(&self, pair: &Value) -> Result<(String, String)> {
        let text = |name: &str| {
            // An empty value is left out.
            let bytes = STANDARD.decode(pair[name].as_str().unwrap_or_default());
            let bytes = bytes.map_err(|_| self.content("a value is no base64"))?;
            String::from_utf8(bytes).map_err(|_| self.content("a value is no text"))
        };
        Ok((text("key")?, text("value")?))
    }

    fn content(&self, what: &'static str) -> EtcdError {
        EtcdError { servers: self.servers.join(","), source: io::Error::other(what) }
    }
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
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

/// An etcd of a test's own, which ends with it.
#[cfg(test)]
pub(crate) mod fixture {
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::Etcd;

    pub(crate) struct Server {
        child: Child,
        pub address: String,
        _folder: tempfile::TempDir,
    }

    impl Server {
        /// One that answers; says so and gives `None` if there is no etcd here.
        pub fn start() -> Option<Server> {
            let folder = tempfile::tempdir().unwrap();
            let [client, peer] = [(), ()].map(|()| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                format!("127.0.0.1:{}", listener.local_addr().unwrap().port())
            });
            let [client_url, peer_url] = [&client, &peer].map(|address| format!("http://{address}"));
            let child = Command::new("etcd")
                .arg("--data-dir")
                .arg(folder.path())
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &format!("default={peer_url}")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let Ok(child) = child else {
                eprintln!("skipped: there is no etcd here; Debian's package is etcd-server");
                return None;
            };
            let server = Server { child, address: client, _folder: folder };
            let (etcd, started) = (Etcd::new(&server.address).unwrap(), Instant::now());
            while let Err(error) = etcd.get("anything") {
                assert!(started.elapsed().as_secs() < 60, "{error}");
                std::thread::sleep(Duration::from_millis(50));
            }
            Some(server)
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
