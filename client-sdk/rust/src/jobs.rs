//! Programs that the cluster runs by itself: what `cluster submit` and its like do, from a connected program.
//!
//! ```no_run
//! use concurrent_ml::jobs::{self, JobSpec};
//!
//! fn main() -> concurrent_ml::Result<()> {
//!     let _cluster = concurrent_ml::init()?;
//!     let spec = JobSpec { entrypoint: vec!["python".into(), "train.py".into()], retries: 2, ..JobSpec::default() };
//!     let job = jobs::submit(&spec)?;
//!     let ended = jobs::wait(&job.job, None)?;
//!     println!("{}: {}", ended.state.as_str(), jobs::logs(&job.job)?);
//!     Ok(())
//! }
//! ```

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster_types::JobId;
pub use cluster_types::job::{JobAttempt, JobSpec, JobState, JobView, Package, RuntimeEnv};
use cluster_types::job::{LogOf, LogQuery};
use cluster_types::query::{Query, QueryReply};

use crate::{Error, Result, current};

/// Between two looks at a job; it grows to this.
const LOOK: Duration = Duration::from_millis(250);

/// Has the cluster run a program. The time and, unless told, the name of who submits it are filled in.
///
/// # Errors
/// What is wrong with it, or the connection.
pub fn submit(spec: &JobSpec) -> Result<JobView> {
    let mut spec = spec.clone();
    spec.submitted_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    if spec.submitter.is_empty() {
        spec.submitter = std::env::var("USER").unwrap_or_default();
    }
    let id =
        getrandom::u32().map_err(|error| Error::Misuse(format!("there are no random numbers: {error}")))?;
    one(Query::SubmitJob { job: JobId(id).to_string(), spec: Box::new(spec) })
}

/// A job, by its id, the beginning of that, or its name.
///
/// # Errors
/// If there is none, or the connection fails.
pub fn get(job: &str) -> Result<JobView> {
    one(Query::Job { job: job.to_owned() })
}

/// Submitted jobs, newest first.
///
/// # Errors
/// If the connection fails.
pub fn list(limit: u32) -> Result<Vec<JobView>> {
    match ask(Query::Jobs { limit })? {
        QueryReply::Jobs(views) => Ok(views),
        _ => Err(other_answer()),
    }
}

/// Asks a job to end, and all that it started; what does not within five seconds is killed. [`wait`] for that.
///
/// # Errors
/// If there is none, or the connection fails.
pub fn stop(job: &str) -> Result<JobView> {
    one(Query::StopJob { job: job.to_owned() })
}

/// Forgets a job that has ended, and its log.
///
/// # Errors
/// If it has not ended, there is none, or the connection fails.
pub fn delete(job: &str) -> Result<JobView> {
    one(Query::DeleteJob { job: job.to_owned() })
}

/// Waits until it has ended.
///
/// # Errors
/// [`Error::TimedOut`], if there is no such job, or the connection fails.
pub fn wait(job: &str, timeout: Option<Duration>) -> Result<JobView> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut pause = Duration::from_millis(5);
    loop {
        let view = get(job)?;
        if view.state.has_ended() {
            return Ok(view);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Err(Error::TimedOut);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK);
    }
}

/// What its last attempt has printed so far, as far as it is kept.
///
/// # Errors
/// If there is no such job, its log is gone, or the connection fails.
pub fn logs(job: &str) -> Result<String> {
    let mut text = String::new();
    let mut from = 0;
    loop {
        let log = LogQuery { of: LogOf::Job(job.to_owned(), None), from, ..LogQuery::default() };
        let QueryReply::Log(piece) = ask(Query::Log(log))? else { return Err(other_answer()) };
        if piece.text.is_empty() {
            return Ok(text);
        }
        text += &piece.text;
        from = piece.next;
    }
}

fn ask(query: Query) -> Result<QueryReply> {
    Ok(current::client()?.query(query, None, &mut current::interrupt)?)
}

fn one(query: Query) -> Result<JobView> {
    match ask(query)? {
        QueryReply::Jobs(mut views) if views.len() == 1 => Ok(views.remove(0)),
        _ => Err(other_answer()),
    }
}

fn other_answer() -> Error {
    Error::Misuse("the head answered something else: is it of another version?".to_owned())
}
