//! Sends 1 GiB over 1, 2, 4 and 8 connections of this host: `cargo run --release --example stripes`.

use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use queztl_parallel_transfer::{Piece, Receiver, Sender, Target};

/// Counts, and keeps nothing.
struct Nowhere;

impl Target for Nowhere {
    fn write(&self, _offset: u64, data: &[u8]) -> std::io::Result<()> {
        std::hint::black_box(data);
        Ok(())
    }

    fn zero(&self, _offset: u64, _bytes: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PIECE: usize = 1 << 20;
    const PIECES: u64 = 1024;
    // Noise: what can be compressed is sent faster.
    let piece: Vec<u8> = (0..PIECE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for stripes in [1, 2, 4, 8] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let ours = (0..stripes).map(|_| TcpStream::connect(address)).collect::<Result<Vec<_>, _>>()?;
        let theirs = (0..stripes).map(|_| Ok(listener.accept()?.0)).collect::<std::io::Result<Vec<_>>>()?;
        let started = Instant::now();
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| Receiver::new(theirs, PIECES * PIECE as u64).round(1, &Nowhere));
            let sent = Sender::new(ours)
                .round(1, |sink| (0..PIECES).try_for_each(|n| sink.put(n * PIECE as u64, Piece::Data(&piece))));
            receiving.join().map_err(|_| "the receiver panicked")??;
            sent.map_err(Box::<dyn std::error::Error>::from)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{stripes} stripes: {:.2} GB/s", (PIECES * PIECE as u64) as f64 / seconds / 1e9);
    }
    Ok(())
}
