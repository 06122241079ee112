//! The directory of a cluster's daemons on this machine, for their owner only.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Where daemons keep their socket, token, logs and pid files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

/// `cluster.json`: how programs on this machine find the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The head's, as it is reached from here.
    pub address: String,
    pub token_file: PathBuf,
    pub node_socket: PathBuf,
    /// Sixteen hex digits.
    pub node_id: String,
    /// `None` on a machine that joined.
    pub head_pid: Option<u32>,
    pub worker_pid: u32,
    pub data_port: u16,
    pub gateway_port: u16,
}

impl RunDir {
    pub fn new(path: PathBuf) -> Self {
        Self(std::path::absolute(&path).unwrap_or(path))
    }

    /// `$XDG_RUNTIME_DIR/concurrent-ml`, or `/tmp/concurrent-ml-UID`.
    pub fn default_for_user() -> Self {
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
            Some(dir) => Self(Path::new(&dir).join("concurrent-ml")),
            None => Self(format!("/tmp/concurrent-ml-{}", rustix::process::getuid().as_raw()).into()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }
    pub fn socket(&self) -> PathBuf {
        self.0.join(worker_node::SOCKET_NAME)
    }
    pub fn cluster_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }
    /// Written by the worker daemon.
    pub fn heads_file(&self) -> PathBuf {
        self.0.join(worker_node::HEADS_NAME)
    }
    pub fn pid_file(&self, daemon: &str) -> PathBuf {
        self.0.join(format!("{daemon}.pid"))
    }
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.0.join("logs").join(format!("{daemon}.log"))
    }
    pub fn state(&self) -> PathBuf {
        self.0.join("head.redb")
    }
    /// Tasks that ended; a file beside it has those of before.
    pub fn history(&self) -> PathBuf {
        self.0.join("history.jsonl")
    }

    /// Makes the directory, or checks that nobody else can write in it: a stranger's socket there would be trusted.
    pub fn create(&self) -> Result<(), CliError> {
        let path = self.0.display();
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(&self.0).map_err(CliError::io(format!("make the directory {path}")))?;
        let about = std::fs::metadata(&self.0).map_err(CliError::io(format!("look at {path}")))?;
        if about.uid() != rustix::process::getuid().as_raw() || about.mode() & 0o077 != 0 {
            return Err(CliError::Failed(format!(
                "the directory {path} must belong to you and be closed to others (chmod 700); \
                 or name another with --dir or CLUSTER_DIR"
            )));
        }
        make(&self.0.join("logs")).map_err(CliError::io(format!("make the directory {path}/logs")))
    }

    /// Removes the directories and logs of jobs that no head knows any more: those of a cluster that has ended.
    pub fn forget_jobs(&self) {
        let _ = std::fs::remove_dir_all(self.0.join("jobs"));
        for entry in std::fs::read_dir(self.0.join("logs")).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with("job-")) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Keeps a second `cluster up` or `down` away until the answer is dropped.
    pub fn lock(&self) -> Result<File, CliError> {
        let path = self.0.join("lock");
        let what = || format!("lock {}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(CliError::io(what()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            CliError::Failed(format!(
                "another `cluster up` or `cluster down` is at work in {}",
                self.0.display()
            ))
        })?;
        Ok(file)
    }

    /// Writes a file that only its owner may read, whole or not at all.
    pub fn write_private(&self, path: &Path, content: &str) -> Result<(), CliError> {
        let temporary = path.with_extension(format!("tmp{}", std::process::id()));
        let write = || {
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(content.as_bytes())?;
            std::fs::rename(&temporary, path)
        };
        write().map_err(CliError::io(format!("write {}", path.display())))
    }

    /// The heads of this machine's cluster: the one it was started with, and those its daemon has heard of.
    pub fn heads(&self) -> Vec<String> {
        let Some(file) = self.read_cluster_file() else { return Vec::new() };
        let heard = std::fs::read_to_string(self.heads_file()).unwrap_or_default();
        let all = file.address.split(',').chain(heard.trim().split(','));
        all.filter(|head| !head.is_empty()).map(str::to_owned).collect()
    }

    pub fn read_cluster_file(&self) -> Option<ClusterFile> {
        serde_json::from_slice(&std::fs::read(self.cluster_file()).ok()?).ok()
    }
}

/// The token that was given by variable or file, or that an earlier `cluster up` left here; in this order.
pub fn find_token(dir: &RunDir, token_file: Option<&Path>) -> Result<Option<String>, CliError> {
    let variable = std::env::var("CLUSTER_TOKEN").unwrap_or_default();
    if !variable.trim().is_empty() {
        return Ok(Some(variable.trim().to_owned()));
    }
    let (path, needed) = match token_file {
        Some(path) => (path.to_path_buf(), true),
        None => (dir.token(), false),
    };
    match std::fs::read_to_string(&path) {
        Ok(token) if !token.trim().is_empty() => Ok(Some(token.trim().to_owned())),
        Ok(_) => Err(CliError::Token(format!("the token file {} is empty", path.display()))),
        Err(error) if needed || error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::Token(format!("cannot read the token file {}: {error}", path.display())))
        }
        Err(_) => Ok(None),
    }
}

/// 32 hex digits.
pub fn make_token() -> Result<String, CliError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| CliError::Failed(format!("cannot make a token: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_directory_and_its_secrets_are_for_their_owner() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path().join("run"));
        dir.create().unwrap();
        dir.create().unwrap();
        dir.write_private(&dir.token(), "secret\n").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(dir.path()), mode(&dir.token())), (0o700, 0o600));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(dir.create().unwrap_err().to_string().contains("chmod 700"));
    }

    #[test]
    fn the_heads_here_are_those_that_were_named_and_those_that_were_heard_of() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path().join("run"));
        dir.create().unwrap();
        std::fs::write(dir.heads_file(), "a:1,b:1\n").unwrap();
        assert!(dir.heads().is_empty(), "left by a cluster that is down");
        let file = ClusterFile {
            address: "b:1,c:1".into(),
            token_file: dir.token(),
            node_socket: dir.socket(),
            node_id: String::new(),
            head_pid: None,
            worker_pid: 1,
            data_port: 1,
            gateway_port: 1,
        };
        std::fs::write(dir.cluster_file(), serde_json::to_string(&file).unwrap()).unwrap();
        assert_eq!(dir.heads(), ["b:1", "c:1", "a:1", "b:1"]);
    }

    #[test]
    fn two_commands_do_not_work_in_one_directory() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path().join("run"));
        dir.create().unwrap();
        let lock = dir.lock().unwrap();
        assert!(dir.lock().is_err());
        drop(lock);
        dir.lock().unwrap();
    }
}
