//! Logs of jobs in durable storage, written as they grow: they are there when their node is not.

use std::path::{Path as FilePath, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cluster_types::job::LogPiece;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_stream::StreamExt;

use crate::log_files;
use crate::store_host::open_storage;

/// Where they are in the storage.
const FOLDER: &str = "logs";
/// So much may be lost with a node.
const EVERY: Duration = Duration::from_secs(2);
/// Bytes of one answer.
const PIECE_MAX: usize = 1 << 20;

/// Copies one log on a thread of its own.
pub(crate) struct Archivist {
    ended: Sender<()>,
    thread: JoinHandle<()>,
}

impl Archivist {
    /// Begins; `url` is where to, and a log that cannot be copied is on its node only.
    pub(crate) fn start(url: String, directory: PathBuf, name: String) -> std::io::Result<Archivist> {
        let (ended, told) = channel();
        let thread = std::thread::Builder::new().name("archive".into()).spawn(move || {
            if let Err(error) = copy(&url, &directory, &name, &told) {
                // The job's own log is a place where its owner sees it.
                let _ = log_files::LogWriter::new(&directory, &name)
                    .write(format!("cluster: this log is not copied to {url}: {error}\n").as_bytes());
            }
        })?;
        Ok(Archivist { ended, thread })
    }

    /// What was written is copied to the end.
    pub(crate) fn finish(self) {
        drop(self.ended);
        let _ = self.thread.join();
    }
}

fn copy(url: &str, directory: &FilePath, name: &str, told: &Receiver<()>) -> Result<(), String> {
    let (store, prefix) = open_storage(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut from = 0;
    loop {
        let last = matches!(told.recv_timeout(EVERY), Err(RecvTimeoutError::Disconnected));
        loop {
            let piece = log_files::read(directory, name, from, 0, |line| Some(line));
            let piece = piece.map_err(|error| error.to_string())?;
            if piece.text.is_empty() {
                break;
            }
            // Where it lies says where it begins.
            let begin = piece.next - i64::try_from(piece.text.len()).unwrap_or_default();
            let path = folder(&prefix, name).join(format!("{begin:015}"));
            runtime.block_on(store.put(&path, piece.text.into())).map_err(|error| error.to_string())?;
            from = piece.next;
        }
        if last {
            return Ok(());
        }
    }
}

fn folder(prefix: &Path, name: &str) -> Path {
    prefix.clone().join(FOLDER).join(name)
}

/// The parts of a log: where each begins, and how long it is.
async fn parts(store: &dyn ObjectStore, folder: &Path) -> Result<Vec<(u64, u64, Path)>, String> {
    let mut found = Vec::new();
    let mut listed = store.list(Some(folder));
    while let Some(about) = listed.next().await {
        let about = about.map_err(|error| error.to_string())?;
        if let Some(begin) = about.location.filename().and_then(|name| name.parse().ok()) {
            found.push((begin, about.size, about.location));
        }
    }
    found.sort();
    Ok(found)
}

/// A piece of a log whose node is gone; `None`: none of it is there.
///
/// # Errors
/// What the storage says.
pub(crate) async fn read(url: &str, name: &str, from: i64) -> Result<Option<LogPiece>, String> {
    let (store, prefix) = open_storage(url)?;
    let parts = parts(&*store, &folder(&prefix, name)).await?;
    let Some((last, length, _)) = parts.last() else { return Ok(None) };
    let end = last + length;
    let text_of = async |path: &Path| -> Result<String, String> {
        let bytes = store.get(path).await.map_err(|error| error.to_string())?.bytes().await;
        Ok(String::from_utf8_lossy(&bytes.map_err(|error| error.to_string())?).into_owned())
    };
    let mut text = String::new();
    let Ok(from) = u64::try_from(from) else {
        let wanted = from.unsigned_abs() as usize;
        for (_, _, path) in parts.iter().rev() {
            text.insert_str(0, &text_of(path).await?);
            if text.lines().count() > wanted || text.len() > PIECE_MAX {
                break;
            }
        }
        let skip = text.lines().count().saturating_sub(wanted);
        let tail: String = text.split_inclusive('\n').skip(skip).collect();
        return Ok(Some(LogPiece { text: tail, next: to_signed(end), ended: true, missing: 0 }));
    };
    let mut next = from;
    for (begin, length, path) in &parts {
        if begin + length <= from {
            continue;
        }
        if text.len() >= PIECE_MAX {
            break;
        }
        let part = text_of(path).await?;
        let skip = usize::try_from(from.saturating_sub(*begin)).unwrap_or(0);
        text += part.get(skip..).unwrap_or_default();
        next = begin + length;
    }
    Ok(Some(LogPiece { text, next: to_signed(next), ended: next >= end, missing: 0 }))
}

fn to_signed(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// Deletes all logs of a job.
///
/// # Errors
/// What the storage says.
pub(crate) async fn delete(url: &str, job: &str) -> Result<(), String> {
    let (store, prefix) = open_storage(url)?;
    let all =
        store.list_with_delimiter(Some(&prefix.join(FOLDER))).await.map_err(|error| error.to_string())?;
    for folder in all.common_prefixes {
        if folder.filename().is_some_and(|name| name.starts_with(&format!("job-{job}-"))) {
            for (_, _, path) in parts(&*store, &folder).await? {
                store.delete(&path).await.map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_read_from_where_it_was_copied_and_deleted_there() {
        let (here, there) = (std::env::temp_dir(), std::env::temp_dir());
        let here = here.join(format!("archive-here-{}", std::process::id()));
        let there = there.join(format!("archive-there-{}", std::process::id()));
        let url = format!("file://{}", there.display());
        let mut log = log_files::LogWriter::new(&here, "job-00000001-1");
        let archivist = Archivist::start(url.clone(), here.clone(), "job-00000001-1".into()).unwrap();
        for number in 0..100 {
            log.write(format!("line {number:02}\n").as_bytes()).unwrap();
        }
        tokio::task::spawn_blocking(|| archivist.finish()).await.unwrap();
        let piece = read(&url, "job-00000001-1", 0).await.unwrap().unwrap();
        assert_eq!((piece.text.lines().count(), piece.next, piece.ended), (100, 800, true));
        let piece = read(&url, "job-00000001-1", 792).await.unwrap().unwrap();
        assert_eq!(piece.text, "line 99\n");
        let piece = read(&url, "job-00000001-1", -2).await.unwrap().unwrap();
        assert_eq!(piece.text, "line 98\nline 99\n");
        delete(&url, "00000001").await.unwrap();
        assert_eq!(read(&url, "job-00000001-1", 0).await.unwrap(), None);
        let _ = std::fs::remove_dir_all(here);
        let _ = std::fs::remove_dir_all(there);
    }
}
