//! What runtime environments need before a program or an executor starts in one: files that are fetched, interpreters that
//! are built. Each is kept by its content, for all who need it, until there is too much.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use cluster_packages::{ChunkName, Chunks, PackageError};
use cluster_types::job::{Package, RuntimeEnv};

use crate::supervisor::ExecutorOrder;

/// Chunks of files, below a daemon's directory.
pub(crate) const CHUNKS_DIR: &str = "packages/chunks";
/// Bytes of built interpreters, and of trees of files, that a node keeps beside those used within a day.
const KEPT_MAX: u64 = 20 << 30;
const KEPT_AT_LEAST: Duration = Duration::from_secs(24 * 3600);
/// Lines of a resolver's words in an error.
const LAST_WORDS: usize = 30;

/// Where environments come from and go to.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    /// The daemon's directory.
    pub(crate) dir: PathBuf,
    /// The node's interpreter.
    pub(crate) python: PathBuf,
    /// For gateways that have files.
    pub(crate) token: String,
}

/// Why an environment cannot be had.
#[derive(Debug)]
pub(crate) struct Unprepared {
    pub(crate) reason: String,
    /// Trying again is no use.
    pub(crate) hopeless: bool,
}

fn hopeless(reason: String) -> Unprepared {
    Unprepared { reason, hopeless: true }
}

fn of_files(what: &str) -> impl Fn(PackageError) -> Unprepared {
    move |error| Unprepared {
        reason: format!("{what} cannot be had: {error}"),
        hopeless: matches!(error, PackageError::Wrong(_)),
    }
}

/// An environment that is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    /// Its files, where it has some.
    pub(crate) working_dir: Option<PathBuf>,
    /// To be put before the path of Python.
    pub(crate) sys_path: Vec<String>,
    /// The interpreter, where it is not the node's.
    pub(crate) python: Option<PathBuf>,
}

impl Prepared {
    /// Nobody has deleted it.
    pub(crate) fn is_there(&self) -> bool {
        self.working_dir.iter().chain(&self.python).all(|path| path.exists())
    }

    /// The executor is to find this around it.
    pub(crate) fn adopt(&self, order: &mut ExecutorOrder) {
        if let Some(directory) = &self.working_dir {
            order.cwd = directory.display().to_string();
        }
        if let Some(python) = &self.python {
            order.python = python.display().to_string();
        }
        order.sys_path.splice(0..0, self.sys_path.iter().cloned());
    }
}

type Progress<'a> = &'a mut dyn FnMut(&str);

impl Workshop {
    /// Fetches and builds. The working directory is written to `own`, or kept for all who need the same. Takes its time,
    /// on the caller's thread.
    pub(crate) fn prepare(
        &self,
        env: &RuntimeEnv,
        own: Option<&Path>,
        progress: Progress<'_>,
    ) -> Result<Prepared, Unprepared> {
        let mut prepared = Prepared::default();
        if let Some(package) = &env.working_dir {
            let what = "the working directory";
            let at = match own {
                Some(own) => self.fetch(package, own, what, progress).map(|()| own.to_path_buf())?,
                None => self.tree(package, what, progress)?,
            };
            prepared.sys_path.push(at.display().to_string());
            prepared.working_dir = Some(at);
        }
        for package in &env.py_modules {
            let at = self.tree(package, "a module", progress)?;
            prepared.sys_path.push(at.display().to_string());
        }
        let python = match &env.executable {
            Some(named) => {
                let found = crate::supervisor::find_program(named.into());
                if !found.is_absolute() || !found.exists() {
                    return Err(hopeless(format!("the interpreter {named} is not on this node")));
                }
                prepared.python = Some(found.clone());
                found
            }
            None => self.python.clone(),
        };
        if !env.requirements.is_empty() {
            prepared.python = Some(self.interpreter(&python, env, progress)?);
        }
        Ok(prepared)
    }

    fn fetch(
        &self,
        package: &Package,
        into: &Path,
        what: &str,
        progress: Progress<'_>,
    ) -> Result<(), Unprepared> {
        let chunks = Chunks::new(&self.dir.join(CHUNKS_DIR));
        let failed = |error: std::io::Error| Unprepared {
            reason: format!("{what} cannot be fetched: {error}"),
            hopeless: false,
        };
        fs::create_dir_all(into).map_err(failed)?;
        let into = into.canonicalize().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut told = false;
        let mut tell = |_done: u64, _of: u64| {
            if !std::mem::replace(&mut told, true) {
                progress(&format!("fetching {what} ({:.1} MiB)", package.bytes as f64 / f64::from(1 << 20)));
            }
        };
        runtime
            .block_on(cluster_packages::fetch(package, &self.token, &chunks, &into, &mut tell))
            .map_err(of_files(what))?;
        chunks.keep_below(crate::packages::CHUNKS_MAX);
        Ok(())
    }

    /// A tree of files that all share.
    fn tree(&self, package: &Package, what: &str, progress: Progress<'_>) -> Result<PathBuf, Unprepared> {
        if ChunkName::parse(&package.hash).is_none() {
            return Err(hopeless(format!("{what}: {} is no name of a package", package.hash)));
        }
        if package.name.contains('/') || package.name == ".." {
            return Err(hopeless(format!("{what}: {} is no name of a module", package.name)));
        }
        let key = ChunkName::of(format!("{} {}", package.hash, package.name).as_bytes()).to_string();
        let path = self.dir.join("packages/trees").join(key);
        let kept = Kept::open(&path).map_err(hopeless)?;
        if !kept.is_ready() {
            self.fetch(package, &path.join(&package.name), what, progress)?;
            kept.ready();
        }
        Ok(path)
    }

    /// An interpreter with these requirements, over what the node's has.
    fn interpreter(
        &self,
        base: &Path,
        env: &RuntimeEnv,
        progress: Progress<'_>,
    ) -> Result<PathBuf, Unprepared> {
        let text = env.requirements.join("\n");
        let key = ChunkName::of(format!("{}\n{text}", base.display()).as_bytes()).to_string();
        let path = self.dir.join("environments").join(&key[..32]);
        let python = path.join("bin/python");
        let kept = Kept::open(&path).map_err(hopeless)?;
        if kept.is_ready() && python.exists() {
            return Ok(python);
        }
        let uv = find_uv(base).ok_or_else(|| {
            hopeless(format!(
                "requirements are installed by uv, which is not on node {}: install it there (`{} -m pip install uv`)",
                hostname(),
                base.display()
            ))
        })?;
        progress(&format!("installing {} with uv", env.requirements.join(", ")));
        let run = |arguments: &[&str], progress: Progress<'_>| {
            let mut command = Command::new(&uv);
            command.args(arguments).envs(&env.env_vars).env("UV_NO_PROGRESS", "1").env_remove("VIRTUAL_ENV");
            run_aloud(command, progress)
        };
        let begun = std::time::Instant::now();
        let at = path.display().to_string();
        let base_text = base.display().to_string();
        run(&["venv", "--quiet", "--no-project", "--allow-existing", "--python", &base_text, &at], progress)?;
        let list = path.join("requirements.txt");
        fs::write(&list, &text).map_err(|error| hopeless(format!("{}: {error}", list.display())))?;
        let (python_text, list_text) = (python.display().to_string(), list.display().to_string());
        run(&["pip", "install", "--python", &python_text, "-r", &list_text], progress)?;
        self.lay_over(base, &python)?;
        kept.ready();
        progress(&format!("installed in {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(python)
    }

    /// What the node's interpreter has and the new one has not is found there, after its own.
    fn lay_over(&self, base: &Path, python: &Path) -> Result<(), Unprepared> {
        let ask = |python: &Path, text: &str| {
            let output = Command::new(python).args(["-c", text]).stderr(Stdio::inherit()).output();
            let output =
                output.map_err(|error| hopeless(format!("{} does not start: {error}", python.display())))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let own = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")?;
        let theirs = "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))";
        let mut lines = String::new();
        for path in ask(base, theirs)?.lines() {
            lines += &format!("import site; site.addsitedir({path:?})\n");
        }
        let file = Path::new(&own).join("_cluster_node.pth");
        fs::write(&file, lines).map_err(|error| hopeless(format!("{}: {error}", file.display())))
    }
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn find_uv(python: &Path) -> Option<PathBuf> {
    let beside = python.parent().map(|bin| bin.join("uv"));
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let in_home = home.iter().flat_map(|home| [home.join(".local/bin/uv"), home.join(".cargo/bin/uv")]);
    let on_path = crate::supervisor::find_program("uv".into());
    let all = beside.into_iter().chain([on_path]).chain(in_home);
    all.into_iter().find(|uv| uv.is_absolute() && uv.exists())
}

/// What it says as it comes; its last words in the error.
fn run_aloud(mut command: Command, progress: Progress<'_>) -> Result<(), Unprepared> {
    let failed = |error: std::io::Error| hopeless(format!("uv does not start: {error}"));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut last = std::collections::VecDeque::new();
    if let Some(said) = child.stderr.take() {
        for line in BufReader::new(said.take(64 << 20)).lines().map_while(Result::ok) {
            progress(&line);
            last.push_back(line);
            if last.len() > LAST_WORDS {
                last.pop_front();
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<String> = last.into();
    let reason = format!("the requirements cannot be installed:\n{}", words.join("\n"));
    // The index may be out of reach only now.
    let hopeless = !reason.contains("error sending request") && !reason.contains("Failed to fetch");
    Err(Unprepared { reason, hopeless })
}

/// A directory that is made once, whoever needs it first, and deleted when there is too much.
struct Kept {
    path: PathBuf,
    /// Held until it is ready: others wait.
    _lock: File,
}

impl Kept {
    fn open(path: &Path) -> Result<Kept, String> {
        let error = |error: std::io::Error| format!("cannot use {}: {error}", path.display());
        let parent = path.parent().unwrap_or(path);
        fs::create_dir_all(parent).map_err(error)?;
        let lock = File::create(path.with_extension("lock")).map_err(error)?;
        lock.lock().map_err(error)?;
        let kept = Kept { path: path.to_path_buf(), _lock: lock };
        if kept.is_ready() {
            // It was used.
            let _ = fs::write(kept.mark(), fs::read(kept.mark()).unwrap_or_default());
        } else {
            // Somebody was cut off, or nobody was here.
            let _ = fs::remove_dir_all(path);
        }
        Ok(kept)
    }

    fn mark(&self) -> PathBuf {
        self.path.with_extension("ready")
    }

    fn is_ready(&self) -> bool {
        self.mark().exists() && self.path.exists()
    }

    fn ready(&self) {
        let size = size_of(&self.path);
        if let Err(error) = fs::write(self.mark(), size.to_string()) {
            tracing::warn!(path = %self.path.display(), %error, "this will be made again next time");
        }
        if let Some(parent) = self.path.parent() {
            keep_below(parent, KEPT_MAX);
        }
    }
}

fn size_of(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => size_of(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Deletes what was not used for longest.
fn keep_below(directory: &Path, limit: u64) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let marks =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "ready"));
    let about = |mark: PathBuf| {
        let used = mark.metadata().ok()?.modified().ok()?;
        let size: u64 = fs::read_to_string(&mark).ok()?.parse().ok()?;
        Some((used, size, mark))
    };
    let mut all: Vec<(SystemTime, u64, PathBuf)> = marks.filter_map(about).collect();
    all.sort();
    let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
    for (used, size, mark) in all {
        if total <= limit || used.elapsed().unwrap_or_default() < KEPT_AT_LEAST {
            return;
        }
        if fs::remove_file(&mark).is_ok() {
            let _ = fs::remove_dir_all(mark.with_extension(""));
            total -= size;
        }
    }
}
