//! A daemon's own directory, and what dead daemons left.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

const PREFIX: &str = "cluster-spill-";

/// A directory that is locked as long as this process has it, and removed in the end.
#[derive(Debug)]
pub(super) struct OwnDirectory {
    path: PathBuf,
    _lock: OwnedFd,
}

impl OwnDirectory {
    /// Removes what dead daemons left in `parent`, and makes a directory for this one.
    pub fn create(parent: &Path) -> io::Result<OwnDirectory> {
        fs::create_dir_all(parent)?;
        remove_leftovers(parent)?;
        let start = process_start().unwrap_or(0);
        for attempt in 0..1000 {
            let path = parent.join(format!("{PREFIX}{}-{start}-{attempt}", std::process::id()));
            match make(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            // Between making and locking it, another daemon may have taken it for a leftover.
            if let Some(lock) = lock(&path)? {
                return Ok(OwnDirectory { path, _lock: lock });
            }
        }
        Err(io::Error::other("no free name for a spill directory"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What one daemon spills is nobody else's to read.
fn make(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mkdir(path, Mode::RWXU)?)
}

/// `None` if another process has the lock, or the directory is no longer the one of this name.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    let still_there = rustix::fs::stat(path).is_ok_and(|now| {
        rustix::fs::fstat(&fd).is_ok_and(|then| (now.st_ino, now.st_dev) == (then.st_ino, then.st_dev))
    });
    Ok(still_there.then_some(fd))
}

/// A lock tells the dead from the living better than a process id does: ids are reused, and two containers that share
/// a disk do not see each other's processes.
fn remove_leftovers(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        // What cannot be locked or removed (another user's, say) is not a reason to refuse to start.
        if let Ok(Some(_lock)) = lock(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// When this process started, in clock ticks since boot: makes the name unique where process ids repeat.
fn process_start() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold spaces and brackets; the fields after its last bracket are numbers.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_keep_theirs_and_the_dead_lose_theirs() {
        let parent = std::env::temp_dir().join(format!("cluster-leftovers-{}", std::process::id()));
        let living = OwnDirectory::create(&parent).unwrap();
        let dead = parent.join(format!("{PREFIX}1-2-3"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("0.spill"), b"old").unwrap();
        let foreign = parent.join("somebody-else");
        fs::create_dir(&foreign).unwrap();
        let second = OwnDirectory::create(&parent).unwrap();
        assert!(living.path().exists() && foreign.exists() && !dead.exists());
        assert_ne!(living.path(), second.path());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
        drop(living);
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn the_start_of_this_process_is_known() {
        assert!(process_start().unwrap() > 0);
    }
}
