//! The escape key: which bytes from the terminal are for us and which for the guest.
//!
//! ```text
//!  Pass ──Ctrl-A──> Escaped ──x────────────> Stop
//!   ^                  │ ──Ctrl-A, a──> one Ctrl-A to the guest
//!   └──── any key ─────┘ ──h, ?───────> Help
//! ```

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What a filtered run of bytes asks for besides the bytes that go on to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Stop,
    Help,
}

/// Watches the byte stream for the escape key, across reads.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Appends what is for the guest to `guest`, and gives the first request with the number of bytes consumed up to
    /// it; all bytes are consumed when there is none.
    pub fn filter(&mut self, bytes: &[u8], guest: &mut Vec<u8>) -> (usize, Option<Request>) {
        for (index, &byte) in bytes.iter().enumerate() {
            let escaped = std::mem::take(&mut self.escaped);
            match (escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, _) => guest.push(byte),
                (true, ESCAPE | b'a') => guest.push(ESCAPE),
                (true, b'x' | b'X') => return (index + 1, Some(Request::Stop)),
                (true, b'h' | b'?') => return (index + 1, Some(Request::Help)),
                (true, _) => {}
            }
        }
        (bytes.len(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter_all(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Request>) {
        let (mut filter, mut guest, mut requests) = (EscapeFilter::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let (used, request) = filter.filter(rest, &mut guest);
                requests.extend(request);
                rest = &rest[used..];
            }
        }
        (guest, requests)
    }

    #[test]
    fn ordinary_bytes_reach_the_guest() {
        assert_eq!(filter_all(&[b"ls\r\x03\x1b[A\xff"]), (b"ls\r\x03\x1b[A\xff".to_vec(), vec![]));
    }

    #[test]
    fn ctrl_a_x_stops_even_when_split_over_two_reads() {
        assert_eq!(filter_all(&[b"a\x01", b"xb"]), (b"ab".to_vec(), vec![Request::Stop]));
    }

    #[test]
    fn a_doubled_ctrl_a_is_one_for_the_guest() {
        assert_eq!(filter_all(&[b"\x01\x01x\x01a"]), (b"\x01x\x01".to_vec(), vec![]));
    }

    #[test]
    fn help_is_shown_and_unknown_keys_are_dropped() {
        assert_eq!(filter_all(&[b"\x01h\x01qz"]), (b"z".to_vec(), vec![Request::Help]));
    }
}
