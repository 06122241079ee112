//! Connecting.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use client_runtime::{Client, ConnectOptions, Notice, Target};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ClientKind, JobInfo};

use crate::actor::random_job;
use crate::embedded::{Embedded, Offer};
use crate::{Error, Result, current, executor};

/// The head's port, where an address names none.
const DEFAULT_PORT: u16 = 8264;

/// Connects this program to a cluster: to the one that the environment's `CLUSTER_ADDRESS` names, or to one of its own on
/// this machine. Keep what it returns: dropped, it disconnects.
///
/// Call it first in `main`: where the cluster runs this program as an executor, it serves tasks and does not return.
///
/// # Errors
/// A sentence that says what was tried.
pub fn init() -> Result<Cluster> {
    Builder::new().connect()
}

/// How to connect.
///
/// ```no_run
/// let cluster = concurrent_ml::Builder::new().num_cpus(4.0).namespace("prod").connect()?;
/// # Ok::<(), concurrent_ml::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    address: Option<String>,
    namespace: String,
    env_vars: BTreeMap<String, String>,
    log_to_driver: bool,
    offer: Offer,
    own: Vec<&'static str>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// As [`init`].
    pub fn new() -> Builder {
        let (namespace, env_vars, offer, own) =
            (String::new(), BTreeMap::new(), Offer::default(), Vec::new());
        Builder { address: None, namespace, env_vars, log_to_driver: true, offer, own }
    }

    /// A head's `host:port`; `unix:DIRECTORY`, the cluster of another program on this machine; `auto`, what `cluster up`
    /// started on this machine; `local`, one of the program's own.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Builder {
        self.address = Some(address.into());
        self
    }

    /// Where the names of actors count.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Builder {
        self.namespace = namespace.into();
        self
    }

    /// A variable in the environment of all executors.
    #[must_use]
    pub fn env_var(mut self, name: impl Into<String>, value: impl Into<String>) -> Builder {
        self.env_vars.insert(name.into(), value.into());
        self
    }

    /// Whether what tasks print is printed here too. It is, unless told.
    #[must_use]
    pub fn log_to_driver(mut self, print: bool) -> Builder {
        self.log_to_driver = print;
        self
    }

    /// Of a cluster of the program's own: cores.
    #[must_use]
    pub fn num_cpus(mut self, number: f64) -> Builder {
        self.offer.num_cpus = Some(number);
        self.own.push("num_cpus");
        self
    }

    /// Of a cluster of the program's own: GPUs.
    #[must_use]
    pub fn num_gpus(mut self, number: f64) -> Builder {
        self.offer.num_gpus = Some(number);
        self.own.push("num_gpus");
        self
    }

    /// Of a cluster of the program's own: the bytes of its store.
    #[must_use]
    pub fn object_store_memory(mut self, bytes: u64) -> Builder {
        self.offer.object_store_memory = Some(bytes);
        self.own.push("object_store_memory");
        self
    }

    /// Of a cluster of the program's own: an amount of a custom resource.
    #[must_use]
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Builder {
        self.offer.resources.insert(name.into(), amount);
        self.own.push("resource");
        self
    }

    /// Connects. See [`init`].
    ///
    /// # Errors
    /// A sentence that says what was tried.
    pub fn connect(self) -> Result<Cluster> {
        executor::serve_if_executor();
        let named = self.address.clone().or_else(|| std::env::var("CLUSTER_ADDRESS").ok());
        let address = named.filter(|address| !address.is_empty()).unwrap_or_else(|| "local".to_owned());
        let mut embedded = None;
        let (target, token, without) = if address == "local" {
            let own = embedded.insert(Embedded::start(&self.offer)?);
            (Target::Unix(own.socket.clone()), own.token.clone(), None)
        } else {
            if let Some(given) = self.own.first() {
                return Err(Error::Misuse(format!(
                    "{given} is for a cluster of this program's own; the one at {address} has its own resources"
                )));
            }
            find(&address)?
        };
        let kind = ClientKind::Driver { job: random_job()?, info: Arc::new(self.job_info()) };
        let client = Client::connect(target, ConnectOptions::new(kind, token), &mut || Ok(()));
        let client = match (client, without) {
            (Err(client_runtime::ConnectError::Rejected(_)), Some(without)) => {
                return Err(Error::Misuse(format!(
                    "the cluster at {address} wants a token, and there is none: {without}. Copy it from the machine \
                     where `cluster up` ran"
                )));
            }
            (client, _) => client?,
        };
        current::connect(client.clone())?;
        let printer = Some(print_notices(client.clone())?);
        Ok(Cluster { client, printer, embedded })
    }

    fn job_info(&self) -> JobInfo {
        let directory = std::env::current_dir().unwrap_or_default().to_string_lossy().into_owned();
        let program = std::env::current_exe().unwrap_or_default();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        JobInfo {
            name,
            // Of functions in Python, should it call any.
            sys_path: vec![directory.clone()],
            working_dir: directory,
            env_vars: self.env_vars.clone(),
            log_to_driver: self.log_to_driver,
            namespace: self.namespace.clone(),
            ..JobInfo::default()
        }
    }
}

/// This program's connection. Dropped, it ends, and with it a cluster of the program's own.
#[must_use = "dropped, it disconnects"]
#[derive(Debug)]
pub struct Cluster {
    client: Client,
    printer: Option<JoinHandle<()>>,
    embedded: Option<Embedded>,
}

impl Cluster {
    /// The id of the job that this program is.
    pub fn job_id(&self) -> String {
        self.client.job().to_string()
    }

    /// The id of the node that it is connected to.
    pub fn node_id(&self) -> String {
        self.client.welcome().node.to_string()
    }

    /// All that the cluster's nodes have, by name: `CPU`, `GPU`, `memory`, and custom ones.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn resources(&self) -> Result<BTreeMap<String, f64>> {
        match self.client.query(Query::Status, None, &mut current::interrupt)? {
            QueryReply::Status(status) => Ok(status.total.into_iter().collect()),
            _ => Err(Error::Misuse("the cluster's answer was none to the question".to_owned())),
        }
    }

    /// What other programs on this machine name it by, where it is this program's own.
    pub fn address(&self) -> Option<String> {
        self.embedded.as_ref().map(Embedded::address)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        current::disconnect();
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
    }
}

/// What tasks print, and sentences of the cluster, on standard error, until the connection ends.
fn print_notices(client: Client) -> Result<JoinHandle<()>> {
    let print = move || {
        while let Ok(notice) = client.next_notice(Duration::from_secs(60)) {
            let line = match notice {
                None => continue,
                Some(Notice::Text(text)) => format!("concurrent_ml: {text}\n"),
                Some(Notice::Log(line)) => {
                    let name = line.task.as_ref().map_or("executor", |(_, name)| &**name);
                    let node: String = line.node.to_string().chars().take(6).collect();
                    format!("({name} pid={}, node={node}) {}\n", line.pid, line.text)
                }
            };
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    };
    std::thread::Builder::new()
        .name("cml-logs".to_owned())
        .spawn(print)
        .map_err(|error| Error::Misuse(format!("no thread can be started: {error}")))
}

/// Where a cluster is that runs already, its token, and why there is none.
fn find(address: &str) -> Result<(Target, String, Option<String>)> {
    if let Some(directory) = address.strip_prefix("unix:") {
        let directory = Path::new(directory);
        let token = std::fs::read_to_string(directory.join("token")).ok();
        let (Some(socket), Some(token)) = (here(directory).socket, token) else {
            return Err(Error::Misuse(format!(
                "there is no cluster at {address}: the program that it belonged to has ended"
            )));
        };
        return Ok((Target::Unix(socket), token.trim().to_owned(), None));
    }
    let directory = run_dir();
    let here = here(&directory);
    let address = match address {
        "auto" => here.address.clone().ok_or_else(|| {
            Error::Misuse(format!(
                "\"auto\" joins the cluster of this machine, but {} names none: run `cluster up`, or set CLUSTER_DIR",
                directory.display()
            ))
        })?,
        named => named.split(',').map(|head| with_port(head.trim())).collect::<Vec<_>>().join(","),
    };
    let (token, without) = token(&directory);
    // A daemon of that cluster on this machine shares its memory.
    let is_here = here.address.as_ref().is_some_and(|ours| address.split(',').any(|head| head == ours));
    let target = match here.socket {
        Some(socket) if is_here && socket.exists() => Target::Unix(socket),
        _ => Target::Remote(address),
    };
    Ok((target, token, without))
}

fn with_port(head: &str) -> String {
    let bare_ipv6 = head.matches(':').count() > 1 && !head.starts_with('[');
    let head = if bare_ipv6 { format!("[{head}]") } else { head.to_owned() };
    let has_port = head.rsplit(']').next().is_some_and(|end| end.contains(':'));
    if has_port { head } else { format!("{head}:{DEFAULT_PORT}") }
}

#[derive(Default, serde::Deserialize)]
struct Here {
    address: Option<String>,
    #[serde(rename = "node_socket")]
    socket: Option<PathBuf>,
}

/// What `cluster up` wrote about this machine's daemons.
fn here(directory: &Path) -> Here {
    let text = std::fs::read(directory.join("cluster.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn run_dir() -> PathBuf {
    if let Some(named) = std::env::var_os("CLUSTER_DIR") {
        return named.into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) => Path::new(&runtime).join("concurrent-ml"),
        None => format!("/tmp/concurrent-ml-{}", rustix::process::getuid().as_raw()).into(),
    }
}

fn token(directory: &Path) -> (String, Option<String>) {
    if let Ok(token) = std::env::var("CLUSTER_TOKEN")
        && !token.is_empty()
    {
        return (token, None);
    }
    let path = std::env::var_os("CLUSTER_TOKEN_FILE").map_or_else(|| directory.join("token"), PathBuf::from);
    match std::fs::read_to_string(&path) {
        Ok(token) => (token.trim().to_owned(), None),
        Err(error) => (
            String::new(),
            Some(format!("CLUSTER_TOKEN is not set and {} cannot be read ({error})", path.display())),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_has_the_default_one() {
        assert_eq!(with_port("head"), "head:8264");
        assert_eq!(with_port("head:1"), "head:1");
        assert_eq!(with_port("::1"), "[::1]:8264");
        assert_eq!(with_port("[::1]:5"), "[::1]:5");
    }
}
