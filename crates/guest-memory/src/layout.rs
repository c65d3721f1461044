//! Where RAM lies among guest-physical addresses.

/// End of RAM below 4 GiB; from here to 4 GiB lie the devices, as on any PC.
pub const LOW_RAM_END: u64 = 0xc000_0000;

/// Start of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Splits `bytes` of RAM into (start, length in bytes) around the device hole.
pub fn ranges_for(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= LOW_RAM_END {
        return vec![(0, bytes)];
    }
    vec![(0, LOW_RAM_END), (HIGH_RAM_START, bytes - LOW_RAM_END)]
}
