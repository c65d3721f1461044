//! The daemon's API beside a bare axum server: latency of requests, and events over a WebSocket.
//!
//! Both servers are in this process, on Unix sockets, with the same runtime; behind the API is a service in memory, so that
//! what is measured is the API itself: reading the request, who may do what, the record of it, JSON. The bare server sends
//! the same bytes, made before. The client is the same for both: blocking, one connection, one request at a time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::routing::get;
use clap::Args;
use futures_util::StreamExt;
use queztl_api::EventKind;
use queztl_control::Service;
use queztl_control::api::{Listen, ServeConfig, Server};
use queztl_control::memory::MemoryService;
use serde_json::json;
use tokio::runtime::Runtime;

/// What `queztl-bench api` can be told.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// How often each server has its turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,

    /// Requests in a turn
    #[arg(long, value_name = "N", default_value_t = 3000)]
    requests: usize,

    /// Events in a turn
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    events: u64,
}

/// Machines in the list.
const MACHINES: usize = 100;
/// Events that may be under way: fewer than the service keeps for a reader that is slow.
const AHEAD: u64 = 512;
const ONE: &str = "/v1/vms/machine-0";
const LIST: &str = "/v1/vms";
const EVENTS: &str = "/v1/events/stream";

/// Runs the comparison and prints its table.
///
/// # Errors
/// No sockets, no threads; an answer that is none.
pub fn run(arguments: &ApiArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let service = Arc::new(MemoryService::default());
    runtime.block_on(fill(service.as_ref()))?;
    let api = folder.path().join("api.sock");
    start_api(&runtime, service.clone(), api.clone())?;
    let bare = folder.path().join("bare.sock");
    let (one, list) = (Connection::new(&api)?.get(ONE)?, Connection::new(&api)?.get(LIST)?);
    println!("answers: machine {} bytes, list of {MACHINES} {} bytes", one.len(), list.len());
    start_bare(&runtime, one, list, arguments.events, bare.clone())?;

    println!("\n{:<28}{:>12}{:>12}{:>10}", "", "median µs", "p99 µs", "x bare");
    for (name, path) in [("GET a machine", ONE), ("GET a list of 100", LIST)] {
        requests(name, path, [&bare, &api], arguments)?;
    }
    println!("\n{:<28}{:>12}{:>22}", "", "events/s", "of the bare server's");
    events([&bare, &api], &service, arguments)
}

async fn fill(service: &MemoryService) -> Result<()> {
    for number in 0..MACHINES {
        let spec = json!({"vcpus": 2, "disks": [{"size_bytes": 1 << 30}], "nets": [{"kind": "user"}]});
        let request =
            serde_json::from_value(json!({"name": format!("machine-{number}"), "spec": spec, "start": true}))?;
        service.create(request).await.map_err(|problem| anyhow::anyhow!("{problem}"))?;
    }
    Ok(())
}

fn start_api(runtime: &Runtime, service: Arc<MemoryService>, path: PathBuf) -> Result<()> {
    let listeners = vec![Listen::Unix { path, group: None }];
    let config = ServeConfig { listeners, ..ServeConfig::default() };
    let server = runtime.block_on(Server::bind(service, config))?;
    runtime.spawn(server.run(std::future::pending()));
    Ok(())
}

fn start_bare(runtime: &Runtime, one: Bytes, list: Bytes, events: u64, path: PathBuf) -> Result<()> {
    let event = json!({"sequence": 123_456, "at": "2026-01-01T00:00:00.123456789Z", "event": "vm-deleted", "vm": "vm-1",
        "name": "vm-1", "message": "It happened."});
    let event = event.to_string();
    let stream = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(async move |mut socket| {
            for _ in 0..events {
                if socket.send(Message::text(event.clone())).await.is_err() {
                    break;
                }
            }
        })
    };
    let router = Router::new()
        .route(ONE, get(async move || one.clone()))
        .route(LIST, get(async move || list.clone()))
        .route(EVENTS, get(stream));
    let listener = {
        let _context = runtime.enter();
        tokio::net::UnixListener::bind(path)?
    };
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

/// A connection of HTTP/1.1 that asks one thing at a time.
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn new(path: &Path) -> Result<Connection> {
        Ok(Connection { stream: UnixStream::connect(path)?, buffer: Vec::with_capacity(1 << 20) })
    }

    fn get(&mut self, path: &str) -> Result<Bytes> {
        let (start, end) = self.ask(path)?;
        Ok(Bytes::copy_from_slice(self.buffer.get(start..end).unwrap_or_default()))
    }

    /// Where the body is in the buffer.
    fn ask(&mut self, path: &str) -> Result<(usize, usize)> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")?;
        self.buffer.clear();
        loop {
            if let Some(bounds) = body(&self.buffer)?
                && self.buffer.len() >= bounds.1
            {
                return Ok(bounds);
            }
            let mut piece = [0; 64 << 10];
            let count = self.stream.read(&mut piece)?;
            ensure!(count > 0, "the server hung up");
            self.buffer.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }
}

/// Where an answer's body begins and ends, once its headers are there.
fn body(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(answer.get(..end).unwrap_or_default())?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("an answer without a length")?.parse()?;
    Ok(Some((end + 4, end + 4 + length)))
}

fn requests(name: &str, path: &str, sockets: [&PathBuf; 2], arguments: &ApiArgs) -> Result<()> {
    let mut connections = [Connection::new(sockets[0])?, Connection::new(sockets[1])?];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..arguments.repeats {
        for (connection, times) in connections.iter_mut().zip(&mut times) {
            for turn in 0..arguments.requests + arguments.requests / 10 {
                let start = Instant::now();
                connection.ask(path)?;
                // The first tenth warms up.
                if turn >= arguments.requests / 10 {
                    times.push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
    }
    let mut base = None;
    for (server, mut times) in ["bare", "API"].into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(f64::NAN);
        let base = *base.get_or_insert(at(50));
        println!("{:<28}{:>12.1}{:>12.1}{:>10.2}", format!("{name}, {server}"), at(50), at(99), at(50) / base);
    }
    Ok(())
}

fn events(sockets: [&PathBuf; 2], service: &Arc<MemoryService>, arguments: &ApiArgs) -> Result<()> {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..arguments.repeats {
        for (index, (socket, rates)) in sockets.into_iter().zip(&mut rates).enumerate() {
            let produced = (index == 1).then(|| service.clone());
            rates.push(arguments.events as f64 / listen(socket, produced, arguments.events)?.as_secs_f64());
        }
    }
    let [bare, api] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    });
    println!("{:<28}{bare:>12.0}", "events, bare");
    println!("{:<28}{api:>12.0}{:>21.0}%", "events, API", api / bare * 100.0);
    Ok(())
}

/// How long so many events take to arrive; `service` is where they are made to happen, as fast as they are read.
fn listen(socket: &Path, service: Option<Arc<MemoryService>>, count: u64) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let (mut stream, _) = tokio_tungstenite::client_async(format!("ws://localhost{EVENTS}"), stream).await?;
        let read = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let producer = service.map(|service| {
            let read = read.clone();
            std::thread::spawn(move || produce(&service, count, &read))
        });
        while read.load(Ordering::Relaxed) < count {
            let message = stream.next().await.context("the stream ended")??;
            ensure!(!message.is_text() || !message.to_text()?.contains("lost"), "events were lost");
            if message.is_text() {
                read.fetch_add(1, Ordering::Relaxed);
            }
        }
        let took = start.elapsed();
        if let Some(producer) = producer {
            producer.join().map_err(|_| anyhow::anyhow!("the producer failed"))?;
        }
        Ok(took)
    })
}

fn produce(service: &MemoryService, count: u64, read: &AtomicU64) {
    for made in 0..count {
        while made.saturating_sub(read.load(Ordering::Relaxed)) >= AHEAD {
            std::thread::yield_now();
        }
        service.happen(EventKind::VmDeleted { vm: "vm-1".into(), name: "vm-1".into() });
    }
}
