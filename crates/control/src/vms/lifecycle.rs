//! What a machine can be, and what can be done with it then: a state machine without processes, files or time.
//!
//! ```text
//!            start            answered              pause
//!  created ────────> starting ────────> running <────────> paused
//!  stopped ──^          │                  │ │    resume       │
//!  crashed ──^          │             stop v └── stop ──┐      │
//!     ^                 │             stopping <────────┴──────┘
//!     │                 │                │
//!     └── stopped | crashed <────────────┘   ended: from wherever a process is
//! ```

use queztl_api::VmState;

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Start,
    Stop,
    Kill,
    Pause,
    Resume,
    Reboot,
    Snapshot,
    Restore,
    /// Of the running machine.
    Clone,
    /// Without force.
    Delete,
}

/// What happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observation {
    /// Its process is being started.
    Spawned,
    /// The process answers, and says whether the guest runs.
    Answered { paused: bool },
    /// The guest is being asked to switch itself off.
    Stopping,
    /// The process has ended, as it should or not.
    Ended { crashed: bool },
}

/// Whether a process is there.
pub(crate) fn is_alive(state: VmState) -> bool {
    matches!(state, VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping)
}

/// Why a command makes no sense in a state, as the end of a sentence that begins with the machine's name.
pub(crate) fn admit(state: VmState, command: Command) -> Result<(), &'static str> {
    use VmState::{Paused, Running, Starting, Stopping};
    match (command, state) {
        (Command::Start, state) if !is_alive(state) => Ok(()),
        (Command::Start, Paused) => Err("is paused: resume it"),
        (Command::Start, _) => Err("runs already"),

        (Command::Kill, state) if is_alive(state) => Ok(()),
        (Command::Stop, Starting | Running | Paused) => Ok(()),
        (Command::Stop, Stopping) => Err("is being stopped already: wait, or kill it"),

        (Command::Pause, Running) | (Command::Resume, Paused) | (Command::Reboot, Running) => Ok(()),
        (Command::Pause, Paused) => Err("is paused already"),
        (Command::Resume, Running) => Err("runs already"),
        (Command::Snapshot | Command::Clone, Running | Paused) => Ok(()),
        (Command::Reboot, Paused) => Err("is paused: resume it first"),

        (Command::Restore, Starting | Stopping) => Err("is on its way to another state: wait, or kill it"),
        (Command::Restore, _) => Ok(()),

        (Command::Delete, state) if is_alive(state) => Err("runs: stop it first, or force its deletion"),
        (Command::Delete, _) => Ok(()),

        (_, Starting) => Err("is being started: wait until it runs"),
        (_, Stopping) => Err("is being stopped"),
        (_, _) => Err("does not run: start it first"),
    }
}

/// What a machine is after an observation.
pub(crate) fn observe(state: VmState, observation: Observation) -> VmState {
    match observation {
        Observation::Spawned => VmState::Starting,
        // Who is to stop has been asked to, whatever it does until then.
        Observation::Answered { .. } if state == VmState::Stopping => VmState::Stopping,
        Observation::Answered { paused: true } => VmState::Paused,
        Observation::Answered { paused: false } => VmState::Running,
        // It may have ended by itself meanwhile.
        Observation::Stopping if !is_alive(state) => state,
        Observation::Stopping => VmState::Stopping,
        Observation::Ended { crashed: true } => VmState::Crashed,
        Observation::Ended { crashed: false } => VmState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [VmState; 7] = [
        VmState::Created,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Stopped,
        VmState::Crashed,
    ];
    const COMMANDS: [Command; 10] = [
        Command::Start,
        Command::Stop,
        Command::Kill,
        Command::Pause,
        Command::Resume,
        Command::Reboot,
        Command::Snapshot,
        Command::Restore,
        Command::Clone,
        Command::Delete,
    ];

    /// What a machine does for a command that was admitted.
    fn obey(state: VmState, command: Command) -> VmState {
        let observed: &[Observation] = match command {
            Command::Start => &[Observation::Spawned, Observation::Answered { paused: false }],
            Command::Stop => &[Observation::Stopping, Observation::Ended { crashed: false }],
            Command::Kill => &[Observation::Ended { crashed: false }],
            Command::Pause => &[Observation::Answered { paused: true }],
            Command::Resume | Command::Reboot => &[Observation::Answered { paused: false }],
            Command::Restore => {
                &[Observation::Ended { crashed: false }, Observation::Spawned, Observation::Answered { paused: false }]
            }
            Command::Snapshot | Command::Clone | Command::Delete => &[],
        };
        observed.iter().fold(state, |state, observation| observe(state, *observation))
    }

    proptest! {
        /// Each machine can be got rid of, and started, from wherever commands and accidents have led it.
        #[test]
        fn no_state_is_a_dead_end(steps in prop::collection::vec((0..COMMANDS.len(), any::<bool>()), 0..40)) {
            let mut state = VmState::Created;
            for (command, accident) in steps {
                let command = COMMANDS[command];
                if admit(state, command).is_ok() {
                    let before = state;
                    state = obey(state, command);
                    let runs = matches!(state, VmState::Running | VmState::Paused);
                    match command {
                        Command::Start | Command::Restore | Command::Resume => prop_assert_eq!(state, VmState::Running),
                        Command::Stop | Command::Kill => prop_assert!(!is_alive(state)),
                        Command::Snapshot | Command::Clone => prop_assert!(runs && state == before),
                        Command::Delete => prop_assert!(!is_alive(state)),
                        Command::Pause => prop_assert_eq!(state, VmState::Paused),
                        Command::Reboot => prop_assert_eq!(state, VmState::Running),
                    }
                }
                if accident && is_alive(state) {
                    state = observe(state, Observation::Ended { crashed: true });
                    prop_assert_eq!(state, VmState::Crashed);
                }
            }
            if is_alive(state) {
                prop_assert!(admit(state, Command::Kill).is_ok());
                state = obey(state, Command::Kill);
            }
            prop_assert!(admit(state, Command::Start).is_ok() && admit(state, Command::Delete).is_ok());
        }
    }

    #[test]
    fn a_machine_with_a_process_can_be_killed_and_not_started_and_one_without_the_reverse() {
        for state in STATES {
            assert_eq!(admit(state, Command::Kill).is_ok(), is_alive(state), "{state:?}");
            assert_eq!(admit(state, Command::Start).is_ok(), !is_alive(state), "{state:?}");
            assert_eq!(admit(state, Command::Delete).is_ok(), !is_alive(state), "{state:?}");
        }
    }

    #[test]
    fn what_has_ended_is_not_being_stopped() {
        for state in STATES.into_iter().filter(|state| !is_alive(*state)) {
            assert_eq!(observe(state, Observation::Stopping), state);
        }
    }

    #[test]
    fn an_answer_does_not_undo_a_stop() {
        let stopping = observe(VmState::Running, Observation::Stopping);
        assert_eq!(observe(stopping, Observation::Answered { paused: false }), VmState::Stopping);
    }
}
