//! Answers: JSON, operations, and problems (RFC 9457) for everything that goes wrong.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use queztl_api::{Code, Operation, Problem};
use serde::Serialize;

/// The media type of a [`Problem`].
pub const PROBLEM: &str = "application/problem+json";

/// What a handler gives.
pub type Answer<T> = Result<T, Failure>;

/// A problem on its way to the client.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure(problem)
    }
}

impl Failure {
    pub fn new(code: Code, detail: impl Into<String>) -> Failure {
        Failure(Problem::new(code, detail))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Failure(problem) = self;
        if problem.code == Code::Internal {
            tracing::error!(detail = problem.detail, "a request failed by a fault of the daemon");
        }
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, PROBLEM, &problem);
        match problem.code {
            Code::Unauthenticated => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"queztl\""));
            }
            Code::Busy => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

/// 200 with a value.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, "application/json", &self.0)
    }
}

/// 201 with what was made.
#[derive(Debug)]
pub struct Created<T>(pub T);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        json(StatusCode::CREATED, "application/json", &self.0)
    }
}

/// 202 with the operation that has begun, and where it is to be looked at.
#[derive(Debug)]
pub struct Accepted(pub Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = format!("{}/operations/{}", queztl_api::PREFIX, self.0.id);
        let mut response = json(StatusCode::ACCEPTED, "application/json", &self.0);
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

/// Cuts text of others before it is quoted, and takes its control characters out.
pub fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 100;
    if text.len() <= MOST && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut short: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    Cow::Owned(short)
}

fn json(status: StatusCode, kind: &'static str, value: &impl Serialize) -> Response {
    let Ok(body) = serde_json::to_vec(value) else {
        // Only maps whose keys are no strings cannot be written; there are none in the API's types.
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
