//! Python values to value bytes and back.

use client_runtime::{Client, Draft, HandleSource, Parcel, ValueBytes};
use cluster_store::layout::{Kind, View};
use cluster_types::ObjectId;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::buffer::{SharedBuffer, Source};
use crate::connection::interruptible;
use crate::errors::client_error;
use crate::object_ref::{ObjectRef, collecting, coming_from};
use crate::plain::from_plain;

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static DUMP_ANY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
/// `numpy.ndarray`, once one was met: this module never imports NumPy.
static NDARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// `pickle.dumps`, C.
fn dumps(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(DUMPS.get_or_try_init(py, || py.import("pickle")?.getattr("dumps").map(Bound::unbind))?.bind(py))
}

fn loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(LOADS.get_or_try_init(py, || py.import("pickle")?.getattr("loads").map(Bound::unbind))?.bind(py))
}

/// Python's part of pickling: cloudpickle, and the words for what cannot be pickled.
fn dump_any(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(DUMP_ANY
        .get_or_try_init(py, || {
            py.import("concurrent_ml._serialization")?.getattr("dump").map(Bound::unbind)
        })?
        .bind(py))
}

/// How a value can be pickled.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// By C's pickler alone: plain values and containers of them, with refs or without.
    Plain { refs: bool },
    /// The same, with arrays of numbers of at least [`OUT_OF_BAND`] bytes each among them.
    Arrays { refs: bool },
    /// Functions and classes need cloudpickle, and so might anything else.
    Any,
}

/// Buffers of at least this many bytes lie beside the pickle and are viewed there; smaller ones are in it.
const OUT_OF_BAND: usize = 4096;
/// Values of more parts than this are not looked through.
const PARTS: usize = 20_000;

/// Looks through a value, as far as it is exact built-in types, refs and NumPy arrays.
struct Inspection {
    parts: usize,
    refs: bool,
    small_arrays: bool,
    large_arrays: bool,
}

impl Inspection {
    fn of(value: &Bound<'_, PyAny>) -> Shape {
        let mut seen = Inspection { parts: PARTS, refs: false, small_arrays: false, large_arrays: false };
        match seen.is_known(value, 4) {
            false => Shape::Any,
            // Some of its arrays go beside the pickle and some into it: that needs a callback that knows.
            true if seen.small_arrays && seen.large_arrays => Shape::Any,
            true if seen.large_arrays => Shape::Arrays { refs: seen.refs },
            true => Shape::Plain { refs: seen.refs },
        }
    }

    fn is_known(&mut self, value: &Bound<'_, PyAny>, depth: u32) -> bool {
        if value.is_none()
            || value.is_exact_instance_of::<PyInt>()
            || value.is_exact_instance_of::<PyFloat>()
            || value.is_exact_instance_of::<PyBool>()
            || value.is_exact_instance_of::<PyString>()
            || value.is_exact_instance_of::<PyBytes>()
        {
            return true;
        }
        if value.is_exact_instance_of::<ObjectRef>() {
            self.refs = true;
            return true;
        }
        if depth == 0 {
            return false;
        }
        let depth = depth - 1;
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return self.has_room(tuple.len())
                && tuple.iter_borrowed().all(|item| self.is_known(&item, depth));
        }
        if let Ok(list) = value.cast_exact::<PyList>() {
            return self.has_room(list.len()) && list.iter().all(|item| self.is_known(&item, depth));
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            let known = |(key, item): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
                self.is_known(&key, 0) && self.is_known(&item, depth)
            };
            return dict.len() <= PARTS && dict.iter().all(known);
        }
        self.is_array(value).unwrap_or(false)
    }

    fn has_room(&mut self, parts: usize) -> bool {
        let left = self.parts.checked_sub(parts);
        self.parts = left.unwrap_or(0);
        left.is_some()
    }

    /// An exact `numpy.ndarray` of numbers. Contiguous: others are copied into the pickle, whatever their length.
    fn is_array(&mut self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = value.py();
        let kind = value.get_type();
        match NDARRAY.get(py) {
            Some(known) if kind.is(known) => {}
            Some(_) => return Ok(false),
            None => {
                if kind.name()? != "ndarray" || kind.module()? != "numpy" {
                    return Ok(false);
                }
                // Another thread may have been first; there is only one such class.
                let _ = NDARRAY.set(py, kind.into_any().unbind());
            }
        }
        if value.getattr(intern!(py, "dtype"))?.getattr(intern!(py, "hasobject"))?.is_truthy()? {
            return Ok(false);
        }
        let len = value.getattr(intern!(py, "nbytes"))?.extract::<usize>()?;
        let contiguous = || value.getattr(intern!(py, "flags"))?.getattr(intern!(py, "forc"))?.is_truthy();
        match len >= OUT_OF_BAND && contiguous()? {
            true => self.large_arrays = true,
            false => self.small_arrays = true,
        }
        Ok(true)
    }
}

/// A value's bytes, and the refs inside it. `what` names it for people, should it not be picklable.
pub(crate) fn to_parcel(
    py: Python<'_>,
    client: &Client,
    value: &Bound<'_, PyAny>,
    what: &str,
) -> PyResult<(Parcel, Vec<ObjectId>)> {
    let shape = Inspection::of(value);
    let pickle = || match shape {
        Shape::Plain { .. } => Ok((dumps(py)?.call1((value, 5))?, None)),
        Shape::Arrays { .. } => {
            let views = PyList::empty(py);
            let options = PyDict::new(py);
            options.set_item(intern!(py, "buffer_callback"), views.getattr(intern!(py, "append"))?)?;
            Ok((dumps(py)?.call((value, 5), Some(&options))?, Some(views)))
        }
        Shape::Any => {
            let dumped = dump_any(py)?.call1((value, what))?;
            let (pickled, views) = dumped.extract::<(Bound<'_, PyAny>, Bound<'_, PyList>)>()?;
            Ok((pickled, Some(views)))
        }
    };
    let ((pickled, views), refs) = match shape {
        Shape::Plain { refs: false } | Shape::Arrays { refs: false } => (pickle()?, Vec::new()),
        _ => collecting(pickle)?,
    };
    let pickled = pickled.cast_into::<PyBytes>()?;
    let sources = match &views {
        Some(views) => {
            let raw = |view: Bound<'_, PyAny>| Source::new(&view.call_method0(intern!(py, "raw"))?);
            views.iter().map(raw).collect::<PyResult<Vec<Source>>>()?
        }
        None => Vec::new(),
    };
    if sources.is_empty()
        && let Some(parcel) = Parcel::small(Kind::PICKLE5, pickled.as_bytes())
    {
        return Ok((parcel, refs));
    }
    let buffers: Vec<&[u8]> = sources.iter().map(Source::bytes).collect();
    Ok((write(py, client, Kind::PICKLE5, pickled.as_bytes(), &buffers)?, refs))
}

/// Copies the parts into memory of the client's own; waits for room where there is none.
pub(crate) fn write(
    py: Python<'_>,
    client: &Client,
    kind: Kind,
    in_band: &[u8],
    buffers: &[&[u8]],
) -> PyResult<Parcel> {
    let lengths: Vec<usize> = buffers.iter().map(|buffer| buffer.len()).collect();
    let draft: Draft =
        interruptible(py, |interrupt| client.reserve(kind, in_band.len(), &lengths, interrupt))?;
    if draft.is_small() {
        return draft.write(in_band, buffers, &mut || Ok(())).map_err(|error| client_error(py, error, None));
    }
    interruptible(py, |interrupt| draft.write(in_band, buffers, interrupt))
}

/// Pickles longer than this are read where they lie; below it, copying costs less than a view.
const READ_IN_PLACE: usize = 16 << 10;

/// The Python value of these bytes. Arrays in it are read-only views of them.
pub(crate) fn from_bytes<'py>(
    py: Python<'py>,
    client: &Client,
    bytes: &ValueBytes,
    source: HandleSource,
) -> PyResult<Bound<'py, PyAny>> {
    let view = View::parse(bytes)
        .map_err(|error| PyValueError::new_err(format!("a stored value is damaged: {error}")))?;
    if view.kind() == Kind::PLAIN {
        return from_plain(py, client, bytes, source);
    }
    if view.kind() != Kind::PICKLE5 {
        return Err(PyValueError::new_err(format!(
            "the value is of kind {}, which is none of Python's: it was made by a program in another language. A Rust program \
             makes what Python reads by put_plain(&value), or as the result of a call from Python",
            view.kind().0
        )));
    }
    let pickled = match view.in_band().len() {
        0..READ_IN_PLACE => PyBytes::new(py, view.in_band()).into_any(),
        len => {
            let start = view.in_band().as_ptr().addr() - bytes.as_ptr().addr();
            Bound::new(py, SharedBuffer::new(bytes.clone(), start..start + len))?.into_any()
        }
    };
    coming_from(client, source, || {
        if view.buffer_count() == 0 {
            return loads(py)?.call1((pickled,));
        }
        let buffers = PyList::empty(py);
        for index in 0..view.buffer_count() {
            if let Some(range) = view.buffer_range(index) {
                buffers.append(Bound::new(py, SharedBuffer::new(bytes.clone(), range))?)?;
            }
        }
        let options = PyDict::new(py);
        options.set_item(intern!(py, "buffers"), buffers)?;
        loads(py)?.call((pickled,), Some(&options))
    })
}
