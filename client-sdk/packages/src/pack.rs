//! A directory's list of files, without what `.gitignore` excludes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster_proto::limits::{CHUNK, MAX_PACKAGE_LIST};
use ignore::WalkBuilder;

use crate::chunks::ChunkName;
use crate::known::Known;
use crate::{Entry, EntryKind, PackageError};

/// A tree that is ready to be sent.
#[derive(Debug)]
pub struct Packed {
    /// The tree's name: that of its list.
    pub name: ChunkName,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Files, links and empty directories.
    pub entries: usize,
    pub(crate) list: Vec<u8>,
    /// Where each chunk is: file, place, length.
    pub(crate) places: HashMap<ChunkName, (PathBuf, u64, usize)>,
}

/// Lists and hashes a directory; a single file is a tree of one. Files that did not change since last time are not read.
///
/// # Errors
/// If a file cannot be read, or there is more than `limit` bytes: names the largest then.
pub fn pack(root: &Path, limit: u64) -> Result<Packed, PackageError> {
    let root = root.canonicalize().map_err(PackageError::file(root))?;
    let found = walk(&root)?;
    let sized: Vec<(&Found, u64)> =
        found.iter().filter(|found| found.about.is_file()).map(|found| (found, found.about.len())).collect();
    let bytes: u64 = sized.iter().map(|(_, size)| size).sum();
    if bytes > limit {
        return Err(too_large(&root, bytes, limit, sized));
    }
    let place = Known::place(&root);
    let old = Known::load(place.as_deref());
    let mut known = Known::default();
    let hashed = hash_all(&found, &old)?;
    let mut entries = Vec::with_capacity(found.len());
    let mut places = HashMap::new();
    for (found, chunks) in found.iter().zip(hashed) {
        let kind = if found.about.is_file() {
            known.add(&found.name, &found.about, &chunks);
            let mut left = found.about.len();
            for (at, chunk) in chunks.iter().enumerate() {
                let length = left.min(CHUNK as u64);
                places.insert(*chunk, (found.path.clone(), (at * CHUNK) as u64, length as usize));
                left -= length;
            }
            let program = found.about.permissions().mode() & 0o100 != 0;
            EntryKind::File { program, size: found.about.len(), chunks }
        } else if found.about.is_symlink() {
            let target = std::fs::read_link(&found.path).map_err(PackageError::file(&found.path))?;
            EntryKind::Link(target.to_string_lossy().into_owned())
        } else {
            EntryKind::Directory {}
        };
        entries.push(Entry { path: found.name.clone(), kind });
    }
    known.save(place.as_deref());
    let list = serde_json::to_vec(&entries).map_err(|error| PackageError::Wrong(error.to_string()))?;
    if list.len() > MAX_PACKAGE_LIST {
        return Err(PackageError::Wrong(format!(
            "{} has {} files, more than can be sent: exclude some with a .gitignore file, or put them into an archive",
            root.display(),
            entries.len()
        )));
    }
    Ok(Packed { name: ChunkName::of(&list), bytes, entries: entries.len(), list, places })
}

struct Found {
    path: PathBuf,
    /// Below the root.
    name: String,
    about: Metadata,
}

/// In the order of names, so that the same tree has the same list.
fn walk(root: &Path) -> Result<Vec<Found>, PackageError> {
    let single = root.is_file();
    let mut walker = WalkBuilder::new(root);
    // As git has it, in a repository or not; files that begin with a dot are wanted, git's own are not.
    walker.hidden(false).ignore(false).git_global(false).require_git(false).follow_links(false);
    walker.filter_entry(|entry| entry.file_name() != ".git" && entry.file_name() != "__pycache__");
    let mut found = Vec::new();
    for entry in walker.build() {
        let entry =
            entry.map_err(|error| PackageError::Wrong(format!("cannot list {}: {error}", root.display())))?;
        let path = entry.path();
        let below = match single {
            true => path.file_name().map(PathBuf::from).unwrap_or_default(),
            false => path.strip_prefix(root).map(Path::to_path_buf).unwrap_or_default(),
        };
        if below.as_os_str().is_empty() {
            continue;
        }
        let Some(name) = below.to_str() else {
            return Err(PackageError::Wrong(format!(
                "the name of {} is no UTF-8: rename it",
                path.display()
            )));
        };
        let about = path.symlink_metadata().map_err(PackageError::file(path))?;
        if about.is_file() || about.is_symlink() || about.is_dir() {
            found.push(Found { path: path.to_path_buf(), name: name.to_owned(), about });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The chunks of each, in the same order; of several files at once.
fn hash_all(found: &[Found], known: &Known) -> Result<Vec<Vec<ChunkName>>, PackageError> {
    let results: Vec<Mutex<Vec<ChunkName>>> = found.iter().map(|_| Mutex::default()).collect();
    let problem: Mutex<Option<PackageError>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let work = || loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(found) = found.get(at) else { return };
        if !found.about.is_file() {
            continue;
        }
        let chunks = match known.get(&found.name, &found.about) {
            Some(chunks) => Ok(chunks.clone()),
            None => hash(found),
        };
        match chunks {
            Ok(chunks) => *results[at].lock().unwrap_or_else(PoisonError::into_inner) = chunks,
            Err(error) => *problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match problem.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let taken = results.into_iter().map(|chunks| chunks.into_inner());
            Ok(taken.map(|chunks| chunks.unwrap_or_else(PoisonError::into_inner)).collect())
        }
    }
}

fn hash(found: &Found) -> Result<Vec<ChunkName>, PackageError> {
    let mut file = File::open(&found.path).map_err(PackageError::file(&found.path))?;
    let mut chunks = Vec::new();
    let mut left = found.about.len();
    let mut buffer = vec![0; CHUNK.min(left as usize)];
    while left > 0 {
        let length = left.min(CHUNK as u64) as usize;
        file.read_exact(&mut buffer[..length]).map_err(PackageError::file(&found.path))?;
        chunks.push(ChunkName::of(&buffer[..length]));
        left -= length as u64;
    }
    Ok(chunks)
}

fn too_large(root: &Path, bytes: u64, limit: u64, mut sized: Vec<(&Found, u64)>) -> PackageError {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    sized.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let largest: Vec<String> =
        sized.iter().take(5).map(|(found, size)| format!("\n  {:>12}  {}", mib(*size), found.name)).collect();
    PackageError::Wrong(format!(
        "{} has {}, more than the limit of {}: exclude what the job does not need with a .gitignore file, or raise \
         the limit (CLUSTER_PACKAGE_LIMIT). The largest files:{}",
        root.display(),
        mib(bytes),
        mib(limit),
        largest.concat()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(packed: &Packed) -> Vec<String> {
        let entries: Vec<Entry> = serde_json::from_slice(&packed.list).unwrap();
        entries.into_iter().map(|entry| entry.path).collect()
    }

    #[test]
    fn what_git_ignores_stays_and_what_changed_is_another_tree() {
        let tree = tempfile::tempdir().unwrap();
        let at = |name: &str| tree.path().join(name);
        fs::create_dir_all(at("src/data")).unwrap();
        fs::create_dir_all(at(".git")).unwrap();
        fs::create_dir_all(at("empty")).unwrap();
        for name in [".gitignore", "train.py", "src/a.py", "src/data/big.bin", ".git/HEAD", "x.log", ".env"] {
            fs::write(at(name), name).unwrap();
        }
        fs::write(at(".gitignore"), "*.log\n/src/data/\n").unwrap();
        std::os::unix::fs::symlink("src/a.py", at("link")).unwrap();
        let first = pack(tree.path(), DEFAULT).unwrap();
        assert_eq!(names(&first), [".env", ".gitignore", "empty", "link", "src", "src/a.py", "train.py"]);
        assert_eq!(pack(tree.path(), DEFAULT).unwrap().name, first.name);
        fs::write(at("train.py"), "other").unwrap();
        let second = pack(tree.path(), DEFAULT).unwrap();
        assert_ne!(second.name, first.name);
        let new = second.places.keys().filter(|chunk| !first.places.contains_key(*chunk)).count();
        assert_eq!(new, 1, "only what changed is sent");
    }

    const DEFAULT: u64 = crate::DEFAULT_LIMIT;

    #[test]
    fn a_tree_that_is_too_large_names_its_largest_files() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("small.py"), "x").unwrap();
        fs::write(tree.path().join("weights.bin"), vec![0; 3 << 20]).unwrap();
        let error = pack(tree.path(), 1 << 20).unwrap_err().to_string();
        assert!(
            error.contains("3.0 MiB") && error.contains("weights.bin") && error.contains(".gitignore"),
            "{error}"
        );
        assert_eq!(pack(&tree.path().join("small.py"), 10).unwrap().entries, 1);
        assert!(pack(Path::new("/nowhere/at/all"), 10).unwrap_err().to_string().contains("/nowhere/at/all"));
    }
}
