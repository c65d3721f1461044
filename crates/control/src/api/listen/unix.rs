//! The daemon's Unix socket.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::ServeError;

/// The socket in the file system; removed when it is dropped, unless it is another's by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            // One that stays is found dead by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path, in the place of a dead socket if there is one. It appears there with its permissions already.
pub fn bind(path: &Path, group: Option<&str>) -> Result<(UnixListener, SocketFile), ServeError> {
    let failed = |source| ServeError::Unix { path: path.to_owned(), source };
    let group = group.map(group_id).transpose()?;
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(failed(std::io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket")));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(ServeError::Taken(path.to_owned())),
        _ => {}
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(name);
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    let made = || {
        if let Some(group) = group {
            std::os::unix::fs::chown(&beside, None, Some(group))?;
        }
        fs::set_permissions(&beside, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        let inode = fs::symlink_metadata(&beside)?.ino();
        fs::rename(&beside, path)?;
        Ok(SocketFile { path: path.to_owned(), inode })
    };
    let file = made().map_err(|source| {
        let _ = fs::remove_file(&beside);
        failed(source)
    })?;
    Ok((listener, file))
}

/// A group's number, from its name or itself.
fn group_id(group: &str) -> Result<u32, ServeError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| ServeError::NoGroup(group.to_owned()))
}
