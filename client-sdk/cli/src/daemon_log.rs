//! The daemons' logs: their standard error, a file that never grows beyond what was asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// How often the size is looked at: a daemon that logs each of ten thousand messages a second is late by some megabytes.
const EVERY: Duration = Duration::from_secs(5);

/// A daemon's log. The file before it is kept beside it, so that both together take twice `size` at most.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogSettings {
    pub path: PathBuf,
    pub size: u64,
}

impl LogSettings {
    /// Begins a new file whenever the log has reached its size, from a thread that ends with the process.
    pub fn keep_small(self) -> Result<(), CliError> {
        let watch = move || loop {
            std::thread::sleep(EVERY);
            if let Err(error) = turn_over(&self.path, self.size, write_there) {
                tracing::warn!(log = %self.path.display(), %error, "cannot begin a new log");
            }
        };
        std::thread::Builder::new()
            .name("log".into())
            .spawn(watch)
            .map_err(CliError::io("start a thread"))?;
        Ok(())
    }
}

/// Standard output is the log too.
fn write_there(log: &File) -> io::Result<()> {
    rustix::stdio::dup2_stderr(log)?;
    rustix::stdio::dup2_stdout(log)?;
    Ok(())
}

/// Where the log before this one is.
pub fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Begins a new file if the old one has reached its size; `switch` makes it the one that is written to.
fn turn_over(path: &Path, size: u64, switch: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    if std::fs::metadata(path).map_or(0, |about| about.size()) < size {
        return Ok(());
    }
    std::fs::rename(path, older(path))?;
    switch(&File::options().create(true).append(true).open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_that_is_full_makes_room_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("head.log");
        let mut log = File::options().create(true).append(true).open(&path).unwrap();
        let mut turned = 0;
        for n in 0..100 {
            writeln!(log, "line {n}").unwrap();
            let next = |file: &File| {
                turned += 1;
                log = file.try_clone()?;
                Ok(())
            };
            turn_over(&path, 200, next).unwrap();
        }
        assert!(turned > 2, "{turned}");
        let texts = [older(&path), path.clone()].map(|path| std::fs::read_to_string(path).unwrap());
        assert!(texts.iter().all(|text| text.len() <= 210));
        let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
        let expected: Vec<String> = (100 - lines.len()..100).map(|n| format!("line {n}")).collect();
        assert_eq!(lines, expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_is_not_there_is_no_problem() {
        turn_over(Path::new("/nowhere/head.log"), 1, |_| panic!("there is nothing to switch to")).unwrap();
    }
}
