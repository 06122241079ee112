//! Executors: forked by zygotes, watched, ended (rules E1 and E2).
//!
//! The supervisor knows processes, not tasks. What it is told to do it does at once or reports as an
//! [`ExecutorEvent`]; nothing here waits on the caller's thread.

mod exit;
mod launcher;
mod output;
pub(crate) mod poll;
mod zygote;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cluster_types::Map;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

pub(crate) use exit::Tail;
pub use launcher::launch_programs;
use zygote::{Environment, Order, Said, Zygote};

/// The soft limit of open files before [`raise_open_files`].
static OPEN_FILES_AT_START: OnceLock<Option<u64>> = OnceLock::new();

/// The hidden subcommand of `cluster` that is [`launch_programs`].
const LAUNCHER: &str = "launcher";
/// How long an executor told to end may take.
const GRACE: Duration = Duration::from_secs(2);
/// How long the output of an ended executor may be held open by something that escaped it.
const LAST_OUTPUT: Duration = Duration::from_millis(100);
/// A zygote that failed is not started again before this.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How executors are started.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// The interpreter for jobs that name none, or none that this machine has.
    pub python: PathBuf,
    /// Arguments that make the interpreter a zygote; what follows them are modules to import.
    pub arguments: Vec<String>,
    /// Modules that every executor has.
    pub preload: Vec<String>,
    /// Where executors connect.
    pub socket: PathBuf,
    /// What they show.
    pub token: String,
    /// The process has no children but zygotes, and is a subreaper: any other child was left by a zygote that was
    /// killed, and is ended.
    pub owns_all_children: bool,
}

impl SupervisorConfig {
    /// Executors of the Python package.
    pub fn new(python: PathBuf, socket: PathBuf, token: String) -> Self {
        let python = find_program(python);
        // -P: a file in the working directory must not shadow a module.
        let arguments = ["-P", "-m", "concurrent_ml._zygote", "concurrent_ml._executor:main"];
        let arguments = arguments.map(str::to_owned).to_vec();
        let preload = ["cloudpickle", "numpy"].map(str::to_owned).to_vec();
        Self { python, arguments, preload, socket, token, owns_all_children: false }
    }
}

/// What one executor is started with.
#[derive(Debug)]
pub struct ExecutorOrder {
    /// Its number.
    pub executor: u32,
    /// The job's interpreter; empty if it does not matter.
    pub python: String,
    /// `major.minor` that it must be; empty if it does not matter.
    pub python_version: String,
    /// Set in its environment.
    pub env: BTreeMap<String, String>,
    /// Its working directory, where that exists.
    pub cwd: String,
    /// Put before its own.
    pub sys_path: Vec<String>,
    /// The page it shares with the daemon.
    pub page: OwnedFd,
    /// Modules that it has imported when it starts, beside those that all have.
    pub preload: Vec<String>,
    /// What it runs instead of Python: a user's own program, which does as executors do.
    pub program: Option<PathBuf>,
}

/// What happened to an executor.
#[derive(Debug, PartialEq)]
pub enum ExecutorEvent {
    /// Its process exists.
    Started {
        /// Which.
        executor: u32,
        /// Its process.
        pid: u32,
    },
    /// It, or something it started, wrote a line past Python's own streams.
    Printed {
        /// Which.
        executor: u32,
        /// Its process.
        pid: u32,
        /// To stderr rather than stdout.
        stderr: bool,
        /// Without the newline.
        text: String,
    },
    /// Its process ended, or there never was one. The last event of an executor.
    Exited {
        /// Which.
        executor: u32,
        /// For people.
        what: String,
        /// The same, with the last lines that it wrote to its stderr past Python's own stream.
        cause: String,
    },
}

/// What became of the start of an interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// It is still importing.
    Starting,
    /// Ready; its `major.minor`.
    Ready(String),
    /// It cannot be used: a sentence.
    Failed(String),
}

/// Starts, watches and ends executors. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Supervisor {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    config: SupervisorConfig,
    events: mpsc::UnboundedSender<ExecutorEvent>,
    zygotes: Map<Environment, Started>,
    executors: Map<u32, Executor>,
    ending: bool,
}

/// A zygote and how far it is.
struct Started {
    zygote: Zygote,
    state: watch::Sender<Interpreter>,
    failed_at: Option<Instant>,
}

struct Executor {
    environment: Environment,
    process: Option<Process>,
    /// Told to end before its process was known.
    kill: bool,
    stderr: Rc<RefCell<Tail>>,
    output: Vec<tokio::task::JoinHandle<()>>,
}

struct Process {
    pid: u32,
    /// Names this process for ever; a signal through it never reaches another.
    pidfd: OwnedFd,
}

impl Supervisor {
    /// A supervisor without processes, and where its events come. The channel holds no more than what executors wrote
    /// to bounded pipes.
    pub fn new(config: SupervisorConfig) -> (Self, mpsc::UnboundedReceiver<ExecutorEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (zygotes, executors) = (Map::default(), Map::default());
        let inner = Inner { config, events, zygotes, executors, ending: false };
        (Self { inner: Rc::new(RefCell::new(inner)) }, receiver)
    }

    /// Starts the default interpreter's zygote, so that the first executor need not wait for its imports.
    pub fn prestart(&self) {
        self.interpreter("");
    }

    /// How far the interpreter for a job is; starts it if need be.
    pub fn interpreter(&self, python: &str) -> watch::Receiver<Interpreter> {
        let environment = self.inner.borrow().environment(python, &[]);
        match self.zygote(&environment) {
            Ok(()) => self.inner.borrow().zygotes[&environment].state.subscribe(),
            Err(reason) => watch::channel(Interpreter::Failed(reason)).1,
        }
    }

    /// Which interpreter runs a job that names this one.
    pub fn resolve(&self, python: &str) -> PathBuf {
        self.inner.borrow().environment(python, &[]).python
    }

    /// Whether a job names just the interpreter that this daemon runs by default.
    pub fn is_default_by_name(&self, python: &str) -> bool {
        same_interpreter(&self.inner.borrow().config.python, Path::new(python))
    }

    /// Starts an executor. Whatever happens to it comes as events, `Exited` the last.
    pub fn start(&self, order: ExecutorOrder) {
        let executor = order.executor;
        if let Err(reason) = self.try_start(order) {
            let mut inner = self.inner.borrow_mut();
            inner.executors.remove(&executor);
            let what = format!("could not start: {reason}");
            inner.tell(ExecutorEvent::Exited { executor, cause: what.clone(), what });
        }
    }

    /// Reports that an executor cannot be started.
    pub fn refuse(&self, executor: u32, reason: String) {
        let cause = format!("could not start: {reason}");
        self.inner.borrow().tell(ExecutorEvent::Exited { executor, what: cause.clone(), cause });
    }

    /// Where this machine's daemons keep their files.
    pub fn directory(&self) -> PathBuf {
        self.inner.borrow().config.socket.parent().map(Path::to_path_buf).unwrap_or_default()
    }

    fn try_start(&self, order: ExecutorOrder) -> Result<(), String> {
        let environment = match order.program {
            None => self.inner.borrow().environment(&order.python, &order.preload),
            Some(_) => self.inner.borrow().launcher()?,
        };
        self.zygote(&environment)?;
        let mut inner = self.inner.borrow_mut();
        if inner.ending {
            return Err("the daemon is ending".to_owned());
        }
        let started = inner.zygotes.get(&environment).ok_or("its interpreter has ended")?;
        if let (Interpreter::Ready(version), None) = (&*started.state.borrow(), &order.program) {
            check_version(&order.python_version, version, &environment.python)?;
        }
        let zygote = started.zygote.clone();
        let (stdout, stdout_child) = output::pipe_for_child().map_err(|error| error.to_string())?;
        let (stderr, stderr_child) = output::pipe_for_child().map_err(|error| error.to_string())?;
        let socket = inner.config.socket.to_string_lossy();
        let command = Order {
            executor: order.executor,
            env: &order.env,
            unset: &[],
            cwd: &order.cwd,
            sys_path: &order.sys_path,
            socket: &socket,
            token: &inner.config.token,
            program: order.program.as_deref(),
        };
        zygote.order(&command, [order.page, stdout_child, stderr_child])?;
        let tail = Rc::new(RefCell::new(Tail::default()));
        let output = [(stdout, false), (stderr, true)].map(|(pipe, stderr)| {
            let (weak, tail) = (Rc::downgrade(&self.inner), tail.clone());
            spawn_local(output::read_lines(pipe, move |text| {
                if stderr {
                    tail.borrow_mut().push(text);
                }
                if let Some(inner) = weak.upgrade() {
                    inner.borrow().printed(order.executor, stderr, text);
                }
            }))
        });
        let executor =
            Executor { environment, process: None, kill: false, stderr: tail, output: output.into() };
        inner.executors.insert(order.executor, executor);
        Ok(())
    }

    /// Deletes what an executor wrote down of its actor's state under this name, if it did.
    pub fn delete_state(&self, name: &str) {
        let socket = self.inner.borrow().config.socket.clone();
        let Some(path) = socket.parent().map(|dir| dir.join("checkpoints").join(name)) else { return };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "an actor's state that nobody needs stays on disk");
            }
        });
    }

    /// Ends an executor: at once, or it was told to and has two seconds.
    pub fn end(&self, executor: u32, force: bool) {
        if force {
            self.inner.borrow_mut().kill(executor);
            return;
        }
        let weak = Rc::downgrade(&self.inner);
        spawn_local(async move {
            sleep(GRACE).await;
            if let Some(inner) = weak.upgrade() {
                inner.borrow_mut().kill(executor);
            }
        });
    }

    /// Sends SIGINT to an executor: its handler looks at the shared page (rule E3).
    pub fn interrupt(&self, executor: u32) {
        self.inner.borrow_mut().signal(executor, Signal::INT);
    }

    /// Something that this daemon had started was killed: ends what it left.
    pub(crate) fn end_strays(&self) {
        self.inner.borrow().end_strays();
    }

    /// The executor's process, once it exists.
    pub fn pid(&self, executor: u32) -> Option<u32> {
        self.inner.borrow().executors.get(&executor)?.process.as_ref().map(|process| process.pid)
    }

    /// Ends all executors, all they started, and the zygotes; returns when none is left. No more can be started.
    pub async fn shutdown(&self) {
        let zygotes: Vec<Zygote> = {
            let mut inner = self.inner.borrow_mut();
            inner.ending = true;
            inner.zygotes.values().map(|started| started.zygote.clone()).collect()
        };
        for zygote in &zygotes {
            zygote.hang_up();
        }
        for zygote in zygotes {
            if timeout(Duration::from_secs(5), zygote.ended()).await.is_err() {
                tracing::error!(pid = zygote.pid(), "a zygote did not end within 5 s; killing it");
                zygote.kill();
                let _ = zygote.ended().await;
            }
        }
    }

    /// Makes sure that there is a zygote of this environment, perhaps still importing.
    fn zygote(&self, environment: &Environment) -> Result<(), String> {
        let mut inner = self.inner.borrow_mut();
        if let Some(started) = inner.zygotes.get(environment) {
            match (&*started.state.borrow(), started.failed_at) {
                (Interpreter::Failed(reason), Some(at)) if at.elapsed() < RETRY_AFTER => {
                    return Err(reason.clone());
                }
                (Interpreter::Failed(_), _) => {}
                _ => return Ok(()),
            }
        }
        let python = environment.python.display();
        let zygote = Zygote::start(environment)
            .map_err(|error| format!("cannot run the interpreter {python}: {error}"))?;
        tracing::info!(%python, pid = zygote.pid(), "zygote started");
        let state = watch::channel(Interpreter::Starting).0;
        let started = Started { zygote: zygote.clone(), state, failed_at: None };
        inner.zygotes.insert(environment.clone(), started);
        spawn_local(listen(Rc::downgrade(&self.inner), environment.clone(), zygote));
        Ok(())
    }
}

/// Hears a zygote to its end.
async fn listen(inner: Weak<RefCell<Inner>>, environment: Environment, zygote: Zygote) {
    let mut failure = None;
    while let Some((said, pidfd)) = zygote.hear().await {
        let Some(inner) = inner.upgrade() else { return };
        match said {
            Said::Ready { ready } => inner.borrow_mut().ready(&environment, ready),
            Said::Failed { failed } => failure = Some(failed),
            Said::Forked { forked, pid } => inner.borrow_mut().forked(forked, pid, pidfd),
            Said::Unforked { unforked, error } => {
                inner.borrow_mut().exited(unforked, format!("could not start: {error}"));
            }
            Said::Exited { exited, status, user, system, max_rss } => {
                tracing::debug!(executor = exited, status, user, system, max_rss, "executor exited");
                spawn_local(finish(Rc::downgrade(&inner), exited, exit::describe_wait_status(status)));
            }
        }
    }
    let status = match timeout(Duration::from_secs(5), zygote.ended()).await {
        Ok(Ok(status)) => exit::describe(status),
        Ok(Err(error)) => format!("unknown: {error}"),
        Err(_) => {
            zygote.kill();
            "silent for 5 s, killed".to_owned()
        }
    };
    let Some(inner) = inner.upgrade() else { return };
    let python = environment.python.display();
    let reason = match failure {
        Some(failure) => format!("the interpreter {python} cannot run executors: {failure}"),
        None => {
            zygote.explain(format!("the executors' parent process (the zygote of {python}) ended: {status}"))
        }
    };
    inner.borrow_mut().zygote_ended(&environment, &reason);
}

/// Waits for the last output of an executor that ended, then reports it.
async fn finish(inner: Weak<RefCell<Inner>>, executor: u32, what: String) {
    let Some(inner) = inner.upgrade() else { return };
    let output = match inner.borrow_mut().executors.get_mut(&executor) {
        Some(known) => std::mem::take(&mut known.output),
        None => return,
    };
    let deadline = tokio::time::Instant::now() + LAST_OUTPUT;
    for mut reader in output {
        if tokio::time::timeout_at(deadline, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    inner.borrow_mut().exited(executor, what);
}

impl Inner {
    fn environment(&self, python: &str, more: &[String]) -> Environment {
        let (theirs, ours) = (Path::new(python), self.config.python.as_path());
        let use_theirs = theirs.is_absolute() && !same_interpreter(ours, theirs) && theirs.exists();
        let python = if use_theirs { theirs } else { ours };
        let (arguments, mut preload) = (self.config.arguments.clone(), self.config.preload.clone());
        preload.extend(more.iter().filter(|module| !self.config.preload.contains(*module)).cloned());
        Environment { python: python.to_path_buf(), arguments, preload }
    }

    /// What starts users' own programs: this one.
    fn launcher(&self) -> Result<Environment, String> {
        let python = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
        Ok(Environment { python, arguments: vec![LAUNCHER.to_owned()], preload: Vec::new() })
    }

    fn tell(&self, event: ExecutorEvent) {
        // Nobody listens only when the daemon is ending.
        let _ = self.events.send(event);
    }

    fn ready(&mut self, environment: &Environment, version: String) {
        if let Some(started) = self.zygotes.get_mut(environment) {
            tracing::info!(python = %environment.python.display(), version, "zygote ready");
            started.state.send_replace(Interpreter::Ready(version));
        }
    }

    fn forked(&mut self, executor: u32, pid: u32, pidfd: Option<OwnedFd>) {
        let (Some(known), Some(pidfd)) = (self.executors.get_mut(&executor), pidfd) else { return };
        known.process = Some(Process { pid, pidfd });
        let kill = known.kill;
        self.tell(ExecutorEvent::Started { executor, pid });
        if kill {
            self.signal(executor, Signal::KILL);
        }
    }

    fn printed(&self, executor: u32, stderr: bool, text: &str) {
        let process = self.executors.get(&executor).and_then(|known| known.process.as_ref());
        let pid = process.map_or(0, |process| process.pid);
        self.tell(ExecutorEvent::Printed { executor, pid, stderr, text: text.to_owned() });
    }

    fn exited(&mut self, executor: u32, what: String) {
        if let Some(known) = self.executors.remove(&executor) {
            let cause = known.stderr.borrow().explain(what.clone());
            self.tell(ExecutorEvent::Exited { executor, what, cause });
        }
    }

    fn end_strays(&self) {
        if self.config.owns_all_children && !self.ending {
            let zygotes: Vec<u32> = self.zygotes.values().map(|started| started.zygote.pid()).collect();
            crate::orphans::end_all_but(&zygotes);
        }
    }

    fn zygote_ended(&mut self, environment: &Environment, reason: &str) {
        if let Some(started) = self.zygotes.get_mut(environment) {
            if !self.ending {
                tracing::error!(reason, "a zygote ended");
            }
            started.failed_at = Some(Instant::now());
            started.state.send_replace(Interpreter::Failed(reason.to_owned()));
        }
        self.end_strays();
        let theirs = self.executors.iter().filter(|(_, executor)| executor.environment == *environment);
        let orphans: Vec<u32> = theirs.map(|(executor, _)| *executor).collect();
        for executor in orphans {
            // They died with it (PDEATHSIG); this is for one that had not set that yet.
            self.signal(executor, Signal::KILL);
            self.exited(executor, reason.to_owned());
        }
    }

    fn kill(&mut self, executor: u32) {
        if let Some(known) = self.executors.get_mut(&executor) {
            known.kill = true;
        }
        self.signal(executor, Signal::KILL);
    }

    fn signal(&mut self, executor: u32, signal: Signal) {
        let process = self.executors.get(&executor).and_then(|known| known.process.as_ref());
        if let Some(process) = process {
            // Fails only if it ended, which its zygote reports.
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, signal);
        }
    }
}

/// `bin/python` and `bin/python3` of one environment; the directory counts, because it makes the environment.
fn same_interpreter(one: &Path, other: &Path) -> bool {
    let target = |path: &Path| path.canonicalize().ok();
    one == other || (one.parent() == other.parent() && target(one).is_some() && target(one) == target(other))
}

/// A bare name as the shell would find it, so that it can be told from and compared with others.
pub(crate) fn find_program(name: PathBuf) -> PathBuf {
    if name.components().count() != 1 {
        return name;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|program| program.is_file());
    found.unwrap_or(name)
}

/// Code pickled by one minor version of Python may not run in another.
pub fn check_version(asked: &str, have: &str, python: &Path) -> Result<(), String> {
    if asked.is_empty() || asked == have {
        return Ok(());
    }
    let python = python.display();
    Err(format!(
        "the driver runs Python {asked}, but executors of this node run Python {have} ({python}): use the same \
         minor version for both"
    ))
}

/// A daemon of many executors needs more descriptors than an interactive program.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    OPEN_FILES_AT_START.get_or_init(|| limit.current);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
pub(crate) mod tests;
