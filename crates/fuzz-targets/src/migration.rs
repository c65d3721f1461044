//! What the two ends of a migration say to each other when memory comes after the machine.

/// Reads `data` as each of those messages.
pub fn examine(data: &[u8]) {
    queztl_vmm::migration::examine(data);
}
