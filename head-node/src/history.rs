//! The tasks that ended last, on disk, so that `list tasks` still shows them when the head was started again.
//!
//! Lines of JSON are appended to one file until it holds as many tasks as the head remembers; then it becomes the file of
//! before, whose predecessor goes. At a start all that is still remembered is written anew. Nothing depends on it: lines that cannot be read are passed over, and a disk that
//! does not take any is said once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster_types::{ClientId, JobId, TaskId, Time};
use head_core::{Ended, History};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Where it is written.
#[derive(Debug)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    /// `None` until something is written, and after that failed.
    file: Option<BufWriter<File>>,
    /// Tasks in it.
    written: usize,
    /// Tasks that the head remembers.
    kept: usize,
    failed: bool,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Totals {
        finished: u64,
        failed: u64,
    },
    Task {
        client: u64,
        seq: u64,
        name: Arc<str>,
        job: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Arc<str>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<Arc<str>>,
        attempt: u32,
        submitted: u64,
        micros: u64,
    },
}

impl HistoryFile {
    /// What was written before, and where to go on.
    pub fn open(path: &Path, kept: usize) -> (Self, History) {
        let mut history = History::default();
        read(&before(path), &mut history);
        read(path, &mut history);
        let surplus = history.tasks.len().saturating_sub(kept);
        history.tasks.drain(..surplus);
        let mut file = Self { path: path.to_owned(), file: None, written: 0, kept, failed: false };
        // What was written last may end in the middle of a line.
        file.say_failure(|file| file.begin_with(&history));
        (file, history)
    }

    fn begin_with(&mut self, history: &History) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = BufWriter::new(File::create(&fresh)?);
        write_all(&mut file, history)?;
        std::fs::rename(&fresh, &self.path)?;
        let _ = std::fs::remove_file(before(&self.path));
        self.file = Some(file);
        self.written = history.tasks.len();
        Ok(())
    }

    /// Appends these.
    pub fn write(&mut self, history: &History) {
        self.say_failure(|file| file.try_write(history));
    }

    fn say_failure(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = write(self)
            && !std::mem::replace(&mut self.failed, true)
        {
            let path = self.path.display();
            warn!(%error, "tasks that end are not written to {path}: `cluster list tasks` will not show them after a restart");
        }
    }

    fn try_write(&mut self, history: &History) -> io::Result<()> {
        if self.written >= self.kept {
            self.file = None;
            match std::fs::rename(&self.path, before(&self.path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.written = 0;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = File::options().append(true).create(true).open(&self.path)?;
                none.insert(BufWriter::new(file))
            }
        };
        write_all(file, history)?;
        self.written += history.tasks.len();
        Ok(())
    }
}

fn write_all(file: &mut BufWriter<File>, history: &History) -> io::Result<()> {
    for task in &history.tasks {
        write_line(file, &line_of(task))?;
    }
    write_line(file, &Line::Totals { finished: history.finished, failed: history.failed })?;
    file.flush()
}

fn write_line(file: &mut BufWriter<File>, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

/// The file of before.
fn before(path: &Path) -> PathBuf {
    path.with_extension("old")
}

fn read(path: &Path, history: &mut History) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice(&line) {
            Ok(Line::Totals { finished, failed }) => (history.finished, history.failed) = (finished, failed),
            Ok(line) => history.tasks.extend(task_of(line)),
            Err(_) => {}
        }
    }
}

fn line_of(task: &Ended) -> Line {
    Line::Task {
        client: task.id.client.0,
        seq: task.id.seq,
        name: task.name.clone(),
        job: task.job.0,
        error: task.error.clone(),
        node: task.node.clone(),
        attempt: task.attempt,
        submitted: task.submitted.0,
        micros: task.micros,
    }
}

fn task_of(line: Line) -> Option<Ended> {
    let Line::Task { client, seq, name, job, error, node, attempt, submitted, micros } = line else {
        return None;
    };
    let id = TaskId { client: ClientId(client), seq };
    Some(Ended { id, name, job: JobId(job), error, node, attempt, submitted: Time(submitted), micros })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(seq: u64) -> Ended {
        Ended {
            id: TaskId { client: ClientId(7), seq },
            name: "f".into(),
            job: JobId(1),
            error: seq.is_multiple_of(2).then(|| "it raised \"this\"\n".into()),
            node: Some("host".into()),
            attempt: 1,
            submitted: Time(seq),
            micros: 12,
        }
    }

    fn these(seqs: std::ops::Range<u64>) -> History {
        History { finished: seqs.end, failed: 3, tasks: seqs.map(ended).collect() }
    }

    #[test]
    fn what_was_written_last_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let (mut file, history) = HistoryFile::open(&path, 10);
        assert_eq!(history, History::default());
        file.write(&these(0..4));
        file.write(&these(4..25));
        file.write(&these(25..27));
        drop(file);
        let (mut file, history) = HistoryFile::open(&path, 10);
        assert_eq!(history, these(17..27));
        file.write(&these(27..28));
        assert_eq!(HistoryFile::open(&path, 10).1, these(18..28));
    }

    #[test]
    fn half_a_line_and_nonsense_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        HistoryFile::open(&path, 10).0.write(&these(0..2));
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"\xff\x00nonsense\n{\"client\":7,\"seq\":");
        std::fs::write(&path, text).unwrap();
        assert_eq!(HistoryFile::open(&path, 10).1, these(0..2));
    }

    #[test]
    fn a_disk_that_takes_nothing_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = HistoryFile::open(&dir.path().join("gone/history.jsonl"), 10);
        file.write(&these(0..2));
        file.write(&these(2..4));
        assert!(file.failed);
    }
}
