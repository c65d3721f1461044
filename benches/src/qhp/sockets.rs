//! A socket with nothing around it.

use std::io::{Read, Write};

use anyhow::Result;

use super::{BLOCK, Peer, SMALL};

struct Bare<S> {
    name: &'static str,
    stream: S,
}

/// A client whose server is a thread of this process.
pub(super) fn bare<S: Read + Write + Send + 'static>(
    name: &'static str,
    (client, server): (S, S),
) -> Result<impl Peer> {
    std::thread::Builder::new().spawn(move || serve(server))?;
    Ok(Bare { name, stream: client })
}

/// What follows the message of a turn: so many blocks, or none and then the message comes back.
fn serve(mut stream: impl Read + Write) -> std::io::Result<()> {
    let (mut message, mut block) = ([0; SMALL], vec![0; BLOCK]);
    loop {
        stream.read_exact(&mut message)?;
        let blocks = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        // Requests of the latency test begin with 07 07 07 07, far more blocks than there ever are.
        if blocks != 0x0707_0707 {
            (0..blocks).try_for_each(|_| stream.read_exact(&mut block))?;
        }
        stream.write_all(&message)?;
    }
}

impl<S: Read + Write> Peer for Bare<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn call(&mut self, request: &[u8; SMALL]) -> Result<()> {
        let mut answer = [0; SMALL];
        self.stream.write_all(request)?;
        self.stream.read_exact(&mut answer)?;
        anyhow::ensure!(answer == *request, "another answer");
        Ok(())
    }

    fn bulk(&mut self, blocks: usize) -> Result<()> {
        let block = vec![1; BLOCK];
        let mut request = [0; SMALL];
        request[..4].copy_from_slice(&u32::try_from(blocks)?.to_le_bytes());
        self.stream.write_all(&request)?;
        (0..blocks).try_for_each(|_| self.stream.write_all(&block))?;
        self.stream.read_exact(&mut request)?;
        Ok(())
    }
}
