//! The description of the API.

use super::*;

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

#[test]
fn the_kept_description_is_the_present_one() {
    let present = crate::api::description();
    if std::env::var_os("QUEZTL_WRITE_OPENAPI").is_some() {
        std::fs::write(KEPT, &present).unwrap();
    }

    let kept = std::fs::read_to_string(KEPT).unwrap_or_default();

    assert!(
        kept == present,
        "docs/openapi.json is not what the API is now. If the change is meant:\n\
         QUEZTL_WRITE_OPENAPI=1 cargo test -p queztl-control the_kept_description"
    );
}

#[test]
fn every_field_and_parameter_is_described() {
    let document: Value = serde_json::from_str(&crate::api::description()).unwrap();
    let mut silent = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        // A part of a list is described once.
        if !name.starts_with("Page_") {
            fields(name, schema, &mut silent);
        }
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["summary"].is_null() {
                silent.push(format!("{method} {path}"));
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["description"].is_null() {
                    silent.push(format!("{method} {path} {}", parameter["name"]));
                }
            }
        }
    }
    assert!(silent.is_empty(), "without a description: {silent:#?}");
}

fn fields(name: &str, schema: &Value, silent: &mut Vec<String>) {
    for (field, value) in schema["properties"].as_object().into_iter().flatten() {
        // The tag of a variant is a constant.
        let tag = value["enum"].as_array().is_some_and(|values| values.len() == 1);
        if value["description"].is_null() && !tag {
            silent.push(format!("{name}.{field}"));
        }
    }
    for part in ["oneOf", "allOf"] {
        for value in schema[part].as_array().into_iter().flatten() {
            fields(name, value, silent);
        }
    }
}

#[tokio::test]
async fn the_description_is_served() {
    let api = Api::new();
    let reply = api.get("/v1/openapi.json").await;
    assert_eq!(String::from_utf8(reply.body.clone()).unwrap(), crate::api::description());
    assert_eq!(reply.json()["openapi"], "3.1.0");
}
