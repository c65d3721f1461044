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

/// Writes a number to the first word of each of 2,048 pages, from 2 MiB on, looks whether all have it, and does so again with
/// the next number, for ever; a page that has another ends the run with 3. Between two numbers, a byte from the serial port is
/// written back plus one.
pub fn writer() -> Vec<u8> {
    vec![
        0x31, 0xdb, // xor ebx, ebx
        0x43, // next: inc ebx
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
        0x89, 0x1f, // write: mov [edi], ebx
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
        0x81, 0xff, 0x00, 0x00, 0xa0, 0x00, // cmp edi, 0xa00000
        0x72, 0xf0, // jb write
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
        0x39, 0x1f, // look: cmp [edi], ebx
        0x75, 0x21, // jne wrong
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
        0x81, 0xff, 0x00, 0x00, 0xa0, 0x00, // cmp edi, 0xa00000
        0x72, 0xee, // jb look
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, 0xa8, 0x01, // in al, dx; test al, 1
        0x74, 0xca, // jz next
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, 0xfe, 0xc0, 0xee, // in al, dx; inc al; out dx, al
        0xeb, 0xc0, // jmp next
        0xb0, 0x03, 0xe6, 0xf4, // wrong: mov al, 3; out 0xf4, al
        0xeb, 0xfa, // jmp wrong
    ]
}

/// A guest that fills 12 MiB with what each page should hold, then looks at each page again and again and counts in it how often
/// it has; a page that is not as it was left ends it with status 3. To a key it says the next one.
pub fn keeper() -> Vec<u8> {
    vec![
        0x31, 0xdb, // xor ebx, ebx
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
        0x89, 0xf8, // fill: mov eax, edi
        0x35, 0x5a, 0x5a, 0x5a, 0x5a, // xor eax, 0x5a5a5a5a
        0x89, 0x07, // mov [edi], eax
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
        0x81, 0xff, 0x00, 0x00, 0xe0, 0x00, // cmp edi, 0xe00000
        0x72, 0xe9, // jb fill
        0xbf, 0x00, 0x00, 0x20, 0x00, // next: mov edi, 0x200000
        0x89, 0xf8, // look: mov eax, edi
        0x35, 0x5a, 0x5a, 0x5a, 0x5a, // xor eax, 0x5a5a5a5a
        0x39, 0x07, // cmp [edi], eax
        0x75, 0x2a, // jne wrong
        0x39, 0x5f, 0x04, // cmp [edi+4], ebx
        0x75, 0x25, // jne wrong
        0xff, 0x47, 0x04, // inc dword [edi+4]
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
        0x81, 0xff, 0x00, 0x00, 0xe0, 0x00, // cmp edi, 0xe00000
        0x72, 0xdf, // jb look
        0x43, // inc ebx
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, 0xa8, 0x01, // in al, dx; test al, 1
        0x74, 0xd0, // jz next
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, 0xfe, 0xc0, 0xee, // in al, dx; inc al; out dx, al
        0xeb, 0xc6, // jmp next
        0xb0, 0x03, 0xe6, 0xf4, // wrong: mov al, 3; out 0xf4, al
        0xeb, 0xfa, // jmp wrong
    ]
}
