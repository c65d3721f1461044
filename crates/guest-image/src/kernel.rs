//! Guest kernels: built from a kernel source and configuration fragments, kept by content, listed.
//!
//! Promises: a kernel that is returned has every symbol that its fragments ask for, is under [`MAX_BYTES`], and is the
//! one that its inputs define — the same source, fragments and compiler are never built twice.

mod compile;
mod config;
mod source;

use crate::store::Kind;
use crate::{Error, Progress, Result, Store};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The size that a guest kernel stays below.
pub const MAX_BYTES: u64 = 50_000_000;

/// Changes when the same inputs would give another kernel.
const RECIPE: u32 = 1;
const METADATA: &str = "kernel.json";
const MAX_METADATA_BYTES: u64 = 1 << 20;

/// What a kernel is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Fastest boot: what a Linux user land needs, virtio over MMIO, nothing else.
    Minimal,
    /// Like minimal, fully pre-emptible (`PREEMPT_RT`).
    Rt,
    /// For hosts of containers and of guests: eBPF, control groups, overlayfs, netfilter, virtio-fs, PCI, NUMA, KVM.
    Full,
}

impl Profile {
    /// Every profile, in the order in which help texts list them.
    pub const ALL: [Profile; 3] = [Profile::Minimal, Profile::Rt, Profile::Full];

    /// As written on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Minimal => "minimal",
            Profile::Rt => "rt",
            Profile::Full => "full",
        }
    }

    /// Name and text of each fragment, in the order in which they are merged.
    fn fragments(self) -> [(&'static str, &'static str); 2] {
        const BASE: (&str, &str) = ("base", include_str!("../../../guest/kernel/base.config"));
        let own = match self {
            Profile::Minimal => include_str!("../../../guest/kernel/minimal.config"),
            Profile::Rt => include_str!("../../../guest/kernel/rt.config"),
            Profile::Full => include_str!("../../../guest/kernel/full.config"),
        };
        [BASE, (self.name(), own)]
    }

    /// About how many objects a build makes: for the progress display.
    const fn expected_objects(self) -> u64 {
        match self {
            Profile::Minimal => 1300,
            Profile::Rt => 1300,
            Profile::Full => 3000,
        }
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Profile::ALL.into_iter().find(|profile| profile.name() == text);
        found.ok_or_else(|| format!("no kernel profile is called `{text}`; there are minimal, rt and full"))
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.name())
    }
}

/// What is known of a kernel in the store; the content of its metadata file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Identifies the kernel: a hash of everything that it was made from.
    pub key: String,
    /// The profile it was made for.
    pub profile: Profile,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The source it was built from: a tarball or directory.
    pub source: PathBuf,
    /// The user's own fragments, by file name.
    pub configs: Vec<String>,
    /// Hash of all fragments, in order.
    pub fragments_id: String,
    /// The compiler's first line of `--version`.
    pub compiler: String,
    /// Size of `vmlinux` in bytes.
    pub bytes: u64,
    /// Object files compiled.
    pub objects: u64,
    /// How long configuration and compilation took, in seconds.
    pub build_seconds: u64,
    /// When it was finished, in seconds since 1970.
    pub created: u64,
}

/// A kernel in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// An ELF `vmlinux` without symbols, with a PVH note.
    pub vmlinux: PathBuf,
    /// Its finished configuration.
    pub config: PathBuf,
    /// Whether it was compiled just now, rather than found.
    pub built: bool,
    /// Everything else.
    pub info: KernelInfo,
}

/// A kernel that is wanted.
#[derive(Debug, Clone)]
pub struct KernelBuild {
    /// A kernel source, as a directory or a tarball; the distribution's long-term one when none is given, which root has
    /// installed on the way.
    pub source: Option<PathBuf>,
    /// What the kernel is for.
    pub profile: Profile,
    /// Fragments of the user's own, merged last; the last word on a symbol counts.
    pub configs: Vec<PathBuf>,
}

impl KernelBuild {
    /// The plain kernel of a profile.
    pub fn new(profile: Profile) -> Self {
        KernelBuild { source: None, profile, configs: Vec::new() }
    }

    /// Finds the kernel in the user's store or builds it there, with all processors.
    ///
    /// # Errors
    /// Each of [`Error`]'s says what to do; none leaves anything in the store.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<Kernel> {
        self.run_in(&Store::open()?, progress)
    }

    /// As [`run`](Self::run), in a given store.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_in(&self, store: &Store, progress: &mut dyn Progress) -> Result<Kernel> {
        let result = self.build(store, progress);
        progress.finish();
        result
    }

    fn build(&self, store: &Store, progress: &mut dyn Progress) -> Result<Kernel> {
        let fragments = self.fragments()?;
        let requests = config::Requests::parse(&fragments)?;
        crate::tools::ensure("building a kernel", compile::NEEDS, progress)?;
        let source = source::Source::locate(self.source.as_deref(), progress)?;
        let compiler = compile::compiler_version()?;
        let key = short_hash(&[
            &RECIPE.to_le_bytes(),
            source.id.as_bytes(),
            compiler.as_bytes(),
            compile::linker_version()?.as_bytes(),
            fragments_id(&fragments).as_bytes(),
        ]);
        if store.find(Kind::Kernels, &key).is_none() {
            // Outside of the kernel's own lock: several kernels share one unpacked source.
            source.unpack(store, progress)?;
        }
        let mut built = false;
        let path = store.get_or_make(Kind::Kernels, &key, |directory| {
            built = true;
            let start = SystemTime::now();
            let tree = source.unpack(store, progress)?;
            let log = store.log_path(&format!("kernel-{key}"));
            let job = compile::Job { tree: &tree, directory, log: &log, requests: &requests, profile: self.profile };
            let output = job.run(progress)?;
            let configs = self.configs.iter().map(|path| path.display().to_string()).collect();
            let info = KernelInfo {
                key: key.clone(),
                profile: self.profile,
                release: output.release,
                source: source.path.clone(),
                configs,
                fragments_id: fragments_id(&fragments),
                compiler: compiler.clone(),
                bytes: output.bytes,
                objects: output.objects,
                build_seconds: start.elapsed().map_or(0, |time| time.as_secs()),
                created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            };
            let text = serde_json::to_vec_pretty(&info).unwrap_or_default();
            let path = directory.join(METADATA);
            fs::write(&path, text).map_err(Error::io("write", &path))
        })?;
        let mut kernel = load(&path).ok_or_else(|| Error::Image(damaged(&path)))?;
        kernel.built = built;
        Ok(kernel)
    }

    /// The profile's fragments, then the user's.
    fn fragments(&self) -> Result<Vec<config::Fragment>> {
        let own = self.profile.fragments().into_iter();
        let mut fragments: Vec<config::Fragment> =
            own.map(|(name, text)| config::Fragment { name: name.to_owned(), text: text.to_owned() }).collect();
        for path in &self.configs {
            let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
            fragments.push(config::Fragment { name: path.display().to_string(), text });
        }
        Ok(fragments)
    }
}

/// All kernels of the user's store, the newest first. Damaged ones are left out.
///
/// # Errors
/// [`Error::NoHome`], [`Error::Io`].
pub fn kernels() -> Result<Vec<KernelInfo>> {
    let all = kernels_in(&Store::open()?)?;
    Ok(all.into_iter().map(|kernel| kernel.info).collect())
}

/// All kernels of a store, the newest first.
///
/// # Errors
/// [`Error::Io`].
pub fn kernels_in(store: &Store) -> Result<Vec<Kernel>> {
    let mut kernels: Vec<Kernel> = store.entries(Kind::Kernels)?.iter().filter_map(|path| load(path)).collect();
    kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.info.created));
    Ok(kernels)
}

/// The kernel for whoever names none: the newest minimal one made from this program's own fragments, built when there is
/// none. When one is there, nothing of the host but the store is looked at.
///
/// # Errors
/// As [`KernelBuild::run`].
pub fn default_kernel(progress: &mut dyn Progress) -> Result<Kernel> {
    default_kernel_in(&Store::open()?, progress)
}

/// As [`default_kernel`], in a given store.
///
/// # Errors
/// As [`KernelBuild::run`].
pub fn default_kernel_in(store: &Store, progress: &mut dyn Progress) -> Result<Kernel> {
    let build = KernelBuild::new(Profile::Minimal);
    let id = fragments_id(&build.fragments()?);
    match kernels_in(store)?.into_iter().find(|kernel| kernel.info.fragments_id == id) {
        Some(kernel) => Ok(kernel),
        None => build.run_in(store, progress),
    }
}

/// The artefact in `directory`; none when its metadata or its kernel cannot be read.
fn load(directory: &Path) -> Option<Kernel> {
    let metadata = directory.join(METADATA);
    if fs::metadata(&metadata).ok()?.len() > MAX_METADATA_BYTES {
        return None;
    }
    let info: KernelInfo = serde_json::from_slice(&fs::read(&metadata).ok()?).ok()?;
    let vmlinux = directory.join("vmlinux");
    let bytes = fs::metadata(&vmlinux).ok()?.len();
    (bytes == info.bytes).then(|| Kernel { vmlinux, config: directory.join("config"), built: false, info })
}

fn damaged(path: &Path) -> String {
    format!("the kernel in {} is damaged: remove that directory and build again", path.display())
}

fn fragments_id(fragments: &[config::Fragment]) -> String {
    let texts: Vec<&[u8]> = fragments.iter().map(|fragment| fragment.text.as_bytes()).collect();
    short_hash(&texts)
}

/// 128 bits of a hash over the parts, in hexadecimal; the lengths go in as well, so that parts cannot run together.
pub(crate) fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().as_str().chars().take(32).collect()
}

#[cfg(test)]
mod tests;
