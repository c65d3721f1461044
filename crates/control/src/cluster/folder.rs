//! What a node keeps of its cluster, in `$QUEZTL_HOME/cluster`.
//!
//! | file | holds |
//! |---|---|
//! | `cluster.json` | [`Settings`] |
//! | `node.pem`, `node-key.pem` | this node's certificate and key |
//! | `authority.pem` | the certificate of the cluster's authority |
//! | `authority-key.pem` | its key; at the founder only |
//! | `members.json` | the members as they were known last |
//! | `admitted` | is there once the founder has this node among the members |
//!
//! The directory is made beside its place and gets its name in one step: it is there as a whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use queztl_api::{Code, Name, Problem};
use serde::{Deserialize, Serialize};

/// What a node knows of itself and its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The cluster's identifier.
    pub cluster: String,
    /// This node.
    pub name: Name,
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// Where others reach it.
    pub address: String,
    pub founder: Name,
    pub founder_address: String,
    /// `etcd://…`, or `founder` for the founder's store.
    pub coordinator: String,
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    home: PathBuf,
}

pub(crate) const NODE: &str = "node.pem";
pub(crate) const NODE_KEY: &str = "node-key.pem";
pub(crate) const AUTHORITY: &str = "authority.pem";
pub(crate) const AUTHORITY_KEY: &str = "authority-key.pem";
pub(crate) const MEMBERS: &str = "members.json";
pub(crate) const ADMITTED: &str = "admitted";
const SETTINGS: &str = "cluster.json";

impl Folder {
    pub fn new(home: &Path) -> Folder {
        Folder { home: home.to_path_buf() }
    }

    fn path(&self) -> PathBuf {
        self.home.join("cluster")
    }

    fn beside(&self) -> PathBuf {
        self.home.join("cluster.new")
    }

    /// The settings, if this daemon is a node.
    pub fn settings(&self) -> Result<Option<Settings>, Problem> {
        let path = self.path().join(SETTINGS);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| wrong(&path, &error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(&path, &error)),
        }
    }

    pub fn read(&self, name: &str) -> Result<String, Problem> {
        let path = self.path().join(name);
        fs::read_to_string(&path).map_err(|error| wrong(&path, &error))
    }

    pub fn has(&self, name: &str) -> bool {
        self.path().join(name).exists()
    }

    /// Writes a file of the directory.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Problem> {
        let path = self.path().join(name);
        write(&path, text).map_err(|error| wrong(&path, &error))
    }

    /// A file of the directory that is being made.
    pub fn prepared(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.beside().join(name)).ok()
    }

    /// Writes a file of the directory that is being made.
    pub fn prepare(&self, name: &str, text: &str) -> Result<(), Problem> {
        let (folder, path) = (self.beside(), self.beside().join(name));
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&folder).and_then(|()| write(&path, text));
        made.map_err(|error| wrong(&path, &error))
    }

    /// The directory is whole: from now on this daemon is a node.
    pub fn commit(&self, settings: &Settings) -> Result<(), Problem> {
        let text = serde_json::to_string_pretty(settings);
        self.prepare(SETTINGS, &text.map_err(|error| wrong(&self.beside(), &error))?)?;
        let renamed = fs::rename(self.beside(), self.path()).and_then(|()| File::open(&self.home)?.sync_all());
        renamed.map_err(|error| wrong(&self.path(), &error))
    }

    /// This daemon is no node any more. Its key is kept for another attempt.
    pub fn take_back(&self) -> Result<(), Problem> {
        let key = self.read(NODE_KEY)?;
        self.remove()?;
        self.prepare(NODE_KEY, &key)
    }

    /// Forgets the cluster, keys included.
    pub fn remove(&self) -> Result<(), Problem> {
        let removed = remove(&self.beside()).and_then(|()| fs::rename(self.path(), self.beside()));
        removed.and_then(|()| remove(&self.beside())).map_err(|error| wrong(&self.path(), &error))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file that appears complete under its name, for its owner alone.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("part");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::Host, format!("{} cannot be used: {error}", path.display()))
}
