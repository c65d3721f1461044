//! The balloon's thread.

use std::sync::Arc;

use queztl_guest_memory::{GuestMemory, PAGE_SIZE};
use vm_memory::Address;

use super::Shared;
use super::stats::{MAX_STATS, STAT_BYTES, Stats};
use crate::confine::Kind;
use crate::devices::virtio::discard::{discard, page_address};
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Buffers, Chain, VirtQueue};

const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const STATS: u64 = 2;
const REPORTING: u64 = 3;
const REFRESH: u64 = 4;

/// Most page numbers in one request: Linux sends 256. A chain of 4 GiB of numbers would keep the thread, and a vCPU that
/// resets the device, busy for minutes.
const MAX_PAGES: u64 = 16 << 10;

pub(super) struct Queues {
    pub(super) inflate: VirtQueue,
    pub(super) deflate: VirtQueue,
    pub(super) stats: Option<VirtQueue>,
    pub(super) reporting: Option<VirtQueue>,
}

pub(super) struct BalloonHandler {
    queues: Queues,
    memory: Arc<GuestMemory>,
    shared: Arc<Shared>,
    /// The statistics buffer that the guest waits to get back.
    held: Option<u16>,
}

impl BalloonHandler {
    pub(super) fn new(queues: Queues, memory: Arc<GuestMemory>, shared: Arc<Shared>) -> BalloonHandler {
        BalloonHandler { queues, memory, shared, held: None }
    }

    fn inflate(&mut self) -> Result<(), Fault> {
        self.queues.inflate.clear_kick();
        Ok(self.queues.inflate.serve(|memory, chain| {
            for (start, bytes) in page_runs(memory, &chain.readable)? {
                discard(memory, start, bytes);
            }
            Ok(0)
        })?)
    }

    /// Nothing to do but to answer: pages that the guest touches again come back by themselves.
    fn deflate(&mut self) -> Result<(), Fault> {
        self.queues.deflate.clear_kick();
        Ok(self.queues.deflate.serve(|_, _| Ok(0))?)
    }

    /// Frees what the guest reports as free; the buffers are the free memory itself (§5.5.6.7).
    fn report(&mut self) -> Result<(), Fault> {
        let Some(queue) = &mut self.queues.reporting else { return Ok(()) };
        queue.clear_kick();
        Ok(queue.serve(|memory, chain| {
            for range in chain.writable.ranges() {
                discard(memory, range.address.raw_value(), u64::from(range.bytes));
            }
            Ok(0)
        })?)
    }

    /// Takes filled statistics buffers, and keeps the last to ask with.
    fn take_stats(&mut self) -> Result<(), Fault> {
        let Some(queue) = &mut self.queues.stats else { return Ok(()) };
        queue.clear_kick();
        loop {
            while let Some(chain) = queue.pop()? {
                read_stats(&self.memory, &chain, &self.shared);
                if let Some(head) = self.held.replace(chain.head) {
                    queue.push(head, 0);
                }
            }
            if !queue.rearm() {
                queue.signal();
                return Ok(());
            }
        }
    }

    /// Gives the statistics buffer back, upon which the guest fills it again.
    fn ask_stats(&mut self) -> Result<(), Fault> {
        self.shared.refresh.clear();
        if let (Some(queue), Some(head)) = (&mut self.queues.stats, self.held.take()) {
            queue.push(head, 0);
            queue.signal();
        }
        Ok(())
    }
}

fn read_stats(memory: &GuestMemory, chain: &Chain, shared: &Shared) {
    let mut bytes = [0; STAT_BYTES * MAX_STATS];
    let count = chain.readable.read_at(memory, 0, &mut bytes);
    // The first buffer after the start is a filled one as well.
    shared.set_stats(Stats::parse(&bytes[..count]));
}

/// The pages that a request names, neighbours put together, as (address, length in bytes).
fn page_runs(memory: &GuestMemory, numbers: &Buffers) -> Result<Vec<(u64, u64)>, &'static str> {
    if numbers.bytes() > MAX_PAGES * 4 {
        return Err("names too many balloon pages");
    }
    let mut bytes = vec![0; numbers.bytes() as usize];
    numbers.read_at(memory, 0, &mut bytes);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in bytes.chunks_exact(4) {
        let address = page_address(u32::from_le_bytes([number[0], number[1], number[2], number[3]])).raw_value();
        match runs.last_mut() {
            Some((start, bytes)) if *start + *bytes == address => *bytes += PAGE_SIZE,
            // Linux fills its list from the top downwards.
            Some((start, bytes)) if address + PAGE_SIZE == *start => (*start, *bytes) = (address, *bytes + PAGE_SIZE),
            _ => runs.push((address, PAGE_SIZE)),
        }
    }
    Ok(runs)
}

impl Handler for BalloonHandler {
    const THREAD: Kind = Kind::Balloon;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.queues.inflate.kick_fd(), INFLATE, Ready::IN)?;
        poller.add(self.queues.deflate.kick_fd(), DEFLATE, Ready::IN)?;
        for (queue, token) in [(&self.queues.stats, STATS), (&self.queues.reporting, REPORTING)] {
            if let Some(queue) = queue {
                poller.add(queue.kick_fd(), token, Ready::IN)?;
            }
        }
        poller.add(&self.shared.refresh, REFRESH, Ready::IN)?;
        self.inflate()?;
        self.deflate()?;
        self.report()?;
        self.take_stats()
    }

    fn handle(&mut self, token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        match token {
            INFLATE => self.inflate(),
            DEFLATE => self.deflate(),
            STATS => self.take_stats(),
            REPORTING => self.report(),
            _ => self.ask_stats(),
        }
    }
}
