//! What every coordinator promises, and the members of a cluster on each.

use queztl_api::{Code, Timestamp};

use super::*;
use crate::cluster::members::{Member, Members};
use crate::store::Store;

/// Of one coordinator, as two nodes see it.
fn conforms(one: &dyn Coordinator, other: &dyn Coordinator) {
    assert_eq!(one.list("c/").unwrap(), []);
    assert!(!one.swap("c/a", Some("0"), Some("1")).unwrap(), "there is nothing to change");
    assert!(one.swap("c/a", None, Some("1")).unwrap());
    assert!(!other.swap("c/a", None, Some("2")).unwrap(), "it is there already");
    assert!(other.swap("c/b", None, Some("")).unwrap());
    assert!(other.swap("d/a", None, Some("3")).unwrap());
    let pairs =
        |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Vec<(String, String)>>();
    assert_eq!(one.list("c/").unwrap(), pairs(&[("c/a", "1"), ("c/b", "")]));
    assert!(one.swap("c/a", Some("1"), Some("2")).unwrap());
    assert!(!other.swap("c/a", Some("1"), None).unwrap(), "it has changed");
    assert!(other.swap("c/a", Some("2"), None).unwrap());
    assert_eq!(one.list("c/").unwrap(), pairs(&[("c/b", "")]));
    counts_each_change_once(one, other);
    has_members(one, other);
}

/// Many change a value at once; nobody's change is lost.
fn counts_each_change_once(one: &dyn Coordinator, other: &dyn Coordinator) {
    assert!(one.swap("n/count", None, Some("0")).unwrap());
    let read = |coordinator: &dyn Coordinator| coordinator.list("n/count").unwrap()[0].1.clone();
    let add = |coordinator: &dyn Coordinator| {
        for _ in 0..25 {
            loop {
                let before = read(coordinator);
                let after = (before.parse::<u32>().unwrap() + 1).to_string();
                if coordinator.swap("n/count", Some(&before), Some(&after)).unwrap() {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for coordinator in [one, other, one, other] {
            scope.spawn(move || add(coordinator));
        }
    });
    assert_eq!(read(one), "100");
}

fn member(name: &str) -> Member {
    Member {
        name: name.parse().unwrap(),
        address: "127.0.0.1:1".into(),
        certificate: [1; 32],
        joined_at: Timestamp::UNIX_EPOCH,
        draining: false,
    }
}

fn has_members(one: &dyn Coordinator, other: &dyn Coordinator) {
    let [here, there] = [one, other].map(|coordinator| Members { cluster: "m", coordinator });
    let [a, b] = ["a", "b"].map(member);
    here.add(&a).unwrap();
    there.add(&b).unwrap();
    assert_eq!(there.add(&Member { certificate: [2; 32], ..a.clone() }).unwrap_err().code, Code::Exists);
    assert_eq!(here.all().unwrap(), [a.clone(), b.clone()]);

    let draining = Member { draining: true, ..b.clone() };
    here.change(&b, Some(&draining)).unwrap();
    assert_eq!(there.change(&b, None).unwrap_err().code, Code::Busy);
    there.change(&draining, None).unwrap();
    assert_eq!(here.all().unwrap(), [a]);

    // What is no member admits nobody.
    assert!(one.swap("m/members/x", None, Some("{}")).unwrap());
    let under_another_name = serde_json::to_string(&member("c")).unwrap();
    assert!(one.swap("m/members/y", None, Some(&under_another_name)).unwrap());
    assert_eq!(there.all().unwrap().len(), 1);
    assert_eq!(Members { cluster: "another", coordinator: one }.all().unwrap(), []);
}

#[test]
fn a_daemons_own_store_conforms() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    conforms(&Embedded(&store), &Embedded(&store));
}

#[test]
fn etcd_conforms() {
    let Some(server) = crate::etcd::fixture::Server::start() else { return };
    // A server that is not there does no harm.
    let [one, other] = [format!("127.0.0.1:1,{}", server.address), server.address.clone()]
        .map(|servers| Shared(crate::etcd::Etcd::new(&servers).unwrap()));
    conforms(&one, &other);
}
