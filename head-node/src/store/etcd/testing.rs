//! An etcd of three members for tests: each in a network namespace of its own where this process may make some, else on
//! ports of this machine.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    _network: Option<Network>,
    _data: TempDir,
}

pub(crate) struct Member {
    /// `host:port` for clients.
    pub(crate) address: String,
    process: Child,
}

impl Member {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Etcd {
    /// Started, with a leader.
    pub(crate) fn start() -> Self {
        let program =
            ["/usr/bin/etcd", "/usr/local/bin/etcd"].into_iter().find(|path| std::fs::exists(path).unwrap());
        let program = program.expect("these tests take etcd: apt-get install etcd-server");
        let network = Network::make();
        let data = tempfile::tempdir().unwrap();
        let places: Vec<_> =
            (0..3).map(|n| network.as_ref().map_or_else(local, |network| network.place(n))).collect();
        let peers: Vec<_> =
            places.iter().enumerate().map(|(n, place)| format!("m{n}=http://{}", place.1)).collect();
        let start = |(n, (address, peer)): (usize, &(String, String))| {
            let inside = network.as_ref().map(|network| network.command(n, program));
            let mut command = inside.unwrap_or_else(|| Command::new(program));
            let process = command
                .args(["--name", &format!("m{n}"), "--data-dir"])
                .arg(data.path().join(n.to_string()))
                .args(["--listen-client-urls", &format!("http://{address}")])
                .args(["--advertise-client-urls", &format!("http://{address}")])
                .args(["--listen-peer-urls", &format!("http://{peer}")])
                .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
                .args(["--initial-cluster", &peers.join(","), "--unsafe-no-fsync"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            Member { address: address.clone(), process }
        };
        let members = places.iter().enumerate().map(start).collect();
        Self { members, _network: network, _data: data }
    }

    /// Another cluster's name at each call, so that tests of one etcd do not meet.
    pub(crate) fn url(&self) -> super::EtcdUrl {
        let members: Vec<_> = self.members.iter().map(|member| member.address.as_str()).collect();
        let mut number = [0; 4];
        getrandom::fill(&mut number).unwrap();
        format!("etcd://{}/test-{}", members.join(","), u32::from_be_bytes(number)).parse().unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

fn local() -> (String, String) {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    (free(), free())
}

/// Three namespaces on one bridge.
struct Network {
    name: String,
    subnet: u32,
}

impl Network {
    /// `None`: that takes rights that this process does not have.
    fn make() -> Option<Self> {
        let id = std::process::id();
        let network = Self { name: format!("etcd{id}"), subnet: id % 250 };
        let (bridge, subnet) = (&network.name, network.subnet);
        if !ip(&format!("link add {bridge} type bridge")) {
            return None;
        }
        let mut made = ip(&format!("addr add 10.251.{subnet}.254/24 dev {bridge}"));
        made &= ip(&format!("link set {bridge} up"));
        for n in 0..3 {
            let (inside, outside) = (network.namespace(n), format!("{bridge}v{n}"));
            for command in [
                format!("netns add {inside}"),
                format!("link add {outside} type veth peer name eth0 netns {inside}"),
                format!("link set {outside} master {bridge} up"),
                format!("-n {inside} addr add 10.251.{subnet}.{}/24 dev eth0", n + 1),
                format!("-n {inside} link set eth0 up"),
                format!("-n {inside} link set lo up"),
            ] {
                made &= ip(&command);
            }
        }
        // Dropped, it is taken apart again.
        made.then_some(network)
    }

    fn namespace(&self, n: usize) -> String {
        format!("{}n{n}", self.name)
    }

    fn place(&self, n: usize) -> (String, String) {
        let host = format!("10.251.{}.{}", self.subnet, n + 1);
        (format!("{host}:2379"), format!("{host}:2380"))
    }

    fn command(&self, n: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(n))).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for n in 0..3 {
            ip(&format!("netns del {}", self.namespace(n)));
        }
        ip(&format!("link del {}", self.name));
    }
}

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}
