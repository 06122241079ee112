//! The native module of the Python package: a thin layer between Python objects and `client-runtime`.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `buffer` | shared memory as Python buffers (the one place with `unsafe`) |
//! | `connection` | `Client`: connect, get, put, wait, query, notices |
//! | `errors` | which exception an error becomes |
//! | `executor` | `Task`: one execution, as the executor's loop sees it |
//! | `function` | `Function`: a remote function's calls |
//! | `object_ref` | `ObjectRef`, and what happens when it is pickled |
//! | `placement` | where tasks may run; `GroupMaker`: placement groups |
//! | `plain` | values that programs in other languages read too |
//! | `value` | Python values to value bytes and back |
//!
//! Importing it starts no thread and opens nothing.

use pyo3::prelude::*;

mod buffer;
mod connection;
mod errors;
mod executor;
mod function;
mod generator;
mod object_ref;
mod placement;
mod plain;
mod value;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PROTOCOL_VERSION", cluster_types::PROTOCOL_VERSION)?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<connection::Client>()?;
    module.add_class::<connection::Completions>()?;
    module.add_class::<executor::Task>()?;
    module.add_class::<function::Function>()?;
    module.add_class::<object_ref::ObjectRef>()?;
    module.add_class::<generator::ObjectRefGenerator>()?;
    module.add_class::<placement::GroupMaker>()?;
    module.add_class::<buffer::SharedBuffer>()?;
    module.add_function(wrap_pyfunction!(object_ref::_rebuild_ref, module)?)?;
    module.add_function(wrap_pyfunction!(object_ref::_this_value, module)?)?;
    module.add_function(wrap_pyfunction!(connection::mark_forked, module)?)?;
    module.add_function(wrap_pyfunction!(executor::run_several, module)?)?;
    Ok(())
}
