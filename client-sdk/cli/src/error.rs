//! Why a command failed, and with which exit code.

use std::fmt::Display;
use std::process::ExitCode;

/// Documented in `cluster --help`.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Exit code 2, as clap's own.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// Exit code 4.
    #[error("{0}")]
    Token(String),
    /// The exit code of a job's program.
    #[error("the program ended with exit code {0}")]
    Program(i32),
    /// Standard output is closed.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// What was being done, and what came of it.
    pub fn io(what: impl Display) -> impl FnOnce(std::io::Error) -> CliError {
        move |error| CliError::Failed(format!("cannot {what}: {error}"))
    }

    /// The error of a daemon that ended with this exit code.
    pub fn of_daemon(code: Option<i32>, message: String) -> CliError {
        match code {
            Some(2) => CliError::Usage(message),
            Some(3) => CliError::Unreachable(message),
            Some(4) => CliError::Token(message),
            _ => CliError::Failed(message),
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            CliError::Program(code) => u8::try_from(*code).unwrap_or(1),
            CliError::Failed(_) | CliError::Output(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Unreachable(_) => 3,
            CliError::Token(_) => 4,
        })
    }

    /// Nothing is to be said about it: the pipe closed, or a program has said it.
    pub fn is_quiet(&self) -> bool {
        matches!(self, CliError::Program(_))
            || matches!(self, CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}
