//! What a job's program finds around it: its directory, its environment variables, its packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
///
/// # Errors
/// What could not be had, for the job's owner.
pub(crate) fn prepare(
    task: &JobTask,
    _progress: &mut dyn FnMut(&str),
    _stopped: &dyn Fn() -> bool,
) -> Result<Ready, String> {
    let spec = &task.order.spec;
    let mut env: BTreeMap<String, String> = task.env.iter().cloned().collect();
    let cwd = own_directory(task)?;
    let python = match &spec.runtime_env.executable {
        Some(named) if !Path::new(named).exists() => {
            return Err(format!("the interpreter {named} is not on this node"));
        }
        Some(named) => named.into(),
        None => task.python.clone(),
    };
    if let Some(bin) = python.parent().filter(|bin| !bin.as_os_str().is_empty()) {
        let path = env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
        env.insert("PATH".to_owned(), format!("{}:{path}", bin.display()));
    }
    env.insert("PYTHONUNBUFFERED".to_owned(), "1".to_owned());
    env.extend(spec.runtime_env.env_vars.clone());
    Ok(Ready { cwd, env, python })
}

/// A directory of the job's own.
fn own_directory(task: &JobTask) -> Result<PathBuf, String> {
    let cwd = task.dir.join("jobs").join(format!("{}-{}", task.order.job, task.order.attempt));
    std::fs::create_dir_all(&cwd)
        .map_err(|error| format!("cannot make the job's directory {}: {error}", cwd.display()))?;
    Ok(cwd)
}
