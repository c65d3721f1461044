//! Who may do what.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use queztl_api::{Code, Scope};

const REMOTE: Peer = Peer::Remote { address: IpAddr::V4(Ipv4Addr::LOCALHOST) };

fn with_token(method: Method, path: &str, secret: &str) -> Request {
    let mut request = request(method, path, None);
    request.headers_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    request
}

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let api = Api::new();
    for (scope, secret) in [(Scope::Read, "r"), (Scope::Operate, "o"), (Scope::Admin, "a")] {
        api.service.add_token(scope, secret);
    }
    let document: Value = serde_json::from_str(&crate::api::description()).unwrap();
    let mut counts = [0; 3];

    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace(['{', '}'], "");
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let scope = operation["security"][0]["token"][0].as_str();
            let needed = ["read", "operate", "admin"].iter().position(|one| Some(*one) == scope);
            let needed = needed.unwrap_or_else(|| panic!("{method} {path} names no scope"));
            counts[needed] += 1;

            let nobody = api.send(REMOTE, request(method.clone(), &path, None)).await;
            assert_eq!(nobody.problem().code, Code::Unauthenticated, "{method} {path}");
            assert!(nobody.headers.contains_key("www-authenticate"));
            let wrong = api.send(REMOTE, with_token(method.clone(), &path, "wrong")).await;
            assert_eq!(wrong.problem().code, Code::Unauthenticated, "{method} {path}");
            for (has, secret) in ["r", "o", "a"].into_iter().enumerate() {
                let reply = api.send(REMOTE, with_token(method.clone(), &path, secret)).await;
                assert_eq!(reply.status == StatusCode::FORBIDDEN, has < needed, "{method} {path} with {secret}");
                assert_ne!(reply.status, StatusCode::UNAUTHORIZED, "{method} {path} with {secret}");
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 3), "{counts:?}");
}

#[tokio::test]
async fn a_stranger_does_not_learn_which_paths_there_are() {
    let api = Api::new();
    let reply = api.send(REMOTE, request(Method::GET, "/v1/nothing", None)).await;
    assert_eq!(reply.problem().code, Code::Unauthenticated);
}
