//! One request to a server that collects.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::TargetConfig;

/// For a request, its connection and its answer together.
const LIMIT: Duration = Duration::from_secs(10);
/// The most of an answer that is read.
const MAX_ANSWER: usize = 4 << 20;
/// The longest pause that a server may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("no answer within {LIMIT:?}")]
    Late,
    #[error("{0}")]
    Connection(String),
}

/// What a server answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    /// The pause that it asks for.
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

/// A server, ready for requests.
pub struct Endpoint {
    host: String,
    port: u16,
    authority: HeaderValue,
    path: String,
    headers: HeaderMap,
    tls: Option<TlsConnector>,
}

/// Whether a target can be used at all.
pub fn check(config: &TargetConfig) -> Result<(), String> {
    parse(config).map(drop)
}

fn parse(config: &TargetConfig) -> Result<(Uri, HeaderMap), String> {
    let wrong = |why: &str| format!("{:?} {why}: give http://host:port/path or https://…", config.url);
    let uri: Uri = config.url.parse().map_err(|_| wrong("is no address"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(wrong("is not for HTTP"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || uri.query().is_some() {
        return Err(wrong("has a user or a query, which belong into `headers`"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let bad = || format!("{name:?} is no header that can be sent, or its value is none");
        let name_of = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(name_of, value);
    }
    Ok((uri, headers))
}

impl Endpoint {
    /// The server of `config`; `path` follows the one of its address.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(config: &TargetConfig, path: &str) -> Result<Endpoint, String> {
        let (uri, headers) = parse(config)?;
        let secure = uri.scheme_str() == Some("https");
        let tls = if secure {
            Some(queztl_client::connector(config.ca.as_deref()).map_err(|error| error.to_string())?)
        } else {
            None
        };
        // Checked above.
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Ok(Endpoint {
            host,
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: HeaderValue::try_from(authority).map_err(|error| error.to_string())?,
            path: match format!("{}{path}", uri.path().trim_end_matches('/')) {
                path if path.is_empty() => "/".to_owned(),
                path => path,
            },
            headers,
            tls,
        })
    }

    /// Sends one request over a connection of its own.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn post(&self, content_type: &'static str, body: Vec<u8>) -> Result<Reply, SendError> {
        tokio::time::timeout(LIMIT, self.send(content_type, body)).await.unwrap_or(Err(SendError::Late))
    }

    async fn send(&self, content_type: &'static str, body: Vec<u8>) -> Result<Reply, SendError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(broken)?;
        match &self.tls {
            None => self.exchange(stream, content_type, body).await,
            Some(tls) => {
                let name = queztl_client::server_name(&self.host).map_err(broken)?;
                let stream = tls.connect(name, stream).await.map_err(broken)?;
                self.exchange(stream, content_type, body).await
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Reply, SendError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its failures arrive at the request; it ends with the sender.
        let connection = tokio::spawn(connection);
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.parse().map_err(broken)?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("queztl/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.headers.clone());
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(broken)?.to_bytes();
        connection.abort();
        Ok(Reply { status: parts.status, retry_after: retry_after(&parts.headers), body })
    }
}

/// Seconds; the other form, a date, is rare and answered with our own pause.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_PAUSE))
}

fn broken(error: impl std::fmt::Display) -> SendError {
    SendError::Connection(error.to_string())
}
