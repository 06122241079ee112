//! The examples run, each on an embedded cluster. cargo builds them beside the tests.

use std::path::PathBuf;
use std::process::Command;

fn run(example: &str, arguments: &[&str]) -> String {
    let tests = std::env::current_exe().ok().and_then(|path| path.ancestors().nth(2).map(PathBuf::from));
    let path = tests.map(|target| target.join("examples").join(example)).filter(|path| path.exists());
    let path = path
        .unwrap_or_else(|| panic!("there is no example {example}: cargo build -p concurrent-ml --examples"));
    let ended = Command::new(path).args(arguments).env_remove("CLUSTER_ADDRESS").output();
    let ended = ended.unwrap_or_else(|error| panic!("{example}: {error}"));
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{example}: {said}{}", String::from_utf8_lossy(&ended.stderr));
    said
}

#[test]
fn monte_carlo() {
    assert_eq!(run("monte_carlo", &["16", "200000"]).get(..15), Some("pi is about 3.1"));
}

#[test]
fn matrix_multiplication() {
    assert!(run("matrix_multiplication", &["120", "3"]).starts_with("120 x 120 in 9 blocks"));
}

#[test]
fn parameter_server() {
    assert!(run("parameter_server", &["3", "120"]).contains("[2.0"));
}

#[test]
fn gpu_saxpy_says_where_there_is_no_gpu() {
    let said = run("gpu_saxpy", &["10000"]);
    assert!(said.contains("no GPU") || said.contains("10000 elements on the GPU, 0 wrong"), "{said}");
}
