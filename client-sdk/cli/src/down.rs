//! `cluster down`.

use std::time::Duration;

use rustix::process::Signal;

use crate::args::DownArgs;
use crate::config::dir_of;
use crate::error::CliError;
use crate::process::Daemon;
use crate::run_dir::RunDir;

/// How long a daemon may take to end its executors before it is killed. They end with it then too.
const PATIENCE: Duration = Duration::from_secs(8);

pub fn run(args: &DownArgs) -> Result<(), CliError> {
    let dir = dir_of(&args.place)?;
    if !dir.path().exists() {
        return report(args, &dir, &[]);
    }
    dir.create()?;
    let _lock = dir.lock()?;
    let ended = end_daemons(&dir)?;
    // What was ended on purpose is over; what was killed is taken up again by the next `cluster up`.
    for path in [dir.state(), dir.history(), dir.history().with_extension("old")] {
        let _ = std::fs::remove_file(path);
    }
    report(args, &dir, &ended)
}

/// Ends what runs here and removes what says that it does. The worker first, so that the head hears it leave.
pub fn end_daemons(dir: &RunDir) -> Result<Vec<(&'static str, u32)>, CliError> {
    let mut ended = Vec::new();
    for name in ["worker", "head"] {
        if let Some(daemon) = Daemon::from_pid_file(&dir.pid_file(name)) {
            // Not SIGTERM: that lets what runs end first.
            daemon.signal(Signal::INT);
            if !daemon.wait(PATIENCE) {
                daemon.signal(Signal::KILL);
                if !daemon.wait(PATIENCE) {
                    return Err(CliError::Failed(format!(
                        "the {name} daemon (process {}) does not end, not even by SIGKILL; its log is {}",
                        daemon.pid,
                        dir.log(name).display()
                    )));
                }
            }
            ended.push((name, daemon.pid));
        }
        let _ = std::fs::remove_file(dir.pid_file(name));
    }
    for path in [dir.cluster_file(), dir.socket(), dir.heads_file()] {
        let _ = std::fs::remove_file(path);
    }
    Ok(ended)
}

fn report(args: &DownArgs, dir: &RunDir, ended: &[(&str, u32)]) -> Result<(), CliError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if args.place.json {
        let pids: std::collections::BTreeMap<_, _> = ended.iter().copied().collect();
        writeln!(out, "{}", serde_json::json!({ "dir": dir.path(), "ended": pids }))?;
    } else if ended.is_empty() {
        writeln!(out, "Nothing runs in {}.", dir.path().display())?;
    } else {
        let names: Vec<_> =
            ended.iter().map(|(name, pid)| format!("{name} daemon (process {pid})")).collect();
        writeln!(out, "Ended: {}.", names.join(", "))?;
    }
    Ok(())
}
