//! What a job's program finds around it: its directory, its environment variables, its packages.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cluster_types::job::{RUNTIME_ENV, RuntimeEnv};

use crate::environments::{Unprepared, Workshop};
use crate::job_process::JobTask;

/// Where and with what the program is started.
pub(crate) struct Ready {
    pub(crate) cwd: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    /// The interpreter for entrypoints that say just `python`.
    python: PathBuf,
}

impl Ready {
    /// `python` means the job's own interpreter, whatever the path says.
    pub(crate) fn program(&self, named: &str) -> PathBuf {
        match named {
            "python" | "python3" => self.python.clone(),
            // A relative path is one in the working directory.
            named if named.contains('/') && !named.starts_with('/') => self.cwd.join(named),
            named => named.into(),
        }
    }
}

/// Fetches and builds what the job asks for.
pub(crate) fn prepare(task: &JobTask, progress: &mut dyn FnMut(&str)) -> Result<Ready, Unprepared> {
    let spec = &task.order.spec;
    let mut env: BTreeMap<String, String> = task.env.iter().cloned().collect();
    let cwd = own_directory(task).map_err(|reason| Unprepared { reason, hopeless: false })?;
    let workshop = Workshop { dir: task.dir.clone(), python: task.python.clone(), token: task.token.clone() };
    let prepared = workshop.prepare(&spec.runtime_env, Some(&cwd), progress)?;
    let python = prepared.python.unwrap_or_else(|| task.python.clone());
    if let Some(bin) = python.parent().filter(|bin| !bin.as_os_str().is_empty()) {
        let path = env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
        env.insert("PATH".to_owned(), format!("{}:{path}", bin.display()));
    }
    env.insert("PYTHONUNBUFFERED".to_owned(), "1".to_owned());
    if spec.runtime_env != RuntimeEnv::default() {
        // What it submits to the cluster finds the same around it.
        let text = serde_json::to_string(&spec.runtime_env).unwrap_or_default();
        env.insert(RUNTIME_ENV.to_owned(), text);
    }
    env.extend(spec.runtime_env.env_vars.clone());
    if !prepared.sys_path.is_empty() {
        let before = env.get("PYTHONPATH").cloned().or_else(|| std::env::var("PYTHONPATH").ok());
        let path = prepared.sys_path.into_iter().chain(before).collect::<Vec<_>>().join(":");
        env.insert("PYTHONPATH".to_owned(), path);
    }
    Ok(Ready { cwd, env, python })
}

/// A directory of the job's own.
fn own_directory(task: &JobTask) -> Result<PathBuf, String> {
    let cwd = task.dir.join("jobs").join(format!("{}-{}", task.order.job, task.order.attempt));
    std::fs::create_dir_all(&cwd)
        .map_err(|error| format!("cannot make the job's directory {}: {error}", cwd.display()))?;
    Ok(cwd)
}
