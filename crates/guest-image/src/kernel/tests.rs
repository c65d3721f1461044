use super::*;
use crate::Silent;

fn info(key: &str, created: u64, bytes: u64) -> KernelInfo {
    KernelInfo {
        key: key.to_owned(),
        profile: Profile::Minimal,
        release: "6.12.0-queztl-minimal".to_owned(),
        source: PathBuf::from("/usr/src/linux.tar.xz"),
        configs: Vec::new(),
        fragments_id: fragments_id(&KernelBuild::new(Profile::Minimal).fragments().unwrap()),
        compiler: "gcc".to_owned(),
        bytes,
        objects: 1,
        build_seconds: 1,
        created,
    }
}

fn put(store: &Store, info: &KernelInfo, vmlinux: &[u8]) {
    let fill = |directory: &Path| {
        fs::write(directory.join("vmlinux"), vmlinux).unwrap();
        fs::write(directory.join("config"), "").unwrap();
        fs::write(directory.join(METADATA), serde_json::to_vec(info).unwrap()).unwrap();
        Ok(())
    };
    store.get_or_make(Kind::Kernels, &info.key, fill).unwrap();
}

#[test]
fn kernels_are_listed_newest_first_and_damaged_ones_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    put(&store, &info("old", 1, 3), b"ELF");
    put(&store, &info("new", 2, 3), b"ELF");
    put(&store, &info("truncated", 3, 4), b"ELF");
    store.get_or_make(Kind::Kernels, "empty", |_| Ok(())).unwrap();

    let keys: Vec<String> = kernels_in(&store).unwrap().into_iter().map(|kernel| kernel.info.key).collect();

    assert_eq!(keys, ["new", "old"]);
}

#[test]
fn the_default_kernel_is_the_newest_of_this_programs_fragments() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    put(&store, &info("ours", 1, 3), b"ELF");
    put(&store, &info("newer", 2, 3), b"ELF");
    put(&store, &KernelInfo { fragments_id: "other".to_owned(), ..info("foreign", 3, 3) }, b"ELF");

    let kernel = default_kernel_in(&store, &mut Silent).unwrap();

    assert_eq!(kernel.info.key, "newer");
    assert!(!kernel.built);
}

#[test]
fn profiles_are_written_and_read_alike() {
    for profile in Profile::ALL {
        assert_eq!(profile.to_string().parse(), Ok(profile));
    }
    assert!("fast".parse::<Profile>().unwrap_err().contains("minimal, rt and full"));
}

#[test]
fn a_missing_fragment_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    let configs = vec![PathBuf::from("/nonexistent/fragment")];
    let build = KernelBuild { configs, ..KernelBuild::new(Profile::Minimal) };

    let error = build.run_in(&store, &mut Silent).unwrap_err();

    assert!(error.to_string().contains("/nonexistent/fragment"), "{error}");
}

#[test]
fn parts_of_a_key_do_not_run_together() {
    assert_ne!(short_hash(&[b"ab", b"c"]), short_hash(&[b"a", b"bc"]));
}
