//! Names, identifiers and addresses that nobody has chosen.

use queztl_api::{Code, Name, Problem};
use queztl_vmm::config::Mac;
use rustix::rand::{GetRandomFlags, getrandom};

/// An identifier that is not used again; later ones are greater.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Bytes that nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Problem::new(Code::Host, format!("the host gives no random numbers: {error}"))),
        }
    }
    Ok(bytes)
}

/// A unicast address of the locally administered kind (IEEE 802, section 8.4).
pub(crate) fn random_mac() -> Result<Mac, Problem> {
    let mut bytes = random_bytes::<6>()?;
    bytes[0] = bytes[0] & !1 | 2;
    Ok(Mac(bytes))
}

/// `prefix-1`, `prefix-2`, …: the first `count` that are not `taken`. A long prefix is cut.
pub(crate) fn numbered(prefix: &str, count: usize, taken: impl Fn(&str) -> bool) -> Result<Vec<Name>, Problem> {
    const DIGITS: usize = 8;
    let prefix: &str = prefix.get(..prefix.len().min(queztl_api::MAX_NAME_BYTES - DIGITS)).unwrap_or("vm");
    let mut names = Vec::with_capacity(count);
    for number in 1..10_000_000u32 {
        if names.len() == count {
            break;
        }
        let text = format!("{prefix}-{number}");
        if !taken(&text) {
            names.push(text.parse::<Name>().map_err(|error| Problem::invalid("name", error.to_string()))?);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_unicast_and_differ() {
        let macs: Vec<Mac> = (0..100).map(|_| random_mac().unwrap()).collect();
        for mac in &macs {
            assert_eq!(mac.0[0] & 3, 2, "{mac}");
        }
        let distinct: std::collections::HashSet<&Mac> = macs.iter().collect();
        assert_eq!(distinct.len(), macs.len());
    }

    #[test]
    fn numbers_that_are_taken_are_skipped_and_long_names_cut() {
        let names = numbered("web", 3, |name| name == "web-2").unwrap();
        assert_eq!(names.iter().map(Name::as_str).collect::<Vec<_>>(), ["web-1", "web-3", "web-4"]);
        let long = numbered(&"x".repeat(63), 1, |_| false).unwrap();
        assert!(long[0].as_str().ends_with("x-1"));
    }
}
