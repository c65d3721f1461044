//! What every store of registers promises.

use queztl_distributed_ram::Register;

use super::{Entry, EtcdStore, FileStore, Store};

/// Of one store, seen by two daemons.
fn conforms(one: &dyn Store, other: &dyn Store) {
    let first = Entry::new(Register::new(0), 1000);
    assert_eq!(one.read("group").unwrap(), None);
    assert!(!one.swap("group", Some(&first), &first.next(Register::new(0))).unwrap(), "there is nothing to change");
    assert!(one.swap("group", None, &first).unwrap());
    assert!(!other.swap("group", None, &first).unwrap(), "it is there already");
    assert_eq!(other.read("group").unwrap().as_ref(), Some(&first));
    assert_eq!(other.read("another").unwrap(), None);

    let renewed = first.next(first.register.clone());
    assert!(one.swap("group", Some(&first), &renewed).unwrap());
    assert!(!other.swap("group", Some(&first), &first.next(Register::new(7))).unwrap(), "a late claim");
    assert_eq!(other.read("group").unwrap(), Some(renewed));
    counts_each_change_once(one, other);
}

/// Many change the value at once; nobody's change is lost.
fn counts_each_change_once(one: &dyn Store, other: &dyn Store) {
    let start = Entry::new(Register::new(0), 1000);
    assert!(one.swap("count", None, &start).unwrap());
    let add = |store: &dyn Store| {
        for _ in 0..50 {
            loop {
                let before = store.read("count").unwrap().unwrap();
                if store.swap("count", Some(&before), &before.next(before.register.clone())).unwrap() {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for store in [one, other, one, other] {
            scope.spawn(move || add(store));
        }
    });
    assert_eq!(one.read("count").unwrap().unwrap().renewal, 200);
}

#[test]
fn files_conform() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made when it is needed");
    conforms(&FileStore::new(&path), &FileStore::new(&path));
}

#[test]
fn a_file_that_is_something_else_is_no_register() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("group.json"), "{\"term\":1}").unwrap();
    let store = FileStore::new(folder.path());
    assert!(store.read("group").unwrap_err().to_string().contains("something else"));
    assert!(store.swap("group", None, &Entry::new(Register::new(0), 1000)).is_err());
}

/// An etcd of its own, which ends with it.
struct Etcd {
    child: std::process::Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Option<Etcd> {
        let folder = tempfile::tempdir().unwrap();
        let [client, peer] = [(), ()].map(|()| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("127.0.0.1:{}", listener.local_addr().unwrap().port())
        });
        let [client_url, peer_url] = [&client, &peer].map(|address| format!("http://{address}"));
        let child = std::process::Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Etcd { child, address: client, _folder: folder }),
            Err(_) => {
                eprintln!("skipped: there is no etcd here; Debian's package is etcd-server");
                None
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn etcd_conforms() {
    let Some(etcd) = Etcd::start() else { return };
    // One that is not there does no harm.
    let one = EtcdStore::new(&format!("127.0.0.1:1,{}", etcd.address)).unwrap();
    let other = EtcdStore::new(&etcd.address).unwrap();
    let started = std::time::Instant::now();
    while let Err(error) = other.read("group") {
        assert!(started.elapsed().as_secs() < 60, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    conforms(&one, &other);
}

#[test]
fn an_etcd_that_is_not_there_is_no_empty_register() {
    let nobody = EtcdStore::new("127.0.0.1:1").unwrap();
    assert!(nobody.read("group").is_err());
    assert!(nobody.swap("group", None, &Entry::new(Register::new(0), 1000)).is_err());
    for address in ["", "host", "host:port", ":1", "ho/st:1", "host:1,"] {
        assert!(EtcdStore::new(address).is_none(), "{address}");
    }
}
