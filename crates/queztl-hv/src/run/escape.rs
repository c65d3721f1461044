//! The escape key: which bytes from the terminal are for us and which for the guest.
//!
//! ```text
//!  Pass ──Ctrl-A──> Escaped ──end key──────> End
//!   ^                  │ ──Ctrl-A, a──> one Ctrl-A to the guest
//!   └──── any key ─────┘ ──h, ?───────> Help
//! ```

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What a filtered run of bytes asks for besides the bytes that go on to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The key that ends this: it stops a machine that runs in the foreground, or detaches from one that does not.
    End,
    Help,
}

/// Watches the byte stream for the escape key, across reads.
#[derive(Debug)]
pub struct EscapeFilter {
    escaped: bool,
    end: u8,
}

impl EscapeFilter {
    /// A filter whose end key is this letter, after Ctrl-A.
    pub fn ending_with(end: u8) -> EscapeFilter {
        EscapeFilter { escaped: false, end: end.to_ascii_lowercase() }
    }

    /// Appends what is for the guest to `guest`, and gives the first request with the number of bytes consumed up to
    /// it; all bytes are consumed when there is none.
    pub fn filter(&mut self, bytes: &[u8], guest: &mut Vec<u8>) -> (usize, Option<Request>) {
        for (index, &byte) in bytes.iter().enumerate() {
            let escaped = std::mem::take(&mut self.escaped);
            match (escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, _) => guest.push(byte),
                (true, ESCAPE | b'a') => guest.push(ESCAPE),
                (true, key) if key.to_ascii_lowercase() == self.end => return (index + 1, Some(Request::End)),
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
        let (mut filter, mut guest, mut requests) = (EscapeFilter::ending_with(b'x'), Vec::new(), Vec::new());
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
        assert_eq!(filter_all(&[b"a\x01", b"xb"]), (b"ab".to_vec(), vec![Request::End]));
    }

    #[test]
    fn a_doubled_ctrl_a_is_one_for_the_guest() {
        assert_eq!(filter_all(&[b"\x01\x01x\x01a"]), (b"\x01x\x01".to_vec(), vec![]));
    }

    #[test]
    fn help_is_shown_and_unknown_keys_are_dropped() {
        assert_eq!(filter_all(&[b"\x01h\x01qz"]), (b"z".to_vec(), vec![Request::Help]));
    }

    #[test]
    fn the_end_key_is_the_one_chosen() {
        let mut guest = Vec::new();
        let mut filter = EscapeFilter::ending_with(b'd');
        assert_eq!(filter.filter(b"\x01x\x01D", &mut guest), (4, Some(Request::End)));
        assert!(guest.is_empty());
    }
}
