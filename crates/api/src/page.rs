//! Lists, in parts.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How many items one answer has at most, and has if nothing else is asked.
pub const MAX_PAGE: u32 = 1000;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items of this part, in the list's order.
    pub items: Vec<T>,
    /// To be given as `after` for the next part; none at the list's end.
    pub next: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct PageQuery {
    /// How many items at most.
    #[param(minimum = 1, maximum = 1000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next` of the part before.
    #[param(max_length = 512)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
