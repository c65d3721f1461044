//! Images of the store.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Name;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    Raw,
    Qcow2,
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    pub name: Name,
    pub format: ImageFormat,
    /// The disk's size.
    pub size_bytes: u64,
    /// What it takes on the host.
    pub allocated_bytes: u64,
    /// The image it builds on.
    pub backing: Option<Name>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Identifiers of the machines whose disks build on it.
    pub used_by: Vec<String>,
}

/// A file of the host to be taken into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    pub name: Name,
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
    pub name: Name,
    /// At least the backing image's, if there is one.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    #[serde(default)]
    pub format: Option<ImageFormat>,
    #[serde(default)]
    pub backing: Option<Name>,
}

/// A copy in another format, or without its backing images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertImage {
    /// Name of the copy.
    pub name: Name,
    pub format: ImageFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeImage {
    pub size_bytes: u64,
    /// Cutting off the end loses what is there.
    #[serde(default)]
    pub shrink: bool,
}

/// Whether an image's tables agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    pub sound: bool,
    /// A sentence for each finding.
    pub findings: Vec<String>,
}
