//! A file of a guest, streamed.

use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::task::{Poll, ready};

use axum::body::{Body, Bytes};
use futures_util::{FutureExt, StreamExt};
use queztl_agent_client::{Error, FileInfo};
use queztl_api::Code;
use tokio::sync::{mpsc, oneshot};

use super::pipe::{Chunk, FromTask, ToTask};
use super::{connect, on_thread, problem};
use crate::api::answer::{Answer, Failure};
use crate::api::app::App;

/// Pieces under way, 64 KiB each at most.
const CHUNKS: usize = 8;

/// Opens the file at `path` in the guest: what it is, and its bytes as they come.
///
/// # Errors
/// The problem why it cannot be read. One that comes later ends the body early.
pub async fn read(app: &App, vsock: PathBuf, path: OsString) -> Answer<(FileInfo, Body)> {
    let (tell, told) = oneshot::channel();
    let (channel, mut chunks) = mpsc::channel::<Chunk>(CHUNKS);
    let (place, own) = (app.guest_task()?, app.clone());
    let mut ended = on_thread(place, move || {
        let begin = |info| {
            // Nobody there: the first bytes tell.
            let _ = tell.send(info);
            Ok(ToTask { stream: 0, channel })
        };
        connect(&own, &vsock)?.read_file(&path, own.limits().file_bytes, begin)
    })?;
    let info = match told.await {
        Ok(info) => info,
        Err(_) => return Err(failed(ended.await)),
    };
    let body = futures_util::stream::poll_fn(move |context| {
        if let Some(chunk) = ready!(chunks.poll_recv(context)) {
            return Poll::Ready(Some(Ok(chunk.bytes)));
        }
        // Only the end of the task tells whether all of it came.
        Poll::Ready(match ready!(ended.poll_unpin(context)) {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Err(io::Error::other(error.to_string()))),
            Err(_) => Some(Err(io::ErrorKind::BrokenPipe.into())),
        })
    });
    Ok((info, Body::from_stream(body.fuse())))
}

/// Writes a body to the file at `path` in the guest. A body that does not tell its length is kept in a temporary file
/// first, since the guest must be told.
///
/// # Errors
/// The problem why it cannot be written; then the guest has no part of it.
pub async fn write(
    app: &App,
    vsock: PathBuf,
    path: OsString,
    mode: u16,
    length: Option<u64>,
    body: Body,
) -> Answer<()> {
    let most = app.limits().file_bytes;
    if length.is_some_and(|length| length > most) {
        return Err(too_large(most));
    }
    let (send, receive) = mpsc::channel(CHUNKS);
    let (place, own) = (app.guest_task()?, app.clone());
    let ended = on_thread(place, move || {
        let reader = FromTask::new(receive);
        let Some(size_bytes) = length else {
            let (size_bytes, file) = spool(reader).map_err(Error::Input)?;
            return connect(&own, &vsock)?.write_file(&path, FileInfo { size_bytes, mode }, file);
        };
        connect(&own, &vsock)?.write_file(&path, FileInfo { size_bytes, mode }, reader)
    })?;
    let fed = feed(app, body, send, most).await;
    let ended = ended.await;
    fed?;
    match ended {
        Ok(Ok(())) => Ok(()),
        other => Err(failed(other)),
    }
}

/// Hands the body over, piece by piece, each within the time for bodies.
async fn feed(app: &App, body: Body, send: mpsc::Sender<io::Result<Bytes>>, most: u64) -> Answer<()> {
    let mut pieces = body.into_data_stream();
    let mut left = most;
    loop {
        let failure = match tokio::time::timeout(app.limits().body_time, pieces.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(piece))) => match left.checked_sub(piece.len() as u64) {
                // Whoever takes it may have failed, and says why itself.
                Some(rest) => match send.send(Ok(piece)).await {
                    Ok(()) => {
                        left = rest;
                        continue;
                    }
                    Err(_) => return Ok(()),
                },
                None => too_large(most),
            },
            Ok(Some(Err(error))) => Failure::new(Code::Malformed, format!("the body cannot be read: {error}")),
            Err(_) => Failure::new(Code::Timeout, "the body did not come in time"),
        };
        // The other side must not take it for the end.
        let _ = send.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
        return Err(failure);
    }
}

fn spool(mut reader: impl Read) -> io::Result<(u64, std::fs::File)> {
    let mut file = tempfile::tempfile()?;
    let size = io::copy(&mut reader, &mut file)?;
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    Ok((size, file))
}

fn too_large(most: u64) -> Failure {
    Failure::new(Code::TooLarge, format!("the file is larger than {most} bytes"))
}

fn failed<T>(result: Result<Result<T, Error>, oneshot::error::RecvError>) -> Failure {
    match result {
        Ok(Err(error)) => Failure(problem(&error)),
        Ok(Ok(_)) | Err(_) => Failure::new(Code::Internal, "a task for a guest vanished"),
    }
}
