//! `copy`: by the machine's own socket where this user can reach it, else single files through the daemon.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use queztl_client::Client;
use tokio::sync::mpsc::channel;

use super::session::{Session, failure, runtime};
use crate::guest::{self, CopyArgs, Way};
use crate::report::Failure;
use crate::status::Status;

/// How much of a file goes at a time.
const PART: usize = 64 << 10;

/// Copies into a guest or out of one.
///
/// # Errors
/// Wrong paths, and all that can fail on the way.
pub fn copy(args: &CopyArgs) -> Result<Status, Failure> {
    let (vm, way) = guest::way(args)?;
    if let Some(vsock) = &args.target.vsock {
        return guest::copy(args, vsock, &way);
    }
    let session = Session::new(&args.target.daemon)?;
    let runtime = runtime()?;
    let vm = runtime.block_on(session.running(&vm))?;
    if let Some(vsock) = session.vsock(&vm.id) {
        return guest::copy(args, &vsock, &way);
    }
    runtime.block_on(async {
        match &way {
            Way::In { from, to } => put(&session.client, &vm.id, from, to).await,
            Way::Out { from, to } => get(&session.client, &vm.id, from, to, args.max_size).await,
        }
    })?;
    Ok(Status::Success)
}

fn text(path: &OsStr) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::usage(format!("{} is no text: the daemon takes UTF-8", path.display())))
}

async fn put(client: &Client, vm: &str, from: &Path, to: &OsStr) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", from.display()));
    let metadata = std::fs::metadata(from).map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!(
            "{} is no file: through a daemon on another host, single files can be copied",
            from.display()
        )));
    }
    let mut file = std::fs::File::open(from).map_err(failed)?;
    let (sender, receiver) = channel(4);
    let reading = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; PART];
        loop {
            let part = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(buffer[..count].to_vec().into()),
                Err(error) => Err(error),
            };
            let is_last = part.is_err();
            if sender.blocking_send(part).is_err() || is_last {
                return;
            }
        }
    });
    let mode = metadata.permissions().mode() & 0o777;
    let written = client.write_file(vm, text(to)?, mode, receiver).await.map_err(failure);
    // It ends with its reader.
    let _ = reading.await;
    written
}

async fn get(client: &Client, vm: &str, from: &OsStr, to: &Path, most: u64) -> Result<(), Failure> {
    let name = Path::new(from).file_name().ok_or_else(|| Failure::usage("name a file of the guest"))?;
    let to = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let failed = |error: std::io::Error| Failure::usage(format!("cannot write {}: {error}", to.display()));
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut parts = client.read_file(vm, text(from)?).await.map_err(failure)?;
    // Complete, or not at all.
    let temporary = folder.join(format!(".{}.{}", name.display(), std::process::id()));
    let mut file = std::fs::File::options().write(true).create_new(true).open(&temporary).map_err(failed)?;
    let mut taken = 0;
    let copied = async {
        while let Some(part) = parts.next().await.map_err(failure)? {
            taken += part.len() as u64;
            if taken > most {
                return Err(Failure::usage("the file is larger than --max-size"));
            }
            file.write_all(&part).map_err(failed)?;
        }
        std::fs::rename(&temporary, &to).map_err(failed)
    };
    let copied = copied.await;
    if copied.is_err() {
        // The first failure is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    copied
}
