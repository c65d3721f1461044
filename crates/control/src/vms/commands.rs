//! Small commands to machines that run.

use std::sync::Arc;

use queztl_api::{Operation, OperationKind, Problem};
use queztl_vmm::control::Request;
use serde_json::json;

use super::lifecycle::{Command, Observation};
use crate::manager::Core;
use crate::supervisor;

impl Core {
    pub(crate) fn pause(self: &Arc<Self>, vm: &str) -> Result<Operation, Problem> {
        self.hold(vm, OperationKind::Pause, Command::Pause, Request::Pause {}, true)
    }

    pub(crate) fn resume(self: &Arc<Self>, vm: &str) -> Result<Operation, Problem> {
        self.hold(vm, OperationKind::Resume, Command::Resume, Request::Resume {}, false)
    }

    fn hold(
        self: &Arc<Self>,
        vm: &str,
        kind: OperationKind,
        command: Command,
        request: Request,
        paused: bool,
    ) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let claim = machine.claim(kind, command)?;
        let work = machine.clone();
        self.begin(
            kind,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                supervisor::command(&work.folder, &request)?;
                if let Some(state) = work.observe(Observation::Answered { paused }) {
                    core.tell(&work.record(), state, if paused { "is paused" } else { "goes on" });
                }
                drop(claim);
                Ok(json!(work.describe()))
            },
        )
    }
}
