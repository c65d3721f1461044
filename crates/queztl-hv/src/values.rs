//! Values of command-line options: sizes, disks, networks and the like, from the words that people write.

use std::path::PathBuf;
use std::time::Duration;

use queztl_vmm::config::{
    AccelChoice, Backing, DiskConfig, MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES, NetConfig, SerialOutput, SoftClock,
    SoftOptions, SoftTranslator,
};

/// A disk's serial number is at most this long (Virtio 1.2 §5.2.6).
const DISK_SERIAL_BYTES: usize = 20;
/// An interface name is at most this long (`IFNAMSIZ` less the final zero).
const INTERFACE_NAME_BYTES: usize = 15;
const PAGE_BYTES: u64 = 4096;

/// A size in bytes: `512M`, `2GB`, `8GiB`, `1.5g`; a bare number is bytes. Units are binary, as is usual for RAM.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write a number and a unit, such as 512M, 2GB or 8GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let too_large = || format!("'{text}' is more than a machine can address");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(too_large);
    }
    if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() {
        return Err(too_large());
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * (1u64 << shift) as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(too_large()) }
}

/// RAM in bytes: a [`size`] of whole pages that a guest can live in.
pub fn ram(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < MIN_RAM_BYTES {
        let hint = match text.bytes().all(|b| b.is_ascii_digit()) && bytes > 0 {
            true => format!(" (a number alone is bytes: did you mean {text}M?)"),
            false => String::new(),
        };
        return Err(format!("{text} is too little RAM: give at least {} MiB{hint}", MIN_RAM_BYTES >> 20));
    }
    if bytes > MAX_RAM_BYTES {
        return Err(format!("{text} is too much RAM: a virtual machine has at most {} GiB", MAX_RAM_BYTES >> 30));
    }
    if bytes % PAGE_BYTES != 0 {
        return Err(format!("{text} is not a whole number of 4 KiB pages: round it, for example to MiB"));
    }
    Ok(bytes)
}

/// Number of vCPUs.
pub fn vcpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_VCPUS) => Ok(count),
        _ => Err(format!("a virtual machine has 1 to {MAX_VCPUS} vCPUs, not '{text}'")),
    }
}

/// `FILE[,ro][,serial=ID][,format=raw|qcow2][,backing=none|folder|any]`, a comma in FILE written twice.
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    let mut parts = split_commas(text).into_iter();
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("a disk needs a file: --disk FILE")?;
    let mut disk = DiskConfig { path: PathBuf::from(path), ..DiskConfig::default() };
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => disk.read_only = true,
            Some(("serial", id)) => disk.serial = Some(disk_serial(id)?),
            Some(("format", format)) => disk.format = Some(format.parse()?),
            Some(("backing", rule)) => disk.backing = backing(rule)?,
            _ => {
                return Err(format!(
                    "'{part}' is not an option of a disk: there are ro, serial=ID, format=raw|qcow2 and \
                     backing=none|folder|any (a comma in the file's name is written twice)"
                ));
            }
        }
    }
    Ok(disk)
}

/// Which backing files an image may lead to.
fn backing(text: &str) -> Result<Backing, String> {
    match text {
        "none" => Ok(Backing::None),
        "folder" => Ok(Backing::SameFolder),
        "any" => Ok(Backing::Any),
        _ => Err(format!("'{text}' is no rule for backing files: there are none, folder and any")),
    }
}

fn disk_serial(id: &str) -> Result<String, String> {
    if id.is_empty() || id.len() > DISK_SERIAL_BYTES || !id.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Err(format!("a disk's serial number has 1 to {DISK_SERIAL_BYTES} printable characters, not '{id}'"));
    }
    Ok(id.to_owned())
}

/// Splits at single commas; two commas are one that belongs to the text.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("there is always a last part").push(c);
        }
    }
    parts
}

/// A network device, or the wish for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg(pub Option<NetConfig>);

/// `none`, `user` or `tap=NAME`.
pub fn net(text: &str) -> Result<NetArg, String> {
    match text.split_once('=') {
        None if text == "none" => Ok(NetArg(None)),
        None if text == "user" => Ok(NetArg(Some(NetConfig::User))),
        Some(("tap", name)) => interface_name(name).map(|name| NetArg(Some(NetConfig::Tap(name)))),
        _ => Err(format!("'{text}' is not a network: write none, user or tap=NAME")),
    }
}

fn interface_name(name: &str) -> Result<String, String> {
    let valid = !name.is_empty()
        && name.len() <= INTERFACE_NAME_BYTES
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
    if valid {
        return Ok(name.to_owned());
    }
    Err(format!("'{name}' cannot name an interface: use 1 to {INTERFACE_NAME_BYTES} letters, digits, '-' or '_'"))
}

/// `auto`, `kvm`, or `soft` with `,clock=real|instructions` and `,translator=on|off` in any order.
pub fn accel(text: &str) -> Result<AccelChoice, String> {
    let unknown =
        || format!("'{text}' is not an accelerator: write auto, kvm, soft or soft,clock=instructions,translator=on");
    let mut parts = text.split(',');
    let choice = match parts.next() {
        Some("auto") => AccelChoice::Auto,
        Some("kvm") => AccelChoice::Kvm,
        Some("soft") => AccelChoice::Soft(SoftOptions::default()),
        _ => return Err(unknown()),
    };
    parts.try_fold(choice, |choice, part| {
        let AccelChoice::Soft(options) = choice else { return Err(unknown()) };
        let options = match part {
            "clock=real" => SoftOptions { clock: SoftClock::RealTime, ..options },
            "clock=instructions" => SoftOptions { clock: SoftClock::Instructions, ..options },
            "translator=on" => SoftOptions { translator: SoftTranslator::On, ..options },
            "translator=eager" => SoftOptions { translator: SoftTranslator::Eager, ..options },
            "translator=off" => SoftOptions { translator: SoftTranslator::Off, ..options },
            _ => return Err(unknown()),
        };
        Ok(AccelChoice::Soft(options))
    })
}

/// `stdio`, `file=PATH` or `none`.
pub fn serial(text: &str) -> Result<SerialOutput, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(SerialOutput::Stdio),
        None if text == "none" => Ok(SerialOutput::None),
        Some(("file", path)) if !path.is_empty() => Ok(SerialOutput::File(path.into())),
        _ => Err(format!("'{text}' is no place for serial output: write stdio, file=PATH or none")),
    }
}

/// An I/O port, decimal or with 0x.
pub fn port(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not an I/O port: write a number from 0 to 0xffff, such as 0xf4"))
}

/// A time in seconds, a fraction allowed.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: write a number of seconds above zero, such as 30 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("2GB", 2 << 30),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5g", 3 << 29),
            ("4096", 4096),
            ("64k", 64 << 10),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn other_words_are_not_sizes() {
        for text in ["", "M", "12X", "-1G", "1e3M", "1..5G", ".", "0x10M", "99999999999999999999", "99999999T", "٣M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ram_is_whole_pages_and_enough() {
        assert_eq!(ram("2M"), Ok(2 << 20));
        assert!(ram("512").unwrap_err().contains("did you mean 512M"));
        assert!(ram("0").is_err());
        assert_eq!(ram("512GB"), Ok(512 << 30));
        assert!(ram("513G").unwrap_err().contains("at most 512 GiB"));
        assert!(ram("2097153").unwrap_err().contains("4 KiB"));
    }

    #[test]
    fn vcpus_are_between_1_and_the_most() {
        assert_eq!(vcpus("256"), Ok(256));
        for text in ["0", "256", "-1", "4294967297", "two"] {
            assert!(vcpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn disks_have_options_and_may_have_commas_in_their_names() {
        let plain = DiskConfig { path: "a.img".into(), ..DiskConfig::default() };
        assert_eq!(disk("a.img"), Ok(plain.clone()));
        let serial = Some("S1".to_owned());
        assert_eq!(disk("a.img,ro,serial=S1"), Ok(DiskConfig { read_only: true, serial, ..plain }));
        assert_eq!(disk("a,,b").unwrap().path, PathBuf::from("a,b"));
        for text in ["", ",ro", "a,rw", "a,serial=", "a,serial=123456789012345678901", "a,"] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_none_user_or_a_named_interface() {
        assert_eq!(net("none"), Ok(NetArg(None)));
        assert_eq!(net("user"), Ok(NetArg(Some(NetConfig::User))));
        assert_eq!(net("tap=tap0"), Ok(NetArg(Some(NetConfig::Tap("tap0".into())))));
        for text in ["", "tap", "tap=", "tap=a/b", "tap=0123456789abcdef", "user=x", "bridge"] {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ports_are_16_bits() {
        assert_eq!((port("0xf4"), port("244")), (Ok(0xf4), Ok(0xf4)));
        for text in ["0x10000", "-1", "f4", ""] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_above_zero() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1e30", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
