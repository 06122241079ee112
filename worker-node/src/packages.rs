//! The gateway's chunks of files, for who sends them and for nodes that need them.

use std::pin::Pin;

use bytes::Bytes;
use cluster_packages::{ChunkName, Chunks};
use cluster_proto::limits::{MAX_CHUNK_NAMES, MAX_PACKAGE_LIST};
use cluster_proto::v1;
use cluster_proto::v1::packages_server::{Packages, PackagesServer};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of chunks that a node keeps.
pub(crate) const CHUNKS_MAX: u64 = 20 << 30;
/// Chunks read ahead of a stream.
const AHEAD: usize = 8;

#[derive(Clone)]
pub(crate) struct Shelf {
    chunks: Chunks,
}

/// The service, to be added to a server.
pub(crate) fn service(chunks: Chunks) -> PackagesServer<Shelf> {
    let most = MAX_PACKAGE_LIST + 1024;
    PackagesServer::new(Shelf { chunks }).max_decoding_message_size(most).max_encoding_message_size(most)
}

fn names(request: v1::ChunkNames) -> Result<Vec<ChunkName>, Status> {
    if request.names.len() > MAX_CHUNK_NAMES {
        return Err(Status::invalid_argument("too many names of chunks"));
    }
    let parsed: Option<Vec<ChunkName>> =
        request.names.iter().map(|name| ChunkName::from_slice(name)).collect();
    parsed.ok_or_else(|| Status::invalid_argument("names of chunks have 32 bytes"))
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Packages for Shelf {
    async fn missing(&self, request: Request<v1::ChunkNames>) -> Result<Response<v1::ChunkNames>, Status> {
        let names = names(request.into_inner())?;
        let chunks = self.chunks.clone();
        let missing = aside(move || {
            let missing = names.into_iter().filter(|name| !chunks.has(*name));
            missing.map(|name| Bytes::copy_from_slice(&name.0)).collect()
        });
        Ok(Response::new(v1::ChunkNames { names: missing.await? }))
    }

    async fn put(&self, request: Request<Streaming<v1::Chunk>>) -> Result<Response<v1::ChunkNames>, Status> {
        let mut stream = request.into_inner();
        while let Some(chunk) = stream.message().await? {
            let chunks = self.chunks.clone();
            let written = aside(move || chunks.write(&chunk.bytes)).await?;
            written.map_err(|error| {
                Status::resource_exhausted(format!("a file cannot be kept there: {error}"))
            })?;
        }
        let chunks = self.chunks.clone();
        tokio::task::spawn_blocking(move || chunks.keep_below(CHUNKS_MAX));
        Ok(Response::new(v1::ChunkNames::default()))
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

    async fn get(&self, request: Request<v1::ChunkNames>) -> Result<Response<Self::GetStream>, Status> {
        let names = names(request.into_inner())?;
        let chunks = self.chunks.clone();
        let (send, stream) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            for name in names {
                let read = chunks.read(name).map(|bytes| v1::Chunk { bytes: bytes.into() });
                let gone = |error| Status::not_found(format!("chunk {name} is not there any more: {error}"));
                if send.blocking_send(read.map_err(gone)).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
