//! A directory of chunks, each a file named by its content.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// SHA-256 of a chunk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkName(pub [u8; 32]);

impl ChunkName {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> ChunkName {
        ChunkName(Sha256::digest(bytes).into())
    }

    /// As `Display` writes it.
    pub fn parse(text: &str) -> Option<ChunkName> {
        let mut name = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (at, byte) in name.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(ChunkName(name))
    }

    /// As it travels.
    pub fn from_slice(bytes: &[u8]) -> Option<ChunkName> {
        bytes.try_into().ok().map(ChunkName)
    }
}

impl std::fmt::Display for ChunkName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl Serialize for ChunkName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChunkName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        ChunkName::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text} is no name of a chunk")))
    }
}

/// Chunks used within this time are never deleted: a job may be about to fetch them.
const KEPT_AT_LEAST: Duration = Duration::from_secs(3600);

/// The file with its node's gateway.
const GATEWAY: &str = "gateway";
/// How the names of files begin that are being written.
const BEGUN: &str = "new-";

static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// See the module. Many processes may use one directory at a time.
#[derive(Clone, Debug)]
pub struct Chunks {
    directory: PathBuf,
}

impl Chunks {
    /// Those in this directory, which need not exist.
    pub fn new(directory: &Path) -> Chunks {
        Chunks { directory: directory.to_path_buf() }
    }

    /// From where other nodes may fetch them: this node's gateway.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set_gateway(&self, address: &str) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::write(self.directory.join(GATEWAY), address)
    }

    /// As `set_gateway` was told; empty where there is none.
    pub fn gateway(&self) -> String {
        fs::read_to_string(self.directory.join(GATEWAY)).unwrap_or_default()
    }

    /// Where one is, or would be.
    pub fn path(&self, name: ChunkName) -> PathBuf {
        let text = name.to_string();
        self.directory.join(&text[..2]).join(text)
    }

    /// Whether it is here; it is not deleted soon then.
    pub fn has(&self, name: ChunkName) -> bool {
        let Ok(file) = File::open(self.path(name)) else { return false };
        let old = file.metadata().and_then(|about| about.modified()).ok();
        let age = old.and_then(|old| SystemTime::now().duration_since(old).ok());
        if age.is_none_or(|age| age > KEPT_AT_LEAST / 2) {
            let _ = file.set_modified(SystemTime::now());
        }
        true
    }

    /// Its bytes.
    ///
    /// # Errors
    /// If it is not here, or was spoilt.
    pub fn read(&self, name: ChunkName) -> std::io::Result<Vec<u8>> {
        let bytes = fs::read(self.path(name))?;
        if ChunkName::of(&bytes) != name {
            let _ = fs::remove_file(self.path(name));
            return Err(std::io::Error::other(format!("chunk {name} is spoilt")));
        }
        Ok(bytes)
    }

    /// Adds it: whole or not at all, whoever is cut off.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, bytes: &[u8]) -> std::io::Result<ChunkName> {
        let name = ChunkName::of(bytes);
        let path = self.path(name);
        if path.exists() {
            return Ok(name);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{BEGUN}{}-{number}", std::process::id()));
        let written = File::create(&temporary).and_then(|mut file| file.write_all(bytes));
        if let Err(error) = written.and_then(|()| fs::rename(&temporary, &path)) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(name)
    }

    /// Deletes those that were not used for longest until they take no more than this, and what somebody began to
    /// write who was killed.
    pub fn keep_below(&self, limit: u64) {
        let age = |used: SystemTime| SystemTime::now().duration_since(used).unwrap_or_default();
        let mut all: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for directory in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if directory.file_name().as_encoded_bytes().starts_with(BEGUN.as_bytes()) {
                let begun = directory.metadata().and_then(|about| about.modified());
                if begun.is_ok_and(|begun| age(begun) > KEPT_AT_LEAST) {
                    let _ = fs::remove_file(directory.path());
                }
                continue;
            }
            for entry in fs::read_dir(directory.path()).into_iter().flatten().flatten() {
                if let Ok(about) = entry.metadata() {
                    all.push((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len(), entry.path()));
                }
            }
        }
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        all.sort();
        for (used, size, path) in all {
            if total <= limit || age(used) < KEPT_AT_LEAST {
                return;
            }
            if fs::remove_file(path).is_ok() {
                total -= size;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_by_name_and_what_was_spoilt_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(directory.path());
        let name = chunks.write(b"hello").unwrap();
        assert_eq!(ChunkName::parse(&name.to_string()), Some(name));
        assert!(chunks.has(name) && !chunks.has(ChunkName::of(b"other")));
        assert_eq!(chunks.read(name).unwrap(), b"hello");
        fs::write(chunks.path(name), b"hallo").unwrap();
        chunks.read(name).unwrap_err();
        assert!(!chunks.has(name), "the next who brings it is asked for it");
    }

    #[test]
    fn what_is_old_goes_first_and_what_is_new_stays() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(directory.path());
        let names = [b"a", b"b", b"c"].map(|bytes| chunks.write(bytes).unwrap());
        for (name, hours) in names.into_iter().zip([5, 7, 0]) {
            let file = File::open(chunks.path(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        }
        chunks.keep_below(2);
        assert_eq!(names.map(|name| chunks.path(name).exists()), [true, false, true]);
        chunks.keep_below(0);
        assert_eq!(names.map(|name| chunks.path(name).exists()), [false, false, true]);
    }

    #[test]
    fn what_a_killed_process_began_to_write_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(directory.path());
        let [killed, writing] = ["new-1-1", "new-2-1"].map(|name| directory.path().join(name));
        for path in [&killed, &writing] {
            fs::write(path, b"half").unwrap();
        }
        let long_ago = SystemTime::now() - 2 * KEPT_AT_LEAST;
        File::options().write(true).open(&killed).unwrap().set_modified(long_ago).unwrap();
        chunks.keep_below(1 << 30);
        assert!(!killed.exists() && writing.exists());
    }
}
