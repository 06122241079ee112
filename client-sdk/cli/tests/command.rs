//! The command as a person runs it: what it prints, where, and with which exit code.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn run_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("run")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CLUSTER_")) {
            command.env_remove(name);
        }
        command.args(words).env("CLUSTER_DIR", self.run_dir());
        command
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        told(self.command(words).output().unwrap())
    }

    fn ok(&self, words: &[&str]) -> String {
        let (code, out, err) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {out}{err}");
        out
    }

    fn daemon(&self, name: &str) -> Option<u32> {
        let text = std::fs::read_to_string(self.run_dir().join(format!("{name}.pid"))).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn up(machine: &Machine, more: &[&str]) -> (i32, String, String) {
    let (port, data) = (free_port(), free_port());
    let mut words = vec!["up", "--port", &port, "--data-port", &data];
    words.extend(more);
    machine.run(&words)
}

#[test]
fn a_cluster_comes_up_answers_and_goes_down_without_a_trace() {
    let machine = Machine::new();
    let (code, out, err) = up(&machine, &["--num-cpus", "2", "--json"]);
    assert_eq!(code, 0, "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let address = report["address"].as_str().unwrap();
    assert!(report["join_command"].as_str().unwrap().starts_with(&format!("cluster up --join {address}")));
    let file = std::fs::read_to_string(machine.run_dir().join("cluster.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert_eq!(file["worker_pid"].as_u64(), machine.daemon("worker").map(u64::from));
    assert!(Path::new(file["node_socket"].as_str().unwrap()).exists());

    let status: serde_json::Value = serde_json::from_str(&machine.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["resources"]["total"]["CPU"], 2.0);
    let nodes: serde_json::Value = serde_json::from_str(&machine.ok(&["list", "nodes", "--json"])).unwrap();
    assert_eq!(nodes[0]["state"], "alive");
    assert_eq!(machine.ok(&["list", "objects", "--json"]).trim(), "[]");
    assert_eq!(machine.ok(&["list", "actors", "--json"]).trim(), "[]");
    assert_eq!(machine.ok(&["list", "actors"]).trim(), "No actors.");
    assert_eq!(machine.ok(&["list", "placement-groups", "--json"]).trim(), "[]");
    assert_eq!(machine.ok(&["list", "placement-groups"]).trim(), "No placement groups.");
    assert_eq!(machine.ok(&["list", "tasks"]), "No tasks.\n");
    let (code, _, err) = machine.run(&["why", "job-ffff/99"]);
    assert!(code == 1 && err.contains("job-ffff/99"), "{code} {err}");

    let (code, _, err) = up(&machine, &[]);
    assert!(code == 1 && err.contains("running here already") && err.contains(address), "{code} {err}");

    let mut stranger = machine.command(&["status", "--address", address]);
    let (code, _, err) = told(stranger.env("CLUSTER_TOKEN", "wrong").output().unwrap());
    assert!(code == 4 && err.contains("token"), "{code} {err}");
    let elsewhere = machine.dir.path().join("elsewhere");
    let mut stranger = machine.command(&["status", "--address", address]);
    let stranger = stranger.env("CLUSTER_TOKEN", "").env("CLUSTER_DIR", elsewhere);
    let (code, _, err) = told(stranger.output().unwrap());
    assert!(code == 4 && err.contains("token"), "{code} {err}");

    let daemons = [machine.daemon("head").unwrap(), machine.daemon("worker").unwrap()];
    machine.ok(&["down"]);
    for pid in daemons {
        // Nobody may be there to wait for them: a zombie has ended too.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    assert!(!machine.run_dir().join("node.sock").exists());
    assert!(machine.ok(&["down"]).starts_with("Nothing runs in"));
    assert_eq!(machine.run(&["status"]).0, 3);
}

#[test]
fn a_taken_port_is_named_with_what_to_do_and_nothing_is_left() {
    let machine = Machine::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--port", "--data-port"] {
        let free = free_port();
        let (head, data) = if flag == "--port" { (&port, &free) } else { (&free, &port) };
        let (code, _, err) = machine.run(&["up", "--port", head, "--data-port", data]);
        assert_eq!(code, 1);
        for word in [port.as_str(), "in use", flag] {
            assert!(err.contains(word), "{word} is not in: {err}");
        }
        assert_eq!((machine.daemon("head"), machine.daemon("worker")), (None, None));
    }
}

#[test]
fn nobody_at_the_address_is_told_at_once() {
    let machine = Machine::new();
    let begun = Instant::now();
    let mut status = machine.command(&["status", "--address", "127.0.0.1:9"]);
    let (code, _, err) = told(status.env("CLUSTER_TOKEN", "any").output().unwrap());
    assert!(code == 3 && err.contains("127.0.0.1:9"), "{code} {err}");
    // Something that listens and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (code, _, err) = machine.run(&["status", "--address", &address]);
    assert!(code == 3 && err.contains(&address), "{code} {err}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn joining_nobody_is_told_within_seconds_and_leaves_nothing() {
    let machine = Machine::new();
    let begun = Instant::now();
    let data = free_port();
    let mut join = machine.command(&["up", "--join", "127.0.0.1:9", "--data-port", &data]);
    let (code, _, err) = told(join.env("CLUSTER_TOKEN", "any").output().unwrap());
    assert!(code == 3 && err.contains("127.0.0.1:9"), "{code} {err}");
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert_eq!(machine.daemon("worker"), None);

    let (code, _, err) = Machine::new().run(&["up", "--join", "127.0.0.1:9"]);
    assert!(code == 4 && err.contains("--token-file"), "{code} {err}");
}

#[test]
fn nonsense_is_refused_with_its_name() {
    let machine = Machine::new();
    let file = machine.dir.path().join("cluster.toml");
    std::fs::write(&file, "num_cpu = 2\n").unwrap();
    let (code, _, err) = machine.run(&["up", "--config", file.to_str().unwrap()]);
    assert!(code == 2 && err.contains("`num_cpu`") && err.contains("`num_cpus`"), "{code} {err}");
    let mut bad = machine.command(&["up"]);
    let (code, _, err) = told(bad.env("CLUSTER_NUM_CPUS", "-3").output().unwrap());
    assert!(code == 2 && err.contains("--num-cpus"), "{code} {err}");
    let (code, _, err) = machine.run(&["status", "--address", "a b"]);
    assert!(code == 2 && err.contains("HOST:PORT"), "{code} {err}");
    assert_eq!(machine.run(&["conquer"]).0, 2);
    assert!(!machine.run_dir().join("head.pid").exists());
}

#[test]
fn completions_know_the_commands() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = machine.ok(&["completions", shell]);
        assert!(script.contains("status") && script.contains("why"), "{shell}");
    }
}

/// Ends by itself when its driver does, whatever became of the driver.
#[test]
fn an_embedded_cluster_says_when_it_is_ready_and_ends_with_its_standard_input() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let machine = Machine::new();
    let mut child = machine
        .command(&["embedded", "--num-cpus", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(Path::new(ready["socket"].as_str().unwrap()).exists(), "{line}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
