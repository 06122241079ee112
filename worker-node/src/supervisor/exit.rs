//! What became of a process, for people.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// `exit code 3`, `killed by signal 9 (SIGKILL)`.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("killed by signal {signal} ({name})"),
            None => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => format!("wait status {:#x}", status.into_raw()),
    }
}

/// The same, from what `wait4` reported.
pub(crate) fn describe_wait_status(status: i32) -> String {
    describe(ExitStatus::from_raw(status))
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// The last lines of a process's stderr, for its exit cause.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    const LINES: usize = 20;
    const BYTES: usize = 4096;

    pub(crate) fn push(&mut self, line: &str) {
        let mut end = line.len().min(Self::BYTES / 4);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        self.lines.push_back(line[..end].to_owned());
        self.bytes += end;
        while self.lines.len() > Self::LINES || self.bytes > Self::BYTES {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The sentence, with the lines if there are any.
    pub(crate) fn explain(&self, what: String) -> String {
        if self.lines.is_empty() {
            return what;
        }
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        format!("{what}; its last output was:\n{}", lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_read_like_sentences() {
        assert_eq!(describe_wait_status(9), "killed by signal 9 (SIGKILL)");
        assert_eq!(describe_wait_status(3 << 8), "exit code 3");
        assert_eq!(describe_wait_status(34), "killed by signal 34");
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut tail = Tail::default();
        for n in 0..1000 {
            tail.push(&format!("{n} {}", "ä".repeat(600)));
        }
        assert!(tail.explain(String::new()).len() < 5000);
        assert!(tail.lines.back().is_some_and(|line| line.starts_with("999 ")));
    }
}
