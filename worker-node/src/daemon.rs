//! Puts a daemon together and runs it to its end.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cluster_proto::heads::KnownHeads;
use cluster_types::{Incarnation, NodeHello, NodeId, PROTOCOL_VERSION, Span};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;
use worker_core::NodeConfig;

use crate::config::{EmbeddedConfig, Machine, Ready, WorkerConfig, WorkerError};
use crate::devices;
use crate::event_loop::{Handle, Parts};
use crate::head_link::{self, HeadLink};
use crate::head_side::HeadSide;
use crate::sockets::Listener;
use crate::store_host::StoreHost;
use crate::supervisor::{Supervisor, SupervisorConfig, raise_open_files};

/// The file, in the daemon's directory, with the addresses of all heads that it knows of, commas between.
pub const HEADS_NAME: &str = "heads";

/// Executors kept idle for each job beyond those that worked lately.
const IDLE_EXECUTORS: u32 = 2;
const IDLE_TIMEOUT: Span = Span::secs(60);

/// Runs a worker daemon until it is told to end (SIGINT; SIGTERM lets what runs end first), or cannot go on.
///
/// # Errors
/// What kept it from starting, or the head's refusal.
pub fn run_worker(config: WorkerConfig) -> Result<(), WorkerError> {
    on_this_thread(async move {
        let mut told_to_end = ToldToEnd::new()?;
        let listener = Listener::bind(&config.dir)?;
        let node = Node::new(&listener, &config.token, &config.python, &config.spill_dir, &config.dir);
        let machine = devices::discover(&config.offer)?;
        let data = bind(config.data_listen, "data port", "--data-port")?;
        let gateway = match config.gateway_listen {
            Some(address) => Some(bind(address, "gateway port", "--gateway-port")?),
            None => None,
        };
        let host = reachable_as(&config)?;
        let mut hello = node.hello(&machine);
        let (mut store, store_notices) = StoreHost::new(config.token.clone(), node.spill_dir.clone());
        // Where the machine's own directory is all there is, a copy is no better than the log.
        let archive = config.durable.clone();
        store.keep_durable_copies(durable_url(config.durable, &config.dir)?);
        let data = store.listen(data).map_err(WorkerError::io("serve the data port"))?;
        hello.data_address = join(&host, data.port());
        let gateway = match gateway {
            Some(listener) => {
                listener.set_nonblocking(true).map_err(WorkerError::io("serve the gateway port"))?;
                let listener = tokio::net::TcpListener::from_std(listener);
                Some(listener.map_err(WorkerError::io("serve the gateway port"))?)
            }
            None => None,
        };
        let ready = node.ready(listener.path());
        let supervisor = node.supervisor.clone();
        let handle = Handle::new(Parts {
            node_id: node.id,
            node: Box::new(worker_core::Node::new(node.config(&machine, true))),
            token: config.token.clone(),
            machine: Rc::new(machine),
            store,
            supervisor: supervisor.clone(),
            head: HeadSide::Remote(HeadLink::default()),
        });
        handle.borrow().jobs.set_up(&config.dir, &config.head, &config.python, &archive);
        handle.start(store_notices, node.executor_events);
        if let Some(listener) = gateway {
            let served = crate::gateway::serve(handle.clone(), listener, config.client_grace).await;
            let address = served.map_err(WorkerError::io("serve the gateway port"))?;
            hello.gateway_address = join(&host, address.port());
        }
        let chunks = handle.borrow().jobs.chunks();
        chunks.set_gateway(&hello.gateway_address).map_err(WorkerError::io("keep files of programs"))?;
        tracing::info!(node = %hello.node, data = hello.data_address, gateway = hello.gateway_address, "starting");
        let notify = config.ready;
        let admitted = move || {
            if let Some(fd) = notify {
                tell_ready(&fd, &ready);
            }
        };
        let file = config.dir.join(HEADS_NAME);
        let learnt = move |heads: &KnownHeads| remember_heads(&file, heads);
        let ended = tokio::select! {
            error = head_link::run(handle.clone(), config.head, config.token, hello, learnt, admitted) => Err(error),
            () = listener.serve(handle.clone()) => Ok(()),
            () = told_to_end.leave(&handle, config.drain) => Ok(()),
            () = handle.left() => Ok(()),
        };
        tracing::info!("ending");
        handle
            .borrow()
            .part_with_remote_clients("the daemon that this program is attached to has been ended");
        supervisor.shutdown().await;
        ended
    })
}

/// Runs a cluster of this one process, for one driver, until its lifeline is closed or it is told to end.
///
/// # Errors
/// What kept it from starting.
pub fn run_embedded(config: EmbeddedConfig) -> Result<(), WorkerError> {
    // A Ctrl-C at the driver's terminal is the driver's business.
    let _ = rustix::process::setpgid(None, None);
    on_this_thread(async move {
        let mut told_to_end = ToldToEnd::new()?;
        let listener = Listener::bind(&config.dir)?;
        let token = if config.token.is_empty() { make_token()? } else { config.token };
        let node = Node::new(&listener, &token, &config.python, &config.spill_dir, &config.dir);
        let machine = devices::discover(&config.offer)?;
        let (mut store, store_notices) = StoreHost::new(token.clone(), node.spill_dir.clone());
        store.keep_durable_copies(durable_url(config.durable, &config.dir)?);
        let head = head_core::Head::new(head_core::event::HeadConfig { closed: true, ..Default::default() });
        let (ready, hello) = (node.ready(listener.path()), node.hello(&machine));
        let supervisor = node.supervisor.clone();
        let handle = Handle::new(Parts {
            node_id: node.id,
            node: Box::new(worker_core::Node::new(node.config(&machine, false))),
            token,
            machine: Rc::new(machine),
            store,
            supervisor: supervisor.clone(),
            head: HeadSide::Embedded { head: Box::new(head), incarnation: Incarnation::default() },
        });
        let address = format!("unix:{}", config.dir.display());
        handle.borrow().jobs.set_up(&config.dir, &address, &config.python, "");
        handle.start(store_notices, node.executor_events);
        let node = hello.node;
        handle.borrow().connect_embedded(hello);
        tell_ready(&config.ready, &ready);
        drop(config.ready);
        let ended = tokio::select! {
            () = listener.serve(handle.clone()) => Ok(()),
            ended = closed(config.lifeline) => ended,
            () = told_to_end.wait() => Ok(()),
        };
        tracing::info!("ending");
        supervisor.shutdown().await;
        handle.borrow().store.delete_durable_copies(node);
        ended
    })
}

/// Where durable copies lie, if nobody said: with the node's own files, which outlive the daemon but not the machine.
fn durable_url(told: String, dir: &Path) -> Result<String, WorkerError> {
    if told.is_empty() {
        let dir = std::path::absolute(dir).map_err(WorkerError::io("find the node's directory"))?;
        return Ok(format!("file://{}", dir.join("durable").display()));
    }
    crate::store_host::check_durable_url(&told).map_err(WorkerError::Config)?;
    Ok(told)
}

/// What both kinds of daemon have.
struct Node {
    id: NodeId,
    token: String,
    spill_dir: PathBuf,
    supervisor: Supervisor,
    executor_events: tokio::sync::mpsc::UnboundedReceiver<crate::supervisor::ExecutorEvent>,
}

impl Node {
    /// Starts the zygote first: its imports take longer than all the rest, which goes on meanwhile.
    fn new(listener: &Listener, token: &str, python: &Path, spill_dir: &Path, dir: &Path) -> Node {
        let socket = listener.path().to_path_buf();
        let mut config = SupervisorConfig::new(python.to_path_buf(), socket, token.to_owned());
        config.owns_all_children = true;
        let (supervisor, executor_events) = Supervisor::new(config);
        supervisor.prestart();
        let spill_dir =
            if spill_dir.as_os_str().is_empty() { dir.join("spill") } else { spill_dir.to_path_buf() };
        let id = NodeId(getrandom::u64().unwrap_or_else(|_| std::process::id().into()));
        Node { id, token: token.to_owned(), spill_dir, supervisor, executor_events }
    }

    fn hello(&self, machine: &Machine) -> NodeHello {
        NodeHello {
            protocol: PROTOCOL_VERSION,
            node: self.id,
            hostname: machine.hostname.clone(),
            data_address: String::new(),
            gateway_address: String::new(),
            resources: machine.resources.clone(),
            labels: machine.labels.clone(),
            store_capacity: machine.store_capacity,
            previous: None,
        }
    }

    fn config(&self, machine: &Machine, head_may_restart: bool) -> NodeConfig {
        NodeConfig {
            node: self.id,
            hostname: machine.hostname.clone(),
            resources: machine.resources.clone(),
            cores: machine.cores,
            store_capacity: machine.store_capacity,
            idle_executors: IDLE_EXECUTORS,
            idle_timeout: IDLE_TIMEOUT,
            head_may_restart,
        }
    }

    fn ready(&self, socket: &Path) -> Ready {
        Ready { socket: socket.to_path_buf(), token: self.token.clone(), node: self.id.to_string() }
    }
}

/// One thread for everything that is not blocking; it lives as long as the daemon, so processes may be forked from it.
fn on_this_thread(daemon: impl Future<Output = Result<(), WorkerError>>) -> Result<(), WorkerError> {
    raise_open_files();
    // What escapes a killed zygote becomes ours, rather than nobody's.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(WorkerError::io("start the event loop"))?;
    let ended = LocalSet::new().block_on(&runtime, daemon);
    crate::orphans::end_all();
    // Blocking threads may be allocating or copying; nothing waits for them any more.
    runtime.shutdown_background();
    ended
}

/// SIGTERM and SIGINT, handled from the moment this is made.
struct ToldToEnd {
    terminate: Signal,
    interrupt: Signal,
}

impl ToldToEnd {
    fn new() -> Result<ToldToEnd, WorkerError> {
        let terminate = signal(SignalKind::terminate()).map_err(WorkerError::io("handle SIGTERM"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::io("handle SIGINT"))?;
        Ok(ToldToEnd { terminate, interrupt })
    }

    /// SIGTERM asks the head to let the node go; a second one, or SIGINT, ends the daemon at once.
    async fn leave(&mut self, handle: &Handle, within: std::time::Duration) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => return,
        }
        if within.is_zero() {
            return;
        }
        tracing::info!(?within, "leaving the cluster: what runs may end");
        {
            let mut daemon = handle.borrow();
            let within = Span(u64::try_from(within.as_micros()).unwrap_or(u64::MAX));
            daemon.push(worker_core::Event::ToldToLeave { within });
            daemon.pump();
        }
        self.wait().await;
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until nobody holds the other end any more.
async fn closed(lifeline: OwnedFd) -> Result<(), WorkerError> {
    rustix::io::ioctl_fionbio(&lifeline, true)
        .map_err(|error| WorkerError::io("watch the driver")(error.into()))?;
    let lifeline =
        crate::supervisor::poll::register_readable(lifeline).map_err(WorkerError::io("watch the driver"))?;
    loop {
        let mut ready = lifeline.readable().await.map_err(WorkerError::io("watch the driver"))?;
        match rustix::io::read(lifeline.get_ref(), &mut [0u8; 64]) {
            Ok(0) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Ok(()),
        }
    }
}

fn tell_ready(fd: &OwnedFd, ready: &Ready) {
    let line = serde_json::to_string(ready).unwrap_or_default() + "\n";
    if let Err(error) = rustix::io::write(fd, line.as_bytes()) {
        tracing::error!(%error, "nobody reads that the daemon is ready");
    }
}

fn make_token() -> Result<String, WorkerError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| WorkerError::io("make a token")(std::io::Error::other(error.to_string())))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn bind(address: SocketAddr, what: &str, option: &str) -> Result<std::net::TcpListener, WorkerError> {
    std::net::TcpListener::bind(address).map_err(|source| {
        let in_use = source.kind() == std::io::ErrorKind::AddrInUse;
        let hint = if in_use {
            format!(" (choose another with {option}, or end what uses it)")
        } else {
            String::new()
        };
        WorkerError::Io { what: format!("listen on {address} for the {what}{hint}"), source }
    })
}

/// For commands on this machine, which else know only the head that was named at the start.
fn remember_heads(file: &Path, heads: &KnownHeads) {
    let new = file.with_extension("new");
    if let Err(error) = std::fs::write(&new, heads.list() + "\n").and_then(|()| std::fs::rename(&new, file)) {
        tracing::warn!(%error, file = %file.display(), "cannot write down where heads are");
    }
}

/// The name by which other machines reach this one: as told, or the address its way to the head leaves by.
fn reachable_as(config: &WorkerConfig) -> Result<String, WorkerError> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    let listening = config.data_listen.ip();
    if !listening.is_unspecified() {
        return Ok(listening.to_string());
    }
    let any = if listening.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let found = UdpSocket::bind(any).and_then(|socket| {
        // Sends nothing; it only chooses the way, to the first head whose name is known.
        let ways: Vec<_> = config.head.split(',').map(|head| socket.connect(head)).collect();
        ways.into_iter().find(Result::is_ok).unwrap_or_else(|| socket.connect(config.head.as_str()))?;
        socket.local_addr()
    });
    let address: SocketAddr = found.map_err(WorkerError::io(format!(
        "find this machine's address on the way to {}; name it with --advertise",
        config.head
    )))?;
    Ok(address.ip().to_string())
}

fn join(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}
