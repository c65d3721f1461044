//! Verbs about several machines that are asked for at once.

use std::future::Future;

use queztl_api::{Operation, StopRequest};
use queztl_client::{Client, Error};

use super::session::{Session, failure};
use super::wait;
use crate::cli::{DeleteArgs, StopArgs, Vms};
use crate::report::Failure;
use crate::status::Status;

pub async fn start(session: &Session, args: &Vms) -> Result<Status, Failure> {
    each(session, &args.vms, |client, vm| client.start(vm)).await
}

pub async fn stop(session: &Session, args: &StopArgs) -> Result<Status, Failure> {
    let request = grace(args)?;
    each(session, &args.vms.vms, |client, vm| client.stop(vm, &request)).await
}

pub async fn kill(session: &Session, args: &Vms) -> Result<Status, Failure> {
    each(session, &args.vms, |client, vm| client.kill(vm)).await
}

pub async fn pause(session: &Session, args: &Vms) -> Result<Status, Failure> {
    each(session, &args.vms, |client, vm| client.pause(vm)).await
}

pub async fn resume(session: &Session, args: &Vms) -> Result<Status, Failure> {
    each(session, &args.vms, |client, vm| client.resume(vm)).await
}

pub async fn reboot(session: &Session, args: &StopArgs) -> Result<Status, Failure> {
    let request = grace(args)?;
    each(session, &args.vms.vms, |client, vm| client.reboot(vm, &request)).await
}

pub async fn delete(session: &Session, args: &DeleteArgs) -> Result<Status, Failure> {
    each(session, &args.vms.vms, |client, vm| client.delete_vm(vm, args.force)).await
}

fn grace(args: &StopArgs) -> Result<StopRequest, Failure> {
    let seconds = args.grace.map(u32::try_from).transpose();
    let grace_seconds = seconds.map_err(|_| Failure::usage("--grace is longer than a century: choose less"))?;
    Ok(StopRequest { grace_seconds })
}

/// Asks for all, waits for all, and says one line for each that failed. The status is the first failure's.
pub async fn each<'a, F>(
    session: &'a Session,
    vms: &'a [String],
    ask: impl Fn(&'a Client, &'a str) -> F,
) -> Result<Status, Failure>
where
    F: Future<Output = Result<Operation, Error>>,
{
    let asked = vms.iter().map(|vm| ask(&session.client, vm));
    let begun = futures_util::future::join_all(asked).await;
    let begun = begun.into_iter().map(|begun| begun.map_err(failure)).collect();
    report(vms, wait::finish_all(&session.client, begun).await)
}

/// The failures, each with the name of what it is about where there are several.
pub fn report(names: &[String], ended: Vec<Result<Operation, Failure>>) -> Result<Status, Failure> {
    let mut status = Status::Success;
    let one = names.len() == 1;
    for (name, failure) in names.iter().zip(ended).filter_map(|(name, ended)| Some((name, ended.err()?))) {
        let failure = if one { failure } else { failure.about(name) };
        let failed = failure.report();
        status = if status == Status::Success { failed } else { status };
    }
    Ok(status)
}
