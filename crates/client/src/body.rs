//! Bodies of requests and answers.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};

use crate::Error;

/// The most that an answer may have where all of it is kept.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What a request carries: some bytes, or parts as they come.
#[derive(Debug)]
pub enum Body {
    Whole(Option<Bytes>),
    Parts(tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>),
}

impl Body {
    pub fn empty() -> Body {
        Body::Whole(None)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Parts(parts) => parts.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Body::Parts(_) => SizeHint::default(),
        }
    }
}

/// All of an answer.
pub async fn whole(mut body: Incoming, what: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0).min(MAX_ANSWER_BYTES));
    while let Some(part) = part(&mut body).await? {
        if bytes.len() + part.len() > MAX_ANSWER_BYTES {
            return Err(Error::answer(what, format!("it has more than {} MiB", MAX_ANSWER_BYTES >> 20)));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// The next part of an answer; `None` at its end.
pub async fn part(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Error::broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
