//! Daemons as processes: found by pid file, told from later ones with the same id by their start time, ended for good.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::CliError;
use crate::run_dir::RunDir;

/// For how long a process may be about to end.
const DYING: Duration = Duration::from_secs(5);

/// A live process. The descriptor stands for it and no other, even when its id is used again.
#[derive(Debug)]
pub struct Daemon {
    pub pid: u32,
    fd: OwnedFd,
}

impl Daemon {
    /// The process whose id and start time a pid file holds, if it lives.
    pub fn from_pid_file(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        let daemon = Self::open(pid)?;
        // Asked after the descriptor was made, so the answer is about the same process.
        let started: u64 = started.trim().parse().ok()?;
        let Some(is) = start_time(pid) else {
            // Killed: until the last of its threads is gone it holds its locks, its socket and its ports.
            daemon.wait(DYING);
            return None;
        };
        (is == started).then_some(daemon)
    }

    /// The process that has this id now.
    pub fn open(pid: u32) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty()).ok()? })
    }

    /// Writes the pid file of a child.
    pub fn write_pid_file(dir: &RunDir, name: &str, pid: u32) -> Result<(), CliError> {
        // A child that has ended is a zombie until waited for, so its start time can still be read.
        let started = start_time(pid).unwrap_or(0);
        dir.write_private(&dir.pid_file(name), &format!("{pid} {started}\n"))
    }

    pub fn signal(&self, signal: Signal) {
        // The only errors are that it has ended, or is not ours, which the wait will show.
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until it has ended; false if it has not by then.
    pub fn wait(&self, patience: Duration) -> bool {
        wait_readable(&self.fd, Instant::now() + patience)
    }
}

/// Waits until a descriptor can be read (a pidfd can once its process has ended); false at the deadline.
pub fn wait_readable(fd: &impl std::os::fd::AsFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// In ticks since the machine started; `None` if the process is gone or only a zombie is left of it.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_its_file_and_another_with_its_id_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path().join("run"));
        dir.create().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        Daemon::write_pid_file(&dir, "head", child.id()).unwrap();
        let daemon = Daemon::from_pid_file(&dir.pid_file("head")).unwrap();
        assert_eq!(daemon.pid, child.id());

        dir.write_private(&dir.pid_file("worker"), &format!("{} 1\n", child.id())).unwrap();
        assert!(
            Daemon::from_pid_file(&dir.pid_file("worker")).is_none(),
            "another start time, another process"
        );

        assert!(!daemon.wait(Duration::from_millis(1)));
        daemon.signal(Signal::TERM);
        assert!(daemon.wait(Duration::from_secs(10)));
        assert!(Daemon::from_pid_file(&dir.pid_file("head")).is_none(), "a zombie is no daemon");
        child.wait().unwrap();
        assert!(Daemon::from_pid_file(&dir.pid_file("head")).is_none());
    }

    #[test]
    fn nonsense_in_a_pid_file_is_no_process() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("head.pid");
        for text in ["", "12", "x y", "-1 4", "99999999999 1", "0 0"] {
            std::fs::write(&path, text).unwrap();
            assert!(Daemon::from_pid_file(&path).is_none(), "{text}");
        }
    }
}
