//! Requests and their answers, whatever they are about.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use queztl_api::Problem;
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::body::{self, Body};
use crate::connection::{self, Connection, Io};
use crate::path::Path;
use crate::{Address, Error, tls};

/// How long a daemon may take for an answer, besides the time that the request itself allows it.
pub const ANSWER: Duration = Duration::from_secs(60);

const AGENT: &str = concat!("queztl-client/", env!("CARGO_PKG_VERSION"));
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// How a daemon is met.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The bearer token; needed over TCP.
    pub token: Option<String>,
    /// PEM file with the certificates to trust, rather than the host's usual authorities.
    pub authority: Option<PathBuf>,
    /// How a node of a cluster meets another one, rather than by token and authority.
    pub node: Option<NodeTls>,
}

/// TLS with a node of a cluster.
#[derive(Debug, Clone)]
pub struct NodeTls {
    /// Whom to trust, and who is calling.
    pub config: Arc<ClientConfig>,
    /// The name that the node's certificate is for, whatever its address.
    pub server_name: String,
}

/// A client of one daemon. Methods can be called from several tasks at once.
pub struct Client {
    address: Address,
    authorization: Option<HeaderValue>,
    connector: Option<TlsConnector>,
    server_name: Option<String>,
    idle: Mutex<Option<Connection>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that connects when it is first asked for something.
    ///
    /// # Errors
    /// Certificates that cannot be read, a token with impossible characters.
    pub fn new(address: Address, options: Options) -> Result<Client, Error> {
        let connector = match (&address, &options.node) {
            (Address::Unix(_), _) => None,
            (Address::Https { .. }, Some(node)) => Some(TlsConnector::from(node.config.clone())),
            (Address::Https { .. }, None) => Some(tls::connector(options.authority.as_deref())?),
        };
        let bearer = |token: String| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| Error::Token)?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        let authorization = options.token.map(bearer).transpose()?;
        let server_name = options.node.map(|node| node.server_name);
        Ok(Client { address, authorization, connector, server_name, idle: Mutex::new(None) })
    }

    /// Where the daemon is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<T, Error> {
        self.answer(self.request(Method::GET, path, None)?, path, ANSWER).await
    }

    /// The same where the request itself asks the daemon to wait so long.
    pub(crate) async fn get_within<T: DeserializeOwned>(&self, path: &Path, wait: Duration) -> Result<T, Error> {
        self.answer(self.request(Method::GET, path, None)?, path, ANSWER + wait).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &Path, value: &impl Serialize) -> Result<T, Error> {
        self.post_json(path, Some(json(value, path)?), ANSWER).await
    }

    /// The same where the request itself asks the daemon to wait so long.
    pub(crate) async fn post_within<T: DeserializeOwned>(
        &self,
        path: &Path,
        value: &impl Serialize,
        wait: Duration,
    ) -> Result<T, Error> {
        self.post_json(path, Some(json(value, path)?), ANSWER + wait).await
    }

    /// The same without an idempotency key, where the daemon must not keep the answer, since it holds a secret, or need not.
    pub(crate) async fn post_secret<T: DeserializeOwned>(
        &self,
        path: &Path,
        value: &impl Serialize,
    ) -> Result<T, Error> {
        self.answer(self.request(Method::POST, path, Some(json(value, path)?))?, path, ANSWER).await
    }

    /// A POST that has no answer but its success, and needs no idempotency key.
    pub(crate) async fn tell(&self, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        let telling = async {
            let response = self.send(self.request(Method::POST, path, Some(json(value, path)?))?, path).await?;
            body::whole(response.into_body(), path.as_str()).await.map(drop)
        };
        tokio::time::timeout(ANSWER, telling).await.unwrap_or(Err(Error::Silent(ANSWER)))
    }

    /// A POST that says all by its path.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &Path) -> Result<T, Error> {
        self.post_json(path, None, ANSWER).await
    }

    async fn post_json<T: DeserializeOwned>(
        &self,
        path: &Path,
        json: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<T, Error> {
        let mut request = self.request(Method::POST, path, json)?;
        let key = uuid::Uuid::new_v4().to_string();
        let key = HeaderValue::try_from(key).map_err(|error| Error::answer(path.as_str(), error))?;
        request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        self.answer(request, path, limit).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(&self, path: &Path, value: &impl Serialize) -> Result<T, Error> {
        self.answer(self.request(Method::PATCH, path, Some(json(value, path)?))?, path, ANSWER).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &Path) -> Result<T, Error> {
        self.answer(self.request(Method::DELETE, path, None)?, path, ANSWER).await
    }

    /// A deletion that has no answer but its success.
    pub(crate) async fn remove(&self, path: &Path) -> Result<(), Error> {
        let response = self.send(self.request(Method::DELETE, path, None)?, path).await?;
        body::whole(response.into_body(), path.as_str()).await.map(drop)
    }

    /// A request whose answer is read part by part.
    pub(crate) async fn stream(&self, path: &Path) -> Result<Incoming, Error> {
        Ok(self.send(self.request(Method::GET, path, None)?, path).await?.into_body())
    }

    /// A request that carries parts as they come.
    pub(crate) async fn upload(&self, path: &Path, body: Body) -> Result<(), Error> {
        let mut request = self.request(Method::PUT, path, None)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        *request.body_mut() = body;
        let response = self.round_trip(request).await?;
        let response = refused(response, path).await?;
        body::whole(response.into_body(), path.as_str()).await.map(drop)
    }

    /// A new connection, for a WebSocket.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Io>, Error> {
        connection::connect(&self.address, self.connector.as_ref(), self.server_name.as_deref()).await
    }

    /// The start of every request.
    pub(crate) fn headers<B>(&self, mut request: Request<B>) -> Result<Request<B>, Error> {
        let headers = request.headers_mut();
        let host = HeaderValue::try_from(self.address.host());
        headers.insert(HOST, host.map_err(|error| Error::answer(self.address.to_string(), error))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }

    fn request(&self, method: Method, path: &Path, json: Option<Vec<u8>>) -> Result<Request<Body>, Error> {
        let body = json.map_or(Body::empty(), |json| Body::Whole(Some(json.into())));
        let has_body = matches!(body, Body::Whole(Some(_)));
        let request = Request::builder().method(method).uri(path.as_str()).body(body);
        let mut request = self.headers(request.map_err(|error| Error::answer(path.as_str(), error))?)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if has_body {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(request)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        request: Request<Body>,
        path: &Path,
        limit: Duration,
    ) -> Result<T, Error> {
        let reading = async {
            let response = self.send(request, path).await?;
            let bytes = body::whole(response.into_body(), path.as_str()).await?;
            serde_json::from_slice(&bytes).map_err(|error| Error::answer(path.as_str(), error))
        };
        tokio::time::timeout(limit, reading).await.unwrap_or(Err(Error::Silent(limit)))
    }

    async fn send(&self, request: Request<Body>, path: &Path) -> Result<Response<Incoming>, Error> {
        refused(self.round_trip(request).await?, path).await
    }

    /// Sends over the kept connection, or over a new one if the daemon has closed that meanwhile. The connection is kept
    /// for the next request, which waits until this one's answer has been read, or finds that it never will be.
    async fn round_trip(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let kept = self.idle.lock().await.take();
        let mut request = request;
        if let Some(mut connection) = kept
            && connection.is_ready().await
        {
            match connection.send(request).await {
                Ok(response) => return Ok(self.keep(connection, response).await),
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => return Err(error),
            }
        }
        let mut connection = Connection::new(self.connect().await?).await?;
        let response = connection.send(request).await.map_err(|(error, _)| error)?;
        Ok(self.keep(connection, response).await)
    }

    async fn keep(&self, connection: Connection, response: Response<Incoming>) -> Response<Incoming> {
        // One whose answer has no known end may never be free again.
        use hyper::body::Body as _;
        if response.body().size_hint().exact().is_some() {
            *self.idle.lock().await = Some(connection);
        }
        response
    }
}

fn json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::answer(path.as_str(), error))
}

/// An answer that is not a success, as the problem that it carries.
async fn refused(response: Response<Incoming>, path: &Path) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let bytes = body::whole(response.into_body(), path.as_str()).await?;
    Err(problem(status, &bytes, path.as_str()))
}

/// The problem in a refusal's body.
pub(crate) fn problem(status: StatusCode, body: &[u8], what: &str) -> Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.into(),
        Err(_) => Error::answer(what, format!("status {status} without a problem")),
    }
}
