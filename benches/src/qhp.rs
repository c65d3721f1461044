//! QHP beside bare sockets and gRPC: round trips of small messages and throughput of bulk data, all over loopback, in turns.
//!
//! Every peer does the same work: a request of 64 bytes is answered with itself; a stream of blocks is read to its end. The
//! bare sockets do it with one blocking read and write, which is the least there can be; gRPC is tonic with its own
//! runtime on each side, one call at a time.

mod grpc;
mod sockets;

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use queztl_qhp::{Connection, Error, IntoWire, Options, Priority};

/// What `queztl-bench qhp` can be told.
#[derive(Debug, Args)]
pub struct QhpArgs {
    /// How often each peer has its turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,

    /// Round trips in a turn
    #[arg(long, value_name = "N", default_value_t = 3000)]
    calls: usize,

    /// MiB of bulk data in a turn
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    bulk: usize,
}

/// Bytes of a small message, and of a block of bulk data.
const SMALL: usize = 64;
const BLOCK: usize = 256 << 10;
const ECHO: u32 = 1;
const SINK: u32 = 2;
const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

/// One way of talking, connected to a server in a thread of this process.
trait Peer {
    fn name(&self) -> &'static str;
    /// One round trip.
    fn call(&mut self, request: &[u8; SMALL]) -> Result<()>;
    /// Sends so many blocks, until the other side has them all.
    fn bulk(&mut self, blocks: usize) -> Result<()>;
}

/// Figures of one peer: round trips in microseconds, throughput in gigabits a second.
#[derive(Default)]
struct Figures {
    medians_us: Vec<f64>,
    p99s_us: Vec<f64>,
    gigabits: Vec<f64>,
}

/// Runs the comparison and prints its table.
///
/// # Errors
/// No loopback, no threads.
pub fn run(arguments: &QhpArgs) -> Result<()> {
    let (a, b) = UnixStream::pair()?;
    let (c, d) = UnixStream::pair()?;
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(sockets::bare("bare TCP", tcp()?)?),
        Box::new(Qhp::new("QHP on TCP", tcp()?)?),
        Box::new(sockets::bare("bare Unix socket", (a, b))?),
        Box::new(Qhp::new("QHP on Unix socket", (c, d))?),
        Box::new(grpc::Grpc::new()?),
    ];
    let mut figures: Vec<Figures> = peers.iter().map(|_| Figures::default()).collect();
    for _ in 0..arguments.repeats {
        for (peer, figures) in peers.iter_mut().zip(&mut figures) {
            measure(&mut **peer, arguments, figures)?;
        }
    }
    print(&peers, figures);
    Ok(())
}

fn measure(peer: &mut dyn Peer, arguments: &QhpArgs, figures: &mut Figures) -> Result<()> {
    let request = [7; SMALL];
    (0..arguments.calls / 10).try_for_each(|_| peer.call(&request))?;
    let mut times = Vec::with_capacity(arguments.calls);
    for _ in 0..arguments.calls {
        let start = Instant::now();
        peer.call(&request)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    figures.medians_us.push(times[times.len() / 2]);
    figures.p99s_us.push(times[times.len() * 99 / 100]);
    let blocks = (arguments.bulk << 20) / BLOCK;
    let start = Instant::now();
    peer.bulk(blocks)?;
    figures.gigabits.push((blocks * BLOCK) as f64 * 8e-9 / start.elapsed().as_secs_f64());
    Ok(())
}

fn print(peers: &[Box<dyn Peer>], figures: Vec<Figures>) {
    println!("{:<20}{:>12}{:>12}{:>14}{:>10}", "", "median µs", "p99 µs", "x bare TCP", "Gb/s");
    let mut base = None;
    for (peer, figures) in peers.iter().zip(figures) {
        let (median, p99) = (middle(figures.medians_us), middle(figures.p99s_us));
        let base = *base.get_or_insert(median);
        let gigabits = middle(figures.gigabits);
        println!("{:<20}{median:>12.1}{p99:>12.1}{:>14.2}{gigabits:>10.1}", peer.name(), median / base);
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two ends of a connection over loopback.
fn tcp() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
    }
    Ok((client, server))
}

struct Qhp {
    name: &'static str,
    connection: Connection,
}

impl Qhp {
    fn new<W: IntoWire + Send + 'static>(name: &'static str, (client, server): (W, W)) -> Result<Qhp> {
        std::thread::spawn(move || Connection::server(server, Options::default()).map(|connection| serve(&connection)));
        Ok(Qhp { name, connection: Connection::client(client, Options::default())? })
    }
}

/// Answers until the other side goes.
fn serve(connection: &Connection) {
    while let Ok(mut incoming) = connection.accept(None) {
        // A stream that fails has ended for its client too.
        let _ = match incoming.service {
            ECHO => incoming.stream.message(LIMIT).and_then(|message| incoming.stream.finish(&message)),
            _ => drain(&mut incoming.stream),
        };
    }
}

fn drain(stream: &mut queztl_qhp::Stream) -> Result<(), Error> {
    while stream.receive(LIMIT)?.is_some() {}
    stream.finish(&[])
}

impl Peer for Qhp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn call(&mut self, request: &[u8; SMALL]) -> Result<()> {
        let answer = self.connection.call(ECHO, Priority::High, &[request], LIMIT)?;
        anyhow::ensure!(answer == request, "another answer");
        Ok(())
    }

    fn bulk(&mut self, blocks: usize) -> Result<()> {
        let block = vec![1; BLOCK];
        let mut stream = self.connection.open(SINK, Priority::Bulk);
        for _ in 0..blocks {
            stream.send(&block)?;
        }
        stream.finish(&[])?;
        stream.message(LIMIT)?;
        Ok(())
    }
}
