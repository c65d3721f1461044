//! `queztl-hv image`: disk images made, described, checked, converted and resized.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use queztl_storage::image::{self, CreateConfig, Info, Parent, Report};
use queztl_storage::{Backing, Error, Format, ImageConfig, settle_format};
use serde_json::json;

use crate::cli::{ImageArgs, ImageCommand, OutputFormat};
use crate::output::text::size;
use crate::output::{self, Made};
use crate::report::{Failure, chain};
use crate::status::Status;
use crate::verbs::{self, Stored};

/// Executes an `image` command: here for files, by the daemon for images of the store.
pub fn execute(args: ImageArgs) -> Result<Status, Failure> {
    let command = match args.command {
        ImageCommand::Store(command) => return verbs::images(command, &args.daemon),
        command => command,
    };
    if let Some(stored) = in_store(&command)? {
        return verbs::stored(stored, &args.daemon);
    }
    match command {
        ImageCommand::Store(_) => Ok(Status::Success),
        ImageCommand::Create { file, size, format, backing, backing_format } => {
            create(file, size, format, backing, backing_format)
        }
        ImageCommand::Info { file, format, output } => info(&file, format, output),
        ImageCommand::Check { file, output } => check(&file, output),
        ImageCommand::Convert { from, to, format, output_format, any_backing } => {
            convert(&source(from, format, any_backing), &to, output_format)
        }
        ImageCommand::Resize { file, size, format, shrink } => resize(&file, size, format, shrink),
    }
}

/// The command for the store, if that is what its names mean.
fn in_store(command: &ImageCommand) -> Result<Option<Stored>, Failure> {
    let named = |path: &PathBuf| verbs::in_store(path);
    let both = || {
        Failure::usage(
            "the image is a file and what it is to build on is in the store, or the other way round: queztl-hv image import takes files into the store",
        )
    };
    Ok(match command {
        ImageCommand::Store(_) => None,
        ImageCommand::Create { file, size, format, backing, .. } => {
            let backing_name = backing.as_ref().map(named).transpose()?.flatten();
            match (named(file)?, backing, backing_name) {
                (Some(name), None, _) => {
                    Some(Stored::Create { name, size_bytes: *size, format: *format, backing: None })
                }
                (Some(name), Some(_), backing @ Some(_)) => {
                    Some(Stored::Create { name, size_bytes: *size, format: *format, backing })
                }
                (None, _, None) => None,
                _ => return Err(both()),
            }
        }
        ImageCommand::Info { file, output, .. } => named(file)?.map(|name| Stored::Info { name, output: *output }),
        ImageCommand::Check { file, output } => named(file)?.map(|name| Stored::Check { name, output: *output }),
        ImageCommand::Convert { from, to, format, output_format, any_backing } => match (named(from)?, named(to)?) {
            (Some(from), Some(to)) => Some(Stored::Convert { from, to, format: *output_format }),
            (Some(name), None) => Some(Stored::Give { name, to: to.clone(), format: *output_format }),
            (None, Some(name)) => {
                let source = source(from.clone(), *format, *any_backing);
                Some(Stored::Take { source, name, format: *output_format })
            }
            (None, None) => None,
        },
        ImageCommand::Resize { file, size, shrink, .. } => {
            named(file)?.map(|name| Stored::Resize { name, size_bytes: *size, shrink: *shrink })
        }
    })
}

fn create(
    path: PathBuf,
    size_bytes: Option<u64>,
    format: Option<Format>,
    backing: Option<PathBuf>,
    backing_format: Option<Format>,
) -> Result<Status, Failure> {
    let parent = backing.map(|path| {
        let format = settle_format(&path, backing_format).map_err(failure)?;
        Ok(Parent { path, format })
    });
    let parent = parent.transpose()?;
    let by_name = if parent.is_some() { Format::Qcow2 } else { called(&path) };
    let config = CreateConfig { format: format.unwrap_or(by_name), path, size_bytes, parent };
    let bytes = image::create(&config).map_err(failure)?;
    eprintln!("{}: {} image of {}", config.path.display(), config.format, size(bytes));
    Ok(Status::Success)
}

fn info(path: &Path, format: Option<Format>, printed: OutputFormat) -> Result<Status, Failure> {
    let info = image::info(path, format, Backing::Any).map_err(failure)?;
    let names = info.chain.iter().map(|link| link.path.display().to_string()).collect();
    output::print(&Made { value: info_json(&info), table: info_text(&info), names }, printed)
}

fn info_text(info: &Info) -> String {
    let mut text = format!("disk     {} ({} bytes)\n", size(info.disk_bytes), info.disk_bytes);
    for (depth, link) in info.chain.iter().enumerate() {
        let title = if depth == 0 { "image" } else { "backing" };
        text += &format!("{title:<9}{}: {}, {} on the host", link.path.display(), link.format, size(link.file_bytes));
        if let Some(cluster) = link.cluster_bytes {
            text += &format!(", clusters of {}", size(cluster));
        }
        if link.snapshots > 0 {
            text += &format!(", {} internal snapshots", link.snapshots);
        }
        if link.corrupt {
            text += ", marked as damaged: see queztl-hv image check";
        }
        text.push('\n');
    }
    text
}

fn info_json(info: &Info) -> serde_json::Value {
    let chain = info.chain.iter().map(|link| {
        json!({
            "path": link.path,
            "format": link.format.to_string(),
            "file_bytes": link.file_bytes,
            "cluster_bytes": link.cluster_bytes,
            "snapshots": link.snapshots,
            "corrupt": link.corrupt,
        })
    });
    json!({ "disk_bytes": info.disk_bytes, "chain": chain.collect::<Vec<_>>() })
}

fn check(path: &Path, printed: OutputFormat) -> Result<Status, Failure> {
    let report = image::check(path).map_err(failure)?;
    let names = vec![path.display().to_string()];
    let printed = output::print(&Made { value: check_json(&report), table: check_text(&report), names }, printed)?;
    match report.errors {
        0 => Ok(printed),
        errors => Err(Failure::usage(format!(
            "{} is damaged ({errors} errors): restore a copy, or save what can be read with queztl-hv image convert",
            path.display()
        ))),
    }
}

fn check_text(report: &Report) -> String {
    let mut text: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
    let Report { errors, leaked_clusters, allocated_clusters, compressed_clusters, total_clusters, .. } = report;
    text += &format!(
        "{errors} errors, {leaked_clusters} clusters lost; \
         {allocated_clusters} of {total_clusters} clusters in use, {compressed_clusters} compressed\n"
    );
    text
}

fn check_json(report: &Report) -> serde_json::Value {
    json!({
        "errors": report.errors,
        "leaked_clusters": report.leaked_clusters,
        "allocated_clusters": report.allocated_clusters,
        "compressed_clusters": report.compressed_clusters,
        "total_clusters": report.total_clusters,
        "findings": report.findings,
    })
}

/// A disk to read.
fn source(path: PathBuf, format: Option<Format>, any_backing: bool) -> ImageConfig {
    let backing = if any_backing { Backing::Any } else { Backing::SameFolder };
    ImageConfig { path, format, read_only: true, backing, direct: false, in_order: false }
}

/// Copies a disk to a new image; its format is as its name tells unless it is said.
///
/// # Errors
/// One of the two cannot be used.
pub fn convert(source: &ImageConfig, to: &Path, output_format: Option<Format>) -> Result<Status, Failure> {
    let target = output_format.unwrap_or_else(|| called(to));
    let bytes = copy(source, to, target)?;
    eprintln!("{}: {target} image of {}", to.display(), size(bytes));
    Ok(Status::Success)
}

/// Copies a disk to a new image; gives its size in bytes.
///
/// # Errors
/// One of the two cannot be used.
pub fn copy(source: &ImageConfig, to: &Path, target: Format) -> Result<u64, Failure> {
    let mut shown = None;
    let bytes = image::convert(source, to, target, |done, all| show_progress(&mut shown, done, all));
    if shown.is_some() {
        eprint!("\r\x1b[K");
    }
    bytes.map_err(failure)
}

/// One line on a terminal, renewed at each per cent; quiet elsewhere.
fn show_progress(shown: &mut Option<u64>, done: u64, all: u64) {
    let percent = (u128::from(done) * 100 / u128::from(all.max(1))) as u64;
    if *shown != Some(percent) && std::io::stderr().is_terminal() {
        *shown = Some(percent);
        eprint!("\rcopying: {percent:3} %");
        // A terminal that is gone shows no progress.
        let _ = std::io::stderr().flush();
    }
}

fn resize(path: &Path, size_bytes: u64, format: Option<Format>, shrink: bool) -> Result<Status, Failure> {
    let format = settle_format(path, format).map_err(failure)?;
    let now = image::info(path, Some(format), Backing::Any).map_err(failure)?.disk_bytes;
    if size_bytes < now && !shrink {
        return Err(Failure::usage(format!(
            "{} has {} now, and what lies behind {} would be lost: add --shrink if that is meant",
            path.display(),
            size(now),
            size(size_bytes)
        )));
    }
    image::resize(path, format, size_bytes).map_err(failure)?;
    eprintln!("{}: {} instead of {}", path.display(), size(size_bytes), size(now));
    Ok(Status::Success)
}

/// The format that a new file's name asks for.
fn called(path: &Path) -> Format {
    match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2")) {
        true => Format::Qcow2,
        false => Format::Raw,
    }
}

/// What the user named cannot be used, or the host failed.
fn failure(error: Error) -> Failure {
    match &error {
        Error::Copy(_) | Error::Queue(_) => Failure::host(chain(&error)),
        _ => Failure::usage(chain(&error)),
    }
}
