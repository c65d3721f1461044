//! What was said last.

use std::collections::VecDeque;

use super::HISTORY_BYTES;

/// The last bytes of a console.
#[derive(Debug, Default)]
pub(super) struct History {
    bytes: VecDeque<u8>,
    /// Something was forgotten, so that the first line may not be whole.
    cut: bool,
}

impl History {
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = match bytes.len().checked_sub(HISTORY_BYTES) {
            Some(more) if more > 0 => {
                self.bytes.clear();
                self.cut = true;
                &bytes[more..]
            }
            _ => bytes,
        };
        let over = (self.bytes.len() + bytes.len()).saturating_sub(HISTORY_BYTES);
        self.cut |= over > 0;
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    /// All of it, from the beginning of a line on. A single line longer than all of it is given as it is.
    pub fn lines(&self) -> Vec<u8> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n').filter(|_| self.cut);
        self.bytes.iter().skip(end.map_or(0, |end| end + 1)).copied().collect()
    }
}
