//! `list` and `info`.

use std::cmp::Ordering;

use queztl_api::Vm;

use super::rows::One;
use super::session::{Session, failure};
use crate::cli::{InfoArgs, ListArgs, OutputFormat};
use crate::output::{self, List, Show};
use crate::report::Failure;
use crate::status::Status;

/// Lists machines.
pub async fn list(session: &Session, args: &ListArgs) -> Result<Status, Failure> {
    let mut vms = session.client.vms().await.map_err(failure)?;
    vms.retain(|vm| fits(vm, args));
    vms.sort_by(|one, other| by_number(one.name.as_str(), other.name.as_str()));
    let is_for_people = matches!(args.output.format, OutputFormat::Table | OutputFormat::Wide);
    if vms.is_empty() && is_for_people && !(args.labels.is_empty() && args.states.is_empty()) {
        return Ok(crate::print("no machine fits: queztl-hv list without options shows all\n"));
    }
    output::print(&List(&vms), args.output.format)
}

/// The order of names in which `web-9` comes before `web-10`.
fn by_number(one: &str, other: &str) -> Ordering {
    let split = |name: &str| {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        (name[..prefix].to_owned(), name[prefix..].parse::<u64>().ok())
    };
    split(one).cmp(&split(other)).then_with(|| one.cmp(other))
}

fn fits(vm: &Vm, args: &ListArgs) -> bool {
    let labelled = |wanted: &String| match wanted.split_once('=') {
        Some((key, value)) => vm.spec.labels.get(key).is_some_and(|has| has == value),
        None => vm.spec.labels.contains_key(wanted),
    };
    args.labels.iter().all(labelled) && (args.states.is_empty() || args.states.contains(&vm.state))
}

/// Shows all of some machines: several make a list.
pub async fn info(session: &Session, args: &InfoArgs) -> Result<Status, Failure> {
    let asked = args.vms.vms.iter().map(|vm| session.client.vm(vm));
    let vms: Result<Vec<Vm>, _> = futures_util::future::join_all(asked).await.into_iter().collect();
    let mut vms = vms.map_err(failure)?;
    if matches!(args.output.format, OutputFormat::Table | OutputFormat::Wide) {
        let names = session.names().await?;
        for origin in vms.iter_mut().filter_map(|vm| vm.origin.as_mut()) {
            origin.vm = names.get(&origin.vm).cloned().unwrap_or_else(|| format!("{} (deleted)", origin.vm));
        }
    }
    match (&vms[..], args.output.format) {
        ([vm], format) => output::print(&One(vm), format),
        (vms, OutputFormat::Table | OutputFormat::Wide) => {
            let texts: Vec<String> = vms.iter().map(|vm| One(vm).table(false)).collect();
            Ok(crate::print(&texts.join("\n")))
        }
        (vms, format) => output::print(&List(vms), format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let mut names = ["web-10", "web", "web-9", "a", "web-09", "web-1x", "7", "99999999999999999999"];
        names.sort_by(|one, other| by_number(one, other));
        assert_eq!(names, ["99999999999999999999", "7", "a", "web", "web-09", "web-9", "web-10", "web-1x"]);
    }
}
