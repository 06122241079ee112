//! What a command was told: flag over environment (clap does these two) over file over default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use head_node::store::etcd::{BadUrl, EtcdUrl};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::args::{AskArgs, OfferArgs, Place, TokenArgs, UpArgs};
use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::units::{Resources, check_amount, check_resources, parse_bytes};

pub const DEFAULT_PORT: u16 = 8264;
pub const DEFAULT_DATA_PORT: u16 = 8266;
pub const DEFAULT_GATEWAY_PORT: u16 = 8267;
/// Below the half minute after which Kubernetes, for one, kills what has not ended.
const DRAIN_SECONDS: f64 = 25.0;
/// A walk from one meeting to the next, laptop closed.
const CLIENT_GRACE_SECONDS: f64 = 600.0;

/// The file's keys, in the order that help shows them.
const KEYS: [&str; 26] = [
    "host",
    "advertise",
    "port",
    "data_port",
    "gateway_port",
    "client_grace_seconds",
    "num_cpus",
    "num_gpus",
    "memory",
    "object_store_memory",
    "memory_threshold",
    "resources",
    "labels",
    "python",
    "spill_dir",
    "durable",
    "dir",
    "token_file",
    "address",
    "join",
    "state",
    "loss_timeout_seconds",
    "tasks_kept",
    "lineage_memory",
    "log_size",
    "drain_seconds",
];

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    host: Option<IpAddr>,
    advertise: Option<String>,
    port: Option<u16>,
    data_port: Option<u16>,
    gateway_port: Option<u16>,
    client_grace_seconds: Option<f64>,
    #[serde(deserialize_with = "amount")]
    num_cpus: Option<f64>,
    #[serde(deserialize_with = "amount")]
    num_gpus: Option<f64>,
    #[serde(deserialize_with = "size")]
    memory: Option<u64>,
    #[serde(deserialize_with = "size")]
    object_store_memory: Option<u64>,
    memory_threshold: Option<f64>,
    #[serde(deserialize_with = "resources")]
    resources: Option<Resources>,
    labels: BTreeMap<String, String>,
    python: Option<PathBuf>,
    spill_dir: Option<PathBuf>,
    durable: Option<String>,
    dir: Option<PathBuf>,
    token_file: Option<PathBuf>,
    address: Option<String>,
    join: Option<String>,
    state: Option<String>,
    loss_timeout_seconds: Option<f64>,
    tasks_kept: Option<usize>,
    #[serde(deserialize_with = "size")]
    lineage_memory: Option<u64>,
    #[serde(deserialize_with = "size")]
    log_size: Option<u64>,
    drain_seconds: Option<f64>,
}

/// What `cluster up` does, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct UpConfig {
    pub dir: RunDir,
    pub join: Option<String>,
    /// The etcd that several heads share; `None`: this head is the only one and keeps its state in a file.
    pub state: Option<EtcdUrl>,
    /// `None`: nobody said; what it becomes depends on `join`.
    pub host: Option<IpAddr>,
    pub advertise: String,
    pub port: u16,
    pub data_port: u16,
    /// Whether another port will do when this one is taken.
    pub gateway_port: (u16, bool),
    pub client_grace_ms: u64,
    pub offer: OfferConfig,
    pub token_file: Option<PathBuf>,
    pub loss_timeout_ms: u64,
    pub tasks_kept: usize,
    pub lineage_memory: u64,
    pub log_size: u64,
    pub drain_ms: u64,
}

/// What a machine offers, as it is handed to its daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfferConfig {
    pub num_cpus: Option<f64>,
    pub num_gpus: Option<f64>,
    pub memory: Option<u64>,
    pub object_store_memory: Option<u64>,
    pub memory_threshold: Option<f64>,
    pub resources: Resources,
    pub labels: BTreeMap<String, String>,
    pub python: Option<PathBuf>,
    pub spill_dir: Option<PathBuf>,
    pub durable: Option<String>,
}

/// Whom to ask, and with what.
#[derive(Clone, Debug, PartialEq)]
pub struct AskConfig {
    pub dir: RunDir,
    pub address: Option<String>,
    pub token_file: Option<PathBuf>,
}

impl FileConfig {
    /// The file that was named, or none.
    pub fn load(place: &Place) -> Result<Self, CliError> {
        let Some(path) = &place.config else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(|error| {
            CliError::Usage(format!("cannot read the configuration file {}: {error}", path.display()))
        })?;
        Self::parse(&text).map_err(|problem| {
            CliError::Usage(format!("in the configuration file {}: {problem}", path.display()))
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())?;
        if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("`{unknown}` is no setting; did you mean `{}`?", nearest(unknown, &KEYS)));
        }
        // From the text once more, so that errors show the line.
        toml::from_str(text).map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())
    }
}

impl UpConfig {
    pub fn new(args: &UpArgs) -> Result<Self, CliError> {
        let file = FileConfig::load(&args.place)?;
        let gateway = args.gateway_port.or(file.gateway_port);
        if let Some(share) = file.memory_threshold.filter(|share| !(0.01..=1.0).contains(share)) {
            return Err(CliError::Usage(format!(
                "`memory_threshold` is {share}; it is a share of the machine's memory, between 0.01 and 1"
            )));
        }
        let flag = args.loss_timeout.map(|timeout| timeout.as_secs_f64());
        let seconds = flag.or(file.loss_timeout_seconds).unwrap_or(5.0);
        if !(0.5..=3600.0).contains(&seconds) {
            return Err(CliError::Usage(format!(
                "the loss timeout (`loss_timeout_seconds`, --loss-timeout) is {seconds} s; it must lie between 0.5 and \
                 3600 s"
            )));
        }
        let drain = file.drain_seconds.unwrap_or(DRAIN_SECONDS);
        if !(0.0..=1e6).contains(&drain) {
            return Err(CliError::Usage(format!(
                "`drain_seconds` is {drain}; it must lie between 0 (end at once) and a million"
            )));
        }
        let grace = file.client_grace_seconds.unwrap_or(CLIENT_GRACE_SECONDS);
        if !(0.0..=1e6).contains(&grace) {
            return Err(CliError::Usage(format!(
                "`client_grace_seconds` is {grace}; it must lie between 0 (a lost connection is the end) and a million"
            )));
        }
        let grace = args.client_grace.unwrap_or(Duration::from_secs_f64(grace));
        let state = args.state.clone().filter(|url| !url.is_empty()).or(file.state.clone());
        let state: Option<EtcdUrl> = state
            .map(|url| url.parse())
            .transpose()
            .map_err(|error: BadUrl| CliError::Usage(error.to_string()))?;
        let join = args.join.clone().or(file.join.clone());
        let join = join.map(|address| whole_addresses(&address)).transpose()?;
        if let (Some(url), Some(join)) = (&state, &join) {
            return Err(CliError::Usage(format!(
                "--state {url} starts a head on this machine, and --join {join} joins another's: give one of them"
            )));
        }
        let drain = args.drain.unwrap_or(Duration::from_secs_f64(drain));
        Ok(Self {
            drain_ms: drain.as_millis() as u64,
            dir: run_dir(&args.place, &file),
            join,
            state,
            host: args.host.or(file.host),
            advertise: args.advertise.clone().or(file.advertise).unwrap_or_default(),
            port: args.port.or(file.port).unwrap_or(DEFAULT_PORT),
            data_port: args.data_port.or(file.data_port).unwrap_or(DEFAULT_DATA_PORT),
            gateway_port: (gateway.unwrap_or(DEFAULT_GATEWAY_PORT), gateway.is_none()),
            client_grace_ms: grace.as_millis() as u64,
            token_file: token_file(&args.token, file.token_file.as_deref()),
            offer: OfferConfig {
                num_cpus: args.offer.num_cpus.or(file.num_cpus),
                num_gpus: args.offer.num_gpus.or(file.num_gpus),
                memory: args.offer.memory.or(file.memory),
                object_store_memory: args.offer.object_store_memory.or(file.object_store_memory),
                memory_threshold: args.offer.memory_threshold.or(file.memory_threshold),
                resources: args.offer.resources.clone().or(file.resources).unwrap_or_default(),
                labels: if args.offer.labels.is_empty() {
                    file.labels
                } else {
                    args.offer.labels.iter().cloned().collect()
                },
                python: args.offer.python.clone().or(file.python).map(|path| program(&path)).transpose()?,
                spill_dir: args.offer.spill_dir.clone().or(file.spill_dir).map(|path| from_here(&path)),
                durable: args.offer.durable.clone().or(file.durable).map(durable).transpose()?,
            },
            loss_timeout_ms: (seconds * 1000.0) as u64,
            tasks_kept: args.tasks_kept.or(file.tasks_kept).unwrap_or(10_000),
            lineage_memory: args.lineage_memory.or(file.lineage_memory).unwrap_or(256 << 20),
            log_size: args.log_size.or(file.log_size).unwrap_or(64 << 20),
        })
    }

    /// What the daemons listen on: loopback unless told otherwise, or when other machines are part of it.
    pub fn listen_host(&self) -> IpAddr {
        match (&self.host, &self.join) {
            (Some(host), _) => *host,
            (None, Some(heads)) => facing_any(heads.split(',')),
            // Heads that share an etcd reach each other.
            (None, None) => match &self.state {
                Some(url) => facing_any(url.members.iter().map(String::as_str)),
                None => Ipv4Addr::LOCALHOST.into(),
            },
        }
    }
}

impl OfferConfig {
    pub fn from_flags(args: &OfferArgs) -> Self {
        Self {
            num_cpus: args.num_cpus,
            num_gpus: args.num_gpus,
            memory: args.memory,
            object_store_memory: args.object_store_memory,
            memory_threshold: args.memory_threshold,
            resources: args.resources.clone().unwrap_or_default(),
            labels: args.labels.iter().cloned().collect(),
            python: args.python.clone(),
            spill_dir: args.spill_dir.clone(),
            durable: args.durable.clone(),
        }
    }
}

impl AskConfig {
    pub fn new(args: &AskArgs) -> Result<Self, CliError> {
        let file = FileConfig::load(&args.place)?;
        let address =
            args.address.clone().filter(|address| !address.is_empty()).or_else(|| file.address.clone());
        Ok(Self {
            dir: run_dir(&args.place, &file),
            address: address.map(|address| whole_addresses(&address)).transpose()?,
            token_file: token_file(&args.token, file.token_file.as_deref()),
        })
    }
}

/// Whether durable copies can lie there is found out when the first is written; what it is, now.
fn durable(url: String) -> Result<String, CliError> {
    match worker_node::check_durable_url(&url) {
        Ok(()) => Ok(url),
        Err(problem) => Err(CliError::Usage(format!("`durable`: {problem}"))),
    }
}

/// Daemons run in `/`: a path that means something here must be whole there.
fn from_here(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// A bare name is looked for in PATH, as everywhere. It must be there: a node without its Python fails every task.
fn program(path: &Path) -> Result<PathBuf, CliError> {
    let bare = path.components().count() == 1;
    let search = std::env::var_os("PATH").filter(|_| bare).unwrap_or_default();
    if bare && std::env::split_paths(&search).any(|dir| dir.join(path).is_file()) {
        return Ok(path.to_path_buf());
    }
    if !bare && path.is_file() {
        return Ok(from_here(path));
    }
    Err(CliError::Usage(format!(
        "there is no program {}{}: `python` names the interpreter that runs tasks and has concurrent_ml installed",
        path.display(),
        if bare { " in PATH" } else { "" }
    )))
}

/// The directory for a command that reads nothing else from the file.
pub fn dir_of(place: &Place) -> Result<RunDir, CliError> {
    Ok(run_dir(place, &FileConfig::load(place)?))
}

fn run_dir(place: &Place, file: &FileConfig) -> RunDir {
    let named = place.dir.clone().filter(|dir| !dir.as_os_str().is_empty()).or_else(|| file.dir.clone());
    named.map_or_else(RunDir::default_for_user, RunDir::new)
}

fn token_file(args: &TokenArgs, file: Option<&Path>) -> Option<PathBuf> {
    args.token_file
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| file.map(Path::to_path_buf))
}

/// Heads of one cluster, with commas between.
fn whole_addresses(addresses: &str) -> Result<String, CliError> {
    let each: Result<Vec<_>, _> = addresses.split(',').map(whole_address).collect();
    Ok(each?.join(","))
}

/// `host:port`, or `host` for the default port.
fn whole_address(address: &str) -> Result<String, CliError> {
    let whole = with_port(address.trim());
    let sound = whole.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if sound {
        Ok(whole)
    } else {
        Err(CliError::Usage(format!("`{address}` is no address: write HOST:PORT, like 10.0.0.1:8264")))
    }
}

/// `host` alone means the default port.
fn with_port(address: &str) -> String {
    let has_port = match address.rfind(']') {
        Some(bracket) => address[bracket..].contains(':'),
        None => address.matches(':').count() == 1,
    };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{DEFAULT_PORT}"),
        _ if has_port => address.to_owned(),
        _ => format!("{address}:{DEFAULT_PORT}"),
    }
}

/// The address of this machine from which packets to another leave. Nothing is sent.
pub fn facing(address: &str) -> Option<IpAddr> {
    use std::net::{ToSocketAddrs, UdpSocket};
    let target = address.to_socket_addrs().ok()?.next()?;
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().ok()? };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Where this machine faces the first of these that can be resolved.
fn facing_any<'a>(mut addresses: impl Iterator<Item = &'a str>) -> IpAddr {
    addresses.find_map(facing).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The known key that takes the fewest changes to reach.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> &'a str {
    let unknown = unknown.replace('-', "_");
    known.iter().copied().min_by_key(|key| distance(&unknown, key)).unwrap_or_default()
}

/// Levenshtein's.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(from).map_err(|_| D::Error::custom("is no size: write one like \"4GiB\""))? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse_bytes(&text).map(Some).map_err(D::Error::custom),
    }
}

fn amount<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    check_amount(f64::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

fn resources<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Resources>, D::Error> {
    check_resources(Resources::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn up(flags: &[&str], file: &str) -> Result<UpConfig, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, file).unwrap();
        let mut words = vec!["cluster", "up", "--config", path.to_str().unwrap()];
        words.extend(flags);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Up(args) => UpConfig::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file =
            "num_cpus = 3\nport = 1\nmemory = \"4GiB\"\n[labels]\nzone = \"west\"\n[resources]\ntpu = 2\n";
        let config = up(&["--port", "7"], file).unwrap();
        assert_eq!((config.port, config.data_port), (7, DEFAULT_DATA_PORT));
        assert_eq!(config.offer.num_cpus, Some(3.0));
        assert_eq!(config.offer.memory, Some(4 << 30));
        assert_eq!(config.offer.labels["zone"], "west");
        assert_eq!(config.offer.resources["tpu"], 2.0);
        assert_eq!(config.listen_host(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn an_unknown_key_names_its_nearest_neighbour() {
        for (key, expected) in
            [("num_cpu", "num_cpus"), ("data-port", "data_port"), ("ressources", "resources")]
        {
            let error = up(&[], &format!("{key} = 2\n")).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{key}`")) && error.contains(&format!("`{expected}`")),
                "{error}"
            );
            assert!(error.contains("cluster.toml"), "{error}");
        }
    }

    #[test]
    fn every_key_of_the_file_is_known_and_no_other() {
        for key in KEYS {
            let error = toml::from_str::<FileConfig>(&format!("{key} = {{ strange = [] }}\n"));
            let text = error.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!text.contains("unknown field"), "{key}: {text}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_place() {
        for (line, expected) in [
            ("num_cpus = -1", "negative"),
            ("memory = \"lots\"", "4GiB"),
            ("port = 99999", "port"),
            ("resources = { CPU = 1 }", "--num-cpus"),
            ("loss_timeout_seconds = 0", "between"),
            ("drain_seconds = -1", "between"),
            ("client_grace_seconds = -1", "between"),
            ("lineage_memory = \"lots\"", "4GiB"),
            ("tasks_kept = -1", "tasks_kept"),
            ("durable = \"gs://bucket\"", "s3://bucket/prefix"),
            ("num_cpus = ", "line 1"),
        ] {
            let error = up(&[], line).unwrap_err();
            assert!(matches!(error, CliError::Usage(_)));
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_reached_by_anyone_is_refused_before_anything_starts() {
        for (flags, expected) in [
            (["--join", "10.0.0.1:notaport"], "HOST:PORT"),
            (["--join", "http://10.0.0.1:8264"], "HOST:PORT"),
            (["--join", ":8264"], "HOST:PORT"),
            (["--python", "/nope/python3"], "/nope/python3"),
            (["--python", "no-such-python"], "in PATH"),
        ] {
            let error = up(&flags, "").unwrap_err();
            assert!(matches!(error, CliError::Usage(_)) && error.to_string().contains(expected), "{error}");
        }
        assert_eq!(up(&["--join", "[::1]:99"], "").unwrap().join.as_deref(), Some("[::1]:99"));
    }

    #[test]
    fn an_address_without_a_port_has_the_default_one() {
        let cases = [
            ("host", "host:8264"),
            ("host:1", "host:1"),
            ("10.0.0.1", "10.0.0.1:8264"),
            ("::1", "[::1]:8264"),
            ("[::1]:5", "[::1]:5"),
        ];
        for (given, expected) in cases {
            assert_eq!(with_port(given), expected);
        }
    }
}
