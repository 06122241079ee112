//! `cluster up`: head and worker daemon in the background, or a worker that joins.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use worker_node::Ready;

use crate::args::UpArgs;
use crate::config::{UpConfig, facing};
use crate::daemon_log::LogSettings;
use crate::daemons::{HeadSettings, WorkerSettings};
use crate::down::end_daemons;
use crate::error::CliError;
use crate::free_port::FreePort;
use crate::process::{Daemon, wait_readable};
use crate::run_dir::{ClusterFile, RunDir, find_token, make_token};

/// How long a daemon may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take from its last word to its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Lines of a log that are shown when its daemon failed.
const LOG_TAIL: usize = 15;

/// An address that is never routed: where packets to it would leave, this machine faces the world.
const ELSEWHERE: &str = "192.0.2.1:9";

pub fn run(args: &UpArgs) -> Result<(), CliError> {
    let mut config = UpConfig::new(args)?;
    let host = config.listen_host();
    // Held until the daemons listen.
    let _head = choose(host, &mut config.port)?;
    let _data = choose(host, &mut config.data_port)?;
    let _gateway = choose_gateway(host, &mut config.gateway_port)?;
    let config = config;
    let dir = &config.dir;
    dir.create()?;
    let lock = dir.lock()?;
    let cluster = match what_runs(&config)? {
        Runs::Nothing => {
            write_token(&config)?;
            start(&config).or_else(|error| {
                // Half a cluster is none.
                end_daemons(dir)?;
                Err(error)
            })?
        }
        Runs::Worker(file) => {
            let head_pid = Some(start_head(&config)?);
            ClusterFile { head_pid, ..file }
        }
        Runs::Head(file) => start_worker(&config, file.address, file.head_pid)?,
    };
    let json = serde_json::to_string_pretty(&cluster).unwrap_or_default();
    dir.write_private(&dir.cluster_file(), &(json + "\n"))?;
    drop(lock);
    report(&config, cluster, args.place.json)
}

/// What a cluster that was up before has left running.
enum Runs {
    Nothing,
    /// The head died beside it.
    Worker(ClusterFile),
    /// The worker daemon died beside it.
    Head(ClusterFile),
}

/// Looks for daemons of this directory. One of a pair that died is started again; a whole one is not started twice.
fn what_runs(config: &UpConfig) -> Result<Runs, CliError> {
    let dir = &config.dir;
    let alive = |name| Daemon::from_pid_file(&dir.pid_file(name));
    let file = dir.read_cluster_file();
    let had_head = file.as_ref().is_some_and(|file| file.head_pid.is_some());
    let daemon = match (alive("head"), alive("worker"), file) {
        (None, None, _) => {
            // What a killed cluster left.
            end_daemons(dir)?;
            return Ok(Runs::Nothing);
        }
        (None, Some(_), Some(file)) if had_head && config.join.is_none() => {
            let here = SocketAddr::new(near(config.listen_host()), config.port).to_string();
            if here != file.address {
                return Err(CliError::Failed(format!(
                    "the head of this cluster is dead, and its workers look for it at {}: start it there again, with \
                     the --host and --port of before, or end what is left with `cluster down`",
                    file.address
                )));
            }
            return Ok(Runs::Worker(file));
        }
        (Some(_), None, Some(file)) => return Ok(Runs::Head(file)),
        (Some(daemon), ..) | (None, Some(daemon), _) => daemon,
    };
    let whose = dir
        .read_cluster_file()
        .map(|file| format!(" of the cluster at {}", file.address))
        .unwrap_or_default();
    Err(CliError::Failed(format!(
        "a daemon{whose} is running here already (process {}, in {}): end it with `cluster down`, or name another \
         directory with --dir",
        daemon.pid,
        dir.path().display()
    )))
}

/// Sees to it that `DIR/token` holds the token: given, kept from before, or (for a new cluster) made.
fn write_token(config: &UpConfig) -> Result<(), CliError> {
    let token = match (find_token(&config.dir, config.token_file.as_deref())?, &config.join) {
        (Some(token), _) => token,
        (None, None) => make_token()?,
        (None, Some(head)) => {
            return Err(CliError::Token(format!(
                "joining {head} takes its token: copy the file `token` from the directory of the cluster's first \
                 machine and name it with --token-file, or set CLUSTER_TOKEN"
            )));
        }
    };
    config.dir.write_private(&config.dir.token(), &(token + "\n"))
}

fn start(config: &UpConfig) -> Result<ClusterFile, CliError> {
    match &config.join {
        Some(head) => start_worker(config, head.clone(), None),
        None => {
            if config.state.is_none() && !config.dir.state().exists() {
                config.dir.forget_jobs();
            }
            let pid = start_head(config)?;
            let address = SocketAddr::new(near(config.listen_host()), config.port);
            start_worker(config, address.to_string(), Some(pid))
        }
    }
}

fn start_head(config: &UpConfig) -> Result<u32, CliError> {
    let dir = &config.dir;
    let settings = HeadSettings {
        listen: SocketAddr::new(config.listen_host(), config.port),
        token_file: dir.token(),
        state: dir.state(),
        history: dir.history(),
        state_url: config.state.as_ref().map(ToString::to_string),
        address: outside(config),
        loss_timeout_ms: config.loss_timeout_ms,
        tasks_kept: config.tasks_kept,
        lineage_memory: config.lineage_memory,
        log: LogSettings { path: dir.log("head"), size: config.log_size },
    };
    let (pid, _) = start_daemon(dir, "head", &settings)?;
    Ok(pid)
}

fn start_worker(config: &UpConfig, head: String, head_pid: Option<u32>) -> Result<ClusterFile, CliError> {
    let dir = &config.dir;
    let host = config.listen_host();
    let settings = WorkerSettings {
        dir: dir.path().to_path_buf(),
        head: head.clone(),
        token_file: dir.token(),
        offer: config.offer.clone(),
        data_listen: SocketAddr::new(host, config.data_port),
        gateway_listen: SocketAddr::new(host, config.gateway_port.0),
        client_grace_ms: config.client_grace_ms,
        advertise: advertised(config, host),
        drain_ms: config.drain_ms,
        log: LogSettings { path: dir.log("worker"), size: config.log_size },
    };
    let (worker_pid, line) = start_daemon(dir, "worker", &settings)?;
    let ready: Ready = serde_json::from_str(&line)
        .map_err(|error| CliError::Failed(format!("the worker daemon said `{}`: {error}", line.trim())))?;
    Ok(ClusterFile {
        address: head,
        token_file: dir.token(),
        node_socket: ready.socket,
        node_id: ready.node,
        head_pid,
        worker_pid,
        data_port: config.data_port,
        gateway_port: config.gateway_port.0,
    })
}

/// Port 0 means a free one.
fn choose(host: IpAddr, port: &mut u16) -> Result<Option<FreePort>, CliError> {
    if *port != 0 {
        return Ok(None);
    }
    let free = FreePort::of(host).map_err(CliError::io(format!("find a free port of {host}")))?;
    *port = free.port();
    Ok(Some(free))
}

/// The gateway's port matters to nobody but the head, which tells it to who asks: if the usual one is taken and nobody
/// insisted on it, any will do.
fn choose_gateway(host: IpAddr, (port, any_will_do): &mut (u16, bool)) -> Result<Option<FreePort>, CliError> {
    if *any_will_do && TcpListener::bind((host, *port)).is_err() {
        *port = 0;
    }
    choose(host, port)
}

/// An address that is listened on, as it is reached from this machine.
fn near(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

/// The head of this machine, as others reach it.
fn outside(config: &UpConfig) -> String {
    let host = config.listen_host();
    match config.advertise.as_str() {
        "" if host.is_unspecified() => {
            SocketAddr::new(facing(ELSEWHERE).unwrap_or(near(host)), config.port).to_string()
        }
        "" => SocketAddr::new(near(host), config.port).to_string(),
        name => format!("{name}:{}", config.port),
    }
}

/// The name by which other machines are told to reach this one; empty: the daemon finds it on its way to the head.
fn advertised(config: &UpConfig, host: IpAddr) -> String {
    if !config.advertise.is_empty() || !host.is_unspecified() || config.join.is_some() {
        return config.advertise.clone();
    }
    // The head is on this machine, so the way to it says nothing of how others come here.
    facing(ELSEWHERE).map(|ip| ip.to_string()).unwrap_or_default()
}

/// Starts a daemon and returns the line by which it says that it is ready.
fn start_daemon(dir: &RunDir, name: &str, settings: &impl Serialize) -> Result<(u32, String), CliError> {
    let path = dir.log(name);
    let mut log = File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(&path)
        .map_err(CliError::io(format!("open the log {}", path.display())))?;
    let begin = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let stderr = log.try_clone().map_err(CliError::io("share the log"))?;
    let settings = serde_json::to_string(settings).map_err(|error| {
        CliError::Failed(format!("cannot write the settings of the {name} daemon: {error}"))
    })?;
    let program = std::env::current_exe().map_err(CliError::io("find this program"))?;
    let mut child = Command::new(program)
        .args([format!("{name}-daemon"), "--settings".to_owned(), settings])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .current_dir("/")
        .spawn()
        .map_err(CliError::io(format!("start the {name} daemon")))?;
    let pid = child.id();
    Daemon::write_pid_file(dir, name, pid)?;
    let line = first_line(&mut child);
    if !line.is_empty() {
        return Ok((pid, line));
    }
    // Its standard output is closed, so it is ending; else it said nothing in time.
    if let Some(daemon) = Daemon::open(pid) {
        daemon.wait(LAST_WORDS);
    }
    let ended = child.try_wait().ok().flatten();
    let tail = LogTail::read(&mut log, begin);
    let message = match ended {
        Some(status) => tail.explain(name, &format!("ended at its start ({status})"), &path),
        None => tail.explain(name, &format!("did not get ready within {} s", PATIENCE.as_secs()), &path),
    };
    Err(CliError::of_daemon(ended.and_then(|status| status.code()), message))
}

/// Empty if the daemon ended, or let the deadline pass, without a word.
fn first_line(child: &mut Child) -> String {
    let Some(mut stdout) = child.stdout.take() else { return String::new() };
    let deadline = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    let mut buffer = [0; 512];
    while !line.contains(&b'\n') && wait_readable(&stdout, deadline) {
        match stdout.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => line.extend_from_slice(&buffer[..count]),
        }
    }
    if line.contains(&b'\n') { String::from_utf8_lossy(&line).into_owned() } else { String::new() }
}

/// What a daemon logged since it was started.
struct LogTail {
    lines: Vec<String>,
}

impl LogTail {
    fn read(log: &mut File, begin: u64) -> Self {
        let mut text = Vec::new();
        let read = log.seek(SeekFrom::Start(begin)).and_then(|_| log.read_to_end(&mut text));
        let text = if read.is_ok() { String::from_utf8_lossy(&text).into_owned() } else { String::new() };
        Self { lines: text.lines().map(str::to_owned).collect() }
    }

    /// The daemon's own sentence if it gave one (its last line), else the end of the log.
    fn explain(&self, name: &str, what: &str, path: &std::path::Path) -> String {
        if let Some(sentence) = self.lines.last().and_then(|line| line.strip_prefix("error: ")) {
            return format!("{sentence}\n(the {name} daemon's log is {})", path.display());
        }
        let from = self.lines.len().saturating_sub(LOG_TAIL);
        let tail: String = self.lines[from..].iter().map(|line| format!("\n  {line}")).collect();
        format!("the {name} daemon {what}; the end of its log, {}:{tail}", path.display())
    }
}

#[derive(Serialize)]
struct UpReport {
    #[serde(flatten)]
    cluster: ClusterFile,
    join_command: String,
}

fn report(config: &UpConfig, cluster: ClusterFile, json: bool) -> Result<(), CliError> {
    let address = &cluster.address;
    let token_file = cluster.token_file.display().to_string();
    let host = config.listen_host();
    let join_command = format!(
        "cluster up --join {} --token-file TOKEN_FILE",
        config.join.clone().unwrap_or_else(|| outside(config))
    );
    let mut out = std::io::stdout().lock();
    if json {
        let report = UpReport { cluster, join_command };
        writeln!(out, "{}", serde_json::to_string_pretty(&report).unwrap_or_default())?;
        return Ok(());
    }
    match &config.join {
        Some(head) => writeln!(out, "This machine is node {} of the cluster at {head}.", cluster.node_id)?,
        None => writeln!(out, "A cluster is up at {address}.")?,
    }
    writeln!(out, "\n  A Python program on this machine uses it with")?;
    writeln!(out, "      concurrent_ml.init(\"{address}\")       or CLUSTER_ADDRESS={address}")?;
    if config.join.is_none() {
        writeln!(out, "\n  Another machine joins with a copy of {token_file} and")?;
        writeln!(out, "      {join_command}")?;
        if let Some(url) = &config.state {
            writeln!(out, "\n  Another head stands by for this one with a copy of it and")?;
            writeln!(out, "      cluster up --state {url} --token-file TOKEN_FILE")?;
        }
        if host.is_loopback() {
            writeln!(
                out,
                "  (but this cluster listens on loopback only; `cluster up --host IP` lets others in)"
            )?;
        }
    }
    writeln!(out, "\n  cluster status    what there is, and what is in use")?;
    writeln!(out, "  cluster down      ends what runs on this machine")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_own_sentence_is_shown_and_else_its_log() {
        let path = std::path::Path::new("/run/x/logs/head.log");
        let spoke = LogTail { lines: vec!["INFO started".into(), "error: port 1 is in use".into()] };
        assert_eq!(
            spoke.explain("head", "ended", path),
            "port 1 is in use\n(the head daemon's log is /run/x/logs/head.log)"
        );
        let silent = LogTail { lines: (0..40).map(|n| format!("line {n}")).collect() };
        let text = silent.explain("head", "ended at its start (signal: 9)", path);
        assert!(text.starts_with("the head daemon ended at its start (signal: 9)"), "{text}");
        assert!(text.ends_with("line 39") && text.lines().count() == LOG_TAIL + 1, "{text}");
    }

    #[test]
    fn port_zero_means_a_free_one() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let (mut any, mut given) = (0, 8264);
        let held = choose(host, &mut any).unwrap().unwrap();
        assert_eq!(any, held.port());
        assert!(choose(host, &mut given).unwrap().is_none());
        assert_eq!(given, 8264);
    }

    #[test]
    fn a_gateway_gives_way_unless_told_not_to() {
        let host = IpAddr::from([127, 0, 0, 1]);
        let taken = TcpListener::bind((host, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let (mut usual, mut given) = ((port, true), (port, false));
        let held = choose_gateway(host, &mut usual).unwrap().unwrap();
        assert_eq!(usual.0, held.port());
        assert_ne!(usual.0, port);
        assert!(choose_gateway(host, &mut given).unwrap().is_none());
        assert_eq!(given.0, port);
    }
}
