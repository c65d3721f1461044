//! Transfers carried out by the kernel's io_uring: the device thread submits and goes on; an eventfd tells it of ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::transfer::{Transfer, fallocate_mode};
use crate::{Buffer, Operation};

/// A ring of transfers under way. Those that the kernel holds never outnumber the submission ring, so neither ring can
/// overflow. Dropping the ring waits for them.
pub(crate) struct Ring {
    ring: IoUring,
    event: OwnedFd,
    /// Transfers the kernel holds; their place is the `user_data` of the entry. The vectors of buffers must not move
    /// while the kernel has them, and they do not: moving a `Vec` leaves its elements where they are.
    flying: Vec<Option<Flight>>,
    free: Vec<usize>,
}

struct Flight {
    /// What the owner calls the transfer.
    tag: u64,
    transfer: Transfer,
}

/// What the ring can be asked for: transfers, and nothing else. Requests in a ring meet no filter of system calls, so
/// without this, a thread that a guest has taken over could open files and connections through it.
fn restrictions() -> [Restriction; 9] {
    /// IOSQE_FIXED_FILE, _IO_DRAIN, _IO_LINK, _IO_HARDLINK and _ASYNC: how requests are carried out, not which.
    const FLAGS: u8 = 0x1f;
    [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::ReadFixed::CODE),
        Restriction::sqe_op(opcode::WriteFixed::CODE),
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_allowed(FLAGS),
    ]
}

/// A transfer that is over.
pub(crate) struct Landing {
    pub tag: u64,
    pub result: io::Result<()>,
}

impl Ring {
    pub fn new(depth: u32) -> io::Result<Ring> {
        let depth = depth.clamp(1, 4096);
        let entries = depth.next_power_of_two();
        // Where the kernel can (from 5.19 on), the end of a transfer does not interrupt a thread that is busy; it is seen to
        // when the thread looks.
        let patient =
            IoUring::builder().dontfork().setup_r_disabled().setup_coop_taskrun().setup_taskrun_flag().build(entries);
        let ring = patient.or_else(|_| IoUring::builder().dontfork().setup_r_disabled().build(entries))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        ring.submitter().register_restrictions(&mut restrictions())?;
        ring.submitter().register_enable_rings()?;
        let flying = (0..depth).map(|_| None).collect();
        let free = (0..depth as usize).collect();
        Ok(Ring { ring, event, flying, free })
    }

    /// Readable when transfers may have ended. From [`Ring::kick`] until [`Ring::reap`] has nothing more to give it stays
    /// silent: whoever reaps anyway need not be woken for it.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// How many more transfers can be taken.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    pub fn is_idle(&self) -> bool {
        self.free.len() == self.flying.len()
    }

    /// Takes a transfer; it starts at [`Ring::kick`] at the latest. Without room it comes back.
    ///
    /// # Safety
    /// The transfer's files stay open and its buffers valid until it has landed or the ring is dropped.
    pub unsafe fn submit(&mut self, tag: u64, transfer: Transfer) -> Result<(), Transfer> {
        let Some(slot) = self.free.pop() else { return Err(transfer) };
        let entry = entry(&transfer).user_data(slot as u64);
        self.flying[slot] = Some(Flight { tag, transfer });
        // SAFETY: the entry's vector lies in `self.flying` and its memory is kept valid by the caller, both until the
        // end of the transfer; `drop` waits for that.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        // Not reached while transfers never outnumber the ring; an error is better than a panic all the same.
        self.free.push(slot);
        match self.flying[slot].take() {
            Some(flight) => Err(flight.transfer),
            None => Ok(()),
        }
    }

    /// Starts everything that was submitted.
    pub fn kick(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.ring.completion().disable_eventfd();
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory for requests.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the kernel has finished with a transfer that was not reaped.
    pub fn has_landed(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Has the kernel enter what has ended into the ring, if it waits for this thread to do so.
    fn enter_ended(&mut self) {
        /// IORING_ENTER_GETEVENTS.
        const GET_EVENTS: u32 = 1;
        if self.ring.submission().taskrun() {
            // SAFETY: nothing is submitted, nothing is waited for, and there is no argument.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) };
            // An interrupted call has done its work; what is left is told by the event.
            drop(entered);
        }
    }

    /// The next transfer that the kernel has finished with.
    pub fn reap(&mut self) -> Option<Landing> {
        loop {
            let (slot, code) = self.next_entry()?;
            let slot = slot as usize;
            let Some(mut flight) = self.flying.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            // SAFETY: the transfer has not landed yet, so the submitter still keeps its files and buffers valid.
            let result = unsafe { finish(&mut flight.transfer, code) };
            return Some(Landing { tag: flight.tag, result });
        }
    }

    /// The next completion: its place and what the kernel says. Where there is none, the event is heard again.
    fn next_entry(&mut self) -> Option<(u64, i32)> {
        if self.ring.completion().is_empty() {
            self.enter_ended();
        }
        let mut queue = self.ring.completion();
        if queue.is_empty() && queue.eventfd_disabled() {
            queue.enable_eventfd();
            // What has ended before that was not told.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            queue.sync();
        }
        queue.next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Starts everything and waits for one end at least, which [`Ring::reap`] then has.
    pub fn wait(&mut self) {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => {
                // Transfers may still be flying: their memory must never be reused.
                tracing::error!(%error, "io_uring stopped answering");
                std::process::abort();
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.is_idle() {
            self.wait();
            while self.reap().is_some() {}
        }
    }
}

fn entry(transfer: &Transfer) -> squeue::Entry {
    let (file, cached) = (types::Fd(transfer.file), types::Fd(transfer.cached));
    let vectors = Buffer::as_iovecs(&transfer.buffers);
    let count = transfer.buffers.len().min(libc::UIO_MAXIOV as usize) as u32;
    let offset = transfer.offset_bytes;
    // A single run of memory spares the kernel the vector.
    if let ([buffer], Operation::Read | Operation::Write { .. }) = (&transfer.buffers[..], transfer.operation) {
        let (base, bytes) = (buffer.base(), u32::try_from(buffer.len()).unwrap_or(u32::MAX));
        return match transfer.operation {
            Operation::Write { durable } => {
                opcode::Write::new(file, base, bytes).offset(offset).rw_flags(write_flags(durable)).build()
            }
            _ => opcode::Read::new(file, base, bytes).offset(offset).build(),
        };
    }
    match transfer.operation {
        Operation::Read => opcode::Readv::new(file, vectors, count).offset(offset).build(),
        Operation::Write { durable } => {
            opcode::Writev::new(file, vectors, count).offset(offset).rw_flags(write_flags(durable)).build()
        }
        Operation::Flush => opcode::Fsync::new(cached).flags(types::FsyncFlags::DATASYNC).build(),
        operation @ (Operation::Discard | Operation::WriteZeroes { .. }) => {
            let mode = fallocate_mode(operation).bits() as i32;
            opcode::Fallocate::new(cached, transfer.length_bytes).offset(offset).mode(mode).build()
        }
    }
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// Judges the kernel's answer; what it left undone is done here.
///
/// # Safety
/// As for [`Transfer::carry_out`].
unsafe fn finish(transfer: &mut Transfer, code: i32) -> io::Result<()> {
    let count = match usize::try_from(code) {
        Ok(count) => count,
        Err(_) if retry(transfer.operation, -code) => 0,
        Err(_) => return Err(io::Error::from_raw_os_error(-code)),
    };
    let over = match transfer.operation {
        Operation::Read | Operation::Write { .. } => transfer.advance(count),
        _ => code >= 0,
    };
    if over {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { transfer.carry_out() }
}

/// Whether an error of the asynchronous path is worth an attempt in this thread.
fn retry(operation: Operation, errno: i32) -> bool {
    match errno {
        libc::EAGAIN | libc::EINTR => true,
        libc::EOPNOTSUPP | libc::EINVAL => matches!(operation, Operation::Discard | Operation::WriteZeroes { .. }),
        _ => false,
    }
}
