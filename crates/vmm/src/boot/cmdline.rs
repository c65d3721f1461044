//! The kernel's command line in guest memory.

use super::error::Error;
use super::low;
use super::placement::Placement;

/// Writes `cmdline` with its final zero to [`low::CMDLINE`]; it may have `limit` bytes without that zero.
pub fn write(cmdline: &str, limit: usize, placement: &Placement) -> Result<(), Error> {
    let limit = limit.min(low::CMDLINE_ROOM as usize - 1);
    if cmdline.len() > limit {
        return Err(Error::CmdlineTooLong { len: cmdline.len(), limit });
    }
    if cmdline.as_bytes().contains(&0) {
        return Err(Error::CmdlineZero);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    placement.write(low::CMDLINE, &bytes)
}
