//! Which pages may speak for the browser.
//!
//! A browser sends its session with every request to the page's address, also if another site's page made it, or a name of
//! the attacker's that leads to this host (DNS rebinding). So:
//! - on the loopback listener every request must name the host itself: `localhost`, a name under it, or a loopback address;
//!   none of these can be given to another by DNS;
//! - a request that shows a session must come from the page itself: `Sec-Fetch-Site` must say so where the browser sends it,
//!   and whatever changes something or opens a WebSocket must carry the page's `Origin`.

use std::net::IpAddr;

use axum::extract::Request;
use http::header::{HOST, HeaderName, ORIGIN, UPGRADE};
use http::{HeaderMap, Method};
use queztl_api::Code;

use crate::api::answer::{Answer, Failure, shown};
use crate::api::gate::Peer;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request to the loopback listener under a name that is not this host's own.
///
/// # Errors
/// [`Code::Forbidden`].
pub fn check_host(headers: &HeaderMap) -> Answer<()> {
    let host = text(headers, &HOST).unwrap_or_default();
    if is_loopback(host) {
        return Ok(());
    }
    let detail =
        format!("{:?} is no name of this host: open the address that `queztl-hv dashboard` prints", shown(host));
    Err(Failure::new(Code::Forbidden, detail))
}

/// Refuses a request with a session that did not come from the page.
///
/// # Errors
/// [`Code::Forbidden`].
pub fn check_same_origin(request: &Request, peer: Peer) -> Answer<()> {
    let headers = request.headers();
    let refused =
        || Failure::new(Code::Forbidden, "another site's page asked for this: only the dashboard's own page may");
    let site = text(headers, &SEC_FETCH_SITE).unwrap_or("none");
    if !matches!(site, "same-origin" | "none") {
        return Err(refused());
    }
    let scheme = if matches!(peer, Peer::Loopback { .. }) { "http" } else { "https" };
    let own = format!("{scheme}://{}", text(headers, &HOST).unwrap_or_default());
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD) && !headers.contains_key(UPGRADE);
    match text(headers, &ORIGIN) {
        Some(origin) if origin.eq_ignore_ascii_case(&own) => Ok(()),
        None if looks_only => Ok(()),
        _ => Err(refused()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `Host` names this host in a way that no name server decides about.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, "0"),
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.to_ascii_lowercase();
    let named = name == "localhost" || name.ends_with(".localhost");
    port.parse::<u16>().is_ok() && (named || address.parse().is_ok_and(|address: IpAddr| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_pass() {
        for host in ["localhost", "LOCALHOST:80", "queztl-1a.localhost:7000", "127.0.0.1:1", "127.9.9.9", "[::1]:5"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "notlocalhost",
            "10.0.0.1:80",
            "127.0.0.1.nip.io",
            "localhost:x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
