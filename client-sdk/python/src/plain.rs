//! Plain values: what programs in every language read (`Kind::PLAIN`). MessagePack, whose extension 1 is an array, with its
//! numbers in a buffer beside it, and whose extension 2 is a reference to an object.

use client_runtime::{Client, HandleSource, Parcel, ValueBytes};
use cluster_store::layout::{Kind, View};
use cluster_types::ObjectId;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use rmp::Marker;
use rmp::decode::ValueReadError;
use rmp::decode::bytes::{Bytes, BytesReadError};

use crate::buffer::{SharedBuffer, Source};
use crate::object_ref::ObjectRef;
use crate::value::write;

/// As in the Rust SDK's codec.
const ARRAY: i8 = 1;
const REFERENCE: i8 = 2;
/// Values inside values inside values: deeper ones are refused rather than followed until the stack ends.
const DEPTH: usize = 200;
/// The kinds of numbers that arrays of both languages have.
const DTYPES: [&str; 12] =
    ["<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1", "<f2"];

/// A value while it is written.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    arrays: Vec<Source>,
    refs: Vec<ObjectId>,
    /// Where in the value it is, for people.
    path: Vec<String>,
}

/// Writing into memory fails only where there is none.
fn full<E: std::fmt::Display>(error: E) -> PyErr {
    PyValueError::new_err(format!("the value cannot be written: {error}"))
}

impl Writer {
    fn refuse(&self, what: &str, why: &str) -> PyErr {
        PyTypeError::new_err(format!(
            "{} is {what}, which cannot be passed to a program in another language{why}: pass numbers, strings, bytes, \
             lists, dicts, NumPy arrays of numbers, and refs",
            self.path.concat()
        ))
    }

    fn within(&mut self, step: String, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.path.push(step);
        let written = self.value(value);
        self.path.pop();
        written
    }

    fn value(&mut self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = value.py();
        if self.path.len() > DEPTH {
            return Err(PyValueError::new_err(format!("the value is nested deeper than {DEPTH} levels")));
        }
        if value.is_none() {
            rmp::encode::write_nil(&mut self.bytes).map_err(full)
        } else if let Ok(truth) = value.cast::<PyBool>() {
            rmp::encode::write_bool(&mut self.bytes, truth.is_true()).map_err(full)
        } else if value.is_instance_of::<PyInt>() {
            if let Ok(number) = value.extract::<i64>() {
                return rmp::encode::write_sint(&mut self.bytes, number).map(drop).map_err(full);
            }
            let number = value.extract::<u64>().map_err(|_| self.refuse("a number beyond 64 bits", ""))?;
            rmp::encode::write_uint(&mut self.bytes, number).map(drop).map_err(full)
        } else if let Ok(number) = value.cast::<PyFloat>() {
            rmp::encode::write_f64(&mut self.bytes, number.value()).map_err(full)
        } else if let Ok(text) = value.cast::<PyString>() {
            let text = text.to_str().map_err(|_| self.refuse("a string that is no Unicode", ""))?;
            rmp::encode::write_str(&mut self.bytes, text).map_err(full)
        } else if let Ok(bytes) = value.cast::<PyBytes>() {
            rmp::encode::write_bin(&mut self.bytes, bytes.as_bytes()).map_err(full)
        } else if let Ok(bytes) = value.cast::<PyByteArray>() {
            rmp::encode::write_bin(&mut self.bytes, &bytes.to_vec()).map_err(full)
        } else if let Ok(object) = value.cast::<ObjectRef>() {
            let id = object.get().id;
            self.refs.push(id);
            self.extension(REFERENCE, &id.to_bytes())
        } else if let Ok(list) = value.cast::<PyList>() {
            self.length(list.len(), false)?;
            list.iter().enumerate().try_for_each(|(index, item)| self.within(format!("[{index}]"), &item))
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.length(tuple.len(), false)?;
            tuple.iter().enumerate().try_for_each(|(index, item)| self.within(format!("[{index}]"), &item))
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.length(dict.len(), true)?;
            for (key, item) in dict.iter() {
                let shown = key.repr()?.to_string();
                self.within(format!(".keys()[{shown}]"), &key)?;
                self.within(format!("[{shown}]"), &item)?;
            }
            Ok(())
        } else if value.hasattr(intern!(py, "__array_interface__"))? {
            self.array(value)
        } else {
            let kind = value.get_type().fully_qualified_name()?.to_string();
            Err(self.refuse(&format!("of type {kind}"), ""))
        }
    }

    fn length(&mut self, length: usize, is_map: bool) -> PyResult<()> {
        let length = u32::try_from(length).map_err(full)?;
        if is_map {
            rmp::encode::write_map_len(&mut self.bytes, length).map(drop).map_err(full)
        } else {
            rmp::encode::write_array_len(&mut self.bytes, length).map(drop).map_err(full)
        }
    }

    fn extension(&mut self, tag: i8, body: &[u8]) -> PyResult<()> {
        let length = u32::try_from(body.len()).map_err(full)?;
        rmp::encode::write_ext_meta(&mut self.bytes, length, tag).map_err(full)?;
        self.bytes.extend_from_slice(body);
        Ok(())
    }

    /// An array of NumPy's, or one of its numbers.
    fn array(&mut self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = value.py();
        let dtype: String = value.getattr(intern!(py, "dtype"))?.getattr(intern!(py, "str"))?.extract()?;
        if !DTYPES.contains(&dtype.as_str()) {
            return Err(self.refuse(&format!("an array of {dtype}"), " (its elements are no plain numbers)"));
        }
        let shape: Vec<u64> = value.getattr(intern!(py, "shape"))?.extract()?;
        if shape.is_empty() {
            return self.value(&value.call_method0(intern!(py, "item"))?);
        }
        let numpy = py.import(intern!(py, "numpy"))?;
        let whole = numpy.call_method1(intern!(py, "ascontiguousarray"), (value,))?;
        let flat = whole.call_method1(intern!(py, "reshape"), (-1,))?;
        let source = Source::new(&flat.call_method1(intern!(py, "view"), (intern!(py, "u1"),))?)?;
        let index = u32::try_from(self.arrays.len()).map_err(full)?;
        self.arrays.push(source);
        let mut body = Vec::with_capacity(32);
        rmp::encode::write_array_len(&mut body, 3).map_err(full)?;
        rmp::encode::write_str(&mut body, &dtype).map_err(full)?;
        rmp::encode::write_array_len(&mut body, shape.len() as u32).map_err(full)?;
        for length in shape {
            rmp::encode::write_uint(&mut body, length).map_err(full)?;
        }
        rmp::encode::write_uint(&mut body, index.into()).map_err(full)?;
        self.extension(ARRAY, &body)
    }

    fn parcel(self, py: Python<'_>, client: &Client) -> PyResult<(Parcel, Vec<ObjectId>)> {
        let Writer { bytes, arrays, mut refs, .. } = self;
        refs.sort_unstable();
        refs.dedup();
        if arrays.is_empty()
            && let Some(parcel) = Parcel::small(Kind::PLAIN, &bytes)
        {
            return Ok((parcel, refs));
        }
        let buffers: Vec<&[u8]> = arrays.iter().map(Source::bytes).collect();
        Ok((write(py, client, Kind::PLAIN, &bytes, &buffers)?, refs))
    }
}

/// One value; `what` names it in what is said of its parts.
pub(crate) fn to_plain(
    py: Python<'_>,
    client: &Client,
    value: &Bound<'_, PyAny>,
    what: &str,
) -> PyResult<(Parcel, Vec<ObjectId>)> {
    let mut writer = Writer { path: vec![what.to_owned()], ..Writer::default() };
    writer.value(value)?;
    writer.parcel(py, client)
}

/// The arguments of a call: `[places, arguments, named ones or nothing]`. `places` are those whose values come from refs,
/// which are in `deps`, and nothing is in their place.
pub(crate) fn arguments(
    py: Python<'_>,
    client: &Client,
    args: &Bound<'_, PyTuple>,
    kwargs: &Bound<'_, PyDict>,
    deps: &mut cluster_types::Refs,
    name: &str,
) -> PyResult<(Parcel, Vec<ObjectId>)> {
    if !kwargs.is_empty() {
        return Err(PyTypeError::new_err(format!("{name} takes arguments by position, not by name")));
    }
    let mut writer = Writer::default();
    let refs: Vec<Option<ObjectId>> =
        args.iter().map(|item| item.cast::<ObjectRef>().map(|object| object.get().id).ok()).collect();
    writer.length(3, false)?;
    writer.length(refs.iter().flatten().count(), false)?;
    for (place, id) in refs.iter().enumerate() {
        if let Some(id) = id {
            deps.push(*id);
            rmp::encode::write_uint(&mut writer.bytes, place as u64).map_err(full)?;
        }
    }
    writer.length(refs.len(), false)?;
    for (index, item) in args.iter().enumerate() {
        match refs[index] {
            Some(_) => rmp::encode::write_nil(&mut writer.bytes).map_err(full)?,
            None => writer.within(format!("argument {index} of {name}"), &item)?,
        }
    }
    rmp::encode::write_nil(&mut writer.bytes).map_err(full)?;
    writer.parcel(py, client)
}

/// A value while it is read.
struct Reader<'a, 'py> {
    py: Python<'py>,
    client: &'a Client,
    source: HandleSource,
    bytes: &'a ValueBytes,
    view: &'a View<'a>,
}

fn damaged<E: std::fmt::Display>(error: E) -> PyErr {
    PyValueError::new_err(format!("a plain value is damaged: {error}"))
}

fn marker(error: ValueReadError<BytesReadError>) -> PyErr {
    damaged(format!("{error:?}"))
}

/// The Python value of these bytes. Arrays in it are read-only views of them.
pub(crate) fn from_plain<'py>(
    py: Python<'py>,
    client: &Client,
    bytes: &ValueBytes,
    source: HandleSource,
) -> PyResult<Bound<'py, PyAny>> {
    let view = View::parse(bytes).map_err(damaged)?;
    let reader = Reader { py, client, source, bytes, view: &view };
    let mut rest = Bytes::new(view.in_band());
    reader.value(&mut rest, 0)
}

impl<'py> Reader<'_, 'py> {
    fn value(&self, rest: &mut Bytes<'_>, depth: usize) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        if depth > DEPTH {
            return Err(damaged("it is nested too deeply"));
        }
        let kind = match rest.remaining_slice().first() {
            Some(first) => Marker::from_u8(*first),
            None => return Err(damaged("it ends too early")),
        };
        Ok(match kind {
            Marker::Null => {
                rmp::decode::read_nil(rest).map_err(marker)?;
                py.None().into_bound(py)
            }
            Marker::True | Marker::False => {
                PyBool::new(py, rmp::decode::read_bool(rest).map_err(marker)?).to_owned().into_any()
            }
            Marker::U64 => rmp::decode::read_u64(rest).map_err(marker)?.into_pyobject(py)?.into_any(),
            Marker::FixPos(_)
            | Marker::FixNeg(_)
            | Marker::U8
            | Marker::U16
            | Marker::U32
            | Marker::I8
            | Marker::I16
            | Marker::I32
            | Marker::I64 => {
                rmp::decode::read_int::<i64, _>(rest).map_err(damaged)?.into_pyobject(py)?.into_any()
            }
            Marker::F32 => {
                f64::from(rmp::decode::read_f32(rest).map_err(marker)?).into_pyobject(py)?.into_any()
            }
            Marker::F64 => rmp::decode::read_f64(rest).map_err(marker)?.into_pyobject(py)?.into_any(),
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let len = rmp::decode::read_str_len(rest).map_err(marker)?;
                let text = std::str::from_utf8(self.take(rest, len)?).map_err(damaged)?;
                PyString::new(py, text).into_any()
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let len = rmp::decode::read_bin_len(rest).map_err(marker)?;
                PyBytes::new(py, self.take(rest, len)?).into_any()
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let len = rmp::decode::read_array_len(rest).map_err(marker)?;
                let list = PyList::empty(py);
                for _ in 0..len {
                    list.append(self.value(rest, depth + 1)?)?;
                }
                list.into_any()
            }
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                let len = rmp::decode::read_map_len(rest).map_err(marker)?;
                let dict = PyDict::new(py);
                for _ in 0..len {
                    let mut key = self.value(rest, depth + 1)?;
                    // Keys are hashable in Python.
                    if let Ok(list) = key.cast::<PyList>() {
                        key = list.to_tuple().into_any();
                    }
                    dict.set_item(key, self.value(rest, depth + 1)?)?;
                }
                dict.into_any()
            }
            _ => self.extension(rest)?,
        })
    }

    fn take<'b>(&self, rest: &mut Bytes<'b>, len: u32) -> PyResult<&'b [u8]> {
        let all = rest.remaining_slice();
        let Some((taken, left)) = all.split_at_checked(len as usize) else {
            return Err(damaged("it ends too early"));
        };
        *rest = Bytes::new(left);
        Ok(taken)
    }

    fn extension(&self, rest: &mut Bytes<'_>) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let meta = rmp::decode::read_ext_meta(rest).map_err(marker)?;
        let body = self.take(rest, meta.size)?;
        match meta.typeid {
            REFERENCE => {
                let bytes = body.try_into().map_err(damaged)?;
                let id = ObjectId::from_bytes(bytes);
                self.client.add_handle(id, self.source);
                Ok(Bound::new(py, ObjectRef::new(self.client, id))?.into_any())
            }
            ARRAY => {
                let mut body = Bytes::new(body);
                rmp::decode::read_array_len(&mut body).map_err(marker)?;
                let len = rmp::decode::read_str_len(&mut body).map_err(marker)?;
                let dtype = std::str::from_utf8(self.take(&mut body, len)?).map_err(damaged)?.to_owned();
                let dimensions = rmp::decode::read_array_len(&mut body).map_err(marker)?;
                let shape = (0..dimensions)
                    .map(|_| rmp::decode::read_int::<u64, _>(&mut body).map_err(damaged))
                    .collect::<PyResult<Vec<u64>>>()?;
                let index = rmp::decode::read_int::<usize, _>(&mut body).map_err(damaged)?;
                let range = self.view.buffer_range(index).ok_or_else(|| damaged("an array has no memory"))?;
                let buffer = Bound::new(py, SharedBuffer::new(self.bytes.clone(), range))?;
                let numpy = py.import(intern!(py, "numpy"))?;
                let options = PyDict::new(py);
                options.set_item(intern!(py, "dtype"), dtype)?;
                numpy
                    .call_method(intern!(py, "frombuffer"), (buffer,), Some(&options))?
                    .call_method1(intern!(py, "reshape"), (PyTuple::new(py, shape)?,))
            }
            other => Err(damaged(format!("it has an extension {other}"))),
        }
    }
}
