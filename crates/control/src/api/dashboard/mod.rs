//! The dashboard: a page for browsers, and their way in.
//!
//! Promises:
//! - nothing listens on TCP before somebody who may do everything has asked for the page ([`door`]);
//! - a login works once, for some minutes; what the browser keeps is a token like any other: it ends after twelve hours,
//!   outlives the daemon, is listed, and can be deleted ([`session`]);
//! - no other site's page can use the browser's session, nor a name that leads to this host ([`origin`]);
//! - the page asks nobody but this daemon for anything, and runs nothing but its own files ([`page`]).
//!
//! ```text
//!  queztl-hv dashboard ──Unix socket──> POST /v1/dashboard ──> the door is opened, a code is made
//!  browser ──GET /──> page;  code behind `#` ──POST /session──> token as a cookie ──> /v1/…
//! ```

mod codes;
mod door;
mod origin;
mod page;
mod session;

use std::path::PathBuf;

use queztl_api::{Code, DashboardLogin, Problem, Scope, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use origin::{check_host, check_same_origin};
pub use page::page;
pub use session::{PATH as SESSION, cookie_token, end, login, look};

use codes::Codes;
use door::Door;

/// What the daemon keeps for the dashboard.
#[derive(Debug)]
pub struct Dashboard {
    door: Option<Door>,
    codes: Codes,
}

impl Dashboard {
    /// With the file that remembers the page's address; without one there is no way in but a token over TLS. Listeners
    /// come out of the channel.
    pub fn new(file: Option<PathBuf>) -> (Dashboard, mpsc::UnboundedReceiver<TcpListener>) {
        let (listeners, opened) = mpsc::unbounded_channel();
        let door = file.map(|file| Door::new(file, listeners));
        (Dashboard { door, codes: Codes::default() }, opened)
    }

    /// Opens the door again where it was, if it ever was opened.
    pub fn reopen(&self) {
        if let Some(door) = &self.door {
            door.reopen();
        }
    }

    /// A login for one browser.
    ///
    /// # Errors
    /// [`Code::Host`] if no port can be had.
    pub fn invite(&self, scope: Scope) -> Result<DashboardLogin, Problem> {
        let none =
            || Problem::new(Code::State, "this daemon offers no dashboard on this host: log in over TLS with a token");
        let address = self.door.as_ref().ok_or_else(none)?.open()?;
        let (code, expires_at): (String, Timestamp) = self.codes.make(scope)?;
        let missing = (!queztl_dashboard::is_built()).then(|| page::MISSING.to_owned());
        Ok(DashboardLogin { url: format!("{address}/#login={code}"), expires_at, missing })
    }
}
