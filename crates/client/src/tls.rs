//! Whom to trust.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::Error;

/// Where the certificates of the usual authorities are, by distribution.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Connects to who can show a certificate that `authority` signed (or is), else one of the host's usual authorities.
pub fn connector(authority: Option<&Path>) -> Result<TlsConnector, Error> {
    let from_environment = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let usual = || AUTHORITIES.iter().map(Path::new).find(|path| path.exists()).unwrap_or(Path::new(AUTHORITIES[0]));
    let path = authority.or(from_environment.as_deref()).unwrap_or_else(usual);
    let wrong = |source| Error::Certificates { path: path.display().to_string(), source };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(io::Error::other(error)))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(io::Error::other(error)))?;
        let added = roots.add(certificate);
        // Among a host's authorities there may be some that rustls cannot read; one that was asked for must be right.
        if let (Err(error), Some(_)) = (added, authority) {
            return Err(wrong(io::Error::other(error)));
        }
    }
    if roots.is_empty() {
        return Err(wrong(io::Error::other("it holds none")));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| wrong(io::Error::other(error)))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that the certificate must have.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(io::Error::other)
}
