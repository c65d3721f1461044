//! Connections: made, and kept for the next request.

use std::io;
use std::path::Path;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::{Address, Error, tls};

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection's two directions, whatever it is made of.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Connects to a daemon, whose certificate is for `server_name`, or for the address's host.
pub async fn connect(
    address: &Address,
    connector: Option<&TlsConnector>,
    server_name: Option<&str>,
) -> Result<Box<dyn Io>, Error> {
    let named = || address.to_string();
    let absent = |source| Error::Connect { address: named(), source };
    let connecting = async {
        match address {
            Address::Unix(path) => {
                let stream = unix(path).await.map_err(absent)?;
                Ok(Box::new(stream) as Box<dyn Io>)
            }
            Address::Https { host, port } => {
                let refused = |source| Error::Tls { address: named(), source };
                let connector = connector.ok_or_else(|| refused(io::Error::other("no certificates")))?;
                let name = tls::server_name(server_name.unwrap_or(host)).map_err(refused)?;
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(absent)?;
                // Small messages go at once; without it they would only be slower.
                let _ = stream.set_nodelay(true);
                let stream = connector.connect(name, stream).await.map_err(refused)?;
                Ok(Box::new(stream) as Box<dyn Io>)
            }
        }
    };
    let late = || Err(absent(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")));
    tokio::time::timeout(CONNECT, connecting).await.unwrap_or_else(|_| late())
}

/// A listener whose queue is full says so at once (`EAGAIN`): it is busy, not gone.
async fn unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(10)).await
            }
            result => return result,
        }
    }
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Body>,
}

impl Connection {
    pub async fn new(io: Box<dyn Io>) -> Result<Connection, Error> {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(Error::broken)?;
        // Its failures arrive at the requests.
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// Can it take a request? One whose answer is still being read cannot, one that was closed never will.
    pub async fn is_ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request; gives it back if the connection ended before any of it was sent.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, (Error, Option<Request<Body>>)> {
        self.sender.try_send_request(request).await.map_err(|mut error| {
            let request = error.take_message();
            (Error::broken(error.into_error()), request)
        })
    }
}
