//! Logs on disk: each a row of files, named by the byte of the log at which they begin, the oldest of which are deleted.
//!
//! A reader names a place by the byte since the beginning of all, so it goes on across files, and is told how much was
//! deleted before it came. Whoever writes puts a whole line into a file, so lines (of JSON, say) stay whole.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cluster_types::job::LogPiece;

/// A file that has grown so long is the last but one.
const FILE_MAX: u64 = 16 << 20;
/// Files of one log.
const FILES_MAX: usize = 8;
/// The most that one answer carries.
const PIECE_MAX: u32 = 1 << 20;

/// One process writes; see the module.
#[derive(Debug)]
pub(crate) struct LogWriter {
    directory: PathBuf,
    name: String,
    file: Option<File>,
    /// Where the file begins, and how long it is.
    begin: u64,
    length: u64,
    file_max: u64,
}

impl LogWriter {
    /// Goes on with a log of this name, if there is one.
    pub(crate) fn new(directory: &Path, name: &str) -> LogWriter {
        let last = files(directory, name).pop();
        let begin = last.as_ref().map_or(0, |(begin, _)| *begin);
        let length = last.and_then(|(_, path)| path.metadata().ok()).map_or(0, |about| about.len());
        let (directory, name) = (directory.to_path_buf(), name.to_owned());
        LogWriter { directory, name, file: None, begin, length, file_max: FILE_MAX }
    }

    /// Appends; `bytes` are whole lines, or a part of a long one.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.length >= self.file_max {
            self.begin += self.length;
            self.length = 0;
            self.file = None;
            let mut old = files(&self.directory, &self.name);
            old.truncate((old.len() + 1).saturating_sub(FILES_MAX));
            old.iter().for_each(|(_, path)| drop(std::fs::remove_file(path)));
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                std::fs::create_dir_all(&self.directory)?;
                let path = self.directory.join(format!("{}.{:015}.log", self.name, self.begin));
                none.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?)
            }
        };
        file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// The files of a log, by where they begin.
fn files(directory: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let begin = |path: &Path| {
        let rest = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('.')?;
        rest.strip_suffix(".log")?.parse().ok()
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<(u64, PathBuf)> = paths.filter_map(|path| Some((begin(&path)?, path))).collect();
    found.sort();
    found
}

/// Deletes the logs whose names begin so.
pub(crate) fn delete(directory: &Path, prefix: &str) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Of the logs whose names begin so, deletes those files that were not written to for longest, until at most `files_max`
/// of them are left, and `bytes_max` bytes in all. Those that `is_open` knows are being written, and stay.
pub(crate) fn prune(
    directory: &Path,
    prefix: &str,
    files_max: usize,
    bytes_max: u64,
    is_open: impl Fn(&str) -> bool,
) {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let log =
            name.to_str().filter(|name| name.starts_with(prefix)).and_then(|name| name.split('.').next());
        if let (Some(log), Ok(about)) = (log, entry.metadata()) {
            found.push((is_open(log), about.modified().ok(), about.len(), entry.path()));
        }
    }
    found.sort();
    let (mut files, mut bytes) = (found.len(), found.iter().map(|(_, _, length, _)| length).sum::<u64>());
    for (is_open, _, length, path) in found {
        if is_open || (files <= files_max && bytes <= bytes_max) {
            return;
        }
        let _ = std::fs::remove_file(path);
        files -= 1;
        bytes -= length;
    }
}

/// A piece of a log, or of a single file that something else writes.
pub(crate) fn read(
    directory: &Path,
    name: &str,
    from: i64,
    max: u32,
    keep: impl Fn(&str) -> Option<&str>,
) -> std::io::Result<LogPiece> {
    let mut files = files(directory, name);
    let single = directory.join(format!("{name}.log"));
    if files.is_empty() && single.exists() {
        files.push((0, single));
    }
    let length = |path: &Path| path.metadata().map_or(0, |about| about.len());
    let end = files.last().map_or(0, |(begin, path)| begin + length(path));
    let first = files.first().map_or(0, |(begin, _)| *begin);
    let from = match u64::try_from(from) {
        Ok(from) => from,
        Err(_) => line_before_end(&files, from.unsigned_abs(), end)?,
    };
    let start = from.max(first).min(end);
    let max = if max == 0 { PIECE_MAX } else { max.min(PIECE_MAX) };
    let mut bytes = Vec::new();
    for (begin, path) in &files {
        let (room, at) = (u64::from(max) - bytes.len() as u64, start + bytes.len() as u64);
        if room == 0 || at < *begin || at >= begin + length(path) {
            continue;
        }
        let mut file = match File::open(path) {
            // Deleted since.
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            other => other?,
        };
        file.seek(SeekFrom::Start(at - begin))?;
        file.take(room).read_to_end(&mut bytes)?;
    }
    if let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n') {
        bytes.truncate(last + 1);
    }
    let text = String::from_utf8_lossy(&bytes);
    let kept: String = text.split_inclusive('\n').filter_map(keep).collect();
    let next = start + bytes.len() as u64;
    Ok(LogPiece {
        text: kept,
        next: i64::try_from(next).unwrap_or(i64::MAX),
        ended: next >= end,
        missing: start.saturating_sub(from),
    })
}

/// Where the last so many lines begin.
fn line_before_end(files: &[(u64, PathBuf)], lines: u64, end: u64) -> std::io::Result<u64> {
    let mut left = lines;
    for (begin, path) in files.iter().rev() {
        let bytes = std::fs::read(path)?;
        let last_line_ends = begin + bytes.len() as u64 == end && bytes.last() == Some(&b'\n');
        let upto = bytes.len() - usize::from(last_line_ends);
        for (at, _) in bytes[..upto].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            left -= 1;
            if left == 0 {
                return Ok(begin + at as u64 + 1);
            }
        }
    }
    Ok(files.first().map_or(0, |(begin, _)| *begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> Option<&str> {
        Some(line)
    }

    #[test]
    fn logs_of_processes_that_are_gone_make_room_and_open_ones_stay() {
        let directory = std::env::temp_dir().join(format!("log-files-pruned-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let begun = std::time::SystemTime::UNIX_EPOCH;
        for (age, name) in
            ["executor-1", "executor-2", "executor-3", "executor-4", "job-1"].iter().enumerate()
        {
            let file = File::create(directory.join(format!("{name}.000000000000000.log"))).unwrap();
            file.set_len(100).unwrap();
            file.set_modified(begun + std::time::Duration::from_secs(age as u64)).unwrap();
        }
        let left = || {
            let mut names: Vec<String> = std::fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .map(|name| name.split('.').next().unwrap().to_owned())
                .collect();
            names.sort();
            names
        };
        prune(&directory, "executor-", 4, 400, |_| false);
        assert_eq!(left(), ["executor-1", "executor-2", "executor-3", "executor-4", "job-1"]);
        prune(&directory, "executor-", 3, 400, |log| log == "executor-1");
        assert_eq!(left(), ["executor-1", "executor-3", "executor-4", "job-1"], "the oldest that is closed");
        prune(&directory, "executor-", 3, 250, |log| log == "executor-1");
        assert_eq!(left(), ["executor-1", "executor-4", "job-1"]);
        prune(&directory, "executor-", 0, 0, |log| log == "executor-1");
        assert_eq!(left(), ["executor-1", "job-1"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_reader_goes_on_across_files_and_is_told_what_is_gone() {
        let directory = std::env::temp_dir().join(format!("log-files-{}", std::process::id()));
        let mut writer = LogWriter { file_max: 100, ..LogWriter::new(&directory, "job-1") };
        for number in 0..30 {
            writer.write(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let mut text = String::new();
        let mut from = 0;
        loop {
            let piece = read(&directory, "job-1", from, 64, all).unwrap();
            assert!(piece.text.ends_with('\n'), "{piece:?}");
            text += &piece.text;
            from = piece.next;
            if piece.ended {
                break;
            }
        }
        assert_eq!(text.lines().count(), 30);
        assert_eq!(read(&directory, "job-1", -2, 0, all).unwrap().text, "line 0028\nline 0029\n");
        for number in 30..200 {
            writer.write(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let piece = read(&directory, "job-1", 0, 0, all).unwrap();
        assert!(piece.missing > 0 && piece.text.starts_with("line ") && piece.text.ends_with("line 0199\n"));
        assert!(files(&directory, "job-1").len() <= FILES_MAX);
        delete(&directory, "job-1");
        assert!(files(&directory, "job-1").is_empty());
        let _ = std::fs::remove_dir(&directory);
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let directory = std::env::temp_dir().join(format!("log-halves-{}", std::process::id()));
        let mut writer = LogWriter::new(&directory, "x");
        writer.write(b"{\"a\": 1}\n{\"b\"").unwrap();
        assert_eq!(read(&directory, "x", 0, 0, all).unwrap().text, "{\"a\": 1}\n");
        writer.write(b": 2}\n").unwrap();
        assert_eq!(read(&directory, "x", 9, 0, all).unwrap().text, "{\"b\": 2}\n");
        delete(&directory, "x");
        let _ = std::fs::remove_dir(&directory);
    }
}
