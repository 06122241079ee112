//! One zygote process: started, spoken to, waited for.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use cluster_store::segment::{recv_with_fds, send_with_fds};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::exit::Tail;
use super::{output, poll};

/// Executors that may share a zygote's memory: the same interpreter, the same modules imported beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Environment {
    pub(crate) python: PathBuf,
    /// What makes it a zygote.
    pub(crate) arguments: Vec<String>,
    /// Modules. A second zygote with what a job's executors were seen to import would differ in this.
    pub(crate) preload: Vec<String>,
}

/// A command to fork; descriptors for page, stdout and stderr come with it.
#[derive(Debug, Serialize)]
pub(crate) struct Order<'a> {
    pub(crate) executor: u32,
    pub(crate) env: &'a std::collections::BTreeMap<String, String>,
    pub(crate) unset: &'a [&'a str],
    pub(crate) cwd: &'a str,
    pub(crate) sys_path: &'a [String],
    pub(crate) socket: &'a str,
    pub(crate) token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<&'a std::path::Path>,
}

/// What a zygote says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Said {
    Ready { ready: String },
    Failed { failed: String },
    Forked { forked: u32, pid: u32 },
    Unforked { unforked: u32, error: String },
    Exited { exited: u32, status: i32, user: f64, system: f64, max_rss: u64 },
}

/// The longest command; a sequenced packet must fit the socket's buffer.
const ORDER_MAX: usize = 128 << 10;
const SAID_MAX: usize = 64 << 10;

/// Our end. Dropping the last handle ends the zygote and all that descends from it (rule E2).
#[derive(Clone)]
pub(crate) struct Zygote {
    shared: Rc<Shared>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    orders: RefCell<Orders>,
    child: RefCell<Child>,
    /// Stays valid, and names this process only, whatever is reaped.
    pidfd: AsyncFd<OwnedFd>,
    stderr: RefCell<Tail>,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<(Vec<u8>, [OwnedFd; 3])>,
    /// A task waits for the socket to take more.
    draining: bool,
}

impl Zygote {
    /// Starts the process. Call it on a thread that lives as long as the daemon: the kernel ends the process with the
    /// *thread* that forked it (PDEATHSIG), as long as it has no executors.
    pub(crate) fn start(environment: &Environment) -> io::Result<Zygote> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let (stderr, stderr_child) = output::pipe_for_child()?;
        let daemon = rustix::process::getpid();
        let mut command = Command::new(&environment.python);
        command
            .args(&environment.arguments)
            .args(&environment.preload)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(stderr_child.try_clone()?))
            .stderr(Stdio::from(stderr_child))
            // A Ctrl-C at the driver's terminal is the driver's business.
            .process_group(0);
        // SAFETY: the closure runs between fork and exec, in a copy of this process that has one thread. It calls
        // prctl and getppid only, which are async-signal-safe, takes no lock and allocates nothing (an error is made
        // from a number).
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The daemon may have ended before that was set.
                if rustix::process::getppid() != Some(daemon) {
                    return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the process has no number"))?;
        restore_open_files(pid);
        // Its child, not reaped yet: the number is its own.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let zygote = Zygote {
            shared: Rc::new(Shared {
                socket: poll::register(ours)?,
                orders: RefCell::default(),
                child: RefCell::new(child),
                pidfd: poll::register_readable(pidfd)?,
                stderr: RefCell::default(),
            }),
        };
        let weak = Rc::downgrade(&zygote.shared);
        tokio::task::spawn_local(output::read_lines(stderr, move |line| {
            tracing::warn!(line, "zygote printed");
            if let Some(shared) = weak.upgrade() {
                shared.stderr.borrow_mut().push(line);
            }
        }));
        Ok(zygote)
    }

    /// Sends a command, or keeps it until the socket takes it.
    pub(crate) fn order(&self, order: &Order<'_>, fds: [OwnedFd; 3]) -> Result<(), String> {
        let bytes = serde_json::to_vec(order).map_err(|error| error.to_string())?;
        if bytes.len() > ORDER_MAX {
            return Err(format!(
                "its environment variables and sys.path take {} bytes, more than the {ORDER_MAX} a process can be \
                 started with",
                bytes.len()
            ));
        }
        self.shared.orders.borrow_mut().waiting.push_back((bytes, fds));
        self.drain();
        Ok(())
    }

    /// Sends what waits; when the socket is full, goes on as soon as it is not.
    fn drain(&self) {
        let mut orders = self.shared.orders.borrow_mut();
        if orders.draining {
            return;
        }
        if self.send_waiting(&mut orders) == Progress::Blocked {
            orders.draining = true;
            let weak = Rc::downgrade(&self.shared);
            tokio::task::spawn_local(async move {
                while let Some(shared) = weak.upgrade() {
                    let zygote = Zygote { shared };
                    let Ok(mut ready) = zygote.shared.socket.writable().await else { return };
                    let mut orders = zygote.shared.orders.borrow_mut();
                    if zygote.send_waiting(&mut orders) == Progress::Done {
                        orders.draining = false;
                        return;
                    }
                    ready.clear_ready();
                }
            });
        }
    }

    fn send_waiting(&self, orders: &mut Orders) -> Progress {
        while let Some((bytes, fds)) = orders.waiting.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match send_with_fds(self.shared.socket.get_ref(), bytes, &fds) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                // Its end is noticed where it is read; that fails all its executors.
                Err(_) => orders.waiting.clear(),
            }
            orders.waiting.pop_front();
        }
        Progress::Done
    }

    /// The next thing it says, with the pidfd that may come along; `None` at its end.
    pub(crate) async fn hear(&self) -> Option<(Said, Option<OwnedFd>)> {
        let mut bytes = vec![0; SAID_MAX];
        let mut fds = Vec::new();
        loop {
            let mut ready = self.shared.socket.readable().await.ok()?;
            match ready.try_io(|socket| recv_with_fds(socket.get_ref(), &mut bytes, &mut fds)) {
                // It ended without reading an order; what it said before is still there.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Ok(Ok(0) | Err(_)) => return None,
                Ok(Ok(len)) => match serde_json::from_slice(&bytes[..len]) {
                    Ok(said) => return Some((said, fds.pop())),
                    Err(error) => tracing::error!(%error, "a zygote said what is no message of ours"),
                },
                Err(_would_block) => {}
            }
        }
    }

    /// Waits until the process ended.
    pub(crate) async fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.shared.pidfd.readable().await?;
            if let Some(status) = self.shared.child.borrow_mut().try_wait()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }

    /// Tells it to end everything that descends from it and then itself, by ending the conversation.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
    }

    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.shared.pidfd.get_ref(), Signal::KILL);
    }

    pub(crate) fn explain(&self, what: String) -> String {
        self.shared.stderr.borrow().explain(what)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.shared.child.borrow().id()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Left unreaped it would be a zombie until the daemon ends. It ends within milliseconds of the hang-up.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
        let deadline = Instant::now() + Duration::from_secs(2);
        let child = self.child.get_mut();
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Progress {
    Done,
    Blocked,
}

/// The daemon raises its own limit of open files; user code should see what it would see without us.
fn restore_open_files(pid: Pid) {
    if let Some(&current) = super::OPEN_FILES_AT_START.get() {
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        let _ = rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum: hard });
    }
}
