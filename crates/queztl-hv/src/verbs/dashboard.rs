//! `dashboard`.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

use queztl_api::DashboardRequest;
use queztl_client::Address;

use super::session::{Session, failure};
use crate::cli::{DashboardArgs, OutputFormat};
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;

/// Prints the page's address, and opens it where somebody sits before a screen.
pub async fn dashboard(session: &Session, args: &DashboardArgs) -> Result<Status, Failure> {
    if let Address::Https { .. } = session.client.address() {
        return Err(Failure::usage(format!(
            "the daemon is on another host: open {} in a browser and log in with a token",
            session.client.address()
        )));
    }
    let request = DashboardRequest { scope: Some(args.scope.into()) };
    let login = session.client.dashboard(&request).await.map_err(failure)?;
    if let Some(missing) = &login.missing {
        return Err(Failure::host(missing));
    }
    let url = login.url.clone();
    let made = Made { table: format!("{url}\n"), names: vec![url.clone()], value: login };
    let printed = output::print(&made, args.output.format)?;
    if !args.no_open && args.output.format == OutputFormat::Table && has_screen() {
        open(&url);
    }
    Ok(printed)
}

/// Whether a browser would be seen by whoever started this.
fn has_screen() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && (set("DISPLAY") || set("WAYLAND_DISPLAY"))
}

/// Starts the desktop's browser; the address is printed, so one that does not start is no failure.
fn open(url: &str) {
    let mut browser = Command::new("xdg-open");
    browser.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = browser.spawn() {
        tracing::info!(%error, "no browser could be started");
    }
}
