//! Kernel sources: found or installed, identified by content, unpacked once.

use crate::store::Kind;
use crate::tools::{self, Need};
use crate::{Error, Progress, Result, Store};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The distribution's package of the long-term kernel, and what it installs.
const PACKAGE: &str = "linux-source-6.12";
const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// A kernel source whose identity is known.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The tarball or directory.
    pub(super) path: PathBuf,
    /// Hash of its content (a tarball), or of the names, sizes and times of its files (a directory).
    pub(super) id: String,
    is_tarball: bool,
}

impl Source {
    /// The given source, or the distribution's, installed when it is missing and may be.
    pub(super) fn locate(given: Option<&Path>, progress: &mut dyn Progress) -> Result<Self> {
        let path = match given {
            Some(path) => path,
            None => {
                tools::ensure("building a kernel without --source", &[Need::file(TARBALL, PACKAGE)], progress)?;
                Path::new(TARBALL)
            }
        };
        let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
        let is_tarball = !path.is_dir();
        let id = if is_tarball { hash_file(&path)? } else { hash_directory(&path)? };
        Ok(Source { path, id, is_tarball })
    }

    /// The source tree itself: the directory, or the tarball's, unpacked once into the store.
    pub(super) fn unpack(&self, store: &Store, progress: &mut dyn Progress) -> Result<PathBuf> {
        if !self.is_tarball {
            check_tree(&self.path)?;
            return Ok(self.path.clone());
        }
        let unpacked = store.get_or_make(Kind::Sources, &self.id, |directory| {
            progress.step("unpack the kernel source");
            let mut tar = Command::new("tar");
            tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--file"]).arg(&self.path);
            tools::run(tar.arg("--directory").arg(directory))?;
            check_tree(directory).map_err(|_| not_a_source(&self.path, "the archive holds no kernel at its top"))
        })?;
        Ok(unpacked)
    }
}

/// That a directory is the top of a kernel source that nobody has built in.
fn check_tree(tree: &Path) -> Result<()> {
    if !tree.join("Kconfig").is_file() || !tree.join("arch/x86/Makefile").is_file() {
        return Err(not_a_source(tree, "it has no Kconfig or no arch/x86"));
    }
    // Kbuild's own rule for builds outside of the tree.
    if tree.join(".config").exists() || tree.join("include/config").exists() {
        return Err(not_a_source(tree, "it has been built in; run `make mrproper` there first"));
    }
    Ok(())
}

fn not_a_source(path: &Path, reason: &str) -> Error {
    Error::Source { path: path.to_owned(), reason: reason.to_owned() }
}

fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    hasher.update_reader(file).map_err(Error::io("read", path))?;
    Ok(hasher.finalize().to_hex().as_str().chars().take(32).collect())
}

/// Over the names, sizes and modification times: reading a gigabyte for each look-up would be too slow. Version control
/// folders do not count.
fn hash_directory(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            entries.push(entry.map_err(Error::io("list", &folder))?);
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (name, path) = (entry.file_name(), entry.path());
            if name == ".git" {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?;
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            hasher.update(path.as_os_str().as_encoded_bytes());
            for number in [metadata.size(), metadata.mtime().cast_unsigned(), metadata.mtime_nsec().cast_unsigned()] {
                hasher.update(&number.to_le_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().as_str().chars().take(32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("arch/x86")).unwrap();
        fs::write(directory.path().join("Kconfig"), "").unwrap();
        fs::write(directory.path().join("arch/x86/Makefile"), "").unwrap();
        directory
    }

    #[test]
    fn a_changed_file_changes_the_identity_of_a_directory() {
        let tree = tree();
        let before = Source::locate(Some(tree.path()), &mut Silent).unwrap().id;
        let same = Source::locate(Some(tree.path()), &mut Silent).unwrap().id;
        fs::write(tree.path().join("Kconfig"), "changed").unwrap();
        let after = Source::locate(Some(tree.path()), &mut Silent).unwrap().id;
        assert_eq!(before, same);
        assert_ne!(before, after);
    }

    #[test]
    fn what_is_no_kernel_source_is_refused_with_the_reason() {
        let store_directory = tempfile::tempdir().unwrap();
        let store = Store::at(store_directory.path()).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let used = tree();
        fs::write(used.path().join(".config"), "").unwrap();
        let junk = tempfile::NamedTempFile::new().unwrap();
        fs::write(junk.path(), b"no archive").unwrap();

        let refuse = |path: &Path| {
            Source::locate(Some(path), &mut Silent).and_then(|source| source.unpack(&store, &mut Silent)).unwrap_err()
        };

        assert!(refuse(empty.path()).to_string().contains("no Kconfig"));
        assert!(refuse(used.path()).to_string().contains("make mrproper"));
        assert!(matches!(refuse(junk.path()), Error::Program { .. }));
        assert!(matches!(refuse(Path::new("/nonexistent")), Error::Io { .. }));
    }

    #[test]
    fn a_tarball_is_unpacked_once() {
        let store_directory = tempfile::tempdir().unwrap();
        let store = Store::at(store_directory.path()).unwrap();
        let tree = tree();
        let tarball = store_directory.path().join("linux.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&tarball).arg("-C").arg(tree.path().parent().unwrap()).arg(tree.path().file_name().unwrap());
        tools::run(&mut tar).unwrap();

        let source = Source::locate(Some(&tarball), &mut Silent).unwrap();
        let first = source.unpack(&store, &mut Silent).unwrap();
        fs::write(first.join("mark"), "").unwrap();
        let second = source.unpack(&store, &mut Silent).unwrap();

        assert_eq!(first, second);
        assert!(second.join("mark").exists() && second.join("Kconfig").exists());
    }
}
