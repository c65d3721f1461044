//! What a request brings, checked before a handler sees it: every length bounded, every refusal a [`Problem`].

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use queztl_api::{Code, FieldProblem, Name, Problem};
use serde::de::DeserializeOwned;

use super::answer::{Failure, Json, shown};
use super::app::App;

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Json<T>, Failure> {
        let kind = media_type(&request);
        let body = read(request.into_body(), app).await?;
        if body.is_empty() {
            return Err(Failure::new(Code::Malformed, "the request has no body: send a JSON object"));
        }
        check_media_type(kind.as_deref())?;
        parse(&body).map(Json)
    }
}

/// A JSON body that may be left out, or be `null`.
#[derive(Debug)]
pub struct Optional<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<App> for Optional<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Optional<T>, Failure> {
        let kind = media_type(&request);
        let body = read(request.into_body(), app).await?;
        if body.is_empty() {
            return Ok(Optional(T::default()));
        }
        check_media_type(kind.as_deref())?;
        parse::<Option<T>>(&body).map(|given| Optional(given.unwrap_or_default()))
    }
}

/// No body at all.
#[derive(Debug)]
pub struct Nothing;

impl FromRequest<App> for Nothing {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Nothing, Failure> {
        let body = read(request.into_body(), app).await?;
        // An empty object is what many clients send for nothing.
        if body.is_empty() || body.trim_ascii() == b"{}" {
            return Ok(Nothing);
        }
        Err(Failure::new(Code::Malformed, "this request takes no body: send none"))
    }
}

/// The whole body, as far as the limits allow.
pub async fn read(body: Body, app: &App) -> Result<Bytes, Failure> {
    let limit = app.limits().body_bytes;
    let read = Limited::new(body, limit).collect();
    match tokio::time::timeout(app.limits().body_time, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if is_too_large(error.as_ref()) => {
            Err(Failure::new(Code::TooLarge, format!("the body is larger than {limit} bytes")))
        }
        Ok(Err(error)) => Err(Failure::new(Code::Malformed, format!("the body cannot be read: {error}"))),
        Err(_) => Err(Failure::new(Code::Timeout, "the body did not come in time")),
    }
}

/// Whether a body was refused for its length, at whatever depth of the error.
pub fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn media_type(request: &Request) -> Option<String> {
    let value = request.headers().get(CONTENT_TYPE)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn check_media_type(kind: Option<&str>) -> Result<(), Failure> {
    match kind {
        Some("application/json") => Ok(()),
        Some(other) => {
            let detail = format!("the body is {:?}: send application/json", shown(other));
            Err(Failure::new(Code::MediaType, detail))
        }
        None => Err(Failure::new(Code::MediaType, "the body has no Content-Type: send application/json")),
    }
}

/// Reads JSON. A wrong value is named by its path.
///
/// # Errors
/// [`Code::Malformed`] for what is no JSON, [`Code::Invalid`] for what is of the wrong shape.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        wrong(&path, error.inner())
    })?;
    json.end().map_err(|error| wrong(".", &error))?;
    Ok(value)
}

fn wrong(path: &str, error: &serde_json::Error) -> Failure {
    use serde_json::error::Category;
    let message = error.to_string();
    match error.classify() {
        Category::Data => {
            // The place is told by the field; the line of the body helps nobody.
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(before, _)| before);
            let message = bounded(message);
            if path == "." {
                return Failure::new(Code::Invalid, format!("the body: {message}"));
            }
            Failure(Problem::invalid(bounded(path), message))
        }
        _ => Failure::new(Code::Malformed, format!("the body is no JSON: {}", bounded(&message))),
    }
}

/// A parser's message quotes what it was given.
fn bounded(text: &str) -> String {
    const MOST: usize = 400;
    let mut short: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The query of a URL.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Query<T>, Failure> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            let message = bounded(text);
            let mut problem = Problem::new(Code::Invalid, format!("the query: {message}"));
            if let Some((field, message)) = message.split_once(": ")
                && !field.contains(' ')
            {
                problem.fields.push(FieldProblem { field: field.to_owned(), message: message.to_owned() });
            }
            Failure(problem)
        })?;
        Ok(Query(query.0))
    }
}

/// The parts of a path that are names, in their order.
#[derive(Debug)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Segments<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Segments<T>, Failure> {
        match axum::extract::Path::<T>::from_request_parts(parts, app).await {
            Ok(path) => Ok(Segments(path.0)),
            // `Key` and `Name` say why they refuse; whatever is no name is the name of nothing.
            Err(rejection) => {
                let status = rejection.into_response().status();
                let code = if status.is_server_error() { Code::Internal } else { Code::NotFound };
                let path = shown(parts.uri.path());
                Err(Failure::new(code, format!("there is nothing at {path:?}: a part of it is no name")))
            }
        }
    }
}

/// A machine's identifier or name, or an operation's identifier, in a path: of the form of a [`Name`], so that it leads
/// nowhere else whoever uses it.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(transparent)]
pub struct Key(Name);

impl std::ops::Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_str()
    }
}
