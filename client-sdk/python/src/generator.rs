//! `ObjectRefGenerator`: what a task yields, as its submitter reads it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use client_runtime::{Client, HandleSource, Taking};
use cluster_types::{ObjectId, TaskId};
use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyTypeError};
use pyo3::prelude::*;

use crate::connection::interruptible;
use crate::executor::within;
use crate::object_ref::ObjectRef;

/// The refs of what a task yields, one after the other, while it runs.
#[pyclass(frozen, module = "concurrent_ml", weakref, generic)]
pub(crate) struct ObjectRefGenerator {
    client: Client,
    task: TaskId,
    /// The result that is there when the task has ended; a handle of this generator's own.
    end: ObjectId,
    /// Its end was told.
    told: AtomicBool,
    /// As of [`ObjectRef::seen`].
    seen: AtomicU64,
}

impl ObjectRefGenerator {
    /// Takes over the handle on the task's result.
    pub(crate) fn new(client: &Client, task: TaskId, end: ObjectId) -> Self {
        let (told, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { client: client.clone(), task, end, told, seen }
    }

    /// What is ready when its next item is.
    pub(crate) fn awaited(&self) -> ObjectId {
        self.client.awaited_item(self.task).unwrap_or(self.end)
    }

    /// As [`ObjectRef::repeats`].
    pub(crate) fn repeats(&self, list: u64) -> bool {
        self.seen.swap(list, Ordering::Relaxed) == list
    }

    fn iterate(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        if slf.get().told.load(Ordering::Relaxed) {
            return Err(PyRuntimeError::new_err(format!(
                "the items of {} were taken already: a stream can be read once. To use them again, keep its refs: \
                 refs = list(generator)",
                slf.get().__repr__()
            )));
        }
        Ok(slf)
    }
}

impl Drop for ObjectRefGenerator {
    fn drop(&mut self) {
        self.client.close_stream(self.task);
        self.client.drop_handle(self.end);
    }
}

#[pymethods]
impl ObjectRefGenerator {
    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        Self::iterate(slf)
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<ObjectRef>> {
        let mut taking = self.client.take_item(self.task);
        if let Taking::NotYet(_) = taking {
            let within = within(py);
            if within.is_some() {
                let warning = ("next", "async for ref in generator", 2);
                py.import("concurrent_ml._api")?.call_method1("_warn_in_loop", warning)?;
            }
            taking =
                interruptible(py, |interrupt| self.client.next_item(within, self.task, None, interrupt))?;
        }
        match taking {
            Taking::Item(item) => Ok(Some(ObjectRef::new(&self.client, item))),
            Taking::NotYet(_) | Taking::End => {
                self.told.store(true, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    fn __aiter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        Self::iterate(slf)
    }

    fn __anext__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("concurrent_ml._async")?.getattr("next_item")?.call1((slf,))
    }

    /// The next item's ref; `None` if it is not there yet. At the end, `StopAsyncIteration`.
    fn _take(&self) -> PyResult<Option<ObjectRef>> {
        match self.client.take_item(self.task) {
            Taking::Item(item) => Ok(Some(ObjectRef::new(&self.client, item))),
            Taking::NotYet(_) => Ok(None),
            Taking::End => {
                self.told.store(true, Ordering::Relaxed);
                Err(PyStopAsyncIteration::new_err(()))
            }
        }
    }

    /// A ref that is ready when the task has ended: what it returned, or what it raised.
    fn completed(&self) -> ObjectRef {
        self.client.add_handle(self.end, HandleSource::Elsewhere);
        ObjectRef::new(&self.client, self.end)
    }

    /// Whether the task has ended and all its items were taken.
    fn is_finished(&self) -> bool {
        self.client.is_drained(self.task)
    }

    /// Takes no more items: those not taken are dropped, and the task ends at its next `yield`.
    fn close(&self) {
        self.client.close_stream(self.task);
    }

    /// The id of the task that yields.
    fn task_id(&self) -> String {
        self.task.to_string()
    }

    fn __repr__(&self) -> String {
        format!("ObjectRefGenerator({})", self.task)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(format!(
            "{} cannot be passed to another process: only the one that made the call can read what it yields. Pass the \
             refs that come out of it, one by one or as list(generator)",
            self.__repr__()
        )))
    }
}
