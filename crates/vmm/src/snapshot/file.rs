//! The state file: one JSON object of a fixed form, so that nothing in it can change unnoticed.
//!
//! ```text
//! {"format":"queztl-snapshot","version":V,"blake3":"64 hex digits","body":B}\n
//! ```
//! `B` is a [`MachineState`] as JSON, the checksum is that of its bytes. A file that differs in any byte from this form is
//! damaged; one with a higher version is left to newer programs; a field that is not known is refused.

use super::{Error, MachineState};

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u64 = 1;
/// The longest state file: 256 vCPUs and all the devices that there can be take some megabytes.
pub const MAX_BYTES: u64 = 64 << 20;

const START: &str = r#"{"format":"queztl-snapshot","version":"#;
const CHECKSUM: &str = r#","blake3":""#;
const BODY: &str = r#"","body":"#;
const END: &str = "}\n";
const CHECKSUM_DIGITS: usize = 64;

/// The file's bytes.
pub fn encode(state: &MachineState) -> Result<Vec<u8>, Error> {
    let body = serde_json::to_string(state).map_err(|error| Error::NotUnderstood(error.to_string()))?;
    let checksum = blake3::hash(body.as_bytes()).to_hex();
    Ok([START, &VERSION.to_string(), CHECKSUM, &checksum, BODY, &body, END].concat().into_bytes())
}

/// Reads the bytes back. `None` if they are nothing of ours.
pub fn decode(bytes: &[u8]) -> Option<Result<MachineState, Error>> {
    let rest = bytes.strip_prefix(START.as_bytes())?;
    Some(decode_rest(rest))
}

fn decode_rest(rest: &[u8]) -> Result<MachineState, Error> {
    let damaged = |what| move || Error::Damaged(what);
    let rest = std::str::from_utf8(rest).map_err(|_| Error::Damaged("it is no text"))?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (version, rest) = rest.split_at(digits);
    let number: u64 = version.parse().map_err(|_| Error::Damaged("it has no version"))?;
    let rest = rest.strip_prefix(CHECKSUM).ok_or_else(damaged("it has no checksum"))?;
    if number > VERSION {
        return Err(Error::Newer { found: number, known: VERSION });
    }
    if version != VERSION.to_string() {
        return Err(Error::Damaged("there is no such version"));
    }
    let (checksum, rest) = rest.split_at_checked(CHECKSUM_DIGITS).ok_or_else(damaged("it is cut off"))?;
    let rest = rest.strip_prefix(BODY).ok_or_else(damaged("it has no body"))?;
    let body = rest.strip_suffix(END).ok_or_else(damaged("it is cut off"))?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != checksum {
        return Err(Error::Damaged("its checksum is wrong"));
    }
    serde_json::from_str(body).map_err(|error| Error::NotUnderstood(error.to_string()))
}
