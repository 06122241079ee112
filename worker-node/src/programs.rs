//! Programs of users that are executors: files kept by what is in them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster_store::layout::View;
use cluster_types::Location;
use sha2::{Digest, Sha256};

/// A program, as the environment variable [`worker_core::event::PROGRAM`] names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    /// SHA-256 of the file, in hexadecimal.
    hash: String,
}

/// The platform of this daemon, as programs name theirs.
fn platform() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

impl Program {
    pub(crate) fn parse(named: &str) -> Result<Program, String> {
        let mut parts = named.split(' ');
        let (Some(hash), Some(wanted)) = (parts.next(), parts.next()) else {
            return Err(format!("{named:?} names no program"));
        };
        // It becomes a file's name.
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("{hash:?} is no SHA-256 of a program"));
        }
        let here = platform();
        if wanted != here {
            return Err(format!(
                "the program was built for {wanted} and this node is {here}: build it for {here}, or send its tasks to \
                 nodes of its own platform by a label"
            ));
        }
        Ok(Program { hash: hash.to_owned() })
    }

    /// Its file in this directory: written from the object that holds it, unless it is there.
    pub(crate) async fn file(
        &self,
        directory: PathBuf,
        bytes: Option<(Location, Arc<OwnedFd>)>,
    ) -> Result<PathBuf, String> {
        let path = directory.join(&self.hash);
        if path.exists() {
            return Ok(path);
        }
        let Some((at, segment)) = bytes else {
            return Err(format!("the program {} is not on this node", self.hash));
        };
        let hash = self.hash.clone();
        let written = tokio::task::spawn_blocking(move || write(&directory, &hash, at, &segment)).await;
        written.unwrap_or_else(|error| Err(format!("writing the program failed: {error}")))
    }
}

/// Whole or not at all: the object may be freed while it is read, and several may write at once.
fn write(directory: &Path, hash: &str, at: Location, segment: &Arc<OwnedFd>) -> Result<PathBuf, String> {
    let error =
        |what: &str, error: std::io::Error| format!("the program {hash} could not be {what}: {error}");
    let len = usize::try_from(at.len).map_err(|_| "the program is too long".to_owned())?;
    let mut value = vec![0; len];
    let source = segment.try_clone().map_err(|reason| error("read", reason))?;
    File::from(source).read_exact_at(&mut value, at.offset).map_err(|reason| error("read", reason))?;
    let view = View::parse(&value).map_err(|reason| format!("the program {hash} is damaged: {reason}"))?;
    let found: String = Sha256::digest(view.in_band()).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != hash {
        return Err(format!("the program {hash} is damaged: what came has SHA-256 {found}"));
    }
    let write = || {
        std::fs::create_dir_all(directory)?;
        let number = std::thread::current().id();
        let unfinished = directory.join(format!("{hash}.{}.{number:?}.part", std::process::id()));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o700).open(&unfinished)?;
        file.write_all(view.in_band())?;
        // Nobody can run a file that is open for writing.
        drop(file);
        let path = directory.join(hash);
        std::fs::rename(&unfinished, &path)?;
        Ok(path)
    };
    write().map_err(|reason| error("written", reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(platform: &str) -> String {
        format!("{} {platform} 0000000000000001.2.0", "a".repeat(64))
    }

    #[test]
    fn a_program_of_another_platform_is_refused_by_name() {
        assert!(Program::parse(&named(&platform())).is_ok());
        let refused = Program::parse(&named("riscv64-linux")).unwrap_err();
        assert!(refused.contains("built for riscv64-linux") && refused.contains(&platform()), "{refused}");
    }

    #[test]
    fn a_hash_is_no_path() {
        assert!(Program::parse(&format!("../../x {} 1", platform())).is_err());
        assert!(Program::parse("").is_err());
    }

    #[tokio::test]
    async fn a_damaged_program_is_not_run() {
        let directory = std::env::temp_dir().join(format!("programs-{}", std::process::id()));
        let program = Program::parse(&named(&platform())).unwrap();
        let fd = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let kind = cluster_store::layout::Kind::RAW;
        let value = cluster_store::layout::Layout::encode(kind, b"not what was named", &[]).unwrap();
        rustix::io::write(&fd, &value).unwrap();
        let at = Location { segment: cluster_types::SegmentId(1), offset: 0, len: value.len() as u64 };
        let refused = program.file(directory.clone(), Some((at, Arc::new(fd)))).await.unwrap_err();
        assert!(refused.contains("damaged"), "{refused}");
        assert!(!directory.join("a".repeat(64)).exists());
    }
}
