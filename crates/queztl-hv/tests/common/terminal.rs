//! A pseudo-terminal with a program on its other side.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A terminal with the program on its other side.
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    pub child: Child,
}

impl Terminal {
    /// Starts the program on a terminal of so many columns and rows.
    pub fn start(command: &mut Command, columns: u16, rows: u16) -> Terminal {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        let size = window(columns, rows);
        // SAFETY: both numbers are written by the call; name and modes are not asked for; the size is valid.
        assert_eq!(unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), &size) }, 0);
        // SAFETY: the call has just made these descriptors for us.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid and ioctl are async-signal-safe; they make the terminal the child's own.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let child = command.spawn().unwrap();
        Terminal { master, slave, child }
    }

    /// Whether keys reach the program one by one and unseen.
    pub fn is_raw(&self) -> bool {
        // SAFETY: termios is plain data, which the call fills.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is a terminal, the pointer is valid.
        assert_eq!(unsafe { libc::tcgetattr(self.slave.as_raw_fd(), &mut modes) }, 0);
        modes.c_lflag & (libc::ICANON | libc::ECHO) == 0
    }

    /// Reads until `text` has appeared.
    pub fn wait_for(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut byte = [0];
            self.master.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Gives the terminal another size, as a window's frame does.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = window(columns, rows);
        // SAFETY: the descriptor is a terminal's, the size is valid.
        assert_eq!(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }

    pub fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Waits for the program's end.
    pub fn status(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn window(columns: u16, rows: u16) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
