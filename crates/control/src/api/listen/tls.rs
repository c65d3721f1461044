//! TLS for the TCP listeners.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::ServeError;
use crate::api::config::Certificate;

/// What greets clients with this certificate; `addresses` are named in one that is made now.
pub fn acceptor(certificate: &Certificate, addresses: &[IpAddr]) -> Result<TlsAcceptor, ServeError> {
    let (chain, key) = match certificate {
        Certificate::Files { certificate, key } => read(certificate, key)?,
        Certificate::SelfSigned { directory } => {
            let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
            if !certificate.exists() || !key.exists() {
                make(directory, &certificate, &key, addresses)?;
            }
            read(&certificate, &key)?
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| ServeError::Tls(error.to_string()))?.with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).map_err(|error| ServeError::Tls(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(certificate: &Path, key: &Path) -> Result<Pair, ServeError> {
    let refused = |path: &Path, error: &dyn std::fmt::Display| ServeError::Certificate {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| refused(certificate, &error))?;
    if chain.is_empty() {
        return Err(refused(certificate, &"there is no certificate in it: give a PEM file"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, &error))?;
    Ok((chain, key))
}

/// Makes a certificate for this host's names. The key first: a certificate without its key would be kept for good.
fn make(directory: &Path, certificate: &Path, key: &Path, addresses: &[IpAddr]) -> Result<(), ServeError> {
    let refused = |path: &Path, error: &dyn std::fmt::Display| ServeError::Certificate {
        path: path.to_owned(),
        message: format!("it cannot be made: {error}"),
    };
    fs::create_dir_all(directory).map_err(|error| refused(directory, &error))?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.push(rustix::system::uname().nodename().to_string_lossy().into_owned());
    names.extend(addresses.iter().filter(|address| !address.is_unspecified()).map(IpAddr::to_string));
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| refused(certificate, &error))?;
    write(key, &made.signing_key.serialize_pem(), 0o600).map_err(|error| refused(key, &error))?;
    write(certificate, &made.cert.pem(), 0o644).map_err(|error| refused(certificate, &error))
}

/// Writes a file that appears complete, under its name, with its permissions.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}
