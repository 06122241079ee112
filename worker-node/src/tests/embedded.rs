//! A whole embedded daemon in a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::{EmbeddedConfig, Ready, run_embedded};

/// Its process: stdin is the lifeline, stdout is where it says that it is ready.
#[test]
#[ignore = "not a test: the process that the next ones start"]
fn embedded_daemon() {
    let Ok(dir) = std::env::var("CLUSTER_TEST_DIR") else { return };
    let ended = run_embedded(EmbeddedConfig {
        dir: dir.into(),
        token: String::new(),
        offer: Offer { num_cpus: Some(2.0), ..Offer::default() },
        python: crate::supervisor::tests::python(),
        lifeline: std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap(),
        ready: std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned().unwrap(),
        spill_dir: PathBuf::new(),
        durable: String::new(),
    });
    std::process::exit(match ended {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            error.exit_code().into()
        }
    });
}

fn start(dir: &Path) -> (Child, Option<Ready>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "tests::embedded::embedded_daemon"])
        .env("CLUSTER_TEST_DIR", dir)
        .env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("../client-sdk/python"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).find_map(|line| serde_json::from_str(&line).ok());
    (child, ready)
}

fn exit_code(mut child: Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    panic!("it did not end within 10 s");
}

#[test]
fn it_is_ready_at_once_refuses_a_second_and_ends_with_its_driver() {
    let dir = std::env::temp_dir().join(format!("cluster-embedded-{}", std::process::id()));
    let begin = Instant::now();
    let (mut child, ready) = start(&dir);
    let ready = ready.expect("it says that it is ready");
    println!("ready after {:?}", begin.elapsed());
    assert_eq!(ready.socket, dir.join(crate::SOCKET_NAME));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&dir).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);

    let mut peer = Peer::connect(&dir);
    peer.hello(&ClientHello { token: ready.token, ..hello(1, ClientKind::Observer) });

    let (second, not_ready) = start(&dir);
    assert_eq!(not_ready, None);
    assert_eq!(exit_code(second), Some(1));

    drop(child.stdin.take());
    assert_eq!(exit_code(child), Some(0));
    assert!(!ready.socket.exists());

    let (child, ready) = start(&dir);
    assert!(ready.is_some(), "the directory can be used again");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(exit_code(child), Some(0));
    let _ = std::fs::remove_dir_all(&dir);
}
