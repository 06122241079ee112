//! `cluster submit`, `run`, `jobs`, `job`, `stop` and `delete`: programs that the cluster runs by itself.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster_types::JobId;
use cluster_types::job::{JobSpec, JobState, JobView, LogOf};
use cluster_types::query::{Query, QueryReply};

use crate::args::{AskArgs, JobArgs, JobsArgs, ProgramArgs, SubmitArgs};
use crate::ask::{ask, other_answer};
use crate::error::CliError;
use crate::logs::{Follower, patiently};
use crate::table::{Column, render};

/// Between two looks at a job; it grows to this.
const LOOK: Duration = Duration::from_millis(250);

pub fn submit(args: &SubmitArgs) -> Result<(), CliError> {
    let (job, _) = send(&args.program)?;
    let ask_args = &args.program.ask;
    if !args.wait {
        return show(ask_args, &job, |job| {
            format!("Job {} is submitted. Its output: cluster logs {} -f\n", job.job, job.job)
        });
    }
    let mut pause = Duration::from_millis(5);
    let mut view = job;
    while !view.state.has_ended() {
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
        view = look(ask_args, &view.job)?;
    }
    show(ask_args, &view, |view| format!("Job {} has {}.\n", view.job, view.state.as_str()))?;
    outcome(&view)
}

/// The terminal is the program's: its output live, Ctrl-C ends it, its exit code is this command's.
pub fn run(args: &ProgramArgs) -> Result<(), CliError> {
    let interrupts = count_interrupts();
    let (job, _) = send(args)?;
    let mut follower = Follower::new(LogOf::Job(job.job.clone(), None), 0);
    let mut stopping = false;
    let mut attempt = 1;
    let mut pause = Duration::from_millis(5);
    loop {
        let asked = interrupts.load(Ordering::SeqCst);
        if asked > 1 {
            return Err(CliError::Program(130));
        }
        if asked > 0 && !stopping {
            stopping = true;
            patiently(|| ask(&args.ask, Query::StopJob { job: job.job.clone() }))?;
        }
        let view = look(&args.ask, &job.job)?;
        let now = view.attempts.last().map_or(1, |last| last.number);
        if now != attempt {
            // It is tried again: that has a log of its own.
            attempt = now;
            follower = Follower::new(LogOf::Job(job.job.clone(), None), 0);
        }
        let came = !view.attempts.is_empty() && follower.step(&args.ask)?;
        if view.state.has_ended() {
            while !view.attempts.is_empty() && follower.step(&args.ask)? {}
            if stopping {
                return Err(CliError::Program(130));
            }
            return outcome(&view);
        }
        pause = if came { Duration::from_millis(5) } else { (pause * 2).min(LOOK) };
        std::thread::sleep(pause);
    }
}

pub fn list(args: &JobsArgs) -> Result<(), CliError> {
    let QueryReply::Jobs(views) = ask(&args.ask, Query::Jobs { limit: args.limit })?.1 else {
        return Err(other_answer());
    };
    let mut out = std::io::stdout().lock();
    if args.ask.place.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&views).unwrap_or_default())?;
        return Ok(());
    }
    let columns = [
        Column::Left("JOB", 8),
        Column::Left("NAME", 16),
        Column::Left("STATE", 10),
        Column::Left("NODE", 14),
        Column::Right("EXIT"),
        Column::Left("PROGRAM", 24),
    ];
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|view| {
            let node = view.attempts.last().map(|last| last.hostname.clone()).unwrap_or_default();
            let exit = view.exit_code().map(|code| code.to_string()).unwrap_or_default();
            let program = view.spec.entrypoint.join(" ");
            vec![
                view.job.clone(),
                view.spec.name.clone(),
                view.state.as_str().to_owned(),
                node,
                exit,
                program,
            ]
        })
        .collect();
    write!(out, "{}", render(&columns, &rows, "No jobs."))?;
    Ok(())
}

pub fn one(args: &JobArgs) -> Result<(), CliError> {
    let view = look(&args.ask, &args.job)?;
    show(&args.ask, &view, describe)
}

pub fn stop(args: &JobArgs) -> Result<(), CliError> {
    let mut view = only(ask(&args.ask, Query::StopJob { job: args.job.clone() })?.1)?;
    while !view.state.has_ended() {
        std::thread::sleep(Duration::from_millis(50));
        view = look(&args.ask, &view.job)?;
    }
    show(&args.ask, &view, |view| format!("Job {} has {}.\n", view.job, view.state.as_str()))
}

pub fn delete(args: &JobArgs) -> Result<(), CliError> {
    let view = only(ask(&args.ask, Query::DeleteJob { job: args.job.clone() })?.1)?;
    show(&args.ask, &view, |view| format!("Job {} is deleted.\n", view.job))
}

fn send(args: &ProgramArgs) -> Result<(JobView, String), CliError> {
    let mut resources = args.resources.clone().unwrap_or_default();
    let amounts =
        [("CPU", args.num_cpus), ("GPU", args.num_gpus), ("memory", args.memory.map(|bytes| bytes as f64))];
    for (name, amount) in amounts {
        if let Some(amount) = amount {
            resources.insert(name.to_owned(), amount);
        }
    }
    let spec = JobSpec {
        name: args.name.clone().unwrap_or_default(),
        entrypoint: args.entrypoint.clone(),
        runtime_env: crate::environment::of_job(args)?,
        resources,
        retries: args.retries,
        timeout_ms: args.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        metadata: args.metadata.iter().cloned().collect(),
        submitter: who(),
        submitted_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64),
    };
    let was_there = spec.runtime_env.working_dir.is_some() || !spec.runtime_env.py_modules.is_empty();
    let id = getrandom::u32().map_err(|error| CliError::Failed(format!("no random numbers: {error}")))?;
    let query = Query::SubmitJob { job: JobId(id).to_string(), spec: Box::new(spec) };
    let (address, reply) = match was_there {
        // Whoever asks again, because the answer was lost, has submitted once.
        true => patiently(|| ask(&args.ask, query.clone()))?,
        false => ask(&args.ask, query)?,
    };
    Ok((only(reply)?, address))
}

/// `user@host`, for people.
fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", user.unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string()), host.trim())
}

fn look(args: &AskArgs, job: &str) -> Result<JobView, CliError> {
    only(patiently(|| ask(args, Query::Job { job: job.to_owned() }))?.1)
}

fn only(reply: QueryReply) -> Result<JobView, CliError> {
    match reply {
        QueryReply::Jobs(mut views) if views.len() == 1 => Ok(views.remove(0)),
        _ => Err(other_answer()),
    }
}

fn show(args: &AskArgs, view: &JobView, text: impl Fn(&JobView) -> String) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if args.place.json {
        writeln!(out, "{}", serde_json::to_string_pretty(view).unwrap_or_default())?;
    } else {
        write!(out, "{}", text(view))?;
    }
    Ok(())
}

fn describe(view: &JobView) -> String {
    let mut text = format!("Job {}\n  program   {}\n", view.job, view.spec.entrypoint.join(" "));
    text += &format!("  state     {}\n", view.state.as_str());
    for (label, value) in
        [("name", &view.spec.name), ("message", &view.message), ("by", &view.spec.submitter)]
    {
        if !value.is_empty() {
            text += &format!("  {label:<9} {value}\n");
        }
    }
    for (key, value) in &view.spec.metadata {
        text += &format!("  metadata  {key}={value}\n");
    }
    for tried in &view.attempts {
        text += &format!("  attempt {} on {}", tried.number, tried.hostname);
        if tried.ended_ms > 0 && tried.started_ms > 0 {
            let seconds = tried.ended_ms.saturating_sub(tried.started_ms) as f64 / 1000.0;
            text += &format!(", {seconds:.1} s");
        }
        if let Some(code) = tried.exit_code {
            text += &format!(", exit code {code}");
        }
        if !tried.error.is_empty() {
            text += &format!(": {}", tried.error);
        }
        text.push('\n');
    }
    text
}

/// The job's end as this command's.
fn outcome(view: &JobView) -> Result<(), CliError> {
    match (view.state, view.exit_code()) {
        (JobState::Succeeded, _) => Ok(()),
        (JobState::Failed, Some(code)) if code != 0 => {
            eprintln!("job {}: {}", view.job, view.message);
            Err(CliError::Program(code))
        }
        _ => Err(CliError::Failed(format!("job {} {}: {}", view.job, view.state.as_str(), view.message))),
    }
}

/// How often Ctrl-C was pressed.
fn count_interrupts() -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
    });
    count
}
