//! Guests of a few instructions on the software CPU.

use std::process::Command;

use tempfile::TempDir;

use super::{guest, one_line, queztl};

/// `cli; hlt; jmp -3`
pub const SLEEP: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// A run of the program with such a guest.
pub struct Guest {
    /// Holds the kernel's file until the guest has run.
    _folder: TempDir,
    pub command: Command,
}

impl Guest {
    pub fn new(code: &[u8]) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        let kernel = guest(folder.path(), code);
        let mut command = queztl();
        command.args(["run", "--accel", "soft", "--ram", "16M", "--kernel"]).arg(kernel);
        Guest { _folder: folder, command }
    }

    pub fn args(mut self, args: &[&str]) -> Guest {
        self.command.args(args);
        self
    }

    #[track_caller]
    pub fn ends_with(mut self, status: i32, message: Option<&str>) -> Guest {
        let output = self.command.output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", String::from_utf8_lossy(&output.stderr));
        match message {
            Some(message) => assert!(one_line(&output).contains(message), "{}", one_line(&output)),
            None => assert_eq!(String::from_utf8_lossy(&output.stderr), ""),
        }
        self
    }
}

/// `mov dx, port; mov al, value; out dx, al`
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

pub fn then_sleep(mut code: Vec<u8>) -> Vec<u8> {
    code.extend(SLEEP);
    code
}

/// Reads the serial port and writes back each byte plus one, until `q`, which ends the run.
pub fn echo() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
        0xec, 0xa8, 0x01, // in al, dx; test al, 1
        0x74, 0xf7, // jz wait
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x3c, b'q', // cmp al, 'q'
        0x74, 0x05, // je end
        0xfe, 0xc0, 0xee, // inc al; out dx, al
        0xeb, 0xe9, // jmp wait
        0xe6, 0xf4, // end: out 0xf4, al
        0xf4,
    ]
}
