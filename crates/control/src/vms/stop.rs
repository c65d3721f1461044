//! Machines end: by themselves, because they are asked to, or because they are made to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_agent_client::{Agent, Error, Limits, Shutdown};
use queztl_api::{Code, EndingReason, Operation, OperationKind, Problem, StopRequest};
use queztl_vmm::control::Request;
use serde_json::json;

use super::lifecycle::{self, Command, Observation};
use super::{Machine, Wish};
use crate::manager::Core;
use crate::supervisor;

/// How long a guest may take to switch itself off, unless told.
const GRACE: Duration = Duration::from_secs(30);
/// How long a process may take to end when it is told to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a process.
pub(super) const END_LIMIT: Duration = Duration::from_secs(30);
/// How long the guest's programs may take at most: some never listen, such as a shell.
const PROGRAMS_GRACE: Duration = Duration::from_secs(5);
/// How long an agent may take to be reached when a machine is to stop: there may be none in the guest.
const AGENT_LIMIT: Duration = Duration::from_secs(5);

impl Core {
    pub(crate) fn stop(self: &Arc<Self>, vm: &str, request: StopRequest) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let claim = machine.claim(OperationKind::Stop, Command::Stop)?;
        let grace = grace_of(request);
        let work = machine.clone();
        self.begin(
            OperationKind::Stop,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                core.halt(&work, grace)?;
                drop(claim);
                Ok(json!(work.describe()))
            },
        )
    }

    pub(crate) fn kill(self: &Arc<Self>, vm: &str) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        // Whatever else is being done: it finds the process gone.
        machine.admit(Command::Kill)?;
        let work = machine.clone();
        self.begin(
            OperationKind::Kill,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                core.end_process(&work)?;
                Ok(json!(work.describe()))
            },
        )
    }

    pub(crate) fn reboot(self: &Arc<Self>, vm: &str, request: StopRequest) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let claim = machine.claim(OperationKind::Reboot, Command::Reboot)?;
        let grace = grace_of(request);
        let work = machine.clone();
        self.begin(
            OperationKind::Reboot,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                if !core.reboot_gently(&work, grace) {
                    core.halt(&work, Duration::ZERO)?;
                    core.run(&work, &claim)?;
                }
                drop(claim);
                Ok(json!(work.describe()))
            },
        )
    }

    /// Lets the guest restart itself; false if it has not by the end of the grace.
    fn reboot_gently(&self, machine: &Machine, grace: Duration) -> bool {
        let Some(before) = supervisor::status(&machine.folder) else { return false };
        let deadline = Instant::now() + grace;
        if grace.is_zero() || !ask_agent(machine, Shutdown::Reboot, grace) {
            return false;
        }
        while Instant::now() < deadline {
            // One that is busy with its restart may have no answer yet.
            let status = supervisor::status(&machine.folder);
            if let Some(status) = status.filter(|status| status.restarts > before.restarts) {
                machine.lock().restarts = status.restarts;
                return true;
            }
            if gone(machine, Duration::from_millis(50)) {
                return false;
            }
        }
        false
    }

    /// Asks the guest to switch itself off, and switches it off after the grace.
    pub(crate) fn halt(&self, machine: &Machine, grace: Duration) -> Result<(), Problem> {
        self.wish_off(machine, EndingReason::Stopped)?;
        let was_paused = machine.state() == queztl_api::VmState::Paused;
        if let Some(state) = machine.observe(Observation::Stopping) {
            self.tell(&machine.record(), state, "is being stopped");
        }
        let deadline = Instant::now() + grace;
        // Who stands still cannot hear.
        if !grace.is_zero() && !was_paused {
            let asked = supervisor::power_button(&machine.folder);
            let asked = ask_agent(machine, Shutdown::PowerOff, grace) || asked;
            let left = deadline.saturating_duration_since(Instant::now());
            if asked && gone(machine, left) {
                return Ok(());
            }
        }
        // A process that does not even answer is killed below.
        let _ = supervisor::command(&machine.folder, &Request::Stop {});
        if gone(machine, STOP_LIMIT) {
            return Ok(());
        }
        self.end_process(machine)
    }

    /// Ends the process of a machine at once, if there is one.
    pub(crate) fn end_process(&self, machine: &Machine) -> Result<(), Problem> {
        if !lifecycle::is_alive(machine.state()) {
            return Ok(());
        }
        self.wish_off(machine, EndingReason::Killed)?;
        let pidfd = machine.lock().live.as_ref().map(|live| live.pidfd.clone());
        if let Some(pidfd) = pidfd {
            supervisor::kill(&pidfd)?;
        }
        match gone(machine, END_LIMIT) {
            true => Ok(()),
            false => {
                let text = format!("the process of the machine has not ended after {} s", END_LIMIT.as_secs());
                Err(Problem::new(Code::Timeout, text))
            }
        }
    }

    /// Notes that the machine is not to run, and why it will have ended.
    fn wish_off(&self, machine: &Machine, reason: EndingReason) -> Result<(), Problem> {
        self.amend(machine, |record| record.wish = Wish::Off, |_, _| Ok(()))?;
        if let Some(live) = &mut machine.lock().live {
            live.ending = Some(reason);
        }
        Ok(())
    }
}

fn grace_of(request: StopRequest) -> Duration {
    request.grace_seconds.map_or(GRACE, |seconds| Duration::from_secs(seconds.into()))
}

/// Waits until the machine has no process any more.
fn gone(machine: &Machine, limit: Duration) -> bool {
    machine.wait(limit, |inner| (!lifecycle::is_alive(inner.state)).then_some(())).is_some()
}

/// Asks the agent in the guest to end it; false if there is none that could have heard it.
fn ask_agent(machine: &Machine, how: Shutdown, grace: Duration) -> bool {
    let limits = Limits { connect: AGENT_LIMIT.min(grace), answer: AGENT_LIMIT };
    let Ok(mut agent) = Agent::connect(&machine.folder.vsock(), &limits) else { return false };
    // The guest's own programs get a part of the grace.
    match agent.shut_down(how, (grace / 2).min(PROGRAMS_GRACE)) {
        Err(Error::Guest(_) | Error::Unsupported) => false,
        // The guest may end before its answer is on its way.
        Ok(()) | Err(_) => true,
    }
}
