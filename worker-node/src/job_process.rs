//! The process beside each submitted job's program: it starts it, keeps what it prints, and ends all that it started.
//!
//! It is a subreaper, so whatever the program leaves behind becomes its own; when the daemon is gone (its standard input
//! ends) it kills its descendants until none is left, and itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster_types::job::{JobOrder, JobStage};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use crate::environments::Unprepared;
use crate::job_env;
use crate::log_archive::Archivist;
use crate::log_files::LogWriter;

/// The hidden subcommand of `cluster` that is [`run_job_process`].
pub(crate) const SUBCOMMAND: &str = "job-process";
/// How long a program that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long its last output may be held open.
const LAST_OUTPUT: Duration = Duration::from_millis(500);
/// How often somebody who stops it is heard while its environment is made.
const LOOK: Duration = Duration::from_millis(50);
/// A line longer than this is written in pieces.
const LINE_MAX: usize = 1 << 20;

/// The first line of its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobTask {
    pub(crate) order: Box<JobOrder>,
    /// The daemon's directory.
    pub(crate) dir: PathBuf,
    /// Set for the program, below what the job itself sets.
    pub(crate) env: Vec<(String, String)>,
    /// The node's interpreter.
    pub(crate) python: PathBuf,
    /// For the gateway that has the job's files.
    pub(crate) token: String,
    /// Where its log is copied to; empty: nowhere.
    pub(crate) archive: String,
}

/// The name of a job's log.
pub(crate) fn log_name(job: &str, attempt: u32) -> String {
    format!("job-{job}-{attempt}")
}

/// Something that happened.
enum News {
    /// The daemon wants it to end.
    Stop,
    /// The daemon is gone, or wants it to end at once.
    Kill,
    /// The program ended.
    Exited(ExitStatus),
}

/// Runs one job, as its standard input says, and tells of it on standard output.
///
/// # Errors
/// If nobody says what to run.
pub fn run_job_process() -> std::io::Result<()> {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let mut input = BufReader::new(std::io::stdin());
    let mut first = String::new();
    input.read_line(&mut first)?;
    let task: JobTask = serde_json::from_str(&first)?;
    let (tell, news) = channel();
    let told = tell.clone();
    std::thread::spawn(move || {
        let mut line = String::new();
        while matches!(input.read_line(&mut line), Ok(read) if read > 0) {
            let _ = told.send(News::Stop);
            line.clear();
        }
        let _ = told.send(News::Kill);
    });
    let name = log_name(&task.order.job, task.order.attempt);
    let archivist = match task.archive.is_empty() {
        true => None,
        false => Some(Archivist::start(task.archive.clone(), task.dir.join("logs"), name)?),
    };
    let ended = run(&task, &tell, &news);
    if let Some(archivist) = archivist {
        archivist.finish();
    }
    kill_descendants();
    say(&ended);
    Ok(())
}

fn say(stage: &JobStage) {
    let mut line = serde_json::to_vec(stage).unwrap_or_default();
    line.push(b'\n');
    // Without a daemon there is nobody to tell.
    let _ = std::io::stdout().write_all(&line);
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn failed(error: String, hopeless: bool) -> JobStage {
    JobStage::Ended { exit_code: None, started_ms: 0, ended_ms: now_ms(), error, hopeless }
}

fn run(task: &JobTask, tell: &Sender<News>, news: &Receiver<News>) -> JobStage {
    let order = &task.order;
    let deadline = order.spec.timeout_ms.map(|limit| Instant::now() + Duration::from_millis(limit));
    let mut log = LogWriter::new(&task.dir.join("logs"), &log_name(&order.job, order.attempt));
    // A message of ours in the job's log is as good as the program's own.
    let mut progress = |what: &str| {
        say(&JobStage::Preparing { what: what.to_owned() });
        let _ = log.write(format!("cluster: {what}\n").as_bytes());
    };
    let ready = match prepared(task, &mut progress, news) {
        Ok(ready) => ready,
        Err(Unprepared { reason, hopeless }) => {
            let _ = log.write(format!("cluster: {reason}\n").as_bytes());
            return failed(reason, hopeless);
        }
    };
    let (program, arguments) = match order.spec.entrypoint.split_first() {
        Some(split) => split,
        None => return failed("there is nothing to run".to_owned(), true),
    };
    let (reader, writer) = match std::io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return failed(format!("no pipe for its output: {error}"), false),
    };
    let Ok(second) = writer.try_clone() else {
        return failed("no pipe for its output".to_owned(), false);
    };
    let mut command = Command::new(ready.program(program));
    command.args(arguments).stdin(Stdio::null()).stdout(writer).stderr(second);
    command.envs(&ready.env);
    command.current_dir(&ready.cwd).process_group(0);
    let started = command.spawn();
    // It holds the pipe's other end open.
    drop(command);
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    ": there is no such program on this node (is it in the working directory, or installed there?)"
                }
                _ => "",
            };
            let error = format!("cannot start `{program}` in {}: {error}{hint}", ready.cwd.display());
            let _ = log.write(format!("cluster: {error}\n").as_bytes());
            return failed(error, true);
        }
    };
    let started_ms = now_ms();
    say(&JobStage::Running { started_ms });
    let (written, all_written) = channel::<()>();
    std::thread::spawn(move || {
        keep_output(reader, &mut log);
        drop(written);
    });
    let group = Pid::from_raw(child.id() as i32);
    let tell = tell.clone();
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = tell.send(News::Exited(status));
        }
    });
    let (status, why) = wait(news, group, deadline);
    kill_descendants();
    let _ = all_written.recv_timeout(LAST_OUTPUT);
    let exit_code = status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
    let error = match (why, status) {
        (Some(why), _) => why,
        (None, Some(status)) => describe(status),
        (None, None) => "its node's daemon ended".to_owned(),
    };
    let error = match (error.starts_with("it took"), order.spec.timeout_ms) {
        (true, Some(limit)) => format!("it took longer than {} s, and was ended", limit as f64 / 1000.0),
        _ => error,
    };
    let hopeless = error.starts_with("it took");
    JobStage::Ended { exit_code, started_ms, ended_ms: now_ms(), error, hopeless }
}

/// Fetches and builds on a thread of its own, so that it can be stopped meanwhile: the process ends then, with it.
fn prepared(
    task: &JobTask,
    progress: &mut dyn FnMut(&str),
    news: &Receiver<News>,
) -> Result<job_env::Ready, Unprepared> {
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let lines = tell.clone();
            let ready = job_env::prepare(task, &mut |what| drop(lines.send(Ok(what.to_owned()))));
            let _ = tell.send(Err(Box::new(ready)));
        });
        loop {
            match told.recv_timeout(LOOK) {
                Ok(Ok(line)) => progress(&line),
                Ok(Err(ready)) => return *ready,
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = "what prepares the job's environment failed".to_owned();
                    return Err(Unprepared { reason, hopeless: false });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if news.try_recv().is_ok() {
                // The thread, and what it started, has nothing that anybody needs.
                kill_descendants();
                say(&failed("it was stopped before its program was started".to_owned(), true));
                std::process::exit(0);
            }
        }
    })
}

/// Waits for the end of the program, and brings it about if it is wanted. Why it was ended, if it was.
fn wait(
    news: &Receiver<News>,
    group: Option<Pid>,
    mut deadline: Option<Instant>,
) -> (Option<ExitStatus>, Option<String>) {
    let mut why = None;
    let mut asked = false;
    loop {
        let next = match deadline {
            Some(at) => news.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(News::Exited(status)) => return (Some(status), why),
            Ok(News::Stop) if asked => {}
            Ok(News::Stop) => {
                asked = true;
                why = Some("it was stopped".to_owned());
                deadline = Some(Instant::now() + GRACE);
                end(group, Signal::TERM);
            }
            Err(RecvTimeoutError::Timeout) if !asked => {
                asked = true;
                why = Some("it took too long".to_owned());
                deadline = Some(Instant::now() + GRACE);
                end(group, Signal::TERM);
            }
            Ok(News::Kill) | Err(_) => {
                // Its end is told by `Exited`.
                deadline = None;
                end(group, Signal::KILL);
                kill_descendants_but(group);
            }
        }
    }
}

fn end(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => String::new(),
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Whole lines into the log, as they come.
fn keep_output(mut pipe: std::io::PipeReader, log: &mut LogWriter) {
    let mut buffer = vec![0; 64 << 10];
    let mut pending: Vec<u8> = Vec::new();
    let mut write = |bytes: &[u8]| {
        if let Err(error) = log.write(bytes) {
            tracing::error!(%error, "a job's output cannot be written to its log");
        }
    };
    loop {
        let read = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        pending.extend_from_slice(&buffer[..read]);
        let whole = match pending.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if pending.len() > LINE_MAX => pending.len(),
            None => continue,
        };
        write(&pending[..whole]);
        pending.drain(..whole);
    }
    if !pending.is_empty() {
        // A last line without its end gets one.
        pending.push(b'\n');
        write(&pending);
    }
}

/// Kills all that the program started and left, until none is left.
fn kill_descendants() {
    kill_descendants_but(None);
}

fn kill_descendants_but(waited_for: Option<Pid>) {
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let children: Vec<Pid> = crate::orphans::children();
        let strays: Vec<Pid> = children.into_iter().filter(|child| Some(*child) != waited_for).collect();
        if strays.is_empty() {
            return;
        }
        for stray in strays {
            let _ = rustix::process::kill_process(stray, Signal::KILL);
            // Killed, so this is short; its children become ours.
            let _ = rustix::process::waitpid(Some(stray), WaitOptions::empty());
        }
    }
}
