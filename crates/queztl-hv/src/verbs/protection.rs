//! `protect`, `protection`, `unprotect`.

use std::path::Path;
use std::time::Duration;

use queztl_api::{BackupAddress, ProtectRequest, Protection, ProtectionMode, ProtectionState};

use super::session::{Session, failure};
use super::wait;
use crate::cli::{Interval, OutputFormat, ProtectArgs, ProtectMode, ProtectionArgs, UnprotectArgs};
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;

/// Between two pictures of a protection that is watched.
const PICTURE: Duration = Duration::from_secs(1);

/// Begins to copy a machine to other daemons, and waits until it is protected.
pub async fn protect(session: &Session, args: ProtectArgs) -> Result<Status, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
    };
    let token = args.to_token_file.as_deref().map(read).transpose()?.map(|token| token.trim().to_owned());
    let authority = args.to_ca.as_deref().map(read).transpose()?;
    let address = |to: String| BackupAddress { to, token: token.clone(), authority: authority.clone() };
    let request = ProtectRequest {
        backup_count: args.backups,
        acks: args.acks,
        mode: match args.mode {
            ProtectMode::Pause => ProtectionMode::Pause,
            ProtectMode::BestEffort => ProtectionMode::BestEffort,
        },
        interval_ms: match args.interval {
            Interval::Auto => None,
            Interval::Fixed(ms) => Some(ms),
        },
        buffer_bytes: args.buffer,
        throttle_threshold: args.throttle_threshold,
        max_throttle: args.max_throttle,
        curve: match args.curve.strip_prefix("custom:") {
            Some(file) => format!("custom:{}", read(Path::new(file))?),
            None => args.curve,
        },
        stripes: args.stripes,
        lease_ms: args.lease,
        silence_ms: args.silence,
        again: !args.once,
        own: args.own.map(address),
        ..ProtectRequest::new(args.to.into_iter().map(address).collect(), args.register.unwrap_or_default())
    };
    let begun = session.client.protect(&args.vm.vm, &request).await.map_err(failure)?;
    wait::finish(&session.client, begun).await?;
    let told = session.client.protection(&args.vm.vm).await.map_err(failure)?;
    show(&args.vm.vm, told, args.output.format)
}

/// Shows how a machine is protected.
pub async fn protection(session: &Session, args: &ProtectionArgs) -> Result<Status, Failure> {
    loop {
        let told = session.client.protection(&args.vm.vm).await.map_err(failure)?;
        let status = show(&args.vm.vm, told, args.output.format)?;
        if !args.watch {
            return Ok(status);
        }
        tokio::time::sleep(PICTURE).await;
    }
}

/// Ends a machine's protection.
pub async fn unprotect(session: &Session, args: &UnprotectArgs) -> Result<Status, Failure> {
    let begun = session.client.unprotect(&args.vm.vm).await.map_err(failure)?;
    wait::finish(&session.client, begun).await?;
    Ok(Status::Success)
}

fn show(name: &str, told: Protection, format: OutputFormat) -> Result<Status, Failure> {
    output::print(&Made { table: table(&told), names: vec![name.to_owned()], value: told }, format)
}

fn table(told: &Protection) -> String {
    let milliseconds = |ns: u64| ns as f64 / 1e6;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let state = match told.state {
        ProtectionState::Off => "off",
        ProtectionState::Seeking => {
            "seeking: it goes on here without protection until daemons are found that keep copies"
        }
        ProtectionState::Copying => "copying: output leaves at once",
        ProtectionState::Protected if told.stalled => "protected; the guest stands still: too much output waits",
        ProtectionState::Protected => "protected",
        ProtectionState::Degraded => "degraded: copies are out of reach, output leaves at once",
        ProtectionState::Fenced => "fenced: another daemon has the machine",
    };
    let mut text = format!(
        "state     {state}\nepoch     {} of term {}, output released up to {}\n\
         interval  {:.1} ms; the guest stood still for {:.2} ms of the last one\n\
         lag       {:.1} ms from the cut to its acknowledgement\n\
         buffer    {:.2} of {:.0} MiB wait, {} frames dropped; {} % of the vCPUs' time is taken\n\
         sent      {:.2} MiB in the last epoch, {:.1} MiB in all ({:.1} MiB on the wire)\n",
        told.epoch,
        told.term,
        told.released,
        milliseconds(told.interval_ns),
        milliseconds(told.pause_ns),
        milliseconds(told.lag_ns),
        mib(told.waiting_bytes),
        mib(told.buffer_bytes),
        told.dropped_frames,
        told.throttle_percent,
        mib(told.epoch_bytes),
        mib(told.data_bytes),
        mib(told.wire_bytes),
    );
    for backup in &told.backups {
        let has = match (&backup.failed, backup.epoch) {
            (Some(why), _) => format!("out of reach: {why}"),
            (None, None) => "no whole copy yet".to_owned(),
            (None, Some(epoch)) => format!(
                "has epoch {epoch}, {:.1} ms a copy, {:.1} ms behind",
                milliseconds(backup.round_trip_ns),
                milliseconds(backup.behind_ns)
            ),
        };
        text += &format!("backup    {}: {has}\n", backup.to);
    }
    if let Some(why) = &told.seeking {
        text += &format!("seeking   {} copies are wanted: {why}\n", told.wanted);
    }
    text
}
