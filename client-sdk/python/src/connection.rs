//! `Client`: this process's connection, for Python.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client_runtime::{
    Client as Runtime, ClientError, CompletionQueue, ConnectOptions, Got, HandleSource, Interrupt,
    Interrupted, Notice, Target,
};
use cluster_store::layout::Kind;
use cluster_types::client_node::{Cancellation, LogLine};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ClientKind, JobInfo, ObjectId, TaskId};
use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::errors::{client_error, connect_error, failure_error};
use crate::executor::{Task, within};
use crate::function::random_job;
use crate::generator::ObjectRefGenerator;
use crate::object_ref::ObjectRef;
use crate::plain::to_plain;
use crate::value::{from_bytes, to_parcel, write};

/// Runs something that may wait, without the GIL; signals are looked at meanwhile (rule E4).
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(Interrupt<'_>) -> Result<T, ClientError> + Send,
) -> PyResult<T> {
    let mut reason: Option<PyErr> = None;
    let kept = &mut reason;
    let result = py.detach(move || {
        let mut check = || {
            Python::attach(|py| py.check_signals()).map_err(|error| {
                *kept = Some(error);
                Interrupted
            })
        };
        call(&mut check)
    });
    result.map_err(|error| client_error(py, error, reason))
}

/// A connection to a cluster.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct Client {
    pub(crate) inner: Runtime,
}

static LISTS: AtomicU64 = AtomicU64::new(0);

/// The ids of a list of refs; names what is no ref.
fn ids_of(refs: &Bound<'_, PyList>, verb: &str, unique: bool) -> PyResult<Vec<ObjectId>> {
    let list = LISTS.fetch_add(1, Ordering::Relaxed) + 1;
    let mut ids = Vec::with_capacity(refs.len());
    for (index, item) in refs.iter().enumerate() {
        if let Ok(generator) = item.cast::<ObjectRefGenerator>()
            && verb == "wait"
        {
            // It is ready when its next item is.
            if generator.get().repeats(list) {
                return Err(PyValueError::new_err(format!(
                    "wait() takes each generator once, but item {index} is a duplicate"
                )));
            }
            ids.push(generator.get().awaited());
            continue;
        }
        let Ok(item) = item.cast::<ObjectRef>() else {
            let kind = item.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "{verb}() takes ObjectRefs, but item {index} of the list is of type {kind}"
            )));
        };
        if unique && item.get().repeats(list) {
            return Err(PyValueError::new_err(format!(
                "{verb}() takes each ref once, but item {index} ({}) is a duplicate",
                item.get().id
            )));
        }
        ids.push(item.get().id);
    }
    Ok(ids)
}

/// The items at these ascending indices, and the others.
fn split<'py>(
    refs: &Bound<'py, PyList>,
    chosen: &[usize],
) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
    let py = refs.py();
    // Copying the list and taking a few out is much quicker than appending all but a few.
    const FEW: usize = 16;
    if chosen.len() <= FEW {
        let rest = refs.get_slice(0, refs.len());
        let done = PyList::empty(py);
        for &index in chosen {
            done.append(refs.get_item(index)?)?;
        }
        for &index in chosen.iter().rev() {
            rest.del_item(index)?;
        }
        return Ok((done, rest));
    }
    if chosen.len() == refs.len() {
        return Ok((refs.get_slice(0, refs.len()), PyList::empty(py)));
    }
    let (done, rest) = (PyList::empty(py), PyList::empty(py));
    let mut next = chosen.iter().peekable();
    for (index, item) in refs.iter().enumerate() {
        let list = if next.next_if_eq(&&index).is_some() { &done } else { &rest };
        list.append(item)?;
    }
    Ok((done, rest))
}

fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => Err(PyValueError::new_err(format!(
            "timeout is {seconds}; it must be a number of seconds, 0 or more, or None"
        ))),
        Some(seconds) => {
            Ok(Instant::now().checked_add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
    }
}

fn job_info(info: &Bound<'_, PyDict>) -> PyResult<JobInfo> {
    let text = |key: &str| -> PyResult<String> {
        info.get_item(key)?.map_or(Ok(String::new()), |value| value.extract())
    };
    Ok(JobInfo {
        name: text("name")?,
        python_version: text("python_version")?,
        python: text("python")?,
        sys_path: info.get_item("sys_path")?.map_or(Ok(Vec::new()), |value| value.extract())?,
        working_dir: text("working_dir")?,
        env_vars: info.get_item("env_vars")?.map_or(Ok(Default::default()), |value| value.extract())?,
        log_to_driver: info.get_item("log_to_driver")?.map_or(Ok(true), |value| value.extract())?,
        namespace: text("namespace")?,
    })
}

impl Client {
    /// A Python value, or the exception that stands in its place.
    pub(crate) fn value<'py>(
        py: Python<'py>,
        client: &Runtime,
        id: ObjectId,
        got: &Got,
    ) -> PyResult<Bound<'py, PyAny>> {
        match got {
            Got::Value(bytes) => from_bytes(py, client, bytes, HandleSource::Inside(id)),
            Got::Failed(failure) => Err(failure_error(py, failure)),
        }
    }
}

#[pymethods]
impl Client {
    /// Connects a driver: to a socket of this machine's daemon, or to a head's `host:port`.
    #[staticmethod]
    #[pyo3(signature = (token, info, *, socket=None, address=None, timeout=5.0))]
    fn driver(
        py: Python<'_>,
        token: String,
        info: &Bound<'_, PyDict>,
        socket: Option<PathBuf>,
        address: Option<String>,
        timeout: f64,
    ) -> PyResult<Self> {
        let target = match (socket, address) {
            (Some(path), _) => Target::Unix(path),
            (None, Some(address)) => Target::Remote(address),
            (None, None) => return Err(PyValueError::new_err("a socket or an address is needed")),
        };
        let job = random_job()?;
        let kind = ClientKind::Driver { job, info: Arc::new(job_info(info)?) };
        let mut options = ConnectOptions::new(kind, token);
        options.timeout = Duration::try_from_secs_f64(timeout).unwrap_or(options.timeout);
        Self::connect(py, target, options)
    }

    /// Connects an executor that its zygote has forked.
    #[staticmethod]
    fn executor(
        py: Python<'_>,
        token: String,
        socket: PathBuf,
        executor: u32,
        page_fd: i32,
    ) -> PyResult<Self> {
        let mut options = ConnectOptions::new(ClientKind::Executor { executor }, token);
        options.page = Some(take_fd(page_fd)?);
        Self::connect(py, Target::Unix(socket), options)
    }

    fn disconnect(&self, py: Python<'_>) {
        py.detach(|| self.inner.disconnect());
    }

    /// Why the connection is of no use any more; `None` while it is.
    fn broken(&self) -> Option<String> {
        self.inner.broken().map(|error| error.to_string())
    }

    #[getter]
    fn client_id(&self) -> String {
        self.inner.id().to_string()
    }

    #[getter]
    fn job_id(&self) -> String {
        self.inner.job().to_string()
    }

    #[getter]
    fn node_id(&self) -> String {
        self.inner.welcome().node.to_string()
    }

    #[getter]
    fn namespace(&self) -> String {
        self.inner.welcome().info.namespace.clone()
    }

    /// One value, or a list of them in order.
    #[pyo3(signature = (refs, timeout=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        refs: &Bound<'py, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(one) = refs.cast::<ObjectRef>() {
            let id = one.get().id;
            if let Some(got) = self.inner.try_get(id) {
                return Self::value(py, &self.inner, id, &got);
            }
            let (deadline, within) = (deadline(timeout)?, within(py));
            let got =
                interruptible(py, |interrupt| self.inner.get_within(within, &[id], deadline, interrupt))?;
            return match got.first() {
                Some(got) => Self::value(py, &self.inner, id, got),
                None => Err(PyValueError::new_err("the value is missing")),
            };
        }
        let Ok(list) = refs.cast::<PyList>() else {
            let kind = refs.get_type().name()?;
            let hint = match refs.cast::<ObjectRefGenerator>() {
                Ok(_) => ": loop over it, and get() each ref",
                Err(_) => "",
            };
            return Err(PyTypeError::new_err(format!(
                "get() takes an ObjectRef or a list of them, not a value of type {kind}{hint}"
            )));
        };
        let ids = ids_of(list, "get", false)?;
        let (deadline, within) = (deadline(timeout)?, within(py));
        let got = interruptible(py, |interrupt| self.inner.get_within(within, &ids, deadline, interrupt))?;
        let values = PyList::empty(py);
        if let (Some(failed @ Got::Failed(_)), Some(id)) = (got.last(), ids.first()) {
            return Self::value(py, &self.inner, *id, failed);
        }
        for (id, got) in ids.iter().zip(&got) {
            values.append(Self::value(py, &self.inner, *id, got)?)?;
        }
        Ok(values.into_any())
    }

    /// Splits a list of refs into those that are ready (at most `num_returns`) and the others, both in order.
    fn wait<'py>(
        &self,
        py: Python<'py>,
        refs: &Bound<'py, PyList>,
        num_returns: usize,
        timeout: Option<f64>,
        fetch_local: bool,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let ids = ids_of(refs, "wait", true)?;
        if num_returns == 0 || num_returns > ids.len() {
            return Err(PyValueError::new_err(format!(
                "num_returns is {num_returns}; it must be from 1 to the number of refs, {}",
                ids.len()
            )));
        }
        let deadline = deadline(timeout)?;
        // Mostly some are ready, and then nothing has to be let go of.
        let now = Some(Instant::now());
        let mut ready = self
            .inner
            .wait(&ids, num_returns, now, fetch_local, &mut || Ok(()))
            .map_err(|error| client_error(py, error, None))?;
        if ready.len() < num_returns && timeout != Some(0.0) {
            let within = within(py);
            ready = interruptible(py, |interrupt| {
                self.inner.wait_within(within, &ids, num_returns, deadline, fetch_local, interrupt)
            })?;
        }
        split(refs, &ready)
    }

    /// Stores a value.
    fn put(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<ObjectRef> {
        let (parcel, refs) = to_parcel(py, &self.inner, value, "the value")?;
        let id = self.inner.put(parcel, &refs).map_err(|error| client_error(py, error, None))?;
        Ok(ObjectRef::new(&self.inner, id))
    }

    /// Stores a value that programs in every language read.
    fn put_plain(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<ObjectRef> {
        let (parcel, refs) = to_plain(py, &self.inner, value, "the value")?;
        let id = self.inner.put(parcel, &refs).map_err(|error| client_error(py, error, None))?;
        Ok(ObjectRef::new(&self.inner, id))
    }

    /// Stores bytes as they are: a program, say.
    fn put_raw(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<ObjectRef> {
        let parcel = write(py, &self.inner, Kind::RAW, bytes, &[])?;
        let id = self.inner.put(parcel, &[]).map_err(|error| client_error(py, error, None))?;
        Ok(ObjectRef::new(&self.inner, id))
    }

    /// Returns when a copy of the object, put by this process, is in durable storage.
    fn make_durable(&self, py: Python<'_>, object: &ObjectRef) -> PyResult<()> {
        let query = Query::MakeDurable { object: object.id.to_string() };
        let written = interruptible(py, |interrupt| match self.inner.query(query, None, interrupt) {
            Err(ClientError::Query(reason)) => Ok(Err(reason)),
            other => other.map(Ok),
        });
        written?.map(drop).map_err(PyOSError::new_err)
    }

    /// Stores a function: always by cloudpickle, which looks inside it.
    fn put_function(&self, py: Python<'_>, function: &Bound<'_, PyAny>, what: &str) -> PyResult<ObjectRef> {
        let (parcel, refs) = to_parcel(py, &self.inner, function, what)?;
        let id = self.inner.put(parcel, &refs).map_err(|error| client_error(py, error, None))?;
        Ok(ObjectRef::new(&self.inner, id))
    }

    /// Whether the value, or that there is none, is known.
    fn is_ready(&self, object: &ObjectRef) -> bool {
        self.inner.is_ready(object.id)
    }

    /// A question about the cluster, answered as JSON.
    #[pyo3(signature = (question, argument=None, timeout=None))]
    fn query(
        &self,
        py: Python<'_>,
        question: &str,
        argument: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<String> {
        let limit = 10_000;
        let query = match question {
            "status" => Query::Status,
            "nodes" => Query::Nodes,
            "tasks" => Query::Tasks { limit },
            "objects" => Query::Objects { limit },
            "actors" => Query::Actors { limit },
            "groups" => Query::Groups { limit },
            "group" => Query::Group { group: argument.unwrap_or_default() },
            "why" => Query::Why { task: argument.unwrap_or_default() },
            other => return Err(PyValueError::new_err(format!("there is no question {other:?}"))),
        };
        let deadline = deadline(timeout)?;
        let reply = interruptible(py, |interrupt| self.inner.query(query, deadline, interrupt))?;
        serde_json::to_string(&reply).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The next thing to print, as (text, name of the task, pid, node, whether it went to stderr) or, from the cluster
    /// itself, with `None` but for the text. `None`: nothing came in time.
    #[allow(clippy::type_complexity)]
    fn next_notice(
        &self,
        py: Python<'_>,
        timeout: f64,
    ) -> PyResult<Option<(String, Option<String>, Option<u32>, Option<String>, bool)>> {
        let wait = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::from_secs(1));
        let notice =
            py.detach(|| self.inner.next_notice(wait)).map_err(|error| client_error(py, error, None))?;
        Ok(notice.map(|notice| match notice {
            Notice::Text(text) => (text, None, None, None, true),
            Notice::Log(line) => {
                let name = line.task.map(|(_, name)| name.to_string());
                (line.text, name, Some(line.pid), Some(line.node.to_string()), line.stderr)
            }
        }))
    }

    /// Sends a line that user code printed.
    #[pyo3(signature = (text, stderr, task=None, name=None))]
    fn log(&self, text: String, stderr: bool, task: Option<&str>, name: Option<&str>) {
        let task = task.and_then(|task| task.parse::<TaskId>().ok()).zip(name.map(Arc::from));
        let node = self.inner.welcome().node;
        self.inner.log(LogLine { job: self.inner.job(), task, pid: std::process::id(), node, stderr, text });
    }

    /// The handle of the actor of this name and what it is made of; `None` if there is none.
    fn named_actor<'py>(
        &self,
        py: Python<'py>,
        namespace: String,
        name: String,
    ) -> PyResult<Option<(ObjectRef, Bound<'py, PyBytes>)>> {
        let query = Query::NamedActor { namespace, name };
        let reply = interruptible(py, |interrupt| self.inner.query(query, None, interrupt))?;
        let QueryReply::NamedActor(Some(found)) = reply else { return Ok(None) };
        let id: ObjectId = found.actor.parse().map_err(|_| {
            PyValueError::new_err(format!("the cluster named an actor {:?}: that is no id", found.actor))
        })?;
        self.inner.add_handle(id, HandleSource::Elsewhere);
        Ok(Some((ObjectRef::new(&self.inner, id), PyBytes::new(py, &found.handle))))
    }

    /// The placement group of this name; `None` if there is none.
    fn named_group(&self, py: Python<'_>, namespace: String, name: String) -> PyResult<Option<ObjectRef>> {
        let query = Query::NamedGroup { namespace, name };
        let reply = interruptible(py, |interrupt| self.inner.query(query, None, interrupt))?;
        let QueryReply::Group(Some(found)) = reply else { return Ok(None) };
        let id: ObjectId = found.group.parse().map_err(|_| {
            PyValueError::new_err(format!("the cluster named a group {:?}: that is no id", found.group))
        })?;
        self.inner.add_handle(id, HandleSource::Elsewhere);
        Ok(Some(ObjectRef::new(&self.inner, id)))
    }

    /// Asks that the task which makes an object be cancelled.
    fn cancel(
        &self,
        py: Python<'_>,
        object: &ObjectRef,
        force: bool,
        recursive: bool,
        reason: String,
    ) -> PyResult<()> {
        let what = Cancellation { object: object.id, force, recursive, reason };
        self.inner.cancel(what).map_err(|error| client_error(py, error, None))
    }

    /// Asks that an actor end.
    fn kill(&self, py: Python<'_>, actor: &ObjectRef, restart: bool) -> PyResult<()> {
        self.inner.kill(actor.id, restart).map_err(|error| client_error(py, error, None))
    }

    /// The next task for this executor, or the tag of a call to cancel; `None` when no more will come.
    fn next_work<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Task::next(py, &self.inner)
    }

    /// Whether `next_work` would not wait.
    fn has_work(&self) -> bool {
        self.inner.has_work()
    }

    /// In a signal handler: whether the running task is to stop.
    fn take_cancel(&self) -> bool {
        self.inner.take_cancel()
    }

    /// A queue that tells an event loop what is ready.
    fn completions(&self, py: Python<'_>) -> PyResult<Completions> {
        let queue = self.inner.completion_queue().map_err(|error| client_error(py, error, None))?;
        Ok(Completions { queue })
    }

    /// Whether the value is here and is an exception; false too where it is not here.
    fn has_failed(&self, object: &ObjectRef) -> bool {
        matches!(self.inner.try_get(object.id), Some(Got::Failed(_)))
    }

    /// Waits until there is something in the queue; false: `timeout` seconds passed. `on`: refs that it tells of.
    #[pyo3(signature = (queue, on, timeout=None))]
    fn wait_queue(
        &self,
        py: Python<'_>,
        queue: &Completions,
        on: &Bound<'_, PyList>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let on = ids_of(on, "wait", false)?;
        let (deadline, within) = (deadline(timeout)?, within(py));
        let queue = &queue.queue;
        interruptible(py, |interrupt| self.inner.wait_queue(within, queue, &on, deadline, interrupt))
    }

    /// Puts `token` into the queue once `get` will not wait.
    fn on_ready(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        queue: &Completions,
        token: u64,
    ) -> PyResult<()> {
        let id = match object.cast::<ObjectRefGenerator>() {
            Ok(generator) => generator.get().awaited(),
            Err(_) => object.cast::<ObjectRef>()?.get().id,
        };
        self.inner.on_ready(id, &queue.queue, token).map_err(|error| client_error(py, error, None))
    }
}

impl Client {
    fn connect(py: Python<'_>, target: Target, options: ConnectOptions) -> PyResult<Self> {
        let mut reason: Option<PyErr> = None;
        let kept = &mut reason;
        let connected = py.detach(move || {
            let mut check = || {
                Python::attach(|py| py.check_signals()).map_err(|error| {
                    *kept = Some(error);
                    Interrupted
                })
            };
            Runtime::connect(target, options, &mut check)
        });
        let inner = connected.map_err(|error| connect_error(py, error, reason))?;
        Ok(Self { inner })
    }
}

/// A descriptor that the zygote passed on as a number.
#[allow(unsafe_code)]
fn take_fd(number: i32) -> PyResult<OwnedFd> {
    if number < 3 {
        return Err(PyValueError::new_err("the page's descriptor is not one"));
    }
    // SAFETY: the zygote received this descriptor for this child alone and names it here once; nothing else in the
    // process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Refs that became ready, for one event loop.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct Completions {
    pub(crate) queue: CompletionQueue,
}

#[pymethods]
impl Completions {
    fn fileno(&self) -> i32 {
        self.queue.as_fd().as_raw_fd()
    }

    /// The tokens of what became ready since the last call.
    fn drain(&self) -> Vec<u64> {
        self.queue.drain()
    }
}

/// This process is a forked child: its connection is the parent's (rule P6).
#[pyfunction]
pub(crate) fn mark_forked() {
    Runtime::mark_forked();
}
