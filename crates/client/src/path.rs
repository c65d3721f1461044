//! Paths and queries of requests.

use std::fmt::Write;

/// A path under the API's prefix, made of segments that may hold anything.
#[derive(Debug, Clone)]
pub struct Path {
    text: String,
    has_query: bool,
}

impl Path {
    /// `/v1` and these segments.
    pub fn new(segments: &[&str]) -> Path {
        let mut text = String::from(queztl_api::PREFIX);
        for segment in segments {
            text.push('/');
            encode(segment, &mut text);
        }
        Path { text, has_query: false }
    }

    /// With a parameter.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Path {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.text.push_str(name);
        self.text.push('=');
        encode(&value.to_string(), &mut self.text);
        self
    }

    /// With a parameter, if it has a value.
    pub fn with_some(self, name: &str, value: Option<impl std::fmt::Display>) -> Path {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Everything but unreserved characters as `%XX` (RFC 3986 §2.3). A segment of dots alone would be taken for a folder.
fn encode(text: &str, to: &mut String) {
    let dots = !text.is_empty() && text.bytes().all(|byte| byte == b'.');
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'.' && !dots) {
            to.push(byte.into());
        } else {
            // Writing to memory cannot fail.
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_stay_segments() {
        assert_eq!(Path::new(&["vms", "a/../b?c"]).as_str(), "/v1/vms/a%2F..%2Fb%3Fc");
        assert_eq!(Path::new(&["vms", ".."]).as_str(), "/v1/vms/%2E%2E");
        assert_eq!(Path::new(&["vms", "ä b"]).as_str(), "/v1/vms/%C3%A4%20b");
    }

    #[test]
    fn parameters_follow_one_another() {
        let path = Path::new(&["vms", "a"]).with("force", true).with_some("x", None::<u8>).with("path", "/a b&c");
        assert_eq!(path.as_str(), "/v1/vms/a?force=true&path=%2Fa%20b%26c");
    }
}
