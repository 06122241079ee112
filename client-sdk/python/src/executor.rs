//! `Task`: one execution, as the executor's loop sees it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client_runtime::{ClientError, Got, HandleSource, Task as Claimed, ValueBytes, Work};
use cluster_store::layout::{Kind, View};
use cluster_types::client_node::{Cancellation, ExecutorFailure};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{ActorTraits, Failure, FailureKind, ObjectId, Payload, Refs, StreamLimits, TaskKind};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::connection::{Client, Completions, interruptible};
use crate::errors::{client_error, failure_error};
use crate::object_ref::ObjectRef;
use crate::plain::to_plain;
use crate::value::{from_bytes, to_parcel};

/// Whether this process runs several tasks at once.
static SEVERAL: AtomicBool = AtomicBool::new(false);
/// `ContextVar.get` of the running task, where several run.
static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// From now on several tasks run here at once: `running()` tells which one's code it is called by.
#[pyfunction]
pub(crate) fn run_several(py: Python<'_>, running: Py<PyAny>) {
    let _ = RUNNING.set(py, running);
    SEVERAL.store(true, Ordering::Relaxed);
}

/// The tag of the task whose code this is, where several run at once.
pub(crate) fn within(py: Python<'_>) -> Option<u64> {
    if !SEVERAL.load(Ordering::Relaxed) {
        return None;
    }
    let task = RUNNING.get(py)?.bind(py).call0().ok()?;
    task.cast::<Task>().ok().map(|task| task.get().claimed.tag)
}

/// Before what is left of [`TaskTemplate::retry_exceptions`], which only executors read: seconds that the task may run.
/// No pickle begins so.
///
/// [`TaskTemplate::retry_exceptions`]: cluster_types::TaskTemplate::retry_exceptions
const TIMEOUT: u8 = b'T';

/// What the executor is to know of retries and time.
pub(crate) fn for_executor(timeout: Option<f64>, retry_exceptions: Vec<u8>) -> Vec<u8> {
    match timeout {
        None => retry_exceptions,
        Some(seconds) => [&[TIMEOUT], &seconds.to_be_bytes()[..], &retry_exceptions].concat(),
    }
}

fn split_timeout(bytes: &[u8]) -> (Option<f64>, &[u8]) {
    match bytes.split_first() {
        Some((&TIMEOUT, rest)) => match rest.split_first_chunk() {
            Some((seconds, rest)) => (Some(f64::from_be_bytes(*seconds)), rest),
            None => (None, &[]),
        },
        _ => (None, bytes),
    }
}

/// A file that has all of these bytes, or is not there, whenever the machine stops.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

/// A task to execute.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct Task {
    claimed: Claimed,
    client: client_runtime::Client,
    began: Instant,
}

impl Task {
    fn value<'py>(&self, py: Python<'py>, id: ObjectId) -> PyResult<Bound<'py, PyAny>> {
        match self.claimed.values.iter().find(|(have, _)| *have == id) {
            Some((_, Got::Value(bytes))) => from_bytes(py, &self.client, bytes, HandleSource::Task),
            Some((_, Got::Failed(failure))) => Err(failure_error(py, failure)),
            None => Err(PyRuntimeError::new_err(format!(
                "argument {id} did not come with the task: an error of the cluster's own"
            ))),
        }
    }
}

impl Task {
    /// Whether it was called with plain values: from a program in another language, which reads nothing else.
    fn is_plain(&self) -> bool {
        let kind = |bytes: &[u8]| View::parse(bytes).is_ok_and(|view| view.kind() == Kind::PLAIN);
        match &self.claimed.spec.payload {
            Payload::Inline(bytes) => kind(bytes),
            Payload::Stored(id) => self
                .claimed
                .values
                .iter()
                .any(|(have, got)| have == id && matches!(got, Got::Value(bytes) if kind(bytes))),
        }
    }

    /// What it made, as its caller reads it.
    fn made(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        what: &str,
    ) -> PyResult<(client_runtime::Parcel, Vec<ObjectId>)> {
        match self.is_plain() {
            true => to_plain(py, &self.client, value, what),
            false => to_parcel(py, &self.client, value, what),
        }
    }

    /// `[places, arguments, nothing]`, as `plain::arguments` writes them.
    fn plain_arguments<'py>(
        &self,
        packed: &Bound<'py, PyList>,
    ) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let py = packed.py();
        let args = packed.get_item(1)?.cast_into::<PyList>()?;
        let places: Vec<usize> = packed.get_item(0)?.extract()?;
        for (place, id) in places.iter().zip(self.claimed.spec.deps.iter()) {
            args.set_item(*place, self.value(py, *id)?)?;
        }
        Ok((args.to_tuple(), PyDict::new(py)))
    }

    /// Waits for the next one, or for the tag of one to cancel; `None` when no more will come.
    pub(crate) fn next<'py>(
        py: Python<'py>,
        client: &client_runtime::Client,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(match interruptible(py, |interrupt| client.next_work(interrupt))? {
            None => None,
            Some(Work::Cancel(tag)) => Some(tag.into_pyobject(py)?.into_any()),
            Some(Work::Run(claimed)) => {
                let task = Task { claimed, client: client.clone(), began: Instant::now() };
                Some(Bound::new(py, task)?.into_any())
            }
        })
    }

    /// What the actor is that this task makes, if it makes one.
    fn traits(&self) -> PyResult<&ActorTraits> {
        match &self.claimed.spec.template.kind {
            TaskKind::Actor(traits) => Ok(traits),
            _ => Err(PyRuntimeError::new_err("this task makes no actor")),
        }
    }
}

#[pymethods]
impl Task {
    #[getter]
    fn task_id(&self) -> String {
        self.claimed.spec.id.to_string()
    }

    #[getter]
    fn attempt(&self) -> u32 {
        self.claimed.attempt.n
    }

    #[getter]
    fn name(&self) -> &str {
        &self.claimed.spec.template.name
    }

    /// Names this execution in this process.
    #[getter]
    fn tag(&self) -> u64 {
        self.claimed.tag
    }

    /// 0: a function is called; 1: an actor is made; 2: a method is called.
    #[getter]
    fn kind(&self) -> u8 {
        match self.claimed.spec.template.kind {
            TaskKind::Function => 0,
            TaskKind::Actor(_) => 1,
            TaskKind::Method { .. } => 2,
            TaskKind::Group(_) => 3,
        }
    }

    /// The method that is called, and its concurrency group.
    #[getter]
    fn method(&self) -> PyResult<(&str, &str)> {
        match &self.claimed.spec.template.kind {
            TaskKind::Method { method, group, .. } => Ok((method, group)),
            _ => Err(PyRuntimeError::new_err("this task calls no method")),
        }
    }

    /// Of an actor being made: how many calls run at once, of each group too, and whether its methods are coroutines.
    #[getter]
    fn concurrency<'py>(&self, py: Python<'py>) -> PyResult<(u32, Bound<'py, PyDict>, bool)> {
        let traits = self.traits()?;
        let groups = PyDict::new(py);
        for (name, limit) in &traits.groups {
            groups.set_item(name, limit)?;
        }
        Ok((traits.max_concurrency, groups, traits.is_async))
    }

    /// Of an actor being made: its name, its namespace, and what a handle of it is made of.
    #[getter]
    fn actor_name<'py>(&self, py: Python<'py>) -> PyResult<(&str, &str, Bound<'py, PyBytes>)> {
        let traits = self.traits()?;
        Ok((&traits.name, &traits.namespace, PyBytes::new(py, &traits.handle)))
    }

    /// A handle of the actor that is being made.
    fn actor_ref(&self) -> PyResult<ObjectRef> {
        self.traits()?;
        let handle = self.claimed.spec.id.result(0);
        self.client.add_handle(handle, HandleSource::Elsewhere);
        Ok(ObjectRef::new(&self.client, handle))
    }

    /// Of an actor's making: this object is its state from now on. Returns when it is kept.
    fn keep_state(&self, py: Python<'_>, state: &ObjectRef) -> PyResult<()> {
        self.traits()?;
        let attempt = self.claimed.attempt;
        let query = Query::KeepState {
            actor: self.claimed.spec.id.result(0).to_string(),
            attempt: (attempt.term, attempt.n),
            object: state.id.to_string(),
        };
        interruptible(py, |interrupt| self.client.query(query.clone(), None, interrupt)).map(drop)
    }

    /// The actor that this task made kept its state and begins no more calls: it lives on elsewhere, and this process
    /// ends. Returns only where that cannot be.
    fn move_actor(&self, py: Python<'_>) -> PyResult<()> {
        self.traits()?;
        let attempt = self.claimed.attempt;
        let query = Query::MoveActor {
            actor: self.claimed.spec.id.result(0).to_string(),
            attempt: (attempt.term, attempt.n),
        };
        interruptible(py, |interrupt| self.client.query(query.clone(), None, interrupt)).map(drop)
    }

    /// Writes the value of an object that this process put into a file: whole or not at all, and on disk when it returns.
    fn write_state(&self, py: Python<'_>, state: &ObjectRef, path: PathBuf) -> PyResult<()> {
        let Some(Got::Value(bytes)) = self.client.try_get(state.id) else {
            return Err(PyRuntimeError::new_err(format!("the value of {} is not here", state.id)));
        };
        Ok(py.detach(|| write_whole(&path, &bytes))?)
    }

    /// The value that `write_state` wrote.
    fn read_state<'py>(&self, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyAny>> {
        let bytes = py.detach(|| std::fs::read(&path))?;
        let bytes = ValueBytes::from(bytes::Bytes::from(bytes));
        from_bytes(py, &self.client, &bytes, HandleSource::Elsewhere)
    }

    /// Of an actor's making: what was kept of its state, the newest first.
    fn kept_states(&self, py: Python<'_>) -> PyResult<Vec<ObjectRef>> {
        self.traits()?;
        let query = Query::KeptStates { actor: self.claimed.spec.id.result(0).to_string() };
        let reply = interruptible(py, |interrupt| self.client.query(query.clone(), None, interrupt))?;
        let QueryReply::States(states) = reply else { return Ok(Vec::new()) };
        let state = |id: String| {
            let id: ObjectId = id.parse().map_err(|error| PyValueError::new_err(format!("{error}")))?;
            self.client.add_handle(id, HandleSource::Elsewhere);
            Ok(ObjectRef::new(&self.client, id))
        };
        states.into_iter().map(state).collect()
    }

    #[getter]
    fn in_group(&self) -> bool {
        self.claimed.spec.template.strategy.group().is_some()
    }

    /// The placement group that it is in, the bundle it named, and whether what it submits goes into the group too.
    #[getter]
    fn group(&self) -> Option<(ObjectRef, Option<u32>, bool)> {
        let place = self.claimed.spec.template.strategy.group()?;
        self.client.add_handle(place.group, HandleSource::Elsewhere);
        Some((ObjectRef::new(&self.client, place.group), place.bundle, place.capture))
    }

    /// The actor's id: that of the object which is its handle.
    #[getter]
    fn actor_id(&self) -> Option<String> {
        match self.claimed.spec.template.kind {
            TaskKind::Function | TaskKind::Group(_) => None,
            TaskKind::Actor(_) => Some(self.claimed.spec.id.result(0).to_string()),
            TaskKind::Method { .. } => Some(self.claimed.spec.template.function.to_string()),
        }
    }

    /// Names the function: equal for equal functions.
    #[getter]
    fn function_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.claimed.spec.template.function.to_bytes())
    }

    #[getter]
    fn num_cpus(&self) -> f64 {
        self.claimed.spec.template.resources.cpu.as_f64()
    }

    #[getter]
    fn gpus(&self) -> Vec<u16> {
        self.claimed.gpus.iter().map(|share| share.index).collect()
    }

    #[getter]
    fn num_returns(&self) -> u32 {
        self.claimed.spec.template.num_returns
    }

    /// Everything the task asked for, by name.
    #[getter]
    fn resources<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for (name, amount) in self.claimed.spec.template.resources.iter() {
            all.set_item(name, amount.as_f64())?;
        }
        Ok(all)
    }

    #[getter]
    fn retry_exceptions<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, split_timeout(&self.claimed.spec.template.retry_exceptions).1)
    }

    /// Seconds that it may run.
    #[getter]
    fn timeout(&self) -> Option<f64> {
        split_timeout(&self.claimed.spec.template.retry_exceptions).0
    }

    /// Asks that this very task be cancelled, and what it submitted.
    fn cancel(&self, py: Python<'_>, reason: String) -> PyResult<()> {
        let object = self.claimed.spec.id.result(0);
        let what = Cancellation { object, force: false, recursive: true, reason };
        self.client.cancel(what).map_err(|error| client_error(py, error, None))
    }

    /// The function; call it where `function_id` is new.
    fn function<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let id = self.claimed.spec.template.function;
        if self.claimed.values.iter().any(|(have, _)| *have == id) {
            return self.value(py, id);
        }
        // It came with an earlier task, and was forgotten since or could not be loaded then. The task holds it.
        self.client.add_handle(id, HandleSource::Task);
        let got = interruptible(py, |interrupt| self.client.get(&[id], None, interrupt));
        let value = got.and_then(|got| match got.first() {
            Some(got) => Client::value(py, &self.client, id, got),
            None => Err(PyRuntimeError::new_err("the function is missing")),
        });
        self.client.drop_handle(id);
        value
    }

    /// The arguments, with the values of top-level refs in their places.
    fn arguments<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let packed = match &self.claimed.spec.payload {
            Payload::Stored(id) => self.value(py, *id)?,
            Payload::Inline(bytes) => {
                let bytes = client_runtime::ValueBytes::from(bytes.clone());
                from_bytes(py, &self.client, &bytes, HandleSource::Task)?
            }
        };
        if let Ok(packed) = packed.cast::<PyList>() {
            return self.plain_arguments(packed);
        }
        let packed = packed.cast_into::<PyTuple>()?;
        let args = packed.get_item(0)?.cast_into::<PyTuple>()?;
        let kwargs = packed.get_item(1)?;
        let kwargs = if kwargs.is_none() { PyDict::new(py) } else { kwargs.cast_into::<PyDict>()? };
        if packed.len() < 3 {
            return Ok((args, kwargs));
        }
        let places = packed.get_item(2)?.cast_into::<PyList>()?;
        let args = args.to_list();
        for (place, id) in places.iter().zip(self.claimed.spec.deps.iter()) {
            let value = self.value(py, *id)?;
            match place.extract::<usize>() {
                Ok(index) => args.set_item(index, value)?,
                Err(_) => kwargs.set_item(place, value)?,
            }
        }
        Ok((args.to_tuple(), kwargs))
    }

    /// User code begins: from here on the task can be cancelled. A signal that came before found nothing to end, so
    /// that request is answered here.
    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        self.client.enter_user_code(self.claimed.tag);
        if self.client.take_cancel() {
            self.client.leave_user_code();
            return Err(client_error(py, ClientError::Cancelled, None));
        }
        Ok(())
    }

    fn leave(&self) {
        self.client.leave_user_code();
    }

    /// Who cancelled it and why; waits so many seconds for the daemon to say so.
    #[pyo3(signature = (timeout=0.0))]
    fn cancel_reason(&self, py: Python<'_>, timeout: f64) -> Option<String> {
        let patience = Duration::try_from_secs_f64(timeout).unwrap_or_default();
        py.detach(|| self.client.cancel_reason(self.claimed.tag, patience))
    }

    /// Whether it yields items.
    #[getter]
    fn streams(&self) -> bool {
        self.claimed.spec.template.stream.is_some()
    }

    /// Yields the next item. False: nobody wants it, nor any more.
    fn yield_item(&self, py: Python<'_>, item: &Bound<'_, PyAny>) -> PyResult<bool> {
        let what = format!("an item of {}", self.claimed.spec.template.name);
        let (parcel, refs) = self.made(py, item, &what)?;
        self.client
            .yield_item(self.claimed.tag, parcel, Refs::from_vec(refs))
            .map_err(|error| client_error(py, error, None))
    }

    /// Whether it may yield more without waiting, and whether anybody wants that.
    fn room(&self) -> (bool, bool) {
        self.client.room(self.claimed.tag, self.limits())
    }

    /// Waits until it may yield more. False: nobody wants that.
    fn wait_for_room(&self, py: Python<'_>) -> PyResult<bool> {
        if let (true, wanted) = self.room()
            && !self.client.is_far_ahead()
        {
            return Ok(wanted);
        }
        let (tag, limits) = (self.claimed.tag, self.limits());
        interruptible(py, |interrupt| self.client.wait_for_room(tag, limits, interrupt))
    }

    /// Puts `token` into the queue once there may be room.
    fn on_room(&self, queue: &Completions, token: u64) {
        self.client.on_room(self.claimed.tag, self.limits(), &queue.queue, token);
    }

    /// The task ended well.
    fn finish(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<()> {
        let template = &self.claimed.spec.template;
        let name = &*template.name;
        let mut values = Vec::new();
        match template.num_returns {
            0 => {}
            1 => values.push(self.made(py, result, &format!("the result of {name}"))?),
            count => {
                let count = count as usize;
                let wrong = |returned: String| {
                    format!("{name} was declared with num_returns={count} but returned {returned}")
                };
                let Ok(items) = result.try_iter() else {
                    let kind = result.get_type().name()?.to_string();
                    return Err(PyTypeError::new_err(wrong(format!("one value of type {kind}"))));
                };
                // An endless generator is not followed to its end.
                let many = items.take(count + 1000).collect::<PyResult<Vec<Bound<'_, PyAny>>>>()?;
                if many.len() != count {
                    let more = if many.len() == count + 1000 { " or more" } else { "" };
                    return Err(PyValueError::new_err(wrong(format!("{}{more} values", many.len()))));
                }
                for (index, value) in many.iter().enumerate() {
                    let what = format!("value {index} of the result of {name}");
                    values.push(self.made(py, value, &what)?);
                }
            }
        }
        let values = values.into_iter().map(|(parcel, refs)| (parcel, Refs::from_vec(refs))).collect();
        self.end(py, Ok(values))
    }

    /// The task raised, was cancelled, or ends its actor.
    fn fail(
        &self,
        py: Python<'_>,
        message: &str,
        payload: &[u8],
        retryable: bool,
        kind: &str,
    ) -> PyResult<()> {
        let kind = match kind {
            "Exception" => FailureKind::Exception,
            "Cancelled" => FailureKind::Cancelled,
            "ActorDied" => FailureKind::ActorDied,
            other => return Err(PyValueError::new_err(format!("a task cannot fail by {other}"))),
        };
        let failure = Failure {
            kind,
            message: message.into(),
            payload: payload.to_vec().into(),
            task: match (kind, self.claimed.spec.called_actor()) {
                (FailureKind::ActorDied, Some(actor)) => actor.task().map(|(maker, _)| maker),
                _ => Some(self.claimed.spec.id),
            },
        };
        self.end(py, Err(ExecutorFailure { failure, retryable }))
    }
}

impl Task {
    fn limits(&self) -> StreamLimits {
        self.claimed.spec.template.stream.unwrap_or_default()
    }

    fn end(
        &self,
        py: Python<'_>,
        result: Result<Vec<(client_runtime::Parcel, Refs)>, ExecutorFailure>,
    ) -> PyResult<()> {
        let micros = self.began.elapsed().as_micros() as u64;
        self.client.complete(self.claimed.tag, result, micros).map_err(|error| client_error(py, error, None))
    }
}
