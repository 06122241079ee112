//! Submitted jobs: programs that the cluster runs by itself, and what is known of each.
//!
//! These messages are rare and people read them, so they travel and are stored as JSON; a field that an older record does
//! not have gets its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::resources::{Amount, AmountError, GpuShare, Lease, Resources};

/// What a program is to find around it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeEnv {
    /// Set in its environment.
    pub env_vars: BTreeMap<String, String>,
    /// The files it is started among.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<Package>,
    /// Python packages that are put on its path, as files.
    pub py_modules: Vec<Package>,
    /// Lines of a requirements file, for `uv`.
    pub requirements: Vec<String>,
    /// Modules that its executors are to have imported when they start.
    pub preload: Vec<String>,
    /// The interpreter to run it with, instead of the node's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
}

/// The variable in which executors and jobs find their [`RuntimeEnv`], as JSON: what they submit has it too.
pub const RUNTIME_ENV: &str = "CLUSTER_RUNTIME_ENV";

impl RuntimeEnv {
    /// Whether something has to be fetched or built before the program starts.
    pub fn is_prepared(&self) -> bool {
        self.working_dir.is_some() || !self.py_modules.is_empty() || !self.requirements.is_empty()
    }
}

/// A tree of files, by its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Package {
    /// The name of its list of files among the cluster's chunks.
    pub hash: String,
    /// Where the chunks were sent: `host:port` of a gateway.
    pub at: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// What its directory is called where it is a module itself; empty: what it holds are modules.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// What somebody wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobSpec {
    /// For people; no two jobs that have not ended have the same. Empty: none.
    pub name: String,
    /// The program and its arguments.
    pub entrypoint: Vec<String>,
    /// What it finds around it.
    pub runtime_env: RuntimeEnv,
    /// What it has of its node, by name (`CPU`, `GPU`, `memory`, custom ones). What its tasks need is booked apart.
    pub resources: BTreeMap<String, f64>,
    /// How often it is started again after it failed or its node was lost.
    pub retries: u32,
    /// After so long each attempt is ended, and the job has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whatever its submitter wants to find again.
    pub metadata: BTreeMap<String, String>,
    /// Who submitted it, for people.
    pub submitter: String,
    /// When, in milliseconds of Unix time.
    pub submitted_ms: u64,
}

impl JobSpec {
    /// Whether a cluster can take it, whoever sends it.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        if self.entrypoint.iter().all(|word| word.trim().is_empty()) {
            return Err("there is nothing to run: the job names no program".to_owned());
        }
        if let Some(word) = self.entrypoint.iter().find(|word| word.contains('\0')) {
            return Err(format!("{word:?} has a NUL character, which no program can be given"));
        }
        if self.name.chars().any(char::is_control) {
            return Err(format!(
                "the name {:?} has control characters: a name is one line of text",
                self.name
            ));
        }
        for (variable, value) in &self.runtime_env.env_vars {
            if variable.is_empty() || variable.contains(['=', '\0']) {
                return Err(format!("{variable:?} is no name of an environment variable"));
            }
            if value.contains('\0') {
                return Err(format!("the environment variable {variable} has a NUL character in its value"));
            }
        }
        if self.timeout_ms == Some(0) {
            return Err(
                "a timeout of 0 leaves the job no time at all: leave it out for a job without one".to_owned()
            );
        }
        for (name, number) in &self.resources {
            Amount::from_f64(*number)
                .map_err(|error| format!("what the job asks for cannot be: {name} {error}"))?;
        }
        self.request().map_err(|error| format!("what the job asks for cannot be: GPU {error}"))?;
        Ok(())
    }

    /// What it asks for.
    ///
    /// # Errors
    /// If an amount is none, or cannot be asked for.
    pub fn request(&self) -> Result<Resources, AmountError> {
        let mut request = Resources::default();
        for (name, number) in &self.resources {
            let amount = Amount::from_f64(*number)?;
            match name.as_str() {
                "CPU" => request.cpu = amount,
                "GPU" => request.gpu = amount,
                "memory" => request.memory = amount,
                custom => request.set_custom(custom, amount),
            }
        }
        request.check_request()?;
        Ok(request)
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for a node with room.
    #[default]
    Pending,
    /// Its node fetches and builds what it needs.
    Preparing,
    /// Its program runs.
    Running,
    /// It was told to end.
    Stopping,
    /// Its program ended with exit code 0.
    Succeeded,
    /// It failed, and is not tried again.
    Failed,
    /// Somebody stopped it.
    Stopped,
}

impl JobState {
    /// Whether nothing more will come.
    pub fn has_ended(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Stopped)
    }

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Pending => "pending",
            JobState::Preparing => "preparing",
            JobState::Running => "running",
            JobState::Stopping => "stopping",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Stopped => "stopped",
        }
    }
}

/// One try of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobAttempt {
    /// Counts from 1.
    pub number: u32,
    /// Its node's id.
    pub node: String,
    /// Its node, for people.
    pub hostname: String,
    /// Unix time in milliseconds at its node; 0: its program was never started.
    pub started_ms: u64,
    /// When it ended; 0: it has not, or nobody knows.
    pub ended_ms: u64,
    /// As a shell has it: 128 and the signal's number where one ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it failed, for people.
    pub error: String,
}

/// A job, as it is stored and shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobView {
    /// Its id.
    pub job: String,
    /// What was asked for.
    pub spec: JobSpec,
    /// How far it is.
    pub state: JobState,
    /// For people: what it waits for, or why it failed.
    pub message: String,
    /// Its tries, the last one last.
    pub attempts: Vec<JobAttempt>,
    /// Somebody wants it to end.
    pub stop_asked: bool,
}

impl JobView {
    /// The program's exit code, if its last try came so far.
    pub fn exit_code(&self) -> Option<i32> {
        self.attempts.last().and_then(|attempt| attempt.exit_code)
    }
}

/// A job for a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobOrder {
    /// Its id as that prints.
    pub job: String,
    /// Which try.
    pub attempt: u32,
    /// What to run.
    pub spec: JobSpec,
    /// The devices it was given: index and amount in units of the ledger.
    pub gpus: Vec<(u16, i64)>,
}

impl JobOrder {
    /// What it was given of its node.
    pub fn lease(&self) -> Lease {
        let share = |&(index, amount): &(u16, i64)| GpuShare { index, amount: Amount(amount) };
        Lease { gpus: self.gpus.iter().map(share).collect() }
    }
}

/// What the head says to a node of jobs and logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobToNode {
    /// Run this.
    Start(Box<JobOrder>),
    /// End it: SIGTERM, and SIGKILL after a while, to all it started.
    Stop {
        /// The job.
        job: String,
        /// Which try; another changes nothing (FENCE-1).
        attempt: u32,
    },
    /// Its end is written down: the node need not say it again.
    Forget {
        /// The job.
        job: String,
        /// Which try.
        attempt: u32,
    },
    /// Delete what it printed.
    DeleteLogs {
        /// The job.
        job: String,
    },
    /// A question about a log here; answered by [`JobFromNode::LogRead`].
    ReadLog {
        /// Names the question.
        ask: u64,
        /// What.
        log: LogQuery,
    },
}

/// What a node says of jobs and logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobFromNode {
    /// How far a job is; also in a snapshot (rule H2).
    Report {
        /// What it was told to run.
        order: Box<JobOrder>,
        /// How far that is.
        stage: JobStage,
    },
    /// Answer to [`JobToNode::ReadLog`].
    LogRead {
        /// The question.
        ask: u64,
        /// What there is, or why there is nothing.
        reply: Result<LogPiece, String>,
    },
}

/// How far a job's try is, at its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobStage {
    /// Something is fetched or built.
    Preparing {
        /// For people.
        what: String,
    },
    /// The program runs.
    Running {
        /// Unix time in milliseconds.
        started_ms: u64,
    },
    /// It ended, and everything that it started has.
    Ended {
        /// As a shell has it; `None`: it was never started.
        exit_code: Option<i32>,
        /// When it was started; 0: never.
        started_ms: u64,
        /// Unix time in milliseconds.
        ended_ms: u64,
        /// For people; empty if it ended well.
        error: String,
        /// A next try would end the same.
        hopeless: bool,
    },
}

/// A part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogQuery {
    /// Whose lines.
    pub of: LogOf,
    /// From this byte on; negative: so many lines before the end.
    pub from: i64,
    /// Bytes at most.
    pub max: u32,
    /// The node that wrote it is gone: what was copied to durable storage. Set by the head.
    pub lost: bool,
}

/// Whose lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogOf {
    /// A submitted job's: its id, the beginning of that, or its name. The last attempt's unless it is named.
    Job(String, #[serde(default)] Option<u32>),
    /// What a task printed: its id, or an unambiguous end of it.
    Task(String),
    /// What an actor's process printed: its handle's id, or its name.
    Actor(String),
    /// A node's daemon: hostname, id, or the beginning of that.
    Node(String),
    /// An executor's process.
    Executor(u32),
}

impl Default for LogOf {
    fn default() -> Self {
        LogOf::Executor(0)
    }
}

/// A part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogPiece {
    /// Whole lines, except where a line is longer than a piece.
    pub text: String,
    /// Where the next piece begins.
    pub next: i64,
    /// Nothing more will be written.
    pub ended: bool,
    /// Bytes before it that were deleted because the log had grown too long.
    pub missing: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_made_of_names() {
        let resources = [("CPU", 0.5), ("GPU", 2.0), ("tpu", 1.0)].map(|(name, n)| (name.to_owned(), n));
        let spec = JobSpec { resources: resources.into(), ..JobSpec::default() };
        assert_eq!(spec.request().unwrap().to_string(), "0.5 CPU, 2 GPU, 1 tpu");
        for wrong in [-1.0, f64::NAN] {
            let spec = JobSpec { resources: [("CPU".to_owned(), wrong)].into(), ..JobSpec::default() };
            spec.request().unwrap_err();
        }
    }

    #[test]
    fn only_what_is_to_be_installed_is_prepared() {
        let mut env =
            RuntimeEnv { env_vars: [("A".to_owned(), "1".to_owned())].into(), ..Default::default() };
        assert!(!env.is_prepared());
        env.requirements.push("numpy".into());
        assert!(env.is_prepared());
    }
}
