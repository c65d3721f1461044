//! The way into the dashboard.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Scope;

/// Asks for a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DashboardRequest {
    /// What the page may do; everything if it is not given.
    #[serde(default)]
    pub scope: Option<Scope>,
}

/// A login for one browser, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DashboardLogin {
    /// The address to open. It carries the one-time code behind its `#`, which no browser sends anywhere.
    pub url: String,
    /// The code is worth nothing from then on.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Why there is no page at that address, if there is none.
    pub missing: Option<String>,
}
