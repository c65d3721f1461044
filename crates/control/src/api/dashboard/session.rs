//! Sessions of browsers: a token, kept in a cookie that no script can read.

use axum::body::Body;
use axum::extract::{Extension, FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use queztl_api::{Code, CreateToken, Name, Problem, Scope, Timestamp, Token};
use serde::{Deserialize, Serialize};

use super::check_same_origin;
use crate::api::answer::{Answer, Failure, Json};
use crate::api::app::App;
use crate::api::extract::Optional;
use crate::api::gate::{Caller, Peer};
use crate::vms::naming::random_bytes;

/// Where a session begins and ends.
pub const PATH: &str = "/session";
/// Names of the tokens of sessions begin so.
const PREFIX: &str = "dashboard-";
/// How long a session lasts, in seconds.
const LIFE_SECONDS: u64 = 12 * 3600;

/// What a browser shows to be let in: one of the two.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Login {
    /// Of `queztl-hv dashboard`.
    code: Option<String>,
    /// Of `queztl-hv token create`.
    token: Option<String>,
}

/// Who a browser is.
#[derive(Debug, Serialize)]
pub struct Session {
    scope: Scope,
    expires_at: Option<Timestamp>,
}

impl From<&Token> for Session {
    fn from(token: &Token) -> Session {
        Session { scope: token.scope, expires_at: token.expires_at }
    }
}

/// `POST /session`: a code or a token for a cookie.
pub async fn login(State(app): State<App>, Extension(peer): Extension<Peer>, request: Request) -> Answer<Response> {
    // Else another site could log this browser in as somebody else.
    check_same_origin(&request, peer)?;
    let Optional(login) = Optional::<Login>::from_request(request, &app).await?;
    let (token, secret) = match login {
        Login { code: Some(code), token: None } => by_code(&app, &code).await?,
        Login { code: None, token: Some(secret) } => {
            let secret = secret.trim().to_owned();
            (app.service().authenticate(&secret).await?, secret)
        }
        _ => return Err(Problem::invalid("code", "give a code or a token").into()),
    };
    let mut response = Json(Session::from(&token)).into_response();
    let age = token.expires_at.map(|end| end.duration_since(Timestamp::now()).as_secs().max(0));
    response.headers_mut().insert(SET_COOKIE, cookie(peer, &secret, age)?);
    Ok(response)
}

/// `GET /session`: who it is.
pub async fn look(Extension(caller): Extension<Caller>) -> Answer<Json<Session>> {
    let session = match &caller.token {
        Some(token) => Session::from(token),
        None => Session { scope: caller.scope, expires_at: None },
    };
    Ok(Json(session))
}

/// `DELETE /session`: the browser forgets the token, and so does the daemon if it was made for this session.
pub async fn end(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Extension(caller): Extension<Caller>,
) -> Answer<Response> {
    if let Some(token) = caller.token.filter(|token| token.name.as_str().starts_with(PREFIX)) {
        app.service().delete_token(&token.name).await?;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(SET_COOKIE, cookie(peer, "", Some(0))?);
    Ok(response)
}

/// The token that a browser shows.
pub fn cookie_token(peer: Peer, headers: &HeaderMap) -> Option<&str> {
    let name = cookie_name(peer);
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value).filter(|value| !value.is_empty())
}

/// A token for a new session; those that are over are forgotten.
async fn by_code(app: &App, code: &str) -> Answer<(Token, String)> {
    let now = Timestamp::now();
    let refused = "this login has been used, or is too old: run `queztl-hv dashboard` for another";
    let scope = app.dashboard().codes.take(code, now);
    let scope = scope.ok_or_else(|| Failure::new(Code::Unauthenticated, refused))?;
    for token in app.service().tokens().await? {
        if token.name.as_str().starts_with(PREFIX) && token.expires_at.is_some_and(|end| end <= now) {
            app.service().delete_token(&token.name).await?;
        }
    }
    let name = format!("{PREFIX}{}", hex::encode(random_bytes::<4>()?));
    let name: Name = name.parse().map_err(|_| Failure::new(Code::Internal, "a session has no name"))?;
    let made = app.service().create_token(CreateToken { name, scope, expires_in_seconds: Some(LIFE_SECONDS) }).await?;
    Ok((made.token, made.secret))
}

/// Over TLS the browser itself keeps anybody but this very host from setting it.
fn cookie_name(peer: Peer) -> &'static str {
    if matches!(peer, Peer::Loopback { .. }) { "queztl-session" } else { "__Host-queztl-session" }
}

fn cookie(peer: Peer, secret: &str, age_seconds: Option<i64>) -> Answer<HeaderValue> {
    let mut text = format!("{}={secret}; Path=/; HttpOnly; SameSite=Strict", cookie_name(peer));
    if !matches!(peer, Peer::Loopback { .. }) {
        text.push_str("; Secure");
    }
    if let Some(age) = age_seconds {
        text.push_str(&format!("; Max-Age={age}"));
    }
    let mut value =
        HeaderValue::try_from(text).map_err(|_| Problem::invalid("token", "it has impossible characters"))?;
    value.set_sensitive(true);
    Ok(value)
}
