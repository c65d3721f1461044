//! Which of the guest's consoles has the terminal, and what the kernel must be told so that its shell is there.
//!
//! One console has the keys and the size of the terminal. The serial line's output may be shown besides: a kernel speaks
//! there until the virtio console works, and falls silent then (`earlycon`), so that nothing is shown twice.

use queztl_vmm::config::{ConsoleChoice, SerialOutput};

/// What the run's consoles are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consoles {
    pub console: ConsoleChoice,
    pub serial: SerialOutput,
}

impl Consoles {
    /// Chooses what was not asked for. A kernel command line that names its console gets that one; else our own kernel
    /// gets the virtio console, and others, which may have no driver for it at hand, the serial line. With a serial line
    /// that leads elsewhere there is no console on the terminal.
    pub fn choose(
        console: Option<ConsoleChoice>,
        serial: Option<SerialOutput>,
        append: Option<&str>,
        own_kernel: bool,
    ) -> Result<Consoles, String> {
        let named = append.and_then(named_console);
        let console = console.unwrap_or(match (&serial, named) {
            (Some(SerialOutput::Stdio), _) => ConsoleChoice::Serial,
            (_, Some(Named::Virtio)) => ConsoleChoice::Virtio,
            (Some(SerialOutput::File(_) | SerialOutput::None), _) => ConsoleChoice::None,
            (None, None) if own_kernel => ConsoleChoice::Virtio,
            (None, _) => ConsoleChoice::Serial,
        });
        let serial = serial.unwrap_or(match console {
            ConsoleChoice::None => SerialOutput::None,
            ConsoleChoice::Serial | ConsoleChoice::Virtio => SerialOutput::Stdio,
        });
        if console == ConsoleChoice::Serial && serial != SerialOutput::Stdio {
            return Err(
                "--console serial has the serial port on the terminal, but --serial leads it elsewhere: leave \
                        one of them out"
                    .to_owned(),
            );
        }
        Ok(Consoles { console, serial })
    }

    /// The words for a Linux kernel's command line.
    pub fn kernel_words(&self) -> &'static str {
        match (self.console, &self.serial) {
            (ConsoleChoice::Serial | ConsoleChoice::None, _) => "console=ttyS0",
            (ConsoleChoice::Virtio, SerialOutput::Stdio) => "earlycon=uart8250,io,0x3f8,115200 console=hvc0",
            // Different places: both get all messages, and the last one named gets the shell.
            (ConsoleChoice::Virtio, SerialOutput::File(_)) => "console=ttyS0 console=hvc0",
            (ConsoleChoice::Virtio, SerialOutput::None) => "console=hvc0",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Virtio,
    Other,
}

/// The console that gets the guest's shell: the last one that a kernel command line names.
fn named_console(cmdline: &str) -> Option<Named> {
    let name = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("console=")).next_back()?;
    Some(if name.starts_with("hvc") { Named::Virtio } else { Named::Other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConsoleChoice::{None as Nothing, Serial, Virtio};
    use SerialOutput::Stdio;

    fn file() -> SerialOutput {
        SerialOutput::File("log".into())
    }

    #[track_caller]
    fn chosen(serial: Option<SerialOutput>, append: Option<&str>, own: bool) -> (ConsoleChoice, SerialOutput) {
        let consoles = Consoles::choose(None, serial, append, own).unwrap();
        (consoles.console, consoles.serial)
    }

    #[test]
    fn our_kernel_gets_the_virtio_console_and_others_the_serial_line() {
        assert_eq!(chosen(None, None, true), (Virtio, Stdio));
        assert_eq!(chosen(None, None, false), (Serial, Stdio));
    }

    #[test]
    fn a_console_named_on_the_command_line_gets_the_terminal() {
        assert_eq!(chosen(None, Some("quiet console=ttyS0"), true), (Serial, Stdio));
        assert_eq!(chosen(None, Some("console=ttyS0 console=hvc0"), false), (Virtio, Stdio));
        assert_eq!(chosen(None, Some("console=hvc0 console=ttyS0,115200"), false), (Serial, Stdio));
        assert_eq!(chosen(Some(file()), Some("console=hvc0"), false), (Virtio, file()));
    }

    #[test]
    fn a_serial_line_that_leads_elsewhere_leaves_the_terminal_alone() {
        for own in [false, true] {
            assert_eq!(chosen(Some(file()), None, own), (Nothing, file()));
            assert_eq!(chosen(Some(SerialOutput::None), None, own), (Nothing, SerialOutput::None));
            assert_eq!(chosen(Some(Stdio), None, own), (Serial, Stdio));
        }
    }

    #[test]
    fn what_is_asked_for_is_done_and_a_contradiction_is_told() {
        let ask = |console, serial| Consoles::choose(Some(console), serial, None, true);
        assert_eq!(ask(Virtio, Some(file())), Ok(Consoles { console: Virtio, serial: file() }));
        assert_eq!(ask(Nothing, None), Ok(Consoles { console: Nothing, serial: SerialOutput::None }));
        assert_eq!(ask(Nothing, Some(Stdio)), Ok(Consoles { console: Nothing, serial: Stdio }));
        assert!(ask(Serial, Some(file())).unwrap_err().contains("leave one of them out"));
    }

    #[test]
    fn consoles_in_one_place_do_not_repeat_each_other() {
        let words = |console, serial| Consoles { console, serial }.kernel_words();
        assert!(!words(Virtio, Stdio).contains("console=ttyS0"));
        assert!(words(Virtio, Stdio).contains("earlycon"));
        assert_eq!(words(Virtio, file()), "console=ttyS0 console=hvc0");
        assert_eq!(words(Nothing, file()), "console=ttyS0");
    }
}
