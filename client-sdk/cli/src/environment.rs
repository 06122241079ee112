//! What a program is to find around it: read from the command line, with its files sent to where nodes fetch them.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_packages::{Chunks, DEFAULT_LIMIT, PackageError, Progress};
use cluster_types::job::{Package, RuntimeEnv};
use serde::Deserialize;

use crate::args::{AskArgs, PackArgs, ProgramArgs};
use crate::ask::{heads_and_token, runtime};
use crate::error::CliError;
use crate::units::parse_bytes;

/// The most bytes of one tree.
const LIMIT_VARIABLE: &str = "CLUSTER_PACKAGE_LIMIT";
/// An upload that takes longer than this says how far it is.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// Requirements files that name each other.
const DEPTH: u32 = 10;

pub fn of_job(args: &ProgramArgs) -> Result<RuntimeEnv, CliError> {
    let mut env = RuntimeEnv {
        env_vars: args.env.iter().cloned().collect(),
        preload: args.preload.clone(),
        executable: args.executable.clone(),
        ..RuntimeEnv::default()
    };
    for named in &args.requirements {
        read_requirements(named, DEPTH, &mut env.requirements)?;
    }
    if args.working_dir.is_none() && args.py_modules.is_empty() {
        return Ok(env);
    }
    let shelf = Shelf::at_gateway(&args.ask)?;
    env.working_dir = args.working_dir.as_deref().map(|path| shelf.bring(path, false)).transpose()?;
    env.py_modules = args.py_modules.iter().map(|path| shelf.bring(path, true)).collect::<Result<_, _>>()?;
    Ok(env)
}

/// Paths, as a driver in Python has them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Paths {
    working_dir: Option<PathBuf>,
    py_modules: Vec<PathBuf>,
    requirements: Vec<String>,
}

/// `cluster pack`: for the Python package.
pub fn pack_for(args: &PackArgs) -> Result<(), CliError> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(CliError::io("read what is to be packed"))?;
    let paths: Paths = serde_json::from_str(&text)
        .map_err(|error| CliError::Failed(format!("what is to be packed: {error}")))?;
    let mut env = RuntimeEnv::default();
    for named in &paths.requirements {
        read_requirements(named, DEPTH, &mut env.requirements)?;
    }
    if paths.working_dir.is_some() || !paths.py_modules.is_empty() {
        let shelf = match &args.into {
            Some(directory) => Shelf::Here(Chunks::new(directory)),
            None => Shelf::at_gateway(&args.ask)?,
        };
        env.working_dir = paths.working_dir.as_deref().map(|path| shelf.bring(path, false)).transpose()?;
        env.py_modules =
            paths.py_modules.iter().map(|path| shelf.bring(path, true)).collect::<Result<_, _>>()?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&env).unwrap_or_default())?;
    Ok(())
}

/// Where files are brought.
enum Shelf {
    /// To this machine's daemon.
    Here(Chunks),
    /// Its address, and the token.
    There(String, String),
}

impl Shelf {
    fn at_gateway(args: &AskArgs) -> Result<Shelf, CliError> {
        let (heads, token) = heads_and_token(args)?;
        let mut last = CliError::Unreachable("the cluster has no head".to_owned());
        for head in heads.split(',') {
            match runtime()?.block_on(cluster_packages::find_gateway(head, &token)) {
                Ok(gateway) => return Ok(Shelf::There(gateway, token)),
                Err(error) => last = failed(error),
            }
        }
        Err(last)
    }

    fn bring(&self, path: &Path, is_module: bool) -> Result<Package, CliError> {
        if !is_module && !path.is_dir() {
            let what = if path.exists() { "is no directory" } else { "does not exist" };
            return Err(CliError::Usage(format!("the working directory {} {what}", path.display())));
        }
        if is_module && !path.exists() {
            return Err(CliError::Usage(format!("the module {} does not exist", path.display())));
        }
        let packed = cluster_packages::pack(path, limit()?).map_err(failed)?;
        let name = match path.canonicalize() {
            // A directory that is a module is found by its name.
            Ok(real) if is_module && real.is_dir() && real.join("__init__.py").exists() => {
                real.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            _ => String::new(),
        };
        let at = match self {
            Shelf::Here(chunks) => {
                cluster_packages::keep(&packed, chunks).map_err(failed)?;
                // Other nodes fetch them from this one.
                chunks.gateway()
            }
            Shelf::There(gateway, token) => {
                let begun = Instant::now();
                let shows = std::io::stderr().is_terminal();
                let tell = |progress: Progress<'_>| match progress {
                    Progress::Sent(done, total) if shows && begun.elapsed() > TOLD_AFTER => {
                        eprint!("\rsending {}: {} of {} MiB ", path.display(), done >> 20, total >> 20);
                    }
                    Progress::Sent(..) => {}
                    Progress::Lost(reason, within) => {
                        let minutes = within.as_secs() / 60;
                        eprintln!(
                            "(sending {} is cut off ({reason}); trying on for {minutes} minutes)",
                            path.display()
                        );
                    }
                };
                let sent = cluster_packages::send(&packed, gateway, token, tell);
                let sent = runtime()?.block_on(sent).map_err(failed)?;
                if shows && begun.elapsed() > TOLD_AFTER {
                    eprintln!(
                        "\rsent {}: {} MiB of {} were new",
                        path.display(),
                        sent >> 20,
                        packed.bytes >> 20
                    );
                }
                gateway.clone()
            }
        };
        Ok(Package { hash: packed.name.to_string(), at, bytes: packed.bytes, name })
    }
}

fn limit() -> Result<u64, CliError> {
    match std::env::var(LIMIT_VARIABLE) {
        Ok(text) => parse_bytes(&text).map_err(|error| CliError::Usage(format!("{LIMIT_VARIABLE}: {error}"))),
        Err(_) => Ok(DEFAULT_LIMIT),
    }
}

fn failed(error: PackageError) -> CliError {
    match error {
        PackageError::Away(reason) => CliError::Unreachable(reason),
        other => CliError::Failed(other.to_string()),
    }
}

/// A file's lines with those of the files it names, or the requirement itself.
fn read_requirements(named: &str, depth: u32, into: &mut Vec<String>) -> Result<(), CliError> {
    if named.trim().is_empty() {
        return Err(CliError::Usage(
            "a requirement is empty: name a requirements file, or write one like numpy>=2".to_owned(),
        ));
    }
    let path = Path::new(named);
    let is_file = path.is_file();
    if !is_file && (named.ends_with(".txt") || named.starts_with(['.', '/'])) {
        return Err(CliError::Usage(format!("the requirements file {named} does not exist")));
    }
    if !is_file {
        into.push(named.trim().to_owned());
        return Ok(());
    }
    let text =
        std::fs::read_to_string(path).map_err(|error| CliError::Failed(format!("{named}: {error}")))?;
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let further = ["-r ", "--requirement "].iter().find_map(|flag| line.strip_prefix(flag));
        if let Some(further) = further {
            if depth == 0 {
                return Err(CliError::Usage(format!(
                    "{named}: requirements files name each other without end"
                )));
            }
            let beside = path.parent().map(|parent| parent.join(further.trim())).unwrap_or_default();
            read_requirements(&beside.to_string_lossy(), depth - 1, into)?;
            continue;
        }
        let is_path = line.starts_with("-e") || line.starts_with("--editable") || line.starts_with('.');
        if is_path || line.starts_with("-c ") || line.starts_with("file:") {
            return Err(CliError::Usage(format!(
                "{named}: `{line}` is a path of this machine, which nodes do not have: send it with --py-module or \
                 --working-dir"
            )));
        }
        into.push(line.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirements_file_is_read_with_those_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        std::fs::write(at("a.txt"), "# first\nnumpy>=2  # arrays\n\n-r b.txt\n").unwrap();
        std::fs::write(at("b.txt"), "--index-url https://example.org/simple\nscikit-learn\n").unwrap();
        let mut lines = Vec::new();
        read_requirements(&at("a.txt"), DEPTH, &mut lines).unwrap();
        assert_eq!(lines, ["numpy>=2", "--index-url https://example.org/simple", "scikit-learn"]);
        for (text, why) in
            [("-e .", "--py-module"), ("-r c.txt", "without end"), ("-r none.txt", "does not exist")]
        {
            std::fs::write(at("c.txt"), text).unwrap();
            let error = read_requirements(&at("c.txt"), DEPTH, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = read_requirements(" ", DEPTH, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("a requirement is empty"), "{error}");
    }
}
