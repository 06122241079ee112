//! What the hidden subcommands run: the daemons themselves.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use head_node::store::StoreError;
use head_node::store::etcd::BadUrl;
use head_node::{HeadError, StateAt};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use worker_node::{EmbeddedConfig, Offer, WorkerConfig, WorkerError};

use crate::args::{DaemonArgs, EmbeddedArgs};
use crate::config::OfferConfig;
use crate::daemon_log::LogSettings;
use crate::error::CliError;

/// What `cluster up` tells a head daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct HeadSettings {
    pub listen: SocketAddr,
    pub token_file: PathBuf,
    pub state: PathBuf,
    pub history: PathBuf,
    /// `etcd://...`: instead of the file.
    pub state_url: Option<String>,
    /// `host:port` where others reach this head.
    pub address: String,
    pub loss_timeout_ms: u64,
    pub tasks_kept: usize,
    pub lineage_memory: u64,
    pub log: LogSettings,
}

/// What `cluster up` tells a worker daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct WorkerSettings {
    pub dir: PathBuf,
    pub head: String,
    pub token_file: PathBuf,
    pub offer: OfferConfig,
    pub data_listen: SocketAddr,
    pub gateway_listen: SocketAddr,
    /// See [`WorkerConfig::client_grace`].
    pub client_grace_ms: u64,
    pub advertise: String,
    /// See [`WorkerConfig::drain`].
    pub drain_ms: u64,
    pub log: LogSettings,
}

/// Runs a head until SIGTERM. One line on standard output says that it listens.
pub fn head(args: &DaemonArgs) -> Result<(), CliError> {
    let settings: HeadSettings = settings(args)?;
    let ready = detach()?;
    settings.log.clone().keep_small()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("start the event loop"))?;
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(settings.listen)
            .await
            .map_err(|error| cannot_listen(&settings, &error))?;
        let mut term = signal(SignalKind::terminate()).map_err(CliError::io("handle SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::io("handle SIGINT"))?;
        let config = head_node::Config {
            state: state_at(&settings)?,
            history: Some(settings.history.clone()),
            loss_timeout: Duration::from_millis(settings.loss_timeout_ms),
            tasks_kept: settings.tasks_kept,
            lineage_memory: settings.lineage_memory,
            ..head_node::Config::new(token(&settings.token_file)?)
        };
        let shutdown = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let ready = move || {
            // Whoever started this may have gone.
            let _ = rustix::io::write(&ready, b"{}\n");
        };
        head_node::serve(config, head_core::Head::new, listener, ready, shutdown).await.map_err(|error| {
            match error {
                HeadError::Store(StoreError::Etcd(_)) => CliError::Unreachable(error.to_string()),
                error => CliError::Failed(error.to_string()),
            }
        })
    });
    runtime.shutdown_background();
    ended
}

fn state_at(settings: &HeadSettings) -> Result<StateAt, CliError> {
    Ok(match &settings.state_url {
        None => StateAt::File(settings.state.clone()),
        Some(url) => StateAt::Etcd {
            url: url.parse().map_err(|error: BadUrl| CliError::Usage(error.to_string()))?,
            address: settings.address.clone(),
        },
    })
}

fn cannot_listen(settings: &HeadSettings, error: &std::io::Error) -> CliError {
    let (ip, port) = (settings.listen.ip(), settings.listen.port());
    CliError::Failed(match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} of {ip} is in use already: choose another with --port, or end what uses it (if that is a \
             cluster of yours: `cluster down`)"
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            format!("{ip} is no address of this machine: choose one of its own with --host")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("port {port} needs privileges: choose one above 1023 with --port")
        }
        _ => format!("cannot listen on {ip}, port {port}: {error}"),
    })
}

/// Runs a worker daemon until SIGTERM.
pub fn worker(args: &DaemonArgs) -> Result<(), CliError> {
    let settings: WorkerSettings = settings(args)?;
    let ready = detach()?;
    settings.log.keep_small()?;
    let token = token(&settings.token_file)?;
    worker_node::run_worker(WorkerConfig {
        dir: settings.dir,
        head: settings.head,
        token,
        python: python(settings.offer.python.as_deref()),
        spill_dir: settings.offer.spill_dir.clone().unwrap_or_default(),
        durable: settings.offer.durable.clone().unwrap_or_default(),
        offer: offer(settings.offer),
        data_listen: settings.data_listen,
        gateway_listen: Some(settings.gateway_listen),
        client_grace: Duration::from_millis(settings.client_grace_ms),
        advertise: settings.advertise,
        drain: Duration::from_millis(settings.drain_ms),
        ready: Some(ready),
    })
    .map_err(worker_failed)
}

/// Runs a cluster in this process until standard input ends.
pub fn embedded(args: &EmbeddedArgs) -> Result<(), CliError> {
    log_to_stderr("warn");
    let lifeline =
        std::io::stdin().as_fd().try_clone_to_owned().map_err(CliError::io("keep standard input"))?;
    let ready = take_stdout()?;
    let offer_config = OfferConfig::from_flags(&args.offer);
    worker_node::run_embedded(EmbeddedConfig {
        dir: args.dir.clone(),
        token: std::env::var("CLUSTER_TOKEN").unwrap_or_default(),
        python: python(offer_config.python.as_deref()),
        spill_dir: offer_config.spill_dir.clone().unwrap_or_default(),
        durable: offer_config.durable.clone().unwrap_or_default(),
        offer: offer(offer_config),
        lifeline,
        ready,
    })
    .map_err(worker_failed)
}

fn worker_failed(error: WorkerError) -> CliError {
    CliError::of_daemon(Some(error.exit_code().into()), error.to_string())
}

fn settings<T: for<'de> Deserialize<'de>>(args: &DaemonArgs) -> Result<T, CliError> {
    serde_json::from_str(&args.settings)
        .map_err(|error| CliError::Usage(format!("--settings is for `cluster up` to fill in: {error}")))
}

/// Leaves the terminal's session, so that neither Ctrl-C nor a hang-up there ends the daemon.
fn detach() -> Result<OwnedFd, CliError> {
    let _ = rustix::process::setsid();
    log_to_stderr("info");
    take_stdout()
}

/// What was standard output, where readiness is told; from now on that is standard error, the log.
fn take_stdout() -> Result<OwnedFd, CliError> {
    let ready =
        std::io::stdout().as_fd().try_clone_to_owned().map_err(CliError::io("keep standard output"))?;
    rustix::stdio::dup2_stdout(std::io::stderr())
        .map_err(|error| CliError::io("redirect standard output")(error.into()))?;
    Ok(ready)
}

fn log_to_stderr(default: &str) {
    let filter = std::env::var("CLUSTER_LOG").unwrap_or_else(|_| default.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

fn token(path: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::Token(format!("cannot read the token file {}: {error}", path.display()))
    })?;
    Ok(text.trim().to_owned())
}

fn offer(config: OfferConfig) -> Offer {
    Offer {
        num_cpus: config.num_cpus,
        num_gpus: config.num_gpus,
        memory: config.memory,
        resources: config.resources,
        labels: config.labels,
        object_store_memory: config.object_store_memory,
        memory_threshold: config.memory_threshold,
    }
}

/// The named interpreter, else that of the environment this command was installed into, else the system's.
fn python(named: Option<&Path>) -> PathBuf {
    if let Some(named) = named {
        return named.to_path_buf();
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let active = std::env::var_os("VIRTUAL_ENV").map(|root| Path::new(&root).join("bin"));
    [beside, active]
        .into_iter()
        .flatten()
        .flat_map(|dir| ["python3", "python"].map(|name| dir.join(name)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| "python3".into())
}
