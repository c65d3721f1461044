//! Requests that are right, and those that are not.

use super::*;
use queztl_api::Code;

#[tokio::test]
async fn a_machine_goes_its_way() {
    let api = Api::new();

    let made = api.post("/v1/vms", json!({"name": "web", "spec": {"vcpus": 2}})).await;
    assert_eq!(made.status, StatusCode::ACCEPTED);
    let operation = made.json();
    assert_eq!(made.headers["location"], format!("/v1/operations/{}", operation["id"].as_str().unwrap()));
    assert_eq!(made.headers["x-content-type-options"], "nosniff");
    assert_eq!(api.get(made.headers["location"].to_str().unwrap()).await.json(), operation);

    for (verb, state) in [
        ("start", "running"),
        ("pause", "paused"),
        ("resume", "running"),
        ("reboot", "running"),
        ("stop", "stopped"),
        ("start", "running"),
        ("kill", "stopped"),
    ] {
        let reply = api.call(Method::POST, &format!("/v1/vms/web/{verb}"), None).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{verb}");
        let vm = api.get("/v1/vms/web").await.json();
        assert_eq!((vm["state"].as_str(), vm["spec"]["vcpus"].as_u64()), (Some(state), Some(2)));
    }
    let changed = api.call(Method::PATCH, "/v1/vms/web", Some(json!({"labels": {"a": "b"}}))).await;
    assert_eq!(changed.json()["spec"]["labels"]["a"], "b");
    let gone = api.call(Method::DELETE, "/v1/vms/web?force=true", None).await;
    assert_eq!(gone.status, StatusCode::ACCEPTED);
    assert_eq!(api.get("/v1/vms/web").await.problem().code, Code::NotFound);
}

#[tokio::test]
async fn snapshots_images_and_tokens_come_and_go() {
    let api = Api::new();
    api.running("web").await;

    for (method, path, body, status) in [
        (Method::POST, "/v1/vms/web/snapshots", Some(json!({"name": "clean"})), 202),
        (Method::GET, "/v1/vms/web/snapshots/clean", None, 200),
        (Method::POST, "/v1/vms/web/snapshots/clean/restore", None, 202),
        (Method::POST, "/v1/vms/web/clones", Some(json!({"count": 3})), 202),
        (Method::DELETE, "/v1/vms/web/snapshots/clean", None, 202),
        (Method::GET, "/v1/vms/web/snapshots/clean", None, 404),
        (Method::POST, "/v1/images", Some(json!({"name": "base", "size_bytes": 1})), 202),
        (Method::POST, "/v1/images/import", Some(json!({"name": "other", "path": "/x"})), 202),
        (Method::GET, "/v1/images/base", None, 200),
        (Method::POST, "/v1/images/base/check", None, 202),
        (Method::POST, "/v1/images/base/convert", Some(json!({"name": "c", "format": "qcow2"})), 202),
        (Method::POST, "/v1/images/base/resize", Some(json!({"size_bytes": 2})), 202),
        (Method::DELETE, "/v1/images/base", None, 204),
        (Method::POST, "/v1/tokens", Some(json!({"name": "ci", "scope": "read"})), 201),
        (Method::DELETE, "/v1/tokens/ci", None, 204),
        (Method::DELETE, "/v1/tokens/ci", None, 404),
        (Method::GET, "/v1/vms/web/metrics", None, 200),
        (Method::GET, "/v1/vms/web/history?from=2026-01-01T00:00:00Z", None, 200),
        (Method::GET, "/v1/metrics", None, 200),
        (Method::GET, "/v1/info", None, 200),
        (Method::GET, "/v1/events?limit=2", None, 200),
    ] {
        let reply = api.call(method.clone(), path, body).await;
        assert_eq!(reply.status, status, "{method} {path} {}", String::from_utf8_lossy(&reply.body));
    }
}

/// Method, path, kind of body, body, and the status and code that it must get.
type Wrong<'a> = (Method, &'a str, Option<&'a str>, String, u16, Code);

#[tokio::test]
async fn everything_that_goes_wrong_is_a_problem() {
    let api = Api::with(MemoryService::default(), Limits { body_bytes: 1000, ..Limits::default() });
    api.running("web").await;
    let json = |text: &str| text.to_owned();
    let big = format!("{{\"name\": \"{}\"}}", "a".repeat(2000));
    let cases: Vec<Wrong<'_>> = vec![
        (Method::GET, "/v1/nothing", None, String::new(), 404, Code::NotFound),
        (Method::GET, "/", None, String::new(), 404, Code::NotFound),
        (Method::GET, "/v1/vms/none", None, String::new(), 404, Code::NotFound),
        (Method::GET, "/v1/vms/..%2f..%2fetc", None, String::new(), 404, Code::NotFound),
        (Method::GET, "/v1/vms/%00", None, String::new(), 404, Code::NotFound),
        (Method::GET, "/v1/vms/%ff", None, String::new(), 404, Code::NotFound),
        (Method::PUT, "/v1/vms", None, String::new(), 405, Code::Method),
        (Method::POST, "/v1/info", None, String::new(), 405, Code::Method),
        (Method::POST, "/v1/vms", Some("application/json"), big, 413, Code::TooLarge),
        (Method::POST, "/v1/vms", Some("text/plain"), json(r#"{"name":"a"}"#), 415, Code::MediaType),
        (Method::POST, "/v1/vms", None, json(r#"{"name":"a"}"#), 415, Code::MediaType),
        (Method::POST, "/v1/vms", Some("application/json"), String::new(), 400, Code::Malformed),
        (Method::POST, "/v1/vms", Some("application/json"), json("{"), 400, Code::Malformed),
        (Method::POST, "/v1/vms", Some("application/json"), json("\u{1}"), 400, Code::Malformed),
        (Method::POST, "/v1/vms", Some("application/json"), json(r#"{"name":"a"} x"#), 400, Code::Malformed),
        (Method::POST, "/v1/vms", Some("application/json"), json(r#"{"name":"../a"}"#), 422, Code::Invalid),
        (Method::POST, "/v1/vms", Some("application/json"), json("[]"), 422, Code::Invalid),
        (Method::POST, "/v1/vms/web/start", Some("application/json"), json(r#"{"x":1}"#), 400, Code::Malformed),
        (Method::GET, "/v1/vms?limit=0", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/vms?limit=x", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/vms?after=zz", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/vms?foo=1", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/operations/x/wait?timeout_seconds=601", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/vms/web/history?from=yesterday", None, String::new(), 422, Code::Invalid),
        (Method::GET, "/v1/events/stream", None, String::new(), 400, Code::Malformed),
        (Method::GET, "/v1/vms/web/files?path=", None, String::new(), 422, Code::Invalid),
        (Method::PUT, "/v1/vms/web/files?path=/x&mode=9", None, String::new(), 422, Code::Invalid),
        (Method::DELETE, "/v1/vms/web", None, String::new(), 409, Code::State),
    ];

    for (method, path, kind, body, status, code) in cases {
        let mut request = Request::builder().method(method.clone()).uri(path);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let reply = api.send(LOCAL, request.body(Body::from(body.clone())).unwrap()).await;

        let problem = reply.problem();
        assert_eq!((problem.status, problem.code), (status, code), "{method} {path} {body}: {problem:?}");
    }
}

#[tokio::test]
async fn a_wrong_field_is_named_by_its_path() {
    let api = Api::new();
    for (body, field) in [
        (json!({"name": "a", "spec": {"disks": [{}, {"size_bytes": "x"}]}}), "spec.disks[1].size_bytes"),
        (json!({"name": "a", "spec": {"vcpu": 1}}), "spec.vcpu"),
        (
            json!({"name": "a", "spec": {"limits": {"rates": {"disk0": {"bytes": {"per_second": -1, "burst": 1}}}}}}),
            "spec.limits.rates.disk0.bytes.per_second",
        ),
        (json!({"name": ""}), "name"),
    ] {
        let problem = api.post("/v1/vms", body).await.problem();

        assert_eq!(problem.code, Code::Invalid);
        assert_eq!(problem.fields.first().map(|wrong| wrong.field.as_str()), Some(field), "{problem:?}");
    }
}

#[tokio::test]
async fn a_list_comes_in_parts() {
    let api = Api::new();
    for number in 0..5 {
        api.running(&format!("vm{number}")).await;
    }
    let mut names = Vec::new();
    let mut path = "/v1/vms?limit=2".to_owned();
    loop {
        let part = api.get(&path).await.json();
        names.extend(part["items"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()));
        let Some(next) = part["next"].as_str() else { break };
        path = format!("/v1/vms?limit=2&after={next}");
    }
    assert_eq!(names, ["vm0", "vm1", "vm2", "vm3", "vm4"]);
}

fn keyed(path: &str, key: &str, body: Value) -> Request {
    let mut request = request(Method::POST, path, Some(body));
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

#[tokio::test]
async fn a_key_makes_a_request_happen_once() {
    let api = Api::new();
    let body = json!({"name": "web"});

    let first = api.send(LOCAL, keyed("/v1/vms", "k", body.clone())).await;
    let second = api.send(LOCAL, keyed("/v1/vms", "k", body)).await;

    assert_eq!((first.status, second.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!(first.body, second.body);
    assert_eq!(first.headers["location"], second.headers["location"]);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    assert_eq!(second.headers["idempotency-replayed"], "true");
    assert_eq!(api.service.operations_begun(), 1);

    let other = api.send(LOCAL, keyed("/v1/vms", "k", json!({"name": "db"}))).await;
    assert_eq!(other.problem().code, Code::KeyReused);
    let elsewhere = api.send(LOCAL, keyed("/v1/vms/web/clones", "k", json!({"name": "web"}))).await;
    assert_eq!(elsewhere.problem().code, Code::KeyReused);
    // Another user's key is another key.
    let peer = Peer::Local { uid: 7, gid: 7, pid: 7 };
    let theirs = api.send(peer, keyed("/v1/vms", "k", json!({"name": "db"}))).await;
    assert_eq!(theirs.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn what_failed_may_be_tried_again_with_its_key() {
    let api = Api::new();
    let path = "/v1/vms/web/start";
    assert_eq!(api.send(LOCAL, keyed(path, "k", json!({}))).await.status, StatusCode::NOT_FOUND);
    api.running("web").await;

    assert_eq!(api.send(LOCAL, keyed(path, "k", json!({}))).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn the_same_key_at_the_same_time_happens_once() {
    let api = Arc::new(Api::new());
    let calls = (0..16).map(|_| {
        let api = api.clone();
        tokio::spawn(async move { api.send(LOCAL, keyed("/v1/vms", "k", json!({"name": "web"}))).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap().status, StatusCode::ACCEPTED);
    }
    assert_eq!(api.service.operations_begun(), 1);
}

#[tokio::test]
async fn secrets_of_tokens_are_not_kept_for_a_key() {
    let api = Api::new();
    let reply = api.send(LOCAL, keyed("/v1/tokens", "k", json!({"name": "ci", "scope": "read"}))).await;
    assert_eq!(reply.problem().code, Code::Malformed);
}

#[tokio::test]
async fn waiting_ends_with_the_operation_or_the_time() {
    let api = Api::new();
    api.service.hold(true);
    let operation = api.post("/v1/vms", json!({"name": "web"})).await.json();
    let path = format!("/v1/operations/{}/wait", operation["id"].as_str().unwrap());

    let early = api.get(&format!("{path}?timeout_seconds=0")).await.json();
    assert_eq!(early["state"], "running");

    let (over, ()) = tokio::join!(api.get(&path), async { api.service.hold(false) });
    assert_eq!(over.json()["state"], "succeeded");
}

#[tokio::test]
async fn figures_are_open_metrics() {
    let api = Api::new();
    api.running("web").await;

    let reply = api.get("/metrics").await;

    assert_eq!(reply.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = String::from_utf8(reply.body).unwrap();
    for line in [
        "# TYPE queztl_vcpu_cpu_seconds counter",
        r#"queztl_vcpu_cpu_seconds_total{vm="vm-1",name="web",vcpu="0"} 1.5"#,
        r#"queztl_vcpu_exits_total{vm="vm-1",name="web",vcpu="0",kind="hlt"} 3"#,
        r#"queztl_disk_reads_total{vm="vm-1",name="web",device="disk0"} 7"#,
        r#"queztl_net_sent_bytes_total{vm="vm-1",name="web",device="net0"} 9"#,
        r#"queztl_disk_read_latency_seconds_sum{vm="vm-1",name="web",device="disk0"} 0.002"#,
        r#"queztl_disk_read_latency_seconds_count{vm="vm-1",name="web",device="disk0"} 25"#,
        r#"queztl_disk_read_latency_seconds_bucket{le="+Inf",vm="vm-1",name="web",device="disk0"} 25"#,
        r#"queztl_vms{state="running"} 1"#,
        "# EOF",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
}
