//! Requests that nobody would write: made from the API's own description, right and wrong in every place.
//!
//! Whatever comes, the answer is never a fault of the daemon (500), a panic or a hang, and a refusal is a whole problem.

use proptest::prelude::*;
use serde_json::Map;

use super::*;

/// Choices that a strategy made; zero, which they shrink to, is the plain one.
struct Choices {
    made: Vec<u32>,
    at: usize,
}

impl Choices {
    fn below(&mut self, count: usize) -> usize {
        let made = self.made.get(self.at % self.made.len().max(1)).copied().unwrap_or(0);
        self.at += 1;
        made as usize % count.max(1)
    }

    /// True once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    fn one<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// Texts that are names, and texts that programs have stumbled over.
const TEXTS: [&str; 22] = [
    "web",
    "vm-1",
    "op-1",
    "clean",
    "a",
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/",
    "a/b",
    "a\0b",
    "\u{1b}[31m",
    "-x",
    "%s%n",
    "ａ",
    "🦀",
    "NaN",
    "1e999",
    "true",
    "2026-01-01T00:00:00Z",
];

fn text(choices: &mut Choices) -> String {
    match choices.below(TEXTS.len() + 2) {
        0 => "x".repeat(64),
        1 => "y".repeat(100_000),
        number => TEXTS[number - 2].to_owned(),
    }
}

/// Anything.
fn noise(choices: &mut Choices, depth: usize) -> Value {
    match choices.below(if depth < 4 { 12 } else { 10 }) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(1.5),
        7 => json!(1e308),
        8 | 9 => json!(text(choices)),
        10 => Value::Array((0..choices.below(4)).map(|_| noise(choices, depth + 1)).collect()),
        _ => (0..choices.below(4)).map(|_| (text(choices), noise(choices, depth + 1))).collect::<Map<_, _>>().into(),
    }
}

/// A value of a schema of the document, more or less.
fn value(document: &Value, schema: &Value, choices: &mut Choices, depth: usize) -> Value {
    if depth > 12 || choices.once_in(24) {
        return noise(choices, depth);
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        return value(document, target, choices, depth + 1);
    }
    for kinds in ["oneOf", "anyOf"] {
        if let Some(kinds) = schema[kinds].as_array() {
            return value(document, choices.one(kinds), choices, depth + 1);
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return choices.one(values).clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => choices.one(kinds).as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("null") => Value::Null,
        Some("boolean") => json!(choices.below(2) == 1),
        Some("integer" | "number") => number(schema, choices),
        Some("string") => json!(text(choices)),
        Some("array") => {
            let count = if choices.once_in(100) { 5000 } else { choices.below(3) };
            (0..count).map(|_| value(document, &schema["items"], choices, depth + 1)).collect()
        }
        Some("object") => object(document, schema, choices, depth),
        _ => noise(choices, depth),
    }
}

fn number(schema: &Value, choices: &mut Choices) -> Value {
    let (least, most) = (schema["minimum"].as_i64().unwrap_or(0), schema["maximum"].as_i64().unwrap_or(1 << 40));
    json!(*choices.one(&[least, most, least - 1, most.saturating_add(1), 1, 7, i64::MAX]))
}

fn object(document: &Value, schema: &Value, choices: &mut Choices, depth: usize) -> Value {
    let mut made = Map::new();
    let required = schema["required"].as_array();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let needed = required.is_some_and(|required| required.iter().any(|one| one == name));
        let given = if needed { !choices.once_in(24) } else { choices.below(3) == 1 };
        if given {
            made.insert(name.clone(), value(document, field, choices, depth + 1));
        }
    }
    if schema["additionalProperties"].is_object() {
        for _ in 0..choices.below(3) {
            let field = value(document, &schema["additionalProperties"], choices, depth + 1);
            made.insert(text(choices), field);
        }
    }
    if choices.once_in(24) {
        made.insert(text(choices), noise(choices, depth));
    }
    made.into()
}

/// Percent-encoded, mostly; the beginning of it, since a URI has 64 KiB at most.
fn encoded(text: &str, choices: &mut Choices) -> String {
    if choices.once_in(24) {
        return choices.one(&["%", "%zz", "%ff%fe", "a%2fb", "%00", "%2e%2e", "a%20b", "+"]).to_string();
    }
    text.bytes()
        .take(1000)
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect()
}

fn parameter(document: &Value, parameter: &Value, choices: &mut Choices) -> String {
    let value = match value(document, &parameter["schema"], choices, 0) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    encoded(&value, choices)
}

fn generated(document: &Value, path: &str, method: &str, operation: &Value, choices: &mut Choices) -> Request {
    let mut uri = path.to_owned();
    let mut query = Vec::new();
    let mut headers = Vec::new();
    for one in operation["parameters"].as_array().into_iter().flatten() {
        let name = one["name"].as_str().unwrap();
        match one["in"].as_str() {
            // Half of the time there is such a machine.
            Some("path") if name == "vm" && choices.below(2) == 0 => uri = uri.replace("{vm}", "web"),
            Some("path") => uri = uri.replace(&format!("{{{name}}}"), &parameter(document, one, choices)),
            Some("query") => {
                for _ in 0..choices.below(3) {
                    query.push(format!("{name}={}", parameter(document, one, choices)));
                }
            }
            _ => {
                if choices.once_in(3) {
                    headers.push((name.to_owned(), parameter(document, one, choices)));
                }
            }
        }
    }
    if choices.once_in(24) {
        query.push(encoded(&text(choices), choices));
    }
    let uri = if query.is_empty() { uri } else { format!("{uri}?{}", query.join("&")) };
    let mut request = Request::builder().method(method.to_uppercase().as_str()).uri(uri);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut body = String::new();
    if let Some(content) = operation["requestBody"]["content"].as_object() {
        let (kind, content) = content.iter().next().unwrap();
        body = value(document, &content["schema"], choices, 0).to_string();
        if !choices.once_in(24) {
            request = request.header("content-type", kind);
        }
    }
    if choices.once_in(24) {
        let cut = (0..=body.len()).rev().find(|at| body.is_char_boundary(*at) && *at <= body.len() / 2);
        body.truncate(cut.unwrap_or(0));
        let ends: [&str; 5] = ["", "{", "]", "\0", "[[[[[[[[[[[["];
        body.push_str(choices.one::<&str>(&ends));
    }
    request.body(Body::from(body)).unwrap()
}

/// The routes over a service with something of everything.
async fn furnished() -> Api {
    // No agent is there to be waited for.
    let limits = Limits { agent_time: Duration::from_millis(1), ..Limits::default() };
    let api = Api::with(MemoryService::default(), limits);
    api.running("web").await;
    for (path, body) in [
        ("/v1/vms/web/snapshots", json!({"name": "clean"})),
        ("/v1/images", json!({"name": "a", "size_bytes": 1 << 20})),
        ("/v1/tokens", json!({"name": "a", "scope": "read"})),
    ] {
        assert!(api.post(path, body).await.status.is_success());
    }
    api
}

async fn throw(choices: &mut Choices) {
    let api = furnished().await;
    let document: Value = serde_json::from_str(&crate::api::description()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let mut request = generated(&document, path, method, operation, choices);
            let what = format!("{method} {} {:?}", request.uri(), request.body());
            request.extensions_mut().insert(LOCAL);

            let response = soon(api.router.clone().oneshot(request)).await.unwrap();

            let status = response.status();
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{what}");
            // A followed log does not end.
            if path.ends_with("/log") && status.is_success() {
                continue;
            }
            let (parts, body) = response.into_parts();
            let body = soon(body.collect()).await.unwrap().to_bytes().to_vec();
            let reply = Reply { status, headers: parts.headers, body };
            if !status.is_success() {
                reply.problem();
            } else if status != StatusCode::NO_CONTENT && path != "/metrics" {
                reply.json();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_is_a_fault(made in proptest::collection::vec(any::<u32>(), 1..2000)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(throw(&mut Choices { made, at: 0 }));
    }

    #[test]
    fn no_path_is_a_fault(path in "(/[ -~]{0,20}){1,6}", method in "[A-Z]{1,10}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // What is no URI is refused before it gets here.
        if let Ok(mut request) = Request::builder().method(method.as_str()).uri(&path).body(Body::empty()) {
            runtime.block_on(async {
                let api = Api::new();
                request.extensions_mut().insert(LOCAL);
                let reply = soon(api.send(LOCAL, request)).await;
                if !reply.status.is_success() {
                    let problem = reply.problem();
                    assert_ne!(problem.status, 500, "{method} {path}: {problem:?}");
                }
            });
        }
    }
}
