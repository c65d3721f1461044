//! The dashboard's built files, inside the program.
//!
//! Promises:
//! - whatever `dashboard/dist` held when this crate was compiled can be had, in the coding that a client understands (a build
//!   without optimisation looks into that folder each time instead, so that work on the page needs no compiler);
//! - without npm the crate compiles all the same, and [`is_built`] says that there is no page.
//!
//! The page's build leaves each file twice, as `NAME.br` and `NAME.gz`, and never as it is: every browser takes one of them,
//! and for the rare client that takes neither a file is unpacked when it is asked for.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::GzDecoder;
use rust_embed::Embed;

/// The page that all others begin with.
pub const INDEX: &str = "index.html";

#[derive(Embed)]
#[folder = "../../dashboard/dist"]
struct Files;

/// How a file's bytes are coded (RFC 9110 §8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Brotli,
    Gzip,
    Identity,
}

impl Coding {
    /// What `Content-Encoding` says, if it says anything.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Coding::Brotli => Some("br"),
            Coding::Gzip => Some("gzip"),
            Coding::Identity => None,
        }
    }
}

/// One file of the page.
#[derive(Debug)]
pub struct File {
    pub bytes: Cow<'static, [u8]>,
    pub coding: Coding,
    /// The media type, with its character set.
    pub media_type: &'static str,
    /// Tells this version of the file from others.
    pub hash: [u8; 32],
    /// The name changes with the contents, so a client may keep it for ever.
    pub immutable: bool,
}

/// Whether the program holds a page.
pub fn is_built() -> bool {
    find(INDEX, "gzip").is_some()
}

/// A file by its name, such as `assets/index-1f2e.js`, in the best coding of those a client accepts.
pub fn find(name: &str, accepted: &str) -> Option<File> {
    let coded = |coding, suffix| Some((coding, Files::get(&format!("{name}.{suffix}"))?));
    let brotli = accepts(accepted, "br").then(|| coded(Coding::Brotli, "br")).flatten();
    let (coding, file) = brotli.or_else(|| coded(Coding::Gzip, "gz"))?;
    let (coding, bytes) = match coding {
        Coding::Gzip if !accepts(accepted, "gzip") => (Coding::Identity, unpack(&file.data)?.into()),
        coding => (coding, file.data),
    };
    Some(File {
        bytes,
        coding,
        media_type: media_type(name),
        hash: file.metadata.sha256_hash(),
        immutable: name.starts_with("assets/"),
    })
}

/// Whether `Accept-Encoding` names a coding and does not refuse it.
fn accepts(accepted: &str, coding: &str) -> bool {
    accepted.split(',').any(|part| {
        let (name, weight) = part.split_once(';').unwrap_or((part, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case(coding) && !refused
    })
}

fn unpack(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).ok()?;
    Some(plain)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "txt" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_accepted_where_it_is_named_and_not_refused() {
        assert!(accepts("gzip, deflate, br;q=0.9", "br"));
        assert!(!accepts("gzip, br;q=0", "br"));
        assert!(!accepts("brotli", "br"));
        assert!(!accepts("", "gzip"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert!(find("assets/../../Cargo.toml", "br").is_none());
        assert!(find("README", "gzip").is_none());
    }

    #[test]
    fn a_client_without_codings_gets_the_plain_file() {
        let Some(plain) = find(INDEX, "") else {
            println!("skipped: the page is not built");
            return;
        };
        assert_eq!(plain.coding, Coding::Identity);
        assert!(plain.bytes.starts_with(b"<!doctype html>"));
        assert_eq!(find(INDEX, "gzip, br").map(|file| file.coding), Some(Coding::Brotli));
    }
}
