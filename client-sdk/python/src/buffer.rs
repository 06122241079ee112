//! Memory between Python and Rust: shared memory as read-only Python buffers, and Python buffers as bytes to copy.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ops::Range;

use client_runtime::ValueBytes;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// A read-only range of a value's bytes. It keeps the value where it is for as long as anything views it.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct SharedBuffer {
    bytes: ValueBytes,
    range: Range<usize>,
}

impl SharedBuffer {
    /// `range` lies within the bytes: it comes from a parsed layout.
    pub(crate) fn new(bytes: ValueBytes, range: Range<usize>) -> Self {
        let end = range.end.min(bytes.len());
        Self { bytes, range: range.start.min(end)..end }
    }
}

#[pymethods]
impl SharedBuffer {
    fn __len__(&self) -> usize {
        self.range.len()
    }

    /// # Safety
    /// Called by Python only, with a `view` it allocated.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err(
                "values in the object store are read-only; copy the array to change it",
            ));
        }
        let this = slf.get();
        let bytes = &this.bytes[this.range.clone()];
        // SAFETY: `view` is Python's. The bytes stay where they are while `this` lives (a `ValueBytes` pins them), and
        // PyBuffer_FillInfo takes a reference to `slf`, given up when the view is released. Read-only is asked for.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                bytes.as_ptr() as *mut c_void,
                bytes.len() as isize,
                1,
                flags,
            )
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A contiguous Python buffer that is about to be copied.
pub(crate) struct Source {
    buffer: PyBuffer<u8>,
}

impl Source {
    /// From a `memoryview` of bytes.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyBuffer::<u8>::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("only contiguous buffers can be stored out of band"));
        }
        Ok(Self { buffer })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.buffer.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous, has this length, and is held by `self`, so its memory stays allocated. A
        // program that writes to an array while another of its threads stores it gets some mix of old and new numbers,
        // as with any copy; `u8` has no invalid values.
        unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr() as *const u8, self.buffer.len_bytes()) }
    }
}
