//! Changes of disks, as a peer sends them with a machine that it brings or protects.

use queztl_vmm::mirror::check;

/// Most disks.
const DISKS: usize = 4;

/// Takes the first bytes for the sizes of disks, and the rest for changes of them.
pub fn change(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let (sizes, changes) = rest.split_at(rest.len().min(usize::from(*count) % (DISKS + 1) * 8));
    let sizes: Vec<u64> =
        sizes.chunks_exact(8).filter_map(|size| size.try_into().ok().map(u64::from_le_bytes)).collect();
    let makes_sense = check(&sizes, changes).is_ok();
    // What makes sense is of disks that there are, and all of it is needed.
    if makes_sense && !changes.is_empty() {
        assert!(check(&[], changes).is_err(), "changes of no disk");
        assert!(check(&sizes, &changes[..changes.len() - 1]).is_err(), "half a change");
    }
}
