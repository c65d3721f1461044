//! Values of command-line options: sizes, disks, networks and the like, from the words that people write.

pub mod machine;

use std::path::PathBuf;
use std::time::Duration;

use queztl_vmm::config::{
    AccelChoice, Backing, DiskConfig, MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES, NetBackend, NetConfig, Rate, RateLimit,
    SerialOutput, SoftClock, SoftOptions, SoftTranslator,
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

/// `FILE[,ro][,serial=ID][,format=raw|qcow2][,backing=none|folder|any][,bps=SIZE][,iops=N]…`, a comma in FILE written
/// twice.
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    let mut parts = split_commas(text).into_iter();
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("a disk needs a file: --disk FILE")?;
    let mut disk = DiskConfig { path: PathBuf::from(path), ..DiskConfig::default() };
    let mut limit = LimitParts::default();
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => disk.read_only = true,
            Some(("serial", id)) => disk.serial = Some(disk_serial(id)?),
            Some(("format", format)) => disk.format = Some(format.parse()?),
            Some(("backing", rule)) => disk.backing = backing(rule)?,
            Some((key, value)) if limit.take(key, value)? => {}
            _ => {
                return Err(format!(
                    "'{part}' is not an option of a disk: there are ro, serial=ID, format=raw|qcow2, \
                     backing=none|folder|any, bps=SIZE, iops=N, bps-burst=SIZE and iops-burst=N (a comma in the file's \
                     name is written twice)"
                ));
            }
        }
    }
    disk.limit = limit.finish()?;
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

/// `none`, or `bps=SIZE`, `iops=N`, `bps-burst=SIZE` and `iops-burst=N` with commas in between.
pub fn rate_limit(text: &str) -> Result<RateLimit, String> {
    if text == "none" {
        return Ok(RateLimit::default());
    }
    let mut limit = LimitParts::default();
    for part in text.split(',') {
        let known = part.split_once('=').map_or(Ok(false), |(key, value)| limit.take(key, value))?;
        if !known {
            return Err(format!(
                "'{part}' is not a limit: write none, or bps=SIZE, iops=N, bps-burst=SIZE and iops-burst=N"
            ));
        }
    }
    limit.finish()
}

/// A rate limit as it is put together from its options.
#[derive(Debug, Default)]
struct LimitParts {
    bytes: (Option<u64>, Option<u64>),
    requests: (Option<u64>, Option<u64>),
}

impl LimitParts {
    /// Takes one option; false if it is none of a limit's.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let count = || value.parse::<u64>().map_err(|_| format!("'{value}' is not a number of requests"));
        let (place, number) = match key {
            "bps" => (&mut self.bytes.0, size(value)?),
            "bps-burst" => (&mut self.bytes.1, size(value)?),
            "iops" | "pps" => (&mut self.requests.0, count()?),
            "iops-burst" | "pps-burst" => (&mut self.requests.1, count()?),
            _ => return Ok(false),
        };
        if number == 0 {
            return Err(format!("{key}=0 would let nothing pass: leave it out for no limit"));
        }
        *place = Some(number);
        Ok(true)
    }

    fn finish(self) -> Result<RateLimit, String> {
        let rate = |(per_second, burst): (Option<u64>, Option<u64>)| match (per_second, burst) {
            (None, Some(_)) => Err("a burst needs the rate that it belongs to".to_owned()),
            (None, None) => Ok(None),
            (Some(per_second), Some(burst)) => Ok(Some(Rate { per_second, burst })),
            (Some(per_second), None) => Ok(Some(Rate::per_second(per_second))),
        };
        Ok(RateLimit { bytes: rate(self.bytes)?, requests: rate(self.requests)? })
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

/// `none`, `user` or `tap=NAME`, the latter two with limits such as `rx-bps=SIZE`.
pub fn net(text: &str) -> Result<NetArg, String> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let backend = match kind.split_once('=') {
        None if text == "none" => return Ok(NetArg(None)),
        None if kind == "user" => NetBackend::User,
        Some(("tap", name)) => interface_name(name).map(NetBackend::Tap)?,
        _ => return Err(format!("'{text}' is not a network: write none, user or tap=NAME")),
    };
    let (mut receive, mut transmit) = (LimitParts::default(), LimitParts::default());
    for part in parts {
        let known = match part.split_once('=') {
            Some((key, value)) => match (key.strip_prefix("rx-"), key.strip_prefix("tx-")) {
                (Some(key), _) => receive.take(key, value)?,
                (_, Some(key)) => transmit.take(key, value)?,
                _ => false,
            },
            None => false,
        };
        if !known {
            return Err(format!(
                "'{part}' is not an option of a network: there are rx-bps=SIZE, rx-pps=N, rx-bps-burst=SIZE, \
                 rx-pps-burst=N, and the same with tx-"
            ));
        }
    }
    let (receive_limit, transmit_limit) = (receive.finish()?, transmit.finish()?);
    Ok(NetArg(Some(NetConfig { receive_limit, transmit_limit, ..NetConfig::new(backend) })))
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
        for text in ["0", "257", "-1", "4294967297", "two"] {
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
        for text in ["", ",ro", "a,rw", "a,serial=", "a,serial=123456789012345678901", "a,", "a,bps", "a,bps=x"] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_none_user_or_a_named_interface() {
        assert_eq!(net("none"), Ok(NetArg(None)));
        let some = |backend| Ok(NetArg(Some(NetConfig::new(backend))));
        assert_eq!(net("user"), some(NetBackend::User));
        assert_eq!(net("tap=tap0"), some(NetBackend::Tap("tap0".into())));
        let wrong = ["none,rx-bps=1M", "user,bps=1M", "user,rx-bps", "user,", "tap=a,rx-burst=1"];
        for text in ["", "tap", "tap=", "tap=a/b", "tap=0123456789abcdef", "user=x", "bridge"].into_iter().chain(wrong)
        {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_have_a_rate_and_a_burst_of_a_tenth_of_a_second_unless_told() {
        let bytes = Some(Rate { per_second: 10 << 20, burst: 1 << 20 });
        let requests = Some(Rate { per_second: 50, burst: 7 });
        assert_eq!(rate_limit("bps=10M"), Ok(RateLimit { bytes, requests: None }));
        assert_eq!(rate_limit("iops=50,iops-burst=7,bps=10M"), Ok(RateLimit { bytes, requests }));
        assert_eq!(rate_limit("none"), Ok(RateLimit::default()));
        assert_eq!(disk("a,bps=10M,ro").unwrap().limit, RateLimit { bytes, requests: None });
        let net = net("user,tx-bps=10M,rx-pps=50,rx-pps-burst=7").unwrap().0.unwrap();
        assert_eq!(net.transmit_limit, RateLimit { bytes, requests: None });
        assert_eq!(net.receive_limit, RateLimit { bytes: None, requests });
        for text in ["", "bps", "bps=0", "iops=x", "iops-burst=5", "bps=1M,", "speed=1", "none,bps=1M"] {
            assert!(rate_limit(text).is_err(), "{text}");
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
