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

/// A tree that looks like a kernel source; `configure` and `compile` are the recipes of its two targets.
fn source_tree(configure: &str, compile: &str) -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("arch/x86")).unwrap();
    fs::write(tree.path().join("Kconfig"), "").unwrap();
    fs::write(tree.path().join("arch/x86/Makefile"), "").unwrap();
    let makefile = format!("allnoconfig:\n\t{configure}\nvmlinux:\n\t{compile}\n");
    fs::write(tree.path().join("Makefile"), makefile).unwrap();
    tree
}

const FOLLOW: &str = "@cp $(KCONFIG_ALLCONFIG) $(O)/.config";
const COMPILE: &str = "@echo '  CC      init/main.o' && mkdir -p $(O)/include/config && \
    echo 6.12-test >$(O)/include/config/kernel.release && cp /bin/true $(O)/vmlinux";

fn build(store: &Store, tree: &Path, configs: Vec<PathBuf>) -> Result<Kernel> {
    KernelBuild { source: Some(tree.to_owned()), profile: Profile::Minimal, configs }.run_in(store, &mut Silent)
}

#[test]
fn a_kernel_is_built_once_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    let tree = source_tree(FOLLOW, COMPILE);

    let first = build(&store, tree.path(), Vec::new()).unwrap();
    let second = build(&store, tree.path(), Vec::new()).unwrap();

    assert!(first.built && !second.built);
    assert_eq!(first.info, second.info);
    assert_eq!((first.info.release.as_str(), first.info.objects), ("6.12-test", 1));
    assert!(fs::read_to_string(&first.config).unwrap().contains("CONFIG_VIRTIO_MMIO=y"));
    assert!(fs::read(&first.vmlinux).unwrap().starts_with(b"\x7fELF"));
    assert!(!first.vmlinux.with_file_name("build").exists());
}

#[test]
fn another_fragment_makes_another_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    let tree = source_tree(FOLLOW, COMPILE);
    let fragment = directory.path().join("mine.config");
    fs::write(&fragment, "CONFIG_MINE=y\n").unwrap();

    let plain = build(&store, tree.path(), Vec::new()).unwrap();
    let mine = build(&store, tree.path(), vec![fragment]).unwrap();

    assert_ne!(plain.info.key, mine.info.key);
    assert!(fs::read_to_string(&mine.config).unwrap().contains("CONFIG_MINE=y"));
    assert_eq!(kernels_in(&store).unwrap().len(), 2);
}

#[test]
fn a_symbol_that_kconfig_drops_is_named_and_nothing_is_compiled() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    let tree = source_tree("@grep -v VIRTIO_MMIO= $(KCONFIG_ALLCONFIG) >$(O)/.config", "@touch $(O)/../../../compiled");

    let error = build(&store, tree.path(), Vec::new()).unwrap_err();

    assert!(
        matches!(&error, Error::Dropped { dropped } if dropped == &["CONFIG_VIRTIO_MMIO=y (it became n)"]),
        "{error}"
    );
    assert!(!directory.path().join("compiled").exists());
    assert!(kernels_in(&store).unwrap().is_empty());
}

#[test]
fn a_compile_error_is_shown_and_its_log_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::at(directory.path()).unwrap();
    let tree = source_tree(FOLLOW, "@echo 'init/main.c:7:1: error: no such thing' >&2; exit 1");

    let error = build(&store, tree.path(), Vec::new()).unwrap_err();

    let Error::Compile { reason, log } = error else { panic!("{error}") };
    assert_eq!(reason, "init/main.c:7:1: error: no such thing");
    assert!(fs::read_to_string(log).unwrap().contains(&reason));
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

/// Against the real Kconfig, where this host has the source unpacked already.
#[test]
fn every_profile_gets_all_that_its_fragments_ask_for() {
    let unpacked = Store::open().ok().and_then(|store| store.entries(Kind::Sources).ok()).and_then(|mut all| all.pop());
    let Some(tree) = unpacked else {
        eprintln!("skipped: no kernel source in the store; `queztl-hv kernel build` puts one there");
        return;
    };
    for profile in Profile::ALL {
        let directory = tempfile::tempdir().unwrap();
        let build = directory.path().join("build");
        fs::create_dir(&build).unwrap();
        let requests = config::Requests::parse(&KernelBuild::new(profile).fragments().unwrap()).unwrap();
        let log = directory.path().join("log");
        let job = compile::Job { tree: &tree, directory: directory.path(), log: &log, requests: &requests, profile };

        job.configure(&build).unwrap_or_else(|error| panic!("{profile}: {error}"));
    }
}
