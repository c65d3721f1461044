//! Images of the store: disks that machines are made from.
//!
//! Promises:
//! - an image is whole or not there: it is made under a temporary name and gets its own when it is complete;
//! - an image never leads out of the store: what it builds on is an image of the store too;
//! - what something builds on, or uses, is not deleted or changed; the refusal names who does.
//!
//! ```text
//! $QUEZTL_HOME/disk-images/NAME.raw | NAME.qcow2
//! ```

mod import;
mod manage;
mod users;

use std::path::{Path, PathBuf};

use queztl_api::{ImageFormat, Name, Timestamp};
use queztl_vmm::config::Format;
use serde::{Deserialize, Serialize};

/// An image as the store has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub name: Name,
    pub format: ImageFormat,
    pub size_bytes: u64,
    pub backing: Option<Name>,
    pub created_at: Timestamp,
}

impl ImageRecord {
    pub(crate) fn path(&self, home: &Path) -> PathBuf {
        image_path(home, &self.name, self.format)
    }
}

/// Where the images are.
pub(crate) fn folder(home: &Path) -> PathBuf {
    home.join("disk-images")
}

/// The file of an image in the store at `home`.
pub fn image_path(home: &Path, name: &Name, image_format: ImageFormat) -> PathBuf {
    folder(home).join(format!("{name}.{}", format(image_format)))
}

/// The name of an image that is not whole yet.
fn unfinished(home: &Path) -> PathBuf {
    folder(home).join(format!(".new-{}", crate::vms::naming::new_id()))
}

pub(crate) fn format(format: ImageFormat) -> Format {
    match format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow2 => Format::Qcow2,
    }
}
