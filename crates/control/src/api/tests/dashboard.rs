//! Browsers: the page, logins, and whose requests count.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE};
use queztl_api::{Code, DashboardLogin, Scope};

use super::*;

const BROWSER: Peer = Peer::Loopback { address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
const REMOTE: Peer = Peer::Remote { address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
const OWN: &str = "queztl-1.localhost:7000";

/// A request as the page makes it.
fn of_page(method: Method, path: &str, body: Option<Value>) -> Request {
    let mut request = request(method, path, body);
    request.headers_mut().insert(HOST, OWN.parse().unwrap());
    request.headers_mut().insert(ORIGIN, format!("http://{OWN}").parse().unwrap());
    request.headers_mut().insert("sec-fetch-site", "same-origin".parse().unwrap());
    request
}

fn with_cookie(mut request: Request, cookie: &str) -> Request {
    request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
    request
}

/// Logs in with a token; gives the cookie as a browser sends it back.
async fn cookie(api: &Api, scope: Scope) -> String {
    api.service.add_token(scope, "secret");
    let reply = api.send(BROWSER, of_page(Method::POST, "/session", Some(json!({"token": "secret"})))).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let set = reply.headers[SET_COOKIE].to_str().unwrap();
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/"), "{set}");
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_becomes_a_session() {
    let api = Api::new();
    let cookie = cookie(&api, Scope::Operate).await;

    let who = api.send(BROWSER, with_cookie(of_page(Method::GET, "/session", None), &cookie)).await;
    let vms = api.send(BROWSER, with_cookie(of_page(Method::GET, "/v1/vms", None), &cookie)).await;
    let tokens = api.send(BROWSER, with_cookie(of_page(Method::GET, "/v1/tokens", None), &cookie)).await;

    assert_eq!(who.json()["scope"], "operate");
    assert_eq!(vms.status, StatusCode::OK);
    assert_eq!(tokens.problem().code, Code::Forbidden);
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let api = Api::new();
    let reply = api.send(BROWSER, of_page(Method::POST, "/session", Some(json!({"token": "wrong"})))).await;
    assert_eq!(reply.problem().code, Code::Unauthenticated);
    assert!(!reply.headers.contains_key(SET_COOKIE));
}

#[tokio::test]
async fn over_tls_the_cookie_is_bound_to_the_host() {
    let api = Api::new();
    api.service.add_token(Scope::Read, "secret");
    let mut login = request(Method::POST, "/session", Some(json!({"token": "secret"})));
    login.headers_mut().insert(HOST, "q.example:7443".parse().unwrap());
    login.headers_mut().insert(ORIGIN, "https://q.example:7443".parse().unwrap());

    let reply = api.send(REMOTE, login).await;

    let set = reply.headers[SET_COOKIE].to_str().unwrap();
    assert!(set.starts_with("__Host-") && set.contains("; Secure"), "{set}");
}

#[tokio::test]
async fn other_sites_cannot_use_a_session() {
    let api = Api::new();
    let cookie = cookie(&api, Scope::Admin).await;
    let refused = async |change: &dyn Fn(&mut HeaderMap), method: Method, path: &str| {
        let mut request = with_cookie(of_page(method, path, None), &cookie);
        change(request.headers_mut());
        let reply = api.send(BROWSER, request).await;
        assert_eq!(reply.problem().code, Code::Forbidden, "{reply:?}");
    };

    refused(
        &|headers| drop(headers.insert(ORIGIN, "http://evil.example".parse().unwrap())),
        Method::POST,
        "/v1/vms/a/kill",
    )
    .await;
    refused(
        &|headers| drop(headers.insert(ORIGIN, "http://127.0.0.1:8000".parse().unwrap())),
        Method::POST,
        "/v1/vms/a/kill",
    )
    .await;
    refused(&|headers| drop(headers.remove(ORIGIN)), Method::POST, "/v1/vms/a/kill").await;
    refused(&|headers| drop(headers.insert("sec-fetch-site", "cross-site".parse().unwrap())), Method::GET, "/v1/vms")
        .await;
    refused(&|headers| drop(headers.insert("sec-fetch-site", "same-site".parse().unwrap())), Method::GET, "/v1/vms")
        .await;
    let socket = |headers: &mut HeaderMap| {
        headers.remove(ORIGIN);
        headers.insert("upgrade", "websocket".parse().unwrap());
    };
    refused(&socket, Method::GET, "/v1/events/stream").await;
}

#[tokio::test]
async fn a_name_that_is_not_this_hosts_gets_nothing() {
    let api = Api::new();
    for path in ["/", "/v1/vms", "/session"] {
        let mut rebound = of_page(Method::GET, path, None);
        rebound.headers_mut().insert(HOST, "rebound.example:7000".parse().unwrap());
        assert_eq!(api.send(BROWSER, rebound).await.problem().code, Code::Forbidden, "{path}");
    }
}

#[tokio::test]
async fn a_session_that_ended_is_worth_nothing() {
    let api = Api::new();
    let reply = api.send(BROWSER, with_cookie(of_page(Method::GET, "/v1/vms", None), "queztl-session=qz_00")).await;
    assert_eq!(reply.problem().code, Code::Unauthenticated);
}

#[tokio::test]
async fn the_page_is_served_or_says_why_not() {
    let api = Api::new();
    let mut asked = of_page(Method::GET, "/vms/web-1?range=1h", None);
    asked.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());

    let reply = api.send(BROWSER, asked).await;

    if queztl_dashboard::is_built() {
        assert_eq!(reply.headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(reply.headers["content-encoding"], "gzip");
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("script-src 'self';") && policy.contains("default-src 'none'"), "{policy}");
    } else {
        assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED);
        assert!(String::from_utf8_lossy(&reply.body).contains("npm"));
    }
    let file = api.send(BROWSER, of_page(Method::GET, "/assets/none.js", None)).await;
    assert_eq!(file.problem().code, Code::NotFound);
}

#[tokio::test]
async fn a_login_works_once_and_the_door_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dashboard.json");
    let api = Api::opened_at(&file);
    let login: DashboardLogin = serde_json::from_value(api.post("/v1/dashboard", json!({})).await.json()).unwrap();
    let (address, code) = login.url.split_once("/#login=").unwrap();
    let host = address.strip_prefix("http://").unwrap();
    let log_in = || {
        let mut request = of_page(Method::POST, "/session", Some(json!({"code": code})));
        request.headers_mut().insert(HOST, host.parse().unwrap());
        request.headers_mut().insert(ORIGIN, address.parse().unwrap());
        request
    };

    let first = api.send(BROWSER, log_in()).await;
    let second = api.send(BROWSER, log_in()).await;
    let again: DashboardLogin = serde_json::from_value(api.post("/v1/dashboard", json!({})).await.json()).unwrap();

    assert_eq!(first.json()["scope"], "admin");
    assert!(first.headers.contains_key(SET_COOKIE));
    assert_eq!(second.problem().code, Code::Unauthenticated);
    assert!(again.url.starts_with(&format!("{address}/#login=")) && again.url != login.url);
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(host.split_once('.').is_some_and(|(name, _)| kept.contains(name)), "{kept}");
}

#[tokio::test]
async fn logging_out_ends_the_token_that_was_made_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::opened_at(&directory.path().join("dashboard.json"));
    let login: DashboardLogin = serde_json::from_value(api.post("/v1/dashboard", json!({})).await.json()).unwrap();
    let code = login.url.split_once("#login=").unwrap().1;
    let reply = api.send(BROWSER, of_page(Method::POST, "/session", Some(json!({"code": code})))).await;
    let cookie = reply.headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();

    let out = api.send(BROWSER, with_cookie(of_page(Method::DELETE, "/session", None), &cookie)).await;
    let after = api.send(BROWSER, with_cookie(of_page(Method::GET, "/session", None), &cookie)).await;

    assert_eq!(out.status, StatusCode::NO_CONTENT);
    assert_eq!(after.problem().code, Code::Unauthenticated);
}
