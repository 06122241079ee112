//! A cluster inside this program: one child process that ends with it.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::{Error, Result};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What the machine gives; what is not said is all that it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    pub(crate) num_cpus: Option<f64>,
    pub(crate) num_gpus: Option<f64>,
    pub(crate) object_store_memory: Option<u64>,
    pub(crate) resources: BTreeMap<String, f64>,
}

/// Settings of the environment that mean an embedded cluster too; the others describe some cluster elsewhere.
const FOR_EMBEDDED: [&str; 3] = ["CLUSTER_LOG", "CLUSTER_MEMORY_THRESHOLD", "CLUSTER_DURABLE"];

/// The child: head, daemon and store. It ends when this program does, however that happens.
#[derive(Debug)]
pub(crate) struct Embedded {
    child: Child,
    directory: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) token: String,
}

#[derive(serde::Deserialize)]
struct Ready {
    socket: PathBuf,
    token: Option<String>,
}

impl Embedded {
    pub(crate) fn start(offer: &Offer) -> Result<Embedded> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::Misuse(format!("the embedded cluster could not start: {what}: {error}"))
        };
        let binary = find_binary()?;
        let random = |_| getrandom::u64().map_err(|error| failed("no random numbers", &error));
        let (one, two, three) = (random(())?, random(())?, random(())?);
        let directory = std::env::temp_dir().join(format!("concurrent-ml-{one:016x}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed(&directory.to_string_lossy(), &error))?;
        let mut token = format!("{two:016x}{three:016x}");
        let log = directory.join("log");
        let file = File::create(&log).map_err(|error| failed(&log.to_string_lossy(), &error))?;
        let mut command = Command::new(&binary);
        command.arg("embedded").arg("--dir").arg(&directory);
        if let Some(number) = offer.num_cpus {
            command.arg("--num-cpus").arg(number.to_string());
        }
        if let Some(number) = offer.num_gpus {
            command.arg("--num-gpus").arg(number.to_string());
        }
        if let Some(bytes) = offer.object_store_memory {
            command.arg("--object-store-memory").arg(bytes.to_string());
        }
        if !offer.resources.is_empty() {
            let resources =
                serde_json::to_string(&offer.resources).map_err(|error| failed("resources", &error))?;
            command.arg("--resources").arg(resources);
        }
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CLUSTER_") && !FOR_EMBEDDED.contains(&&*text) {
                command.env_remove(&name);
            }
        }
        command.env("CLUSTER_TOKEN", &token);
        // Ctrl-C is for the program.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(|error| failed(&binary.to_string_lossy(), &error))?;
        let ready = match await_ready(&mut child, &log) {
            Ok(ready) => ready,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = std::fs::remove_dir_all(&directory);
                return Err(error);
            }
        };
        if let Some(given) = ready.token {
            token = given;
        }
        let embedded = Embedded { child, directory, socket: ready.socket, token };
        // For other programs of this user: the directory is closed to everybody else.
        let here = serde_json::json!({ "node_socket": embedded.socket }).to_string();
        let written = std::fs::write(embedded.directory.join("cluster.json"), here)
            .and_then(|()| std::fs::write(embedded.directory.join("token"), &embedded.token));
        written.map_err(|error| failed("its address cannot be written", &error))?;
        Ok(embedded)
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.directory.display())
    }
}

impl Drop for Embedded {
    /// Ends the child and waits for it; nothing is left.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_TIMEOUT;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            // It has no descriptor that the standard library would let us wait for.
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What it says when it is ready, in one line.
fn await_ready(child: &mut Child, log: &Path) -> Result<Ready> {
    let said = || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        match text.trim() {
            "" => "It said nothing.".to_owned(),
            text => format!("It said: {}", &text[text.ceil_char_boundary(text.len().saturating_sub(2000))..]),
        }
    };
    let Some(out) = child.stdout.take() else {
        return Err(Error::Misuse("the embedded cluster has no output".to_owned()));
    };
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(out).read_line(&mut line);
        let _ = tell.send(read.map(|_| line));
    });
    let line = match told.recv_timeout(START_TIMEOUT) {
        Ok(Ok(line)) => line,
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => String::new(),
        Err(RecvTimeoutError::Timeout) => {
            let seconds = START_TIMEOUT.as_secs();
            return Err(Error::Misuse(format!(
                "the embedded cluster did not start within {seconds} s. {}",
                said()
            )));
        }
    };
    serde_json::from_str(&line).map_err(|_| {
        // It closes this before it says why.
        let _ = child.wait();
        Error::Misuse(format!("the embedded cluster could not start. {}", said()))
    })
}

/// The `cluster` command: named by `CLUSTER_BINARY`, beside this program or above it (as cargo puts examples), or in
/// PATH.
fn find_binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CLUSTER_BINARY") {
        let path = PathBuf::from(&named);
        return if is_program(&path) {
            Ok(path)
        } else {
            let named = path.display();
            Err(Error::Misuse(format!("CLUSTER_BINARY is {named}, and there is no program of that name")))
        };
    }
    let program = std::env::current_exe().unwrap_or_default();
    let beside: Vec<PathBuf> = program.ancestors().skip(1).take(2).map(Path::to_path_buf).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.iter().cloned().chain(std::env::split_paths(&path));
    places.map(|place| place.join("cluster")).find(|path| is_program(path)).ok_or_else(|| {
        let beside: Vec<String> = beside.iter().map(|place| place.display().to_string()).collect();
        Error::Misuse(format!(
            "the `cluster` command is missing: looked in {} and PATH. Build it (`cargo build -p cluster-cli`) or install \
             it (`pip install concurrent-ml`), or name it in CLUSTER_BINARY",
            beside.join(", ")
        ))
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}
