//! Configuration fragments: read, merged, and compared with what Kconfig made of them.

use crate::{Error, Result};
use std::collections::BTreeMap;

/// The text of one fragment and what to call it in a message.
#[derive(Debug, Clone)]
pub(super) struct Fragment {
    pub(super) name: String,
    pub(super) text: String,
}

/// The value of a symbol, as Kconfig writes it; none when it is not set.
type Value = Option<String>;

/// What all fragments together ask for: for each symbol the last word, and whether a user's own fragment said it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Requests {
    symbols: BTreeMap<String, Request>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    value: Value,
    fragment: usize,
    order: usize,
}

impl Requests {
    /// Merges the fragments in order.
    ///
    /// # Errors
    /// [`Error::Fragment`] names the first line that is neither a request nor a comment.
    pub(super) fn parse(fragments: &[Fragment]) -> Result<Self> {
        let mut requests = Requests::default();
        let mut order = 0;
        for (index, fragment) in fragments.iter().enumerate() {
            for (number, line) in fragment.text.lines().enumerate() {
                let Some((symbol, value)) = parse_line(line).map_err(|()| Error::Fragment {
                    name: fragment.name.clone(),
                    line: number + 1,
                    text: line.chars().take(80).collect(),
                })?
                else {
                    continue;
                };
                order += 1;
                requests.symbols.insert(symbol.to_owned(), Request { value, fragment: index, order });
            }
        }
        Ok(requests)
    }

    /// All requests as one fragment, in the order in which they were made: in a choice the last one wins.
    pub(super) fn to_text(&self) -> String {
        let mut ordered: Vec<(&String, &Request)> = self.symbols.iter().collect();
        ordered.sort_by_key(|(_, request)| request.order);
        let mut text = String::new();
        for (symbol, request) in ordered {
            match &request.value {
                Some(value) => text.push_str(&format!("{symbol}={value}\n")),
                None => text.push_str(&format!("# {symbol} is not set\n")),
            }
        }
        text
    }

    /// Compares with a finished configuration. What the last fragment asks for must be there; what an earlier one asks
    /// for may have given way to it (another member of a choice, a dependency that was switched off).
    ///
    /// # Errors
    /// [`Error::Dropped`] names the symbols that came out differently, with both values.
    pub(super) fn verify(&self, finished: &str) -> Result<()> {
        let mut values: BTreeMap<&str, Value> = BTreeMap::new();
        for line in finished.lines() {
            if let Ok(Some((symbol, value))) = parse_line(line) {
                values.insert(symbol, value);
            }
        }
        let strict_from = match self.symbols.values().map(|request| request.fragment).max() {
            // Up to the profile's own two fragments, everything counts.
            Some(last) if last >= 2 => last,
            _ => 0,
        };
        let mut dropped = Vec::new();
        for (symbol, request) in &self.symbols {
            let got = values.get(symbol.as_str()).cloned().flatten();
            if got == request.value {
                continue;
            }
            let text = format!("{symbol}={} (it became {})", shown(&request.value), shown(&got));
            if request.fragment >= strict_from {
                dropped.push(text);
            } else {
                tracing::info!("given up for a later fragment: {text}");
            }
        }
        if dropped.is_empty() { Ok(()) } else { Err(Error::Dropped { dropped }) }
    }
}

fn shown(value: &Value) -> &str {
    value.as_deref().unwrap_or("n")
}

/// The request in a line; none in an empty one or a comment. `=n` means not set.
fn parse_line(line: &str) -> std::result::Result<Option<(&str, Value)>, ()> {
    let line = line.trim();
    if let Some(comment) = line.strip_prefix('#') {
        let symbol = comment.trim().strip_suffix(" is not set").filter(|symbol| is_symbol(symbol));
        return Ok(symbol.map(|symbol| (symbol, None)));
    }
    if line.is_empty() {
        return Ok(None);
    }
    let (symbol, value) = line.split_once('=').ok_or(())?;
    if !is_symbol(symbol) || value.is_empty() {
        return Err(());
    }
    Ok(Some((symbol, (value != "n").then(|| value.to_owned()))))
}

fn is_symbol(text: &str) -> bool {
    let name = text.strip_prefix("CONFIG_").unwrap_or("");
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(texts: &[&str]) -> Requests {
        let fragment = |(index, text): (usize, &&str)| Fragment { name: format!("f{index}"), text: text.to_string() };
        Requests::parse(&texts.iter().enumerate().map(fragment).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_last_word_on_a_symbol_counts() {
        let merged = requests(&["CONFIG_A=y\nCONFIG_B=y\n", "# CONFIG_A is not set\nCONFIG_C=\"text\"\n"]);
        assert_eq!(merged.to_text(), "CONFIG_B=y\n# CONFIG_A is not set\nCONFIG_C=\"text\"\n");
    }

    #[test]
    fn comments_and_empty_lines_ask_for_nothing() {
        assert_eq!(requests(&["# a remark\n\n  \n#CONFIG\n# what is not set\n"]), Requests::default());
    }

    #[test]
    fn a_line_that_is_no_request_is_named() {
        let bad = Fragment { name: "mine".to_owned(), text: "CONFIG_A=y\nCONFIG B=y\n".to_owned() };
        let error = Requests::parse(&[bad]).unwrap_err();
        assert!(matches!(error, Error::Fragment { line: 2, ref name, .. } if name == "mine"));
    }

    #[test]
    fn a_dropped_symbol_is_named_with_both_values() {
        let error = requests(&["CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=5\n# CONFIG_C is not set\n"])
            .verify("CONFIG_B=y\nCONFIG_N=6\nCONFIG_C=y\n")
            .unwrap_err();
        let Error::Dropped { dropped } = error else { panic!("{error}") };
        let expected =
            ["CONFIG_A=y (it became n)", "CONFIG_C=n (it became y)", "CONFIG_N=5 (it became 6)"].map(str::to_owned);
        assert_eq!(dropped, expected);
    }

    #[test]
    fn n_and_not_set_and_absent_are_the_same() {
        let merged = requests(&["CONFIG_A=n\n# CONFIG_B is not set\n"]);
        assert!(merged.verify("# CONFIG_A is not set\n").is_ok());
    }

    #[test]
    fn a_profile_gives_way_to_the_users_fragment_but_the_users_own_requests_are_strict() {
        let merged = requests(&["CONFIG_HZ_100=y\n", "", "CONFIG_HZ_1000=y\n"]);
        assert!(merged.verify("CONFIG_HZ_1000=y\n").is_ok());
        assert!(merged.verify("CONFIG_HZ_100=y\n").is_err());
    }

    #[test]
    fn the_profiles_own_fragments_parse_and_ask_for_something() {
        for profile in super::super::Profile::ALL {
            let own = profile.fragments().map(|(name, text)| Fragment { name: name.to_owned(), text: text.to_owned() });
            assert!(Requests::parse(&own).unwrap().symbols.len() > 50, "{profile}");
        }
    }
}
