//! Images are made, listed, checked, converted, resized and deleted.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use queztl_api::{
    CheckReport, Code, ConvertImage, CreateImage, EventKind, Image, ImageFormat, Name, Operation, OperationKind,
    Problem, ResizeImage,
};
use queztl_storage::Backing;
use queztl_storage::image::{self, CreateConfig};
use serde_json::json;

use super::import::{broken, flatten};
use super::users::{Records, Users};
use super::{ImageRecord, folder, format, unfinished};
use crate::manager::Core;
use crate::store::IMAGES;
use crate::vms::create::parent_of;

impl Core {
    pub(crate) fn images(&self) -> Result<Vec<Image>, Problem> {
        let records = self.store.list(IMAGES)?;
        let users = self.store.write(|change| Ok(Records::read(change)?))?;
        Ok(records.into_iter().map(|(_, record)| self.describe(&record, &users)).collect())
    }

    pub(crate) fn image(&self, name: &Name) -> Result<Image, Problem> {
        self.describe_image(&self.image_record(name)?)
    }

    pub(super) fn describe_image(&self, record: &ImageRecord) -> Result<Image, Problem> {
        let users = self.store.write(|change| Ok(Records::read(change)?))?;
        Ok(self.describe(record, &users))
    }

    fn describe(&self, record: &ImageRecord, users: &Records) -> Image {
        let metadata = std::fs::metadata(record.path(&self.config.home));
        Image {
            name: record.name.clone(),
            format: record.format,
            size_bytes: record.size_bytes,
            allocated_bytes: metadata.map_or(0, |metadata| metadata.blocks() * 512),
            backing: record.backing.clone(),
            created_at: record.created_at,
            used_by: Users::of(&record.name, users).vms.into_iter().map(|(id, _)| id).collect(),
        }
    }

    pub(crate) fn create_image(self: &Arc<Self>, request: CreateImage) -> Result<Operation, Problem> {
        self.refuse_taken(&request.name)?;
        let parent = request.backing.as_ref().map(|name| self.image_record(name)).transpose()?;
        let image_format = request.format.unwrap_or(ImageFormat::Qcow2);
        if parent.is_some() && image_format == ImageFormat::Raw {
            return Err(Problem::invalid("format", "a raw image cannot build on another: leave it out, or say qcow2"));
        }
        if parent.is_none() && request.size_bytes.is_none() {
            return Err(Problem::invalid("size_bytes", "an image that builds on no other needs a size"));
        }
        if let (Some(parent), Some(bytes)) = (&parent, request.size_bytes)
            && bytes < parent.size_bytes
        {
            let message = format!("is less than the {} bytes of image {}", parent.size_bytes, parent.name);
            return Err(Problem::invalid("size_bytes", message));
        }
        self.begin(
            OperationKind::CreateImage,
            Some(request.name.to_string()),
            |_| Ok(()),
            move |core, _| {
                let path = unfinished(&core.config.home);
                let config = CreateConfig {
                    path: path.clone(),
                    format: format(image_format),
                    size_bytes: request.size_bytes,
                    parent: parent.as_ref().map(|parent| parent_of(&core.config.home, parent)),
                };
                let made = image::create(&config).map_err(|error| Problem::invalid("size_bytes", error.to_string()));
                let made = made.map(|_| (image_format, request.backing));
                core.publish(&request.name, &path, made).map(|image| json!(image))
            },
        )
    }

    pub(crate) fn check_image(self: &Arc<Self>, name: &Name) -> Result<Operation, Problem> {
        let record = self.image_record(name)?;
        self.begin(
            OperationKind::CheckImage,
            Some(name.to_string()),
            |_| Ok(()),
            move |core, _| {
                if record.format == ImageFormat::Raw {
                    // Nothing in it could be wrong.
                    return Ok(json!(CheckReport { sound: true, findings: Vec::new() }));
                }
                let report = image::check(&record.path(&core.config.home)).map_err(|error| broken(&error))?;
                Ok(json!(CheckReport { sound: report.errors == 0, findings: report.findings }))
            },
        )
    }

    pub(crate) fn convert_image(self: &Arc<Self>, name: &Name, request: ConvertImage) -> Result<Operation, Problem> {
        let record = self.image_record(name)?;
        self.refuse_taken(&request.name)?;
        self.begin(
            OperationKind::ConvertImage,
            Some(name.to_string()),
            |_| Ok(()),
            move |core, task| {
                let (from, to) = (record.path(&core.config.home), unfinished(&core.config.home));
                let copied = flatten(&from, format(record.format), Backing::Any, &to, format(request.format), task);
                core.publish(&request.name, &to, copied.map(|()| (request.format, None))).map(|image| json!(image))
            },
        )
    }

    pub(crate) fn resize_image(self: &Arc<Self>, name: &Name, request: ResizeImage) -> Result<Operation, Problem> {
        let record = self.image_record(name)?;
        if request.size_bytes < record.size_bytes && !request.shrink {
            let message =
                format!("is less than the image's {} bytes: say shrink to lose what is behind", record.size_bytes);
            return Err(Problem::invalid("size_bytes", message));
        }
        self.store.write(|change| Users::of(name, &Records::read(change)?).refuse(name, "resized"))?;
        self.begin(
            OperationKind::ResizeImage,
            Some(name.to_string()),
            |_| Ok(()),
            move |core, _| {
                let image = record.clone();
                let resized = core.store.write(|change| {
                    // Nobody can begin to build on it while this goes on.
                    Users::of(&image.name, &Records::read(change)?).refuse(&image.name, "resized")?;
                    let path = image.path(&core.config.home);
                    image::resize(&path, format(image.format), request.size_bytes)
                        .map_err(|error| Problem::invalid("size_bytes", error.to_string()))?;
                    let record = ImageRecord { size_bytes: request.size_bytes, ..image };
                    change.put(IMAGES, record.name.as_str(), &record)?;
                    Ok(record)
                })?;
                core.describe_image(&resized).map(|image| json!(image))
            },
        )
    }

    pub(crate) fn delete_image(&self, name: &Name) -> Result<(), Problem> {
        let record = self.image_record(name)?;
        self.store.write(|change| {
            Users::of(name, &Records::read(change)?).refuse(name, "deleted")?;
            change.remove(IMAGES, name.as_str())?;
            let kind = EventKind::ImageDeleted { image: name.to_string() };
            Ok(change.event(kind, format!("image {name} was deleted"))?)
        })?;
        let path = record.path(&self.config.home);
        let removed = std::fs::remove_file(&path);
        removed.map_err(|error| Problem::new(Code::Host, format!("{path:?} cannot be removed: {error}")))
    }

    /// Removes files of images that were never finished, or were being deleted; and sizes that a dead daemon has changed
    /// are read again.
    pub(crate) fn recover_images(&self) -> Result<(), Problem> {
        let home = &self.config.home;
        let records = self.store.list(IMAGES)?;
        let known: HashSet<_> = records.iter().map(|(_, record)| record.path(home)).collect();
        let failed = |error| Problem::new(Code::Host, format!("the images cannot be listed: {error}"));
        for entry in std::fs::read_dir(folder(home)).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !known.contains(&path)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(?path, %error, "what is left of an image cannot be removed");
            }
        }
        for (name, record) in records {
            let info = image::info(&record.path(home), Some(format(record.format)), Backing::Any);
            match info {
                Ok(info) if info.disk_bytes != record.size_bytes => {
                    let record = ImageRecord { size_bytes: info.disk_bytes, ..record };
                    self.store.write(|change| Ok(change.put(IMAGES, &name, &record)?))?;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(image = name, %error, "an image cannot be read"),
            }
        }
        Ok(())
    }
}
