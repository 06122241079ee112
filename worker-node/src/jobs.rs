//! Submitted jobs as the daemon sees them: a process beside each, and what it says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cluster_packages::Chunks;
use cluster_types::NodeToHead;
use cluster_types::client_node::LogLine;
use cluster_types::job::{JobFromNode, JobOrder, JobStage, LogOf, LogPiece, LogQuery, RuntimeEnv};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use worker_core::Event;

use crate::environments::{CHUNKS_DIR, Prepared, Unprepared, Workshop};
use crate::event_loop::{Daemon, Handle};
use crate::job_process::{JobTask, SUBCOMMAND, log_name};
use crate::log_archive;
use crate::log_files::{self, LogWriter};
use crate::supervisor::ExecutorOrder;

/// What the daemon wants of a job's process.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wish {
    Stop,
    Kill,
}

/// What jobs and logs of this node need of the daemon.
pub(crate) struct JobsHere {
    /// The daemon's directory.
    dir: PathBuf,
    /// What programs connect to, as `CLUSTER_ADDRESS`.
    address: String,
    /// The node's interpreter.
    python: PathBuf,
    /// Where logs of jobs are copied to; empty: nowhere.
    archive: String,
    /// How to reach the process of each job.
    wishes: HashMap<String, mpsc::UnboundedSender<Wish>>,
    /// Who writes what executors print, by process.
    writers: HashMap<u32, LogWriter>,
    /// How many logs of executors were opened so far.
    opened: u64,
    /// Environments of executors that were made.
    pub(crate) environments: HashMap<RuntimeEnv, Prepared>,
    /// What the loop's own task does; bounded by what the head asks.
    work: mpsc::UnboundedSender<Work>,
    to_do: Option<mpsc::UnboundedReceiver<Work>>,
}

/// Something that takes time.
pub(crate) enum Work {
    /// Run a job's process.
    Run(Box<JobTask>, mpsc::UnboundedReceiver<Wish>),
    /// Make an environment, and start an executor in it.
    Prepare { env: RuntimeEnv, order: Box<ExecutorOrder> },
    /// Read a piece of a log.
    Read { ask: u64, log: LogQuery, ended: bool },
}

/// Files of executors kept open at a time.
const OPEN_LOGS: usize = 256;
/// How their logs' names begin.
const EXECUTOR_LOGS: &str = "executor-";
/// What executors printed is kept in so many files, of so many bytes, and then the oldest goes.
const EXECUTOR_FILES_MAX: usize = 10_000;
const EXECUTOR_BYTES_MAX: u64 = 4 << 30;
/// So many logs are opened between two looks at how much there is.
const OPENED_BETWEEN: u64 = 64;

fn log_of_executor(pid: u32) -> String {
    format!("{EXECUTOR_LOGS}{pid}")
}

impl Default for JobsHere {
    fn default() -> Self {
        let (work, to_do) = mpsc::unbounded_channel();
        JobsHere {
            dir: PathBuf::new(),
            address: String::new(),
            archive: String::new(),
            python: "python3".into(),
            wishes: HashMap::new(),
            writers: HashMap::new(),
            opened: 0,
            environments: HashMap::new(),
            work,
            to_do: Some(to_do),
        }
    }
}

/// Begins to do what the daemon leaves for later.
pub(crate) fn start(handle: &Handle) {
    let Some(mut to_do) = handle.borrow().jobs.to_do.take() else { return };
    let handle = handle.clone();
    tokio::task::spawn_local(async move {
        while let Some(work) = to_do.recv().await {
            match work {
                Work::Run(task, wished) => {
                    tokio::task::spawn_local(look_after(handle.clone(), task, wished));
                }
                Work::Prepare { env, order } => {
                    tokio::task::spawn_local(start_when_prepared(handle.clone(), env, *order));
                }
                Work::Read { ask, log, ended } => {
                    tokio::task::spawn_local(answer(handle.clone(), ask, log, ended));
                }
            }
        }
    });
}

impl JobsHere {
    /// Said once, before anything is run or kept.
    pub(crate) fn set_up(&mut self, dir: &Path, address: &str, python: &Path, archive: &str) {
        // The processes beside jobs have directories of their own.
        self.dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        self.address = address.to_owned();
        self.archive = archive.to_owned();
        self.python = crate::supervisor::find_program(python.to_path_buf());
    }

    /// Files that travel by content.
    pub(crate) fn chunks(&self) -> Chunks {
        Chunks::new(&self.dir.join(CHUNKS_DIR))
    }

    pub(crate) fn later(&self, work: Work) {
        // The receiver lives as long as the loop.
        let _ = self.work.send(work);
    }

    /// What an executor printed, into its log: time, stream, task, text.
    pub(crate) fn keep_line(&mut self, line: &LogLine) {
        if self.dir.as_os_str().is_empty() {
            return;
        }
        if self.writers.len() > OPEN_LOGS {
            self.writers.clear();
        }
        let dir = self.dir.join("logs");
        if !self.writers.contains_key(&line.pid) {
            if self.opened.is_multiple_of(OPENED_BETWEEN) {
                let open: HashSet<String> = self.writers.keys().map(|pid| log_of_executor(*pid)).collect();
                let is_open = move |log: &str| open.contains(log);
                log_files::prune(&dir, EXECUTOR_LOGS, EXECUTOR_FILES_MAX, EXECUTOR_BYTES_MAX, is_open);
            }
            self.opened += 1;
        }
        let writer =
            self.writers.entry(line.pid).or_insert_with(|| LogWriter::new(&dir, &log_of_executor(line.pid)));
        let task = line.task.as_ref().map_or_else(|| "-".to_owned(), |(task, _)| task.to_string());
        let stream = if line.stderr { "err" } else { "out" };
        let text = format!("{task} {stream} {}\n", line.text);
        if let Err(error) = writer.write(text.as_bytes()) {
            tracing::warn!(%error, pid = line.pid, "what an executor printed cannot be kept");
        }
    }
}

impl Daemon {
    pub(crate) fn start_job(&mut self, order: Box<JobOrder>) {
        let (wishes, wished) = mpsc::unbounded_channel();
        self.jobs.wishes.insert(order.job.clone(), wishes);
        let mut env = BTreeMap::new();
        let gpus: Vec<u16> = order.gpus.iter().map(|(index, _)| *index).collect();
        crate::devices::show_devices(&mut env, &gpus, &self.machine.gpu_names);
        let own = [
            ("CLUSTER_ADDRESS", self.jobs.address.clone()),
            ("CLUSTER_DIR", self.jobs.dir.display().to_string()),
            ("CLUSTER_TOKEN", self.token.clone()),
            ("CLUSTER_JOB_ID", order.job.clone()),
            ("CLUSTER_JOB_NAME", order.spec.name.clone()),
            ("CLUSTER_JOB_ATTEMPT", order.attempt.to_string()),
        ];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let task = Box::new(JobTask {
            order,
            dir: self.jobs.dir.clone(),
            env: env.into_iter().collect(),
            python: self.jobs.python.clone(),
            token: self.token.clone(),
            archive: self.jobs.archive.clone(),
        });
        self.jobs.later(Work::Run(task, wished));
    }

    pub(crate) fn stop_job(&mut self, job: &str, at_once: bool) {
        if let Some(wishes) = self.jobs.wishes.get(job) {
            // It may have ended just now.
            let _ = wishes.send(if at_once { Wish::Kill } else { Wish::Stop });
        }
    }

    pub(crate) fn delete_job_logs(&self, job: &str) {
        let (dir, job) = (self.jobs.dir.clone(), job.to_owned());
        let (archive, archived) = (self.jobs.archive.clone(), job.clone());
        if !archive.is_empty() {
            tokio::task::spawn_local(async move {
                if let Err(error) = log_archive::delete(&archive, &archived).await {
                    tracing::warn!(job = archived, %error, "its log stays in durable storage");
                }
            });
        }
        tokio::task::spawn_blocking(move || {
            log_files::delete(&dir.join("logs"), &format!("job-{job}-"));
            for entry in std::fs::read_dir(dir.join("jobs")).into_iter().flatten().flatten() {
                let of_job =
                    |name: &str| name.strip_prefix(job.as_str()).is_some_and(|rest| rest.starts_with('-'));
                if entry.file_name().to_str().is_some_and(of_job) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        });
    }
}

/// Executors of one environment wait for whichever makes it.
async fn start_when_prepared(handle: Handle, env: RuntimeEnv, mut order: ExecutorOrder) {
    let workshop = {
        let daemon = handle.borrow();
        let (dir, python) = (daemon.jobs.dir.clone(), daemon.jobs.python.clone());
        Workshop { dir, python, token: daemon.token.clone() }
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let asked = env.clone();
    let making = tokio::task::spawn_blocking(move || {
        workshop.prepare(&asked, None, &mut |line| drop(tell.send(line.to_owned())))
    });
    while let Some(line) = told.recv().await {
        let mut daemon = handle.borrow();
        daemon.say_of_executor(order.executor, &line);
        daemon.pump();
    }
    let made = making.await.unwrap_or_else(|error| {
        Err(Unprepared { reason: format!("making it failed: {error}"), hopeless: false })
    });
    let mut daemon = handle.borrow();
    match made {
        Ok(made) => {
            made.adopt(&mut order);
            daemon.jobs.environments.insert(env, made);
            daemon.supervisor.start(order);
        }
        Err(Unprepared { reason, .. }) => {
            let cause = format!("its runtime environment cannot be had: {reason}");
            daemon.supervisor.refuse(order.executor, cause);
        }
    }
    daemon.pump();
}

async fn answer(handle: Handle, ask: u64, log: LogQuery, ended: bool) {
    let dir = handle.borrow().jobs.dir.join("logs");
    let archive = handle.borrow().jobs.archive.clone();
    let reply = match &log.of {
        LogOf::Job(job, attempt) if log.lost => {
            read_archive(&archive, &log_name(job, attempt.unwrap_or(1)), log.from).await
        }
        _ => {
            let read = tokio::task::spawn_blocking(move || read_log(&dir, &log, ended)).await;
            read.unwrap_or_else(|error| Err(format!("the log could not be read: {error}")))
        }
    };
    let mut daemon = handle.borrow();
    daemon.tell_head(NodeToHead::Jobs(JobFromNode::LogRead { ask, reply }));
    daemon.pump();
}

/// The node that had it is gone.
async fn read_archive(archive: &str, name: &str, from: i64) -> Result<LogPiece, String> {
    if archive.is_empty() {
        return Err(
            "the log was on a node that is not part of the cluster any more; nodes that are started with \
                    --durable copy logs of jobs there"
                .to_owned(),
        );
    }
    let piece = log_archive::read(archive, name, from).await;
    let piece = piece.map_err(|error| format!("the log cannot be read from {archive}: {error}"))?;
    piece.ok_or_else(|| format!("its node is gone, and had not copied anything of its log to {archive}"))
}

fn read_log(dir: &Path, log: &LogQuery, ended: bool) -> Result<LogPiece, String> {
    let failed = |error: std::io::Error| format!("the log cannot be read: {error}");
    let read = |name: &str| log_files::read(dir, name, log.from, log.max, |line| Some(line));
    let mut piece = match &log.of {
        LogOf::Job(job, attempt) => read(&log_name(job, attempt.unwrap_or(1))).map_err(failed)?,
        LogOf::Node(_) => read("worker").map_err(failed)?,
        LogOf::Executor(pid) => {
            let name = log_of_executor(*pid);
            log_files::read(dir, &name, log.from, log.max, |line| line.splitn(3, ' ').nth(2))
                .map_err(failed)?
        }
        LogOf::Task(task) => return read_task(dir, task, log).map_err(failed),
        LogOf::Actor(_) => return Err("an actor's log is that of its process".to_owned()),
    };
    piece.ended &= ended;
    Ok(piece)
}

/// What a task printed: it ran in one of the executors.
fn read_task(dir: &Path, task: &str, log: &LogQuery) -> std::io::Result<LogPiece> {
    let mut names: Vec<String> = std::fs::read_dir(dir)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".log")?.rsplit_once('.')?.0.to_owned()))
        .filter(|name| name.starts_with(EXECUTOR_LOGS))
        .collect();
    names.sort();
    names.dedup();
    let own = |line: &str| line.strip_prefix(task).is_some_and(|rest| rest.starts_with(' '));
    let mut found = LogPiece { next: log.from.max(0), ended: true, ..LogPiece::default() };
    for name in names {
        let mut from = log.from.max(0);
        loop {
            let piece = log_files::read(dir, &name, from, 0, |line| match own(line) {
                true => line.splitn(3, ' ').nth(2),
                false => None,
            })?;
            if !piece.text.is_empty() {
                found.text += &piece.text;
                found.next = piece.next;
            }
            from = piece.next;
            if piece.ended {
                break;
            }
        }
    }
    Ok(found)
}

/// Runs the process beside a job and tells the core what it says.
async fn look_after(handle: Handle, task: Box<JobTask>, wished: mpsc::UnboundedReceiver<Wish>) {
    let (job, attempt) = (task.order.job.clone(), task.order.attempt);
    let stage = match conversation(&handle, &task, wished).await {
        Ok(stage) => stage,
        Err(error) => JobStage::Ended {
            exit_code: None,
            started_ms: 0,
            ended_ms: 0,
            error: format!("the process beside it failed: {error}"),
            hopeless: false,
        },
    };
    let mut daemon = handle.borrow();
    daemon.push(Event::JobSaid { job: job.clone(), attempt, stage });
    daemon.pump();
}

async fn conversation(
    handle: &Handle,
    task: &JobTask,
    mut wished: mpsc::UnboundedReceiver<Wish>,
) -> std::io::Result<JobStage> {
    let mut child: Child = Command::new(std::env::current_exe()?)
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().unwrap_or_default();
    crate::orphans::spare(pid);
    let mut input = child.stdin.take();
    let mut first = serde_json::to_vec(task)?;
    first.push(b'\n');
    if let Some(input) = &mut input {
        input.write_all(&first).await?;
    }
    let output = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let mut lines = BufReader::new(output).lines();
    let mut ended = None;
    let mut may_wish = true;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                match serde_json::from_str(&line)? {
                    stage @ JobStage::Ended { .. } => ended = Some(stage),
                    stage => {
                        let (job, attempt) = (task.order.job.clone(), task.order.attempt);
                        let mut daemon = handle.borrow();
                        daemon.push(Event::JobSaid { job, attempt, stage });
                        daemon.pump();
                    }
                }
            }
            wish = wished.recv(), if may_wish => match wish {
                Some(Wish::Stop) => {
                    if let Some(input) = &mut input {
                        let _ = input.write_all(b"stop\n").await;
                    }
                }
                // Its standard input ends.
                Some(Wish::Kill) => input = None,
                None => may_wish = false,
            },
        }
    }
    let status = child.wait().await?;
    crate::orphans::spare_no_more(pid);
    match ended {
        Some(stage) => Ok(stage),
        None => {
            // It was killed itself: what it had started is ours now.
            handle.borrow().supervisor.end_strays();
            Err(std::io::Error::other(format!("it ended too early ({status})")))
        }
    }
}
