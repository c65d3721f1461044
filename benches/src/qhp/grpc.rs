//! gRPC by tonic: what its code generator would write for one service, by hand.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Result;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::client::Grpc as Client;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{ClientStreamingService, Grpc as Server, NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{BLOCK, Peer, SMALL};

#[derive(Clone, PartialEq, prost::Message)]
struct Bytes {
    #[prost(bytes = "bytes", tag = "1")]
    data: tonic::codegen::Bytes,
}

type Codec = ProstCodec<Bytes, Bytes>;

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "queztl.bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut server = Server::new(Codec::default());
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/queztl.bench.Echo/Echo" => server.unary(Echo, request).await,
                _ => server.client_streaming(Echo, request).await,
            })
        })
    }
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl ClientStreamingService<Bytes> for Echo {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let mut stream = request.into_inner();
            while stream.message().await?.is_some() {}
            Ok(Response::new(Bytes::default()))
        })
    }
}

/// A client on a runtime of its own thread, and its server on another.
pub(super) struct Grpc {
    runtime: Runtime,
    client: Client<Channel>,
    block: tonic::codegen::Bytes,
    _server: Arc<Runtime>,
}

impl Grpc {
    pub fn new() -> Result<Grpc> {
        let server = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?);
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        server.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            let router = tonic::transport::Server::builder().add_service(Echo);
            router.serve_with_incoming(incoming).await.map_err(std::io::Error::other)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        let channel = runtime.block_on(endpoint.connect())?;
        let block = tonic::codegen::Bytes::from(vec![1; BLOCK]);
        Ok(Grpc { runtime, client: Client::new(channel), block, _server: server })
    }
}

impl Peer for Grpc {
    fn name(&self) -> &'static str {
        "gRPC (tonic)"
    }

    fn call(&mut self, request: &[u8; SMALL]) -> Result<()> {
        let message = Bytes { data: tonic::codegen::Bytes::copy_from_slice(request) };
        let path = http::uri::PathAndQuery::from_static("/queztl.bench.Echo/Echo");
        let client = &mut self.client;
        let answer = self.runtime.block_on(async {
            client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            client.unary::<_, Bytes, _>(Request::new(message), path, Codec::default()).await
        })?;
        anyhow::ensure!(answer.into_inner().data[..] == request[..], "another answer");
        Ok(())
    }

    fn bulk(&mut self, blocks: usize) -> Result<()> {
        let message = Bytes { data: self.block.clone() };
        let stream = tokio_stream::iter(std::iter::repeat_n(message, blocks)).fuse();
        let path = http::uri::PathAndQuery::from_static("/queztl.bench.Echo/Sink");
        let client = &mut self.client;
        self.runtime.block_on(async {
            client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
            client.client_streaming::<_, _, Bytes, _>(Request::new(stream), path, Codec::default()).await
        })?;
        Ok(())
    }
}
