//! Values of the verbs about machines, as the API has them.

use std::path::PathBuf;

use queztl_api::{Checkpoints, Disk, Name, RateLimit, VmState};
use queztl_vmm::config::{AccelChoice, RateLimit as MachineLimit};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as WordError;

use super::{LimitParts, disk_serial, size, split_commas};
use crate::topology::{self, PinArg};

/// How a machine is called: by its name or its identifier, which is made of the same letters.
pub fn vm(text: &str) -> Result<String, String> {
    text.parse::<Name>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

/// A disk and the limit of its rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    pub disk: Disk,
    pub limit: RateLimit,
}

/// `FILE`, `image=NAME` or `size=SIZE`, then `size=SIZE`, `ro`, `serial=ID`, `bps=SIZE`, `iops=N` and their bursts. A comma in
/// FILE is written twice.
pub fn disk(text: &str) -> Result<DiskArg, String> {
    let mut parts = split_commas(text).into_iter();
    let first = parts.next().filter(|first| !first.is_empty()).ok_or("a disk needs a file, image=NAME or size=SIZE")?;
    let mut disk = Disk::default();
    match first.split_once('=') {
        Some(("image", name)) => disk.image = Some(name.parse::<Name>().map_err(|error| error.to_string())?),
        Some(("size", bytes)) => disk.size_bytes = Some(size(bytes)?),
        _ => disk.path = Some(here(&first)?),
    }
    let mut limit = LimitParts::default();
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => disk.read_only = true,
            Some(("serial", id)) => disk.serial = Some(disk_serial(id)?),
            Some(("size", bytes)) if disk.path.is_none() => disk.size_bytes = Some(size(bytes)?),
            Some((key, value)) if limit.take(key, value)? => {}
            _ => {
                return Err(format!(
                    "'{part}' is not an option of this disk: there are ro, serial=ID, bps=SIZE, iops=N, bps-burst=SIZE, \
                     iops-burst=N, and for disks that are no files size=SIZE"
                ));
            }
        }
    }
    Ok(DiskArg { disk, limit: api_limit(limit.finish()?) })
}

/// The path as the daemon must have it, which has a directory of its own.
pub fn here(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("'{path}' is no path: {error}"))
}

/// A limit of the machine's options as the API has it.
pub fn api_limit(limit: MachineLimit) -> RateLimit {
    let rate = |rate: Option<queztl_vmm::config::Rate>| {
        rate.map(|rate| queztl_api::Rate { per_second: rate.per_second, burst: rate.burst })
    };
    RateLimit { bytes: rate(limit.bytes), requests: rate(limit.requests) }
}

/// What executes the guest: checked here, and passed on as it was written.
pub fn accel(text: &str) -> Result<(String, AccelChoice), String> {
    super::accel(text).map(|choice| (text.to_owned(), choice))
}

/// A share of processors; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaArg(pub Option<u32>);

/// Percent of one processor, or `none`.
pub fn quota(text: &str) -> Result<QuotaArg, String> {
    if text == "none" {
        return Ok(QuotaArg(None));
    }
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| *percent > 0);
    let wrong = || format!("'{text}' is no share: write percent of one processor, such as 150, or none");
    number.ok_or_else(wrong).map(|percent| QuotaArg(Some(percent)))
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is no label: write KEY=VALUE")),
    }
}

/// A schedule of snapshots; `None` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointsArg(pub Option<Checkpoints>);

/// `every=TIME,keep=N` in either order, or `none`.
pub fn checkpoints(text: &str) -> Result<CheckpointsArg, String> {
    if text == "none" {
        return Ok(CheckpointsArg(None));
    }
    let wrong = || format!("'{text}' is no schedule: write every=10m,keep=5 or none");
    let (mut every, mut keep) = (None, None);
    for part in text.split(',') {
        match part.split_once('=').ok_or_else(wrong)? {
            ("every", time) => every = Some(seconds(time)?),
            ("keep", count) => keep = Some(count.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        }
    }
    match (every, keep) {
        (Some(every_seconds), Some(keep)) if every_seconds > 0 => {
            Ok(CheckpointsArg(Some(Checkpoints { every_seconds, keep })))
        }
        _ => Err(wrong()),
    }
}

/// A time span in whole seconds: `30`, `30s`, `10m`, `2h`, `7d`.
pub fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a time: write a whole number and s, m, h or d, such as 30s or 10m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// A machine's state by its word.
pub fn state(text: &str) -> Result<VmState, String> {
    let words = "created, starting, running, paused, stopping, stopped, crashed";
    let word: serde::de::value::StrDeserializer<'_, WordError> = text.into_deserializer();
    VmState::deserialize(word).map_err(|_| format!("'{text}' is no state: there are {words}"))
}

/// vCPUs to pin, or the wish that none are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinOrNone(pub Option<PinArg>);

/// As for `run`, or `none`.
pub fn pin(text: &str) -> Result<PinOrNone, String> {
    if text == "none" {
        return Ok(PinOrNone(None));
    }
    topology::pin(text).map(|pin| PinOrNone(Some(pin)))
}

/// A device and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateArg {
    pub device: String,
    pub limit: RateLimit,
}

/// `DEVICE=LIMIT`.
pub fn rate(text: &str) -> Result<RateArg, String> {
    let (device, limit) = text.split_once('=').filter(|(device, _)| !device.is_empty()).ok_or_else(|| {
        format!("'{text}' limits nothing: write DEVICE=none or DEVICE=bps=SIZE,iops=N, such as disk0=bps=50M")
    })?;
    Ok(RateArg { device: device.to_owned(), limit: api_limit(super::rate_limit(limit)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_files_images_or_empty() {
        let file = disk("/a.img,ro,serial=S1").unwrap().disk;
        assert_eq!((file.path, file.read_only, file.serial), (Some("/a.img".into()), true, Some("S1".into())));
        let image = disk("image=debian,size=8G,bps=10M").unwrap();
        assert_eq!((image.disk.image, image.disk.size_bytes), (Some("debian".parse().unwrap()), Some(8 << 30)));
        assert_eq!(image.limit.bytes.unwrap().per_second, 10 << 20);
        assert_eq!(disk("size=1G").unwrap().disk, Disk { size_bytes: Some(1 << 30), ..Disk::default() });
        for text in ["", ",ro", "image=../x", "size=", "/a.img,size=1G", "/a.img,rw"] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_named_from_the_root_for_the_daemon() {
        assert!(disk("a.img").unwrap().disk.path.unwrap().is_absolute());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(["30", "30s", "10m", "2h", "7d"].map(|text| seconds(text).unwrap()), [30, 30, 600, 7200, 604_800]);
        for text in ["", "s", "1.5h", "-1", "1w", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn schedules_say_how_often_and_how_many() {
        let schedule = Checkpoints { every_seconds: 600, keep: 5 };
        assert_eq!(checkpoints("keep=5,every=10m"), Ok(CheckpointsArg(Some(schedule))));
        assert_eq!(checkpoints("none"), Ok(CheckpointsArg(None)));
        for text in ["", "every=10m", "keep=5", "every=0,keep=5", "every=1m,keep=0", "every=1m,keep=5,x"] {
            assert!(checkpoints(text).is_err(), "{text}");
        }
    }

    #[test]
    fn states_shares_labels_and_rates_are_read() {
        assert_eq!(state("running"), Ok(VmState::Running));
        assert!(state("asleep").unwrap_err().contains("crashed"));
        assert_eq!(
            (quota("150"), quota("50%"), quota("none")),
            (Ok(QuotaArg(Some(150))), Ok(QuotaArg(Some(50))), Ok(QuotaArg(None)))
        );
        assert!(quota("0").is_err());
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(label("=b").is_err());
        assert_eq!(rate("net0-tx=none").unwrap().limit, RateLimit::default());
        assert!(rate("disk0").is_err());
    }
}
