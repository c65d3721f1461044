//! What the agent changes of the guest as a whole.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use queztl_agent_protocol::{Shutdown, Time};

/// The calls that change the guest; tests have one that only notes them.
pub trait Machine: Sync {
    fn set_host_name(&self, name: &[u8]) -> io::Result<()>;
    fn set_clock(&self, time: Time) -> io::Result<()>;
    /// Credits `entropy` in full and seeds the kernel's generator anew.
    fn add_entropy(&self, entropy: &[u8]) -> io::Result<()>;
    /// Ends the guest; comes back only when that fails or another process does it.
    fn shut_down(&self, how: Shutdown, grace: Duration) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug)]
pub struct Linux;

// Numbers of include/uapi/linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;

/// Tells the init program of our small root file system (`guest/rootfs/init.rs`) that the machine is to start anew.
const RESTART_MARK: &str = "/run/queztl-restart";

impl Machine for Linux {
    fn set_host_name(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::system::sethostname(name)?)
    }

    fn set_clock(&self, time: Time) -> io::Result<()> {
        let time = rustix::time::Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
        Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
    }

    fn add_entropy(&self, entropy: &[u8]) -> io::Result<()> {
        let device = OpenOptions::new().write(true).open("/dev/urandom")?;
        // struct rand_pool_info: bits credited, bytes that follow, the bytes.
        let bytes = i32::try_from(entropy.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut info = Vec::with_capacity(8 + entropy.len());
        info.extend((bytes.saturating_mul(8)).to_ne_bytes());
        info.extend(bytes.to_ne_bytes());
        info.extend(entropy);
        // SAFETY: the kernel reads the header and as many bytes as it says, all of which `info` has.
        let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the request takes no argument.
        match unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn shut_down(&self, how: Shutdown, grace: Duration) -> io::Result<()> {
        if Path::new("/run/systemd/system").exists() {
            let verb = if how == Shutdown::Reboot { "reboot" } else { "poweroff" };
            let status = Command::new("systemctl").args(["--no-block", verb]).status()?;
            return if status.success() { Ok(()) } else { Err(io::Error::other("systemctl refused")) };
        }
        if how == Shutdown::Reboot {
            // Our own init program ends the machine once its shell has ended, which is before this does. Others do not mind.
            let _ = std::fs::write(RESTART_MARK, "");
        }
        // Without a service manager: everything but the first process and this one.
        // SAFETY: the calls take no pointers.
        unsafe { libc::kill(-1, libc::SIGTERM) };
        // The grace ends early when there is nobody left to wait for.
        let step = Duration::from_millis(20);
        let mut left = grace;
        while !left.is_zero() && others_run() {
            std::thread::sleep(step.min(left));
            left = left.saturating_sub(step);
        }
        // Who is left stands still rather than ends: an init whose shell ends may have plans of its own, such as to power off.
        // SAFETY: as above.
        unsafe { libc::kill(-1, libc::SIGSTOP) };
        rustix::fs::sync();
        let command = match how {
            Shutdown::PowerOff => rustix::system::RebootCommand::PowerOff,
            Shutdown::Reboot => rustix::system::RebootCommand::Restart,
        };
        Ok(rustix::system::reboot(command)?)
    }
}

/// Whether there are processes of programs besides the first and this one that may still end by themselves. Kernel threads have
/// no command line, nor have zombies; a shell at a terminal ignores SIGTERM.
fn others_run() -> bool {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|number| *number != 1 && *number != own)
        .filter(|number| std::fs::read(format!("/proc/{number}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .any(|number| !std::fs::read_to_string(format!("/proc/{number}/status")).is_ok_and(|text| ignores_end(&text)))
}

/// Whether a process with this status ignores SIGTERM: proc_pid_status(5), `SigIgn`.
fn ignores_end(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (libc::SIGTERM - 1)) != 0
}

/// Keeps the kernel from choosing the agent when memory is short. Commands do not inherit it.
pub fn protect_from_oom() {
    // Without procfs there is nothing to protect with.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ignores_the_end_is_known_by_its_status() {
        assert!(ignores_end("Name:\tsh\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000284004\n"));
        assert!(!ignores_end("SigIgn:\t0000000000000006\n"));
        assert!(!ignores_end("SigIgn:\tdamaged\n") && !ignores_end(""));
    }
}
