//! Hashes of files that have not changed since they were read last, by what the file system says of them.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::chunks::ChunkName;

/// A file changed so shortly before it was read may change again within the clock's tick.
const TICK_NS: i128 = 50_000_000;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    files: HashMap<String, (Stamp, Vec<ChunkName>)>,
}

/// Differs when the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    inode: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Stamp {
    fn of(about: &Metadata) -> Stamp {
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Stamp {
            size: about.size(),
            inode: about.ino(),
            modified_ns: ns(about.mtime(), about.mtime_nsec()),
            changed_ns: ns(about.ctime(), about.ctime_nsec()),
        }
    }
}

impl Known {
    /// Where those of a tree are kept; `None`: nowhere.
    pub fn place(tree: &Path) -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let name = ChunkName::of(tree.as_os_str().as_encoded_bytes()).to_string();
        Some(cache.join("concurrent-ml").join("hashes").join(&name[..16]))
    }

    /// What is kept there; nothing, if it cannot be read.
    pub fn load(place: Option<&Path>) -> Known {
        let bytes = place.and_then(|place| std::fs::read(place).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Only saves time later, so a failure is none.
    pub fn save(&self, place: Option<&Path>) {
        let Some(place) = place else { return };
        let _ = place.parent().map(std::fs::create_dir_all);
        let temporary = place.with_extension(std::process::id().to_string());
        if std::fs::write(&temporary, serde_json::to_vec(self).unwrap_or_default()).is_ok() {
            let _ = std::fs::rename(&temporary, place);
        }
    }

    pub fn get(&self, path: &str, about: &Metadata) -> Option<&Vec<ChunkName>> {
        self.files.get(path).filter(|(stamp, _)| *stamp == Stamp::of(about)).map(|(_, chunks)| chunks)
    }

    /// `about` was asked for before it was read.
    pub fn add(&mut self, path: &str, about: &Metadata, chunks: &[ChunkName]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        let stamp = Stamp::of(about);
        if i128::from(stamp.modified_ns.max(stamp.changed_ns)) + TICK_NS < now {
            self.files.insert(path.to_owned(), (stamp, chunks.to_vec()));
        }
    }
}
