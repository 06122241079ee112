//! `ObjectRef`, and what happens when one is pickled.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use client_runtime::{Client, HandleSource};
use cluster_types::ObjectId;
use pyo3::exceptions::{PyRuntimeError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};

static REBUILD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

thread_local! {
    /// Refs met while this thread pickles a value; one list per value being pickled.
    static COLLECTING: RefCell<Vec<Vec<ObjectId>>> = const { RefCell::new(Vec::new()) };
    /// What the value that this thread unpickles keeps alive.
    static SOURCE: RefCell<Vec<(Client, HandleSource)>> = const { RefCell::new(Vec::new()) };
}

/// Runs `pickle` and gives back the refs that it met.
pub(crate) fn collecting<T>(pickle: impl FnOnce() -> PyResult<T>) -> PyResult<(T, Vec<ObjectId>)> {
    COLLECTING.with_borrow_mut(|stack| stack.push(Vec::new()));
    let result = pickle();
    let mut refs = COLLECTING.with_borrow_mut(|stack| stack.pop().unwrap_or_default());
    refs.sort_unstable();
    refs.dedup();
    result.map(|value| (value, refs))
}

/// Runs `unpickle`; refs in it become handles that came from `source`.
pub(crate) fn coming_from<T>(
    client: &Client,
    source: HandleSource,
    unpickle: impl FnOnce() -> PyResult<T>,
) -> PyResult<T> {
    SOURCE.with_borrow_mut(|stack| stack.push((client.clone(), source)));
    let result = unpickle();
    SOURCE.with_borrow_mut(|stack| stack.pop());
    result
}

/// A handle on a value that exists, or will, somewhere in the cluster.
#[pyclass(frozen, module = "concurrent_ml", weakref, generic)]
pub(crate) struct ObjectRef {
    pub(crate) id: ObjectId,
    pub(crate) client: Client,
    /// The last list of refs this one was seen in, to find repeats without a set.
    pub(crate) seen: AtomicU64,
}

impl ObjectRef {
    /// Takes over a handle that was counted already.
    pub(crate) fn new(client: &Client, id: ObjectId) -> Self {
        Self { id, client: client.clone(), seen: AtomicU64::new(0) }
    }

    /// Whether it was marked with this number before; marks it.
    pub(crate) fn repeats(&self, list: u64) -> bool {
        // Not swapped: whoever asks holds the GIL, and a thousand locked instructions would be felt.
        let before = self.seen.load(Ordering::Relaxed);
        self.seen.store(list, Ordering::Relaxed);
        before == list
    }
}

impl Drop for ObjectRef {
    fn drop(&mut self) {
        self.client.drop_handle(self.id);
    }
}

#[pymethods]
impl ObjectRef {
    /// Another ref to the object whose `binary()` that was, while this process has one.
    #[new]
    fn from_binary(py: Python<'_>, id: &[u8]) -> PyResult<Self> {
        let id = object_id(id)?;
        let client = connected(py)?;
        if client.add_known_handle(id) {
            return Ok(Self::new(&client, id));
        }
        let freed = py.import("concurrent_ml.exceptions")?.getattr("ObjectFreedError")?;
        Err(PyErr::from_value(freed.call1((format!(
            "this process has no ref to {id}: an ObjectRef made of bytes needs one that lives. Pass the ref itself"
        ),))?))
    }

    /// The object's id as 32 hexadecimal digits.
    fn hex(&self) -> String {
        self.id.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The object's id as 16 bytes.
    fn binary<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.id.to_bytes())
    }

    /// The id of the task whose result this is; `None` for something put.
    fn task_id(&self) -> Option<String> {
        self.id.task().map(|(task, _)| task.to_string())
    }

    /// The object's id as people see it in errors and listings.
    #[getter]
    fn _id(&self) -> String {
        self.id.to_string()
    }

    /// A `concurrent.futures.Future` of the value.
    fn future<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("concurrent_ml._async")?.getattr("future_of")?.call1((slf,))
    }

    fn __await__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("concurrent_ml._async")?.getattr("await_ref")?.call1((slf,))
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        hasher.finish()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<ObjectRef>().is_ok_and(|other| other.get().id == self.id)
    }

    fn __repr__(&self) -> String {
        format!("ObjectRef({})", self.id)
    }

    fn __reduce__<'py>(slf: Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = slf.py();
        let this = slf.get();
        let collected =
            COLLECTING.with_borrow_mut(|stack| stack.last_mut().map(|refs| refs.push(this.id)).is_some());
        if !collected {
            // Rule R6: nobody can know how long those bytes live, so the object lives as long as this process.
            this.client.add_handle(this.id, HandleSource::Elsewhere);
            let message = c"an ObjectRef was pickled outside the cluster's own serializer: its object is kept until this process ends";
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), message, 1)?;
        }
        let rebuild = REBUILD.get_or_try_init(py, || {
            py.import("concurrent_ml._native")?.getattr("_rebuild_ref").map(Bound::unbind)
        })?;
        Ok((rebuild.bind(py).clone(), PyTuple::new(py, [PyBytes::new(py, &this.id.to_bytes())])?))
    }

    /// A copy would name the same object: this is it.
    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }
}

fn object_id(bytes: &[u8]) -> PyResult<ObjectId> {
    let bytes: [u8; 16] =
        bytes.try_into().map_err(|_| PyValueError::new_err("an object id needs to have length 16"))?;
    Ok(ObjectId::from_bytes(bytes))
}

fn connected(py: Python<'_>) -> PyResult<Client> {
    let client = py.import("concurrent_ml._state")?.getattr("client")?;
    let client = client.cast::<crate::connection::Client>().map_err(|_| {
        PyRuntimeError::new_err(
            "an ObjectRef can only be unpickled in a process that is connected: call init() first",
        )
    })?;
    Ok(client.get().inner.clone())
}

/// What a pickled ref becomes again.
#[pyfunction]
pub(crate) fn _rebuild_ref(py: Python<'_>, id: &[u8]) -> PyResult<ObjectRef> {
    let id = object_id(id)?;
    let source = SOURCE.with_borrow(|stack| stack.last().cloned());
    let (client, source) = match source {
        Some(source) => source,
        None => (connected(py)?, HandleSource::Elsewhere),
    };
    client.add_handle(id, source);
    Ok(ObjectRef::new(&client, id))
}

/// A ref to the value that this thread is reading: for values that know their own.
#[pyfunction]
pub(crate) fn _this_value() -> PyResult<ObjectRef> {
    match SOURCE.with_borrow(|stack| stack.last().cloned()) {
        Some((client, HandleSource::Inside(id))) => {
            client.add_handle(id, HandleSource::Elsewhere);
            Ok(ObjectRef::new(&client, id))
        }
        _ => Err(PyRuntimeError::new_err("no value of the cluster's is being read")),
    }
}
