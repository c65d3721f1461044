//! `alerts`.

use queztl_api::AlertState;

use super::session::{Session, failure};
use crate::cli::AlertsArgs;
use crate::output::{self, List};
use crate::report::Failure;
use crate::status::Status;

/// Lists what fires, and with `--all` what was.
pub async fn alerts(session: &Session, args: &AlertsArgs) -> Result<Status, Failure> {
    let mut alerts = session.client.alerts().await.map_err(failure)?;
    alerts.retain(|alert| args.all || alert.state == AlertState::Firing);
    output::print(&List(&alerts), args.output.format)
}
