//! Network back ends of virtual machines.
//!
//! Promises:
//! - one trait, [`Backend`], carries Ethernet frames between a virtual network card and the world, whatever is behind it:
//!   a TAP device of the host ([`Tap`]) or a user-mode network that needs no privileges ([`UserNetwork`]);
//! - no call blocks; a back end that has failed says so once ([`Received::Closed`]) and the guest's link goes down, but
//!   the machine goes on;
//! - frames travel with the header of Virtio 1.2 §5.1.6 in front, so that checksums and segmentation can be left to the
//!   host where the back end can do them.

mod mac;
mod offload;
mod tap;
mod user;

use std::io;
use std::os::fd::BorrowedFd;

pub use mac::{Mac, ParseMacError};
pub use offload::Offloads;
pub use tap::{Error as TapError, Tap};
#[doc(hidden)]
pub use user::FrameStream;
pub use user::{Error as UserNetworkError, UserNetwork, UserNetworkConfig};

/// Bytes of the header in front of each frame: `struct virtio_net_hdr_v1`, little-endian (Virtio 1.2 §5.1.6).
pub const HEADER_BYTES: usize = 12;

/// The longest frame with its header: a 64 KiB IP packet before segmentation, an Ethernet header and a VLAN tag.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + 65536 + 14 + 4;

/// What [`Backend::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A frame; so many bytes of the buffer, header included.
    Frame(usize),
    /// Nothing now; [`Backend::event`] becomes readable when there is.
    Nothing,
    /// Nothing ever again: the other side is gone.
    Closed,
}

/// Where a virtual network card's frames go and come from. Used by one thread.
pub trait Backend: Send {
    /// What the back end can be left to do.
    fn offloads(&self) -> Offloads;

    /// Says what the guest can be left to do with frames it receives: a subset of [`Backend::offloads`].
    fn set_guest_offloads(&mut self, guest: Offloads) -> io::Result<()>;

    /// The largest packet the network carries, in bytes without the Ethernet header, where it is known.
    fn mtu(&self) -> Option<u16>;

    /// Readable when frames wait, writable when frames can be sent again after [`io::ErrorKind::WouldBlock`].
    fn event(&self) -> BorrowedFd<'_>;

    /// Takes the next frame into `frame`, which holds at least [`MAX_FRAME_BYTES`].
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Received>;

    /// Sends one frame, header included. `WouldBlock`: not taken, offer it again once [`Backend::event`] is writable.
    /// Another error: the frame is lost, as frames sometimes are.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;
}
