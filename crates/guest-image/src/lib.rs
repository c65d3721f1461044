//! Guest kernels and root file systems: built, cached by content, found again.
//!
//! - [`KernelBuild`] makes a guest kernel from a kernel source and our configuration fragments; [`kernels`] lists them.
//! - [`rootfs`] makes the small root file system that `queztl-hv run` starts by default.
//! - [`debian`] makes a disk with a stock distribution, and fetches its installer.
//! - [`default_kernel`] and [`default_rootfs`] are for whoever names neither.
//! - [`Store`] is where all of them live: complete or not at all, each made once.
//!
//! Long work reports to a [`Progress`]. A tool that the host lacks is installed when root asks, else named in a sentence.

pub mod cpio;
pub mod debian;
mod error;
mod kernel;
mod progress;
pub mod rootfs;
mod store;
mod tools;

pub use error::{Error, Result};
pub use kernel::{
    Kernel, KernelBuild, KernelInfo, MAX_BYTES, Profile, default_kernel, default_kernel_in, kernels, kernels_in,
};
pub use progress::{Progress, Silent, Terminal};
pub use rootfs::default_rootfs;
pub use store::Store;
