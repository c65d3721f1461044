//! YAML 1.2 of a JSON value: block style, every text that could be taken for something else in JSON's quotes, which are
//! YAML's too.

use serde_json::Value;

/// The document.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Array(items) if !items.is_empty() => sequence(items, 0, &mut out),
        Value::Object(fields) if !fields.is_empty() => mapping(fields, 0, &mut out),
        other => out.push_str(&format!("{}\n", scalar(other))),
    }
    out
}

fn mapping(fields: &serde_json::Map<String, Value>, depth: usize, out: &mut String) {
    for (index, (name, value)) in fields.iter().enumerate() {
        // The first field stands behind the dash of a sequence, if there is one.
        if index > 0 || out.is_empty() || out.ends_with('\n') {
            out.push_str(&"  ".repeat(depth));
        }
        out.push_str(&text(name));
        out.push(':');
        match value {
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(items, depth, out);
            }
            Value::Object(fields) if !fields.is_empty() => {
                out.push('\n');
                mapping(fields, depth + 1, out);
            }
            other => out.push_str(&format!(" {}\n", scalar(other))),
        }
    }
}

fn sequence(items: &[Value], depth: usize, out: &mut String) {
    for item in items {
        out.push_str(&"  ".repeat(depth));
        out.push_str("- ");
        match item {
            Value::Array(items) if !items.is_empty() => {
                out.truncate(out.len() - 1);
                out.push('\n');
                sequence(items, depth + 1, out);
            }
            Value::Object(fields) if !fields.is_empty() => mapping(fields, depth + 1, out),
            other => out.push_str(&format!("{}\n", scalar(other))),
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(value) => text(value),
        other => other.to_string(),
    }
}

/// A text, without quotes where nothing else could be meant.
fn text(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/' | b'.');
    let starts_well = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    let is_word = words.iter().any(|word| value.eq_ignore_ascii_case(word));
    match starts_well && value.bytes().all(plain) && !is_word {
        true => value.to_owned(),
        false => Value::from(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_and_objects_are_blocks_and_doubtful_words_are_quoted() {
        // In the order of the alphabet, so that it does not matter how the JSON library keeps fields.
        let value = json!([
            { "ended": null, "name": "web-1", "spec": { "disks": [{ "path": "/a.img", "ro": true }], "labels": {} } },
            { "count": 1.5, "list": [[1, 2], "a: b"], "name": "no" },
        ]);

        let wanted = "\
- ended: null
  name: web-1
  spec:
    disks:
    - path: /a.img
      ro: true
    labels: {}
- count: 1.5
  list:
  -
    - 1
    - 2
  - \"a: b\"
  name: \"no\"
";
        assert_eq!(render(&value), wanted);
        assert_eq!(render(&json!([])), "[]\n");
    }
}
