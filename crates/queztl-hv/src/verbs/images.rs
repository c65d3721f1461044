//! Images of the store. Commands that take files take `store:NAME` for one of these.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use queztl_api::{CheckReport, ConvertImage, CreateImage, Image, ImageFormat, ImportImage, Name, ResizeImage};
use queztl_storage::{Backing, ImageConfig};
use queztl_vmm::config::Format;

use super::session::{Session, failure};
use super::wait;
use crate::cli::{ImageStoreCommand, OutputFormat};
use crate::output::{self, List, Made};
use crate::report::Failure;
use crate::status::Status;

/// In front of the name of an image of the store, where a file could be meant.
const PREFIX: &str = "store:";

/// A command about an image of the store that exists for files too.
#[derive(Debug)]
pub enum Stored {
    Create {
        name: Name,
        size_bytes: Option<u64>,
        format: Option<Format>,
        backing: Option<Name>,
    },
    Info {
        name: Name,
        output: OutputFormat,
    },
    Check {
        name: Name,
        output: OutputFormat,
    },
    Convert {
        from: Name,
        to: Name,
        format: Option<Format>,
    },
    /// To a file.
    Give {
        name: Name,
        to: PathBuf,
        format: Option<Format>,
    },
    /// From a file.
    Take {
        source: ImageConfig,
        name: Name,
        format: Option<Format>,
    },
    Resize {
        name: Name,
        size_bytes: u64,
        shrink: bool,
    },
}

/// The name behind `store:`; none if a file is meant.
///
/// # Errors
/// What is behind it is no name.
pub fn in_store(path: &Path) -> Result<Option<Name>, Failure> {
    let name = path.to_str().and_then(|text| text.strip_prefix(PREFIX));
    name.map(str::parse::<Name>).transpose().map_err(Failure::usage)
}

/// Takes files into the store, lists it and deletes from it.
pub async fn execute(session: &Session, command: ImageStoreCommand) -> Result<Status, Failure> {
    let client = &session.client;
    match command {
        ImageStoreCommand::Import { name, file, format } => {
            let path = std::path::absolute(&file);
            let path = path.map_err(|error| Failure::usage(format!("{} is no path: {error}", file.display())))?;
            import(session, name, path, format).await
        }
        ImageStoreCommand::List { output } => {
            let mut images = client.images().await.map_err(failure)?;
            if output.format == OutputFormat::Wide {
                let names = session.names().await?;
                for user in images.iter_mut().flat_map(|image| &mut image.used_by) {
                    *user = names.get(user).unwrap_or(user).clone();
                }
            }
            output::print(&List(&images), output.format)
        }
        ImageStoreCommand::Delete { names } => {
            let mut ended = Vec::new();
            for name in &names {
                ended.push(client.delete_image(name).await.map_err(failure));
            }
            failures(&names, ended)
        }
    }
}

fn failures(names: &[Name], ended: Vec<Result<(), Failure>>) -> Result<Status, Failure> {
    let mut status = Status::Success;
    for (name, ended) in names.iter().zip(ended) {
        if let Err(failure) = ended {
            let failed = failure.about(name.as_str()).report();
            status = if status == Status::Success { failed } else { status };
        }
    }
    Ok(status)
}

/// The same commands as for files, in the store.
pub async fn stored(session: &Session, command: Stored) -> Result<Status, Failure> {
    let client = &session.client;
    let operation = match command {
        Stored::Info { name, output } => {
            let image = client.image(&name).await.map_err(failure)?;
            let table = describe(&image, &session.names().await?);
            return output::print(&Made { table, names: vec![name.to_string()], value: image }, output);
        }
        Stored::Check { name, output } => return check(session, &name, output).await,
        Stored::Create { name, size_bytes, format, backing } => {
            let request = CreateImage { name, size_bytes, format: format.map(api_format), backing };
            client.create_image(&request).await
        }
        Stored::Convert { from, to, format } => {
            let format = format.map_or(ImageFormat::Qcow2, api_format);
            client.convert_image(&from, &ConvertImage { name: to, format }).await
        }
        Stored::Give { name, to, format } => return give(session, &name, &to, format).await,
        Stored::Take { source, name, format } => return take(session, &source, name, format).await,
        Stored::Resize { name, size_bytes, shrink } => {
            client.resize_image(&name, &ResizeImage { size_bytes, shrink }).await
        }
    };
    wait::finish(client, operation.map_err(failure)?).await?;
    Ok(Status::Success)
}

/// The home of the daemon, whose images are files of this host that this user may read.
fn home(session: &Session) -> Result<&Path, Failure> {
    session.home().ok_or_else(|| {
        Failure::usage(
            "images are copied between files and the store of one's own daemon on this host: leave out --address and \
             QUEZTL_ADDRESS, or run this there",
        )
    })
}

/// Copies an image of the store to a file.
async fn give(session: &Session, name: &Name, to: &Path, format: Option<Format>) -> Result<Status, Failure> {
    let home = home(session)?;
    let image = session.client.image(name).await.map_err(failure)?;
    let stored = match image.format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow2 => Format::Qcow2,
    };
    let path = queztl_control::image_path(home, name, image.format);
    // What it builds on is in the store, too, and was decided there.
    let backing = Backing::Any;
    let source = ImageConfig { path, format: Some(stored), read_only: true, backing, direct: false, in_order: false };
    crate::image::convert(&source, to, format)
}

/// Copies a file to a new image of the store.
async fn take(session: &Session, source: &ImageConfig, name: Name, format: Option<Format>) -> Result<Status, Failure> {
    let folder = home(session)?.join("tmp");
    let made = std::fs::create_dir_all(&folder);
    made.map_err(|error| Failure::host(format!("{} cannot be made: {error}", folder.display())))?;
    let path = folder.join(format!("image-{}", std::process::id()));
    let format = format.unwrap_or(Format::Qcow2);
    let imported = match crate::image::copy(source, &path, format) {
        Ok(_) => import(session, name, path.clone(), Some(format)).await,
        Err(failure) => Err(failure),
    };
    // Where nothing was made there is nothing to remove; what stays is swept with the rest of the folder.
    let _ = std::fs::remove_file(&path);
    imported
}

async fn import(session: &Session, name: Name, path: PathBuf, format: Option<Format>) -> Result<Status, Failure> {
    let request = ImportImage { name: name.clone(), path, format: format.map(api_format) };
    let operation = session.client.import_image(&request).await.map_err(failure)?;
    wait::finish(&session.client, operation).await?;
    Ok(crate::print(&format!("{name}\n")))
}

async fn check(session: &Session, name: &Name, format: OutputFormat) -> Result<Status, Failure> {
    let operation = session.client.check_image(name).await.map_err(failure)?;
    let ended = wait::finish(&session.client, operation).await?;
    let report: CheckReport = serde_json::from_value(ended.result.unwrap_or_default())
        .map_err(|error| Failure::host(format!("the findings cannot be read: {error}")))?;
    let sound = report.sound;
    let mut table: String = report.findings.iter().map(|line| format!("{}\n", output::text::plain(line))).collect();
    table += if sound { "the image is sound\n" } else { "" };
    let printed = output::print(&Made { table, names: vec![name.to_string()], value: report }, format)?;
    if sound {
        return Ok(printed);
    }
    Err(Failure::usage(format!("image {name} is damaged: restore a copy, or save what can be read with image convert")))
}

fn describe(image: &Image, vms: &HashMap<String, String>) -> String {
    let Image { name, format, size_bytes, allocated_bytes, backing, created_at, used_by } = image;
    let users: Vec<&str> = used_by.iter().map(|id| vms.get(id).unwrap_or(id).as_str()).collect();
    output::table::fields(&[
        ("name", name.to_string()),
        ("format", output::text::word(format)),
        ("disk", output::text::size(*size_bytes)),
        ("on the host", output::text::size(*allocated_bytes)),
        ("builds on", backing.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("created", output::text::time(*created_at)),
        ("used by", users.join(", ")),
    ])
}

fn api_format(format: Format) -> ImageFormat {
    match format {
        Format::Raw => ImageFormat::Raw,
        Format::Qcow2 => ImageFormat::Qcow2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_means_the_store() {
        let name = |text: &str| in_store(Path::new(text)).unwrap().map(|name| name.to_string());
        assert_eq!(name("store:debian"), Some("debian".to_owned()));
        assert_eq!((name("debian"), name("./store:debian")), (None, None));
        assert!(in_store(Path::new("store:../x")).is_err());
    }
}
