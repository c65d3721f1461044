//! Where a daemon is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

/// The port of an `https` address that names none.
pub const DEFAULT_PORT: u16 = 7443;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix:/path`: a socket of this host.
    Unix(PathBuf),
    /// `https://host[:port]`.
    Https { host: String, port: u16 },
}

/// Why an address cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is no address of a daemon: write unix:/path/of/socket or https://host:port")]
    Form(String),
    #[error("{0} would send everything unencrypted: write https://…, or take a Unix socket")]
    Plain(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(wrong()) };
        }
        if text.starts_with("http://") {
            return Err(AddressError::Plain(text.to_owned()));
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(wrong)?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if !bare || host.is_empty() {
            return Err(wrong());
        }
        Ok(Address::Https { host, port: authority.port_u16().unwrap_or(DEFAULT_PORT) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Address::Https { host, port } if host.contains(':') => write!(formatter, "https://[{host}]:{port}"),
            Address::Https { host, port } => write!(formatter, "https://{host}:{port}"),
        }
    }
}

impl Address {
    /// The value of the `Host` header field (RFC 9110 §7.2).
    pub(crate) fn host(&self) -> String {
        match self {
            Address::Unix(_) => "localhost".to_owned(),
            Address::Https { .. } => self.to_string().trim_start_matches("https://").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_https_are_addresses() {
        for (text, shown) in [
            ("unix:/run/q.sock", "unix:/run/q.sock"),
            ("unix:///run/q.sock", "unix:/run/q.sock"),
            ("https://host", "https://host:7443"),
            ("https://host:1/", "https://host:1"),
            ("https://[::1]:2", "https://[::1]:2"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_connection_without_encryption_is_refused() {
        let error = "http://host".parse::<Address>().unwrap_err();
        assert_eq!(error, AddressError::Plain("http://host".into()));
    }

    #[test]
    fn other_texts_are_no_addresses() {
        for text in ["", "unix:", "unix:relative", "host:1", "https://", "https://h/path", "https://u@h", "ftp://h"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
