//! The process that starts users' own programs as executors: what a zygote is for Python, without Python.
//!
//! It speaks as zygotes do (see `_zygote.py`), over a sequenced-packet socket on descriptor 0; each order names a program,
//! which is told what executors are told in the environment variable `CLUSTER_EXECUTOR`. It ends executors that its
//! daemon's end leaves behind, and all that they started (rule E2).
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cluster_store::segment::{recv_with_fds, send_with_fds};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::Deserialize;
use serde_json::json;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// What a program finds the terms of its service in.
const EXECUTOR: &str = "CLUSTER_EXECUTOR";
const ORDER_MAX: usize = 256 << 10;

/// An order, as `Order` of `zygote.rs` writes it.
#[derive(Deserialize)]
struct Order {
    executor: u32,
    env: BTreeMap<String, String>,
    cwd: PathBuf,
    socket: String,
    token: String,
    program: PathBuf,
}

struct Launcher {
    commands: OwnedFd,
    itself: Pid,
    executors: HashMap<Pid, (u32, OwnedFd)>,
}

/// Serves until the daemon is gone and nothing is left.
///
/// # Errors
/// If descriptor 0 is no socket of a daemon's, or the system lacks what it needs.
pub fn launch_programs() -> io::Result<()> {
    let commands = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 10)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Noticed and not acted on: what ends it is the daemon's end.
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let (ended, noticed) = UnixStream::pair()?;
    ended.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(SIGCHLD, noticed)?;
    let _ = rustix::thread::set_name(c"cml-launcher");
    let itself = rustix::process::getpid();
    // From here on there may be descendants, which it outlives its daemon to end.
    rustix::process::set_child_subreaper(Some(itself))?;
    rustix::process::set_parent_process_death_signal(None)?;
    let mut launcher = Launcher { commands, itself, executors: HashMap::new() };
    launcher.say(&json!({ "ready": "" }), &[]);
    let served = launcher.serve(ended);
    crate::orphans::end_all();
    served
}

impl Launcher {
    fn serve(&mut self, mut ended: UnixStream) -> io::Result<()> {
        let mut bytes = vec![0; ORDER_MAX];
        loop {
            let (order, child) = {
                let mut fds =
                    [PollFd::new(&self.commands, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                (!fds[0].revents().is_empty(), !fds[1].revents().is_empty())
            };
            if child {
                while matches!(ended.read(&mut [0; 64]), Ok(1..)) {}
                self.reap();
            }
            if order {
                let mut fds = Vec::new();
                match recv_with_fds(&self.commands, &mut bytes, &mut fds) {
                    Ok(0) => return Ok(()),
                    Ok(len) => self.order(&bytes[..len], fds),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Ok(()),
                }
            }
        }
    }

    fn order(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        let Ok(order) = serde_json::from_slice::<Order>(bytes) else { return };
        let Ok([page, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
            self.say(&json!({ "unforked": order.executor, "error": "its descriptors did not come" }), &[]);
            return;
        };
        match self.start(&order, &page, stdout, stderr) {
            Ok((pid, pidfd)) => {
                let number = pid.as_raw_nonzero();
                self.say(&json!({ "forked": order.executor, "pid": number }), &[pidfd.as_fd()]);
                self.executors.insert(pid, (order.executor, pidfd));
            }
            Err(error) => {
                let error = format!("the program {} cannot be run: {error}", order.program.display());
                self.say(&json!({ "unforked": order.executor, "error": error }), &[]);
            }
        }
    }

    fn start(
        &self,
        order: &Order,
        page: &OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<(Pid, OwnedFd)> {
        let terms = json!({
            "socket": order.socket, "executor": order.executor, "token": order.token, "page": page.as_raw_fd(),
        });
        let mut command = Command::new(&order.program);
        command
            .envs(&order.env)
            .env(EXECUTOR, terms.to_string())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            // What it starts can be ended with it, and a Ctrl-C at a terminal is not for it.
            .process_group(0);
        // The driver's directory need not exist on this machine.
        if order.cwd.is_dir() {
            command.current_dir(&order.cwd);
        }
        let (parent, page) = (self.itself, page.as_raw_fd());
        // SAFETY: the closure runs between fork and exec, in a copy of this process, which has one thread. It makes system
        // calls only (prctl, getppid, fcntl, sigaction by way of `signal`), all async-signal-safe, takes no lock and
        // allocates nothing (an error is made from a number). The page's descriptor is open in the parent until after the
        // fork, so the number names it here.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The launcher may have ended before that was set.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
                }
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(page), FdFlags::empty())?;
                // Cancellation is by SIGINT; until the executor can take it, there is nothing to cancel.
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                Ok(())
            });
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the process has no number"))?;
        // Before it can have been reaped, so that it names this process for ever.
        Ok((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Reports every executor that ended, and what it left running ends with it. Orphans that became this process's
    /// children are nobody's business.
    fn reap(&mut self) {
        let ended: Vec<Pid> =
            self.executors.iter().filter(|(_, (_, pidfd))| has_ended(pidfd)).map(|(pid, _)| *pid).collect();
        for pid in ended {
            // Until it is reaped, nobody else can get its process group's number.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let status = match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => status.as_raw(),
                _ => 0,
            };
            if let Some((executor, _)) = self.executors.remove(&pid) {
                let number = pid.as_raw_nonzero();
                let (user, system, max_rss) = (0.0, 0.0, 0);
                self.say(
                    &json!({
                        "exited": executor, "pid": number, "status": status,
                        "user": user, "system": system, "max_rss": max_rss,
                    }),
                    &[],
                );
            }
        }
        for pid in crate::orphans::children() {
            if !self.executors.contains_key(&pid) {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }

    /// Tells the daemon; if it is gone, the command socket says so soon.
    fn say(&self, message: &serde_json::Value, fds: &[BorrowedFd<'_>]) {
        let _ = send_with_fds(&self.commands, message.to_string().as_bytes(), fds);
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}
