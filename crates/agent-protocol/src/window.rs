//! Flow control of one stream: the receiver says how much it can take, the sender sends no more.
//!
//! Both begin with [`WINDOW_BYTES`]. A [`crate::Message::Credit`] gives back what the receiver has passed on, so a
//! reader that stops stops the writer, and neither side ever keeps more than a window.

/// What a stream may have under way, in bytes.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// A peer sent more than it was allowed, or gave back more than it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not keep to the window of a stream")]
pub struct Overrun;

/// The sender's side.
#[derive(Debug)]
pub struct Window(u32);

impl Default for Window {
    fn default() -> Window {
        Window(WINDOW_BYTES)
    }
}

impl Window {
    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        self.0 as usize
    }

    /// Notes that `bytes` were sent; more than [`Window::available`] counts as all of it.
    pub fn spend(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Notes a credit of the receiver.
    ///
    /// # Errors
    /// [`Overrun`] when it gives back more than was sent.
    pub fn credit(&mut self, bytes: u32) -> Result<(), Overrun> {
        let sum = self.0.checked_add(bytes).filter(|sum| *sum <= WINDOW_BYTES).ok_or(Overrun)?;
        self.0 = sum;
        Ok(())
    }
}

/// The receiver's side: what the sender may still send.
#[derive(Debug)]
pub struct Allowance(u32);

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance(WINDOW_BYTES)
    }
}

impl Allowance {
    /// Notes that `bytes` arrived.
    ///
    /// # Errors
    /// [`Overrun`] when the sender was not allowed to send them.
    pub fn receive(&mut self, bytes: usize) -> Result<(), Overrun> {
        let bytes = u32::try_from(bytes).map_err(|_| Overrun)?;
        self.0 = self.0.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// Notes that a credit over `bytes` is given; it never makes the allowance larger than a window.
    pub fn give(&mut self, bytes: usize) {
        self.0 = self.0.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX)).min(WINDOW_BYTES);
    }
}
