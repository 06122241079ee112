//! Which Python exception an error becomes. The classes live in `concurrent_ml.exceptions`.

use client_runtime::{ClientError, ConnectError};
use cluster_types::{Failure, FailureKind};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

/// An exception of `concurrent_ml.exceptions` by name.
fn raise(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made = py
        .import("concurrent_ml.exceptions")
        .and_then(|module| module.getattr(class))
        .and_then(|class| class.call1((&message,)));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(_) => PyRuntimeError::new_err(message),
    }
}

pub(crate) fn connect_error(py: Python<'_>, error: ConnectError, interrupt: Option<PyErr>) -> PyErr {
    match error {
        ConnectError::Interrupted => interrupt.unwrap_or_else(|| PyKeyboardInterrupt::new_err(())),
        ConnectError::Rejected(_) => raise(py, "ConnectionRefusedByClusterError", error.to_string()),
        _ => raise(py, "ClusterConnectionError", error.to_string()),
    }
}

pub(crate) fn client_error(py: Python<'_>, error: ClientError, interrupt: Option<PyErr>) -> PyErr {
    match error {
        ClientError::Interrupted => interrupt.unwrap_or_else(|| PyKeyboardInterrupt::new_err(())),
        ClientError::TimedOut => raise(py, "GetTimeoutError", error.to_string()),
        ClientError::Cancelled => raise(py, "_Cancelled", error.to_string()),
        ClientError::NoMemory(ref failure) => match failure.kind {
            FailureKind::OutOfDisk => raise(py, "OutOfDiskError", error.to_string()),
            FailureKind::ObjectTooLarge => raise(py, "ObjectTooLargeError", error.to_string()),
            _ => raise(py, "ObjectStoreFullError", error.to_string()),
        },
        ClientError::Forked { .. } => raise(py, "ForkedError", error.to_string()),
        ClientError::Closed => raise(py, "ClusterClosedError", error.to_string()),
        ClientError::ConnectionLost(_) => raise(py, "ConnectionLostError", error.to_string()),
        ClientError::Query(_) | ClientError::Misuse(_) | ClientError::Layout(_) => {
            PyValueError::new_err(error.to_string())
        }
        ClientError::NoHandle(_) | ClientError::System(_) => raise(py, "ClusterError", error.to_string()),
    }
}

static FROM_FAILURE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The exception that a failed task or a lost object raises at `get`.
pub(crate) fn failure_error(py: Python<'_>, failure: &Failure) -> PyErr {
    let make = || -> PyResult<Bound<'_, PyAny>> {
        let from_failure = FROM_FAILURE
            .get_or_try_init(py, || {
                py.import("concurrent_ml.exceptions")?.getattr("_from_failure").map(Bound::unbind)
            })?
            .bind(py);
        let kind = format!("{:?}", failure.kind);
        let task = failure.task.map(|task| task.to_string());
        from_failure.call1((kind, &*failure.message, PyBytes::new(py, &failure.payload), task))
    };
    match make() {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
