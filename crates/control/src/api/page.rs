//! Lists in parts.
//!
//! A part begins after the key of the part before, not at a number: nothing is shown twice or left out because something
//! else came or went.

use queztl_api::{MAX_PAGE, Page, PageQuery, Problem, Timestamp};

use super::answer::{Answer, Failure};

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Sorts the items by their keys, which must be unique, and takes the part that is asked for.
///
/// # Errors
/// [`queztl_api::Code::Invalid`] for a limit out of bounds or an `after` that was never given.
pub fn page<T>(items: Vec<T>, query: &PageQuery, order: Order, key: impl Fn(&T) -> String) -> Answer<Page<T>> {
    let limit = limit(query.limit)?;
    let after = query.after.as_deref().map(decode).transpose()?;
    let mut keyed: Vec<(String, T)> = items.into_iter().map(|item| (key(&item), item)).collect();
    keyed.sort_by(|(a, _), (b, _)| if order == Order::Ascending { a.cmp(b) } else { b.cmp(a) });
    if let Some(after) = after {
        keyed.retain(|(key, _)| if order == Order::Ascending { *key > after } else { *key < after });
    }
    let more = keyed.len() > limit;
    keyed.truncate(limit);
    let next = keyed.last().filter(|_| more).map(|(key, _)| hex::encode(key));
    Ok(Page { items: keyed.into_iter().map(|(_, item)| item).collect(), next })
}

/// A list that is always whole.
pub fn whole<T>(items: Vec<T>) -> Page<T> {
    Page { items, next: None }
}

/// How many items are asked for.
///
/// # Errors
/// As [`page`].
pub fn limit(limit: Option<u32>) -> Answer<usize> {
    match limit.unwrap_or(MAX_PAGE) {
        limit @ 1..=MAX_PAGE => Ok(limit as usize),
        limit => Err(Problem::invalid("limit", format!("{limit} is not from 1 to {MAX_PAGE}")).into()),
    }
}

/// A key that sorts by time.
pub fn by_time(at: Timestamp, name: &str) -> String {
    // Before 1970 nothing was made here.
    format!("{:020} {name}", at.as_nanosecond().max(0))
}

fn decode(after: &str) -> Result<String, Failure> {
    let key = hex::decode(after).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    key.ok_or_else(|| Problem::invalid("after", "give what the part before had as `next`").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(query: &PageQuery, order: Order) -> Page<u32> {
        page((0..7).rev().collect(), query, order, |number| format!("{number:03}")).unwrap()
    }

    #[test]
    fn the_parts_of_a_list_are_the_list() {
        for (order, all) in [(Order::Ascending, [0, 1, 2, 3, 4, 5, 6]), (Order::Descending, [6, 5, 4, 3, 2, 1, 0])] {
            for limit in 1..9 {
                let mut query = PageQuery { limit: Some(limit), after: None };
                let mut seen = Vec::new();
                loop {
                    let part = numbers(&query, order);
                    assert!(part.items.len() <= limit as usize);
                    seen.extend(part.items);
                    query.after = part.next;
                    if query.after.is_none() {
                        break;
                    }
                }
                assert_eq!(seen, all);
            }
        }
    }

    #[test]
    fn what_goes_between_two_parts_hides_nothing_else() {
        let first = numbers(&PageQuery { limit: Some(3), after: None }, Order::Ascending);
        let rest = PageQuery { limit: None, after: first.next };

        // Number 2, at which the first part ended, is gone.
        let second = page(vec![0, 1, 3, 4], &rest, Order::Ascending, |number| format!("{number:03}")).unwrap();

        assert_eq!(second.items, [3, 4]);
    }

    #[test]
    fn times_sort_as_they_are() {
        let key = |text: &str| by_time(text.parse().unwrap(), "a");
        assert!(key("2026-01-01T00:00:00Z") < key("2026-01-01T00:00:00.5Z"));
        assert!(key("2026-01-01T00:00:00.5Z") < key("2026-01-01T00:00:01Z"));
    }

    #[test]
    fn limits_out_of_bounds_and_foreign_places_are_refused() {
        for query in [
            PageQuery { limit: Some(0), after: None },
            PageQuery { limit: Some(MAX_PAGE + 1), after: None },
            PageQuery { limit: None, after: Some("zz".into()) },
        ] {
            assert!(page(vec![1], &query, Order::Ascending, u32::to_string).is_err(), "{query:?}");
        }
    }
}
