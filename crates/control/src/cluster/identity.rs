//! Keys and certificates: who is a node of which cluster.
//!
//! The authority signs a certificate for each node, for the name `NODE.CLUSTER.queztl`: who connects to a node asks for that
//! name, whatever address leads there. Who is connected to knows the caller by its whole certificate, of which the list of
//! members has the hash: a name that is given out again revives no certificate of before, and between a stranger and the
//! list there is nothing to parse but TLS itself.
//!
//! Certificates do not end by themselves. A member's ends with its membership.

use std::sync::Arc;

use queztl_api::{Code, Name, Problem, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// An uncompressed point of P-256 (SEC 1 §2.3.3).
const PUBLIC_KEY_BYTES: usize = 65;
/// How long certificates are good for.
const YEARS: i16 = 30;

/// What tells a certificate from all others.
pub(crate) type Fingerprint = [u8; 32];

/// blake3 of a certificate.
pub(crate) fn fingerprint(certificate: &[u8]) -> Fingerprint {
    *blake3::hash(certificate).as_bytes()
}

/// The name that a node's certificate is for.
pub(crate) fn server_name(cluster: &str, node: &str) -> String {
    format!("{node}.{cluster}.queztl")
}

/// A name of a node is a label of a host's name (RFC 1123), since its certificate is for it.
pub(crate) fn check_name(name: &Name) -> Result<(), Problem> {
    let text = name.as_str();
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.bytes().all(inner) && !text.ends_with('-') {
        return Ok(());
    }
    Err(Problem::invalid(
        "name",
        format!("a node cannot be called {text:?}: take lower-case letters, digits and hyphens"),
    ))
}

/// A key of this host's own.
pub(crate) fn new_key() -> Result<KeyPair, Problem> {
    KeyPair::generate().map_err(failed)
}

pub(crate) fn read_key(pem: &str) -> Result<KeyPair, Problem> {
    KeyPair::from_pem(pem).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Host, format!("a key or certificate cannot be used: {error}"))
}

/// Somebody else's public key.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Who signs the nodes' certificates.
pub(crate) struct Authority {
    key: KeyPair,
    cluster: String,
}

impl Authority {
    pub fn new(cluster: &str, key: KeyPair) -> Authority {
        Authority { key, cluster: cluster.to_owned() }
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> Result<String, Problem> {
        Ok(self.params()?.self_signed(&self.key).map_err(failed)?.pem())
    }

    /// A node's certificate, PEM. Whether the node has the key is seen when it uses the certificate.
    pub fn sign(&self, node: &Name, public_key: &[u8]) -> Result<String, Problem> {
        if public_key.len() != PUBLIC_KEY_BYTES || public_key[0] != 4 {
            return Err(Problem::invalid("public_key", "is an uncompressed point of P-256"));
        }
        let mut params = params(&[server_name(&self.cluster, node.as_str())], node.as_str())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let serial: [u8; 16] = crate::vms::naming::random_bytes()?;
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial));
        let issuer = Issuer::new(self.params()?, &self.key);
        Ok(params.signed_by(&Point(public_key.to_vec()), &issuer).map_err(failed)?.pem())
    }

    fn params(&self) -> Result<CertificateParams, Problem> {
        let mut params = params(&[], &format!("queztl cluster {}", self.cluster))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(params)
    }
}

fn params(names: &[String], common_name: &str) -> Result<CertificateParams, Problem> {
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |date: jiff::civil::Date| rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8);
    let yesterday = today.yesterday().map_err(failed)?;
    let end = today.checked_add(jiff::Span::new().years(YEARS)).map_err(failed)?;
    (params.not_before, params.not_after) = (day(yesterday), day(end));
    Ok(params)
}

/// A node's certificate and key, and the authority that it trusts.
pub(crate) struct Identity {
    pub certificate: CertificateDer<'static>,
    pub authority: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From PEM.
    ///
    /// # Errors
    /// These are not what they should be.
    pub fn new(certificate: &str, authority: &str, key: &KeyPair) -> Result<Identity, Problem> {
        let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(failed);
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(failed)?;
        Ok(Identity { certificate: read(certificate)?, authority: read(authority)?, key })
    }

    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }

    /// How this node greets others. Who shows no certificate is let in as far as the door ([`crate::api`] knows strangers).
    pub fn server(&self) -> Result<ServerConfig, Problem> {
        let (roots, provider) = (Arc::new(roots(&self.authority)?), provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let verifier = verifier.allow_unauthenticated().build().map_err(failed)?;
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(failed)?.with_client_cert_verifier(verifier);
        let mut config = config.with_single_cert(self.chain(), self.key.clone_key()).map_err(failed)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// How this node meets others.
    pub fn client(&self) -> Result<ClientConfig, Problem> {
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.map_err(failed)?.with_root_certificates(roots(&self.authority)?);
        config.with_client_auth_cert(self.chain(), self.key.clone_key()).map_err(failed)
    }

    /// With the authority, for who knows no more of it than its fingerprint.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(failed)?;
    Ok(roots)
}

/// How a founder is met of whose authority the fingerprint is known.
pub(crate) fn stranger(authority: Fingerprint) -> Result<ClientConfig, Problem> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(failed)?.dangerous();
    let verifier = Arc::new(Pinned { authority, provider: provider() });
    Ok(config.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Trusts the authority with one fingerprint, which the server sends along.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::General("it is of another cluster than the token".into());
        let authority = intermediates.iter().find(|one| fingerprint(one) == self.authority).ok_or_else(other)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
