//! What a machine's console has printed, and what its process had to say.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream::{once, unfold};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use queztl_api::Code;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use utoipa::IntoParams;

use crate::api::answer::{Answer, Failure};
use crate::api::app::App;
use crate::api::extract::{Key, Query, Segments};
use crate::api::gate::Caller;
use crate::api::sessions::Counted;

/// What is given at most of each of the log's two files; they are smaller.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// A piece of a followed log.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct LogQuery {
    /// Only so many of the last lines.
    #[param(minimum = 0)]
    tail: Option<u32>,
    /// Goes on with what is printed from now on.
    #[param(required = false)]
    follow: bool,
    /// The machine's process rather than its console.
    #[param(required = false)]
    process: bool,
}

/// What a machine's console has printed, or its process had to say, oldest first.
#[utoipa::path(get, path = "/v1/vms/{vm}/log", tag = "guests", security(("token" = ["read"])),
    params(("vm" = String, Path, description = "Its identifier or name."), LogQuery),
    responses((status = 200, description = "Bytes as the guest printed them.", body = String,
        content_type = "text/plain; charset=utf-8")))]
pub async fn log(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(vm): Segments<Key>,
    Query(query): Query<LogQuery>,
) -> Answer<Response> {
    let endpoints = app.service().endpoints(&vm).await?;
    let path = if query.process { endpoints.process_log } else { endpoints.log };
    let (mut text, place) =
        past(&path).await.map_err(|error| Failure::new(Code::Host, format!("the log cannot be read: {error}")))?;
    if let Some(lines) = query.tail {
        text.drain(..beginning_of_last(&text, lines));
    }
    let body = if query.follow {
        let session = app.session(&caller)?;
        let follower = Follower { path, place, app, _session: session };
        Body::from_stream(once(async { Ok(Bytes::from(text)) }).chain(unfold(follower, Follower::next)))
    } else {
        Body::from(text)
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// How far a file has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    /// The file's number; none for one that was not there.
    inode: u64,
    offset: u64,
}

/// Both files of a log, the older first.
async fn past(path: &Path) -> std::io::Result<(Vec<u8>, Place)> {
    let mut text = Vec::new();
    read_from(&older(path), Place::default(), MAX_FILE_BYTES, &mut text).await?;
    let place = read_from(path, Place::default(), MAX_FILE_BYTES, &mut text).await?;
    Ok((text, place))
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Appends what the file has behind a place, or all of it if it is another file by now or was cut; says how far it is read.
async fn read_from(path: &Path, place: Place, most: u64, text: &mut Vec<u8>) -> std::io::Result<Place> {
    let mut file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(place),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata().await?;
    let same = metadata.ino() == place.inode && metadata.len() >= place.offset;
    let offset = if same { place.offset } else { 0 };
    if metadata.len() == offset && same {
        return Ok(place);
    }
    file.seek(SeekFrom::Start(offset)).await?;
    let count = file.take(most).read_to_end(text).await?;
    Ok(Place { inode: metadata.ino(), offset: offset + count as u64 })
}

/// Where the last `lines` lines begin; a last line without an end counts.
fn beginning_of_last(text: &[u8], lines: u32) -> usize {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 {
        return text.len();
    }
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(lines as usize - 1).unwrap_or(0)
}

/// Reads what is added to a log.
struct Follower {
    path: PathBuf,
    place: Place,
    app: App,
    _session: Counted<String>,
}

impl Follower {
    async fn next(mut self) -> Option<(std::io::Result<Bytes>, Follower)> {
        loop {
            let mut text = Vec::new();
            let read = self.more(&mut text).await;
            match read {
                Err(error) => return Some((Err(error), self)),
                Ok(()) if !text.is_empty() => return Some((Ok(text.into()), self)),
                Ok(()) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.app.stopping() => return None,
            }
            // A log whose machine has been deleted has ended.
            if !tokio::fs::try_exists(self.path.parent()?).await.unwrap_or(true) {
                return None;
            }
        }
    }

    async fn more(&mut self, text: &mut Vec<u8>) -> std::io::Result<()> {
        let most = PIECE_BYTES as u64;
        // When the log has been turned over, the rest of what was read last is in the older file.
        let old = older(&self.path);
        if self.place.inode != 0 && tokio::fs::metadata(&old).await.is_ok_and(|old| old.ino() == self.place.inode) {
            let place = read_from(&old, self.place, most, text).await?;
            self.place = if place == self.place { Place::default() } else { place };
            if !text.is_empty() {
                return Ok(());
            }
        }
        self.place = read_from(&self.path, self.place, most, text).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let last = |text: &'static str, lines| &text[beginning_of_last(text.as_bytes(), lines)..];
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 2), "b\nc");
        assert_eq!(last("a\nb\n", 5), "a\nb\n");
        assert_eq!(last("a\n", 0), "");
        assert_eq!(last("", 1), "");
    }
}
