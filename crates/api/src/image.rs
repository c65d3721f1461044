//! Images of the store.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Name;

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: Name,
    /// How its file is written.
    pub format: ImageFormat,
    /// The disk's size.
    pub size_bytes: u64,
    /// What it takes on the host.
    pub allocated_bytes: u64,
    /// The image it builds on.
    pub backing: Option<Name>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Identifiers of the machines whose disks build on it.
    pub used_by: Vec<String>,
}

/// A file of the host to be taken into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Its name.
    pub name: Name,
    /// The file, on the host.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Told from the file if it is not given.
    #[serde(default)]
    pub format: Option<ImageFormat>,
}

/// An image to be made: empty, or on top of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Its name.
    pub name: Name,
    /// At least the backing image's, if there is one.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// How its file is written.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// The image to build on.
    #[serde(default)]
    pub backing: Option<Name>,
}

/// A copy in another format, or without its backing images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertImage {
    /// Name of the copy.
    pub name: Name,
    /// How its file is written.
    pub format: ImageFormat,
}

/// Another size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeImage {
    /// Its new size.
    pub size_bytes: u64,
    /// Cutting off the end loses what is there.
    #[serde(default)]
    pub shrink: bool,
}

/// Whether an image's tables agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Whether nothing was found.
    pub sound: bool,
    /// A sentence for each finding.
    pub findings: Vec<String>,
}
