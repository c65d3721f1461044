//! What protection costs a guest, by interval and by how much it writes; and how soon a killed host's machine goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use queztl_api::{BackupAddress, ProtectRequest, Protection, ProtectionState, VmState};

use super::{Console, Host, VM, mebibytes, milliseconds, quantile};
use crate::payload::Writer;

/// What runs.
#[derive(Debug, clap::Args)]
pub struct ProtectionArgs {
    /// From one copy to the next, ms
    #[arg(long, value_delimiter = ',', default_value = "10,25,50,100")]
    intervals: Vec<u32>,

    /// Pages that the guest writes in a second; 0 for as many as it can
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,0")]
    rates: Vec<u32>,

    /// RAM of the guest, MiB
    #[arg(long, default_value_t = 64)]
    ram: u64,

    /// Connections for memory
    #[arg(long, value_delimiter = ',', default_value = "2")]
    stripes: Vec<u32>,

    /// Seconds of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,

    /// Hosts that are killed
    #[arg(long, default_value_t = 5)]
    failovers: u32,
}

/// How often a protection is looked at.
const LOOK: Duration = Duration::from_millis(3);

/// Prints the tables.
///
/// # Errors
/// A daemon does not start, or something of it fails.
pub fn run(arguments: &ProtectionArgs, queztl: &Path) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        println!("a guest with {} MiB that writes one page after the other, protected by one backup", arguments.ram);
        println!(
            "{:>9} {:>8} {:>10} {:>10} {:>8} {:>16} {:>16} {:>11} {:>11} {:>7}",
            "interval",
            "stripes",
            "alone",
            "protected",
            "cost",
            "pause p50, p99",
            "lag p50, p99",
            "epoch",
            "wire/epoch",
            "copies"
        );
        for rate in &arguments.rates {
            costs(arguments, queztl, *rate).await?;
        }
        failovers(arguments, queztl).await
    })
}

async fn costs(arguments: &ProtectionArgs, queztl: &Path, rate: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (one, two) = hosts(queztl, folder.path()).await?;
    let time = Duration::from_secs(arguments.seconds);
    let console = one.boot(&Writer { ram_mib: arguments.ram, rate }).await?;
    for stripes in &arguments.stripes {
        for interval in &arguments.intervals {
            // Before and after, so that a change of the host's load shows.
            let before = console.rate(time / 2).await;
            let request = ProtectRequest {
                interval_ms: Some(*interval),
                stripes: *stripes,
                max_throttle: 0,
                ..request(&two, folder.path())
            };
            protect(&one, &request).await?;
            let seen = watch(&one, &console, time).await?;
            one.done(one.client.unprotect(VM).await?).await?;
            let after = console.rate(time / 2).await;
            seen.print(*interval, *stripes, (before + after) / 2.0);
        }
    }
    drop(console);
    one.stop().await;
    two.stop().await;
    Ok(())
}

/// What was seen of a protected guest.
struct Seen {
    rate: f64,
    pauses: Vec<f64>,
    lags: Vec<f64>,
    first: Protection,
    last: Protection,
}

impl Seen {
    fn print(mut self, interval: u32, stripes: u32, alone: f64) {
        let copies = (self.last.epoch - self.first.epoch).max(1);
        println!(
            "{:>6} ms {:>8} {:>8.0}/s {:>8.0}/s {:>6.1} % {:>6.2}, {:>5.2} ms {:>6.1}, {:>5.1} ms {:>7.2} MiB {:>7.2} MiB {:>7}",
            interval,
            stripes,
            alone,
            self.rate,
            (1.0 - self.rate / alone) * 100.0,
            quantile(&mut self.pauses, 0.5),
            quantile(&mut self.pauses, 0.99),
            quantile(&mut self.lags, 0.5),
            quantile(&mut self.lags, 0.99),
            mebibytes(self.last.data_bytes - self.first.data_bytes) / copies as f64,
            mebibytes(self.last.wire_bytes - self.first.wire_bytes) / copies as f64,
            copies
        );
    }
}

/// Looks at each copy that it can catch.
async fn watch(host: &Host, console: &Console, time: Duration) -> Result<Seen> {
    let first = host.client.protection(VM).await?;
    let (pages, start) = (console.pages(), Instant::now());
    let (mut last, mut pauses, mut lags) = (first.clone(), Vec::new(), Vec::new());
    while start.elapsed() < time {
        tokio::time::sleep(LOOK).await;
        let now = host.client.protection(VM).await?;
        if now.epoch != last.epoch {
            pauses.push(milliseconds(now.pause_ns));
        }
        if now.released != last.released {
            lags.push(milliseconds(now.lag_ns));
        }
        last = now;
    }
    let rate = (console.pages() - pages) as f64 / start.elapsed().as_secs_f64();
    Ok(Seen { rate, pauses, lags, first, last })
}

async fn failovers(arguments: &ProtectionArgs, queztl: &Path) -> Result<()> {
    let mut gaps = Vec::new();
    for _ in 0..arguments.failovers {
        let folder = tempfile::tempdir()?;
        let (mut one, two) = hosts(queztl, folder.path()).await?;
        let writer = Writer { ram_mib: arguments.ram, rate: 1000 };
        let console = one.boot(&writer).await?;
        protect(&one, &request(&two, folder.path())).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(console);
        let killed = one.die().await?;
        two.waits_for(VmState::Running).await?;
        let there = Console::watch(&two, &writer).await?;
        let first = there.hears_within(super::LIMIT).await?;
        gaps.push((first - killed).as_secs_f64() * 1e3);
        drop(there);
        two.stop().await;
    }
    if !gaps.is_empty() {
        let [middle, worst] = [0.5, 0.99].map(|part| quantile(&mut gaps, part));
        println!(
            "failover: from the death of daemon and machine to the guest's next byte elsewhere {middle:.0} ms (median of {}), {worst:.0} ms at worst",
            gaps.len()
        );
    }
    Ok(())
}

async fn hosts(queztl: &Path, folder: &Path) -> Result<(Host, Host)> {
    Ok((Host::start(queztl, folder.join("one")).await?, Host::start(queztl, folder.join("two")).await?))
}

fn request(backup: &Host, folder: &Path) -> ProtectRequest {
    ProtectRequest::new(
        vec![BackupAddress::to(backup.address())],
        format!("file:{}", folder.join("register").display()),
    )
}

/// Protects the guest, and waits until it is.
async fn protect(host: &Host, request: &ProtectRequest) -> Result<()> {
    if let Some(directory) = request.register.strip_prefix("file:") {
        std::fs::create_dir_all(directory)?;
    }
    host.done(host.client.protect(VM, request).await?).await?;
    let start = Instant::now();
    while host.client.protection(VM).await?.state != ProtectionState::Protected {
        if start.elapsed() > super::LIMIT {
            bail!("the guest is not protected within {:?}", super::LIMIT);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
