//! Python values to value bytes and back.

use client_runtime::{Client, Draft, HandleSource, Parcel, ValueBytes};
use cluster_store::layout::{Kind, View};
use cluster_types::ObjectId;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::buffer::{SharedBuffer, Source};
use crate::connection::interruptible;
use crate::errors::client_error;
use crate::object_ref::{coming_from, collecting};

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static DUMP_ANY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// `pickle.dumps`, C.
fn dumps(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(DUMPS.get_or_try_init(py, || py.import("pickle")?.getattr("dumps").map(Bound::unbind))?.bind(py))
}

fn loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(LOADS.get_or_try_init(py, || py.import("pickle")?.getattr("loads").map(Bound::unbind))?.bind(py))
}

/// Python's part of pickling: cloudpickle, and the words for what cannot be pickled.
fn dump_any(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(DUMP_ANY.get_or_try_init(py, || py.import("concurrent_ml._serialization")?.getattr("dump").map(Bound::unbind))?.bind(py))
}

/// Whether C's pickler alone does it right: plain values, and small containers of them. Functions and classes need
/// cloudpickle, and so might anything else.
fn is_plain(value: &Bound<'_, PyAny>, depth: u32) -> bool {
    if value.is_none()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBool>()
    {
        return true;
    }
    if let Ok(text) = value.cast_exact::<PyString>() {
        return text.len().is_ok_and(|len| len < 1 << 16);
    }
    if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        return bytes.as_bytes().len() < 1 << 16;
    }
    if depth == 0 {
        return false;
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return tuple.len() <= 32 && tuple.iter_borrowed().all(|item| is_plain(&item, depth - 1));
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        return list.len() <= 32 && list.iter().all(|item| is_plain(&item, depth - 1));
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        return dict.len() <= 32 && dict.iter().all(|(key, item)| is_plain(&key, 0) && is_plain(&item, depth - 1));
    }
    false
}

/// A value's bytes, and the refs inside it. `what` names it for people, should it not be picklable.
pub(crate) fn to_parcel(py: Python<'_>, client: &Client, value: &Bound<'_, PyAny>, what: &str) -> PyResult<(Parcel, Vec<ObjectId>)> {
    if is_plain(value, 3) {
        let pickled = dumps(py)?.call1((value, 5))?;
        let pickled = pickled.cast_into::<PyBytes>()?;
        if let Some(parcel) = Parcel::small(Kind::PICKLE5, pickled.as_bytes()) {
            return Ok((parcel, Vec::new()));
        }
        return Ok((write(py, client, pickled.as_bytes(), &[])?, Vec::new()));
    }
    let (dumped, refs) = collecting(|| dump_any(py)?.call1((value, what)))?;
    let (pickled, views) = dumped.extract::<(Bound<'_, PyBytes>, Vec<Bound<'_, PyAny>>)>()?;
    let sources = views.iter().map(Source::new).collect::<PyResult<Vec<Source>>>()?;
    let buffers: Vec<&[u8]> = sources.iter().map(Source::bytes).collect();
    Ok((write(py, client, pickled.as_bytes(), &buffers)?, refs))
}

/// Copies the parts into memory of the client's own; waits for room where there is none.
fn write(py: Python<'_>, client: &Client, in_band: &[u8], buffers: &[&[u8]]) -> PyResult<Parcel> {
    let lengths: Vec<usize> = buffers.iter().map(|buffer| buffer.len()).collect();
    let draft: Draft = interruptible(py, |interrupt| client.reserve(Kind::PICKLE5, in_band.len(), &lengths, interrupt))?;
    let written = match draft.is_small() {
        true => draft.write(in_band, buffers),
        false => py.detach(|| draft.write(in_band, buffers)),
    };
    written.map_err(|error| client_error(py, error.into(), None))
}

/// The Python value of these bytes. Arrays in it are read-only views of them.
pub(crate) fn from_bytes<'py>(py: Python<'py>, client: &Client, bytes: &ValueBytes, source: HandleSource) -> PyResult<Bound<'py, PyAny>> {
    let broken = |error: cluster_store::layout::LayoutError| PyValueError::new_err(format!("a stored value is damaged: {error}"));
    let view = View::parse(bytes).map_err(broken)?;
    coming_from(client, source, || {
        if view.buffer_count() == 0 {
            return loads(py)?.call1((PyBytes::new(py, view.in_band()),));
        }
        let buffers = PyList::empty(py);
        for index in 0..view.buffer_count() {
            if let Some(range) = view.buffer_range(index) {
                buffers.append(Bound::new(py, SharedBuffer::new(bytes.clone(), range))?)?;
            }
        }
        let options = PyDict::new(py);
        options.set_item(pyo3::intern!(py, "buffers"), buffers)?;
        loads(py)?.call((PyBytes::new(py, view.in_band()),), Some(&options))
    })
}
