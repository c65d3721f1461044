//! What the kernel command line asks of the init program: `queztl.run="COMMAND"` and `queztl.net=off`.
//!
//! Shared by the guest's init (which has no standard library) and the host's tests, so it uses nothing but `core`.

/// The value of `NAME=value` or `NAME="value with spaces"` in a kernel command line; the last one wins, as it does in
/// the kernel. Quotes may open after the `=` or before the name (`"NAME=value"`), as the kernel prints them back
/// (Documentation/admin-guide/kernel-parameters.rst). There is no escape for a quote inside quotes.
pub fn value<'a>(command_line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    let mut rest = command_line;
    while let Some((word, after)) = next_word(rest) {
        rest = after;
        let word = unquote(word);
        if let Some(tail) = word.strip_prefix(name)
            && let Some(value) = tail.strip_prefix(b"=")
        {
            found = Some(unquote(value));
        }
    }
    found
}

/// The first word and what follows it; blanks inside double quotes do not end a word.
fn next_word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = text.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let text = text.get(start..)?;
    let mut quoted = false;
    let mut length = text.len();
    for (index, &byte) in text.iter().enumerate() {
        if byte == b'"' {
            quoted = !quoted;
        } else if byte.is_ascii_whitespace() && !quoted {
            length = index;
            break;
        }
    }
    text.split_at_checked(length)
}

/// Without the double quotes around it; an opening quote that nobody closed goes too.
fn unquote(text: &[u8]) -> &[u8] {
    match text.strip_prefix(b"\"") {
        Some(inner) => inner.strip_suffix(b"\"").unwrap_or(inner),
        None => text,
    }
}
