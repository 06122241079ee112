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
            CliError::Failed(_) | CliError::Output(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Unreachable(_) => 3,
            CliError::Token(_) => 4,
        })
    }

    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}
