//! `Function`: what all calls of one remote function with the same options share, and the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_runtime::{Call, Client as Runtime, Interrupted};
use cluster_types::task::Strategy;
use cluster_types::{Amount, ObjectId, Refs, Resources, TaskTemplate};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::connection::Client;
use crate::errors::client_error;
use crate::object_ref::ObjectRef;
use crate::value::to_parcel;

/// A remote function, ready to be called.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct Function {
    client: Runtime,
    template: Arc<TaskTemplate>,
    /// The pickled function, kept alive.
    _function: Py<ObjectRef>,
}

fn amount(name: &str, number: f64) -> PyResult<Amount> {
    Amount::from_f64(number).map_err(|error| PyValueError::new_err(format!("{name} {error}")))
}

#[pymethods]
impl Function {
    #[new]
    #[pyo3(signature = (client, function, name, *, num_cpus, num_gpus, memory, resources, num_returns, max_retries, retry_exceptions, env_vars, spread=false))]
    fn new(
        client: &Client,
        function: Bound<'_, ObjectRef>,
        name: &str,
        num_cpus: f64,
        num_gpus: f64,
        memory: f64,
        resources: BTreeMap<String, f64>,
        num_returns: u32,
        max_retries: i32,
        retry_exceptions: Vec<u8>,
        env_vars: BTreeMap<String, String>,
        spread: bool,
    ) -> PyResult<Self> {
        let mut request =
            Resources { cpu: amount("num_cpus", num_cpus)?, gpu: amount("num_gpus", num_gpus)?, memory: amount("memory", memory)?, ..Resources::default() };
        for (name, number) in resources {
            request.set_custom(&name, amount(&format!("resource {name:?}"), number)?);
        }
        request.check_request().map_err(|error| PyValueError::new_err(format!("num_gpus {error}")))?;
        let template = TaskTemplate {
            name: name.into(),
            function: function.get().id,
            resources: request,
            num_returns,
            max_retries,
            retry_exceptions: retry_exceptions.into(),
            env_vars,
            strategy: if spread { Strategy::Spread } else { Strategy::Default },
        };
        Ok(Self { client: client.inner.clone(), template: Arc::new(template), _function: function.unbind() })
    }

    /// Submits a call: a ref, or a list of refs where the function returns several values.
    fn call<'py>(&self, py: Python<'py>, args: Bound<'py, PyTuple>, kwargs: Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
        let mut deps = Refs::new();
        let value = pack(py, args, kwargs, &mut deps)?;
        let (payload, borrowed) = to_parcel(py, &self.client, &value, &self.template.name)?;
        let borrowed: Refs = borrowed.into_iter().filter(|id: &ObjectId| !deps.contains(id)).collect();
        let call = Call { template: self.template.clone(), payload, deps, borrowed };
        // Holds the GIL: it waits only where this process is far ahead of its daemon.
        let results = self
            .client
            .submit(call, &mut || py.check_signals().map_err(|_| Interrupted))
            .map_err(|error| client_error(py, error, None))?;
        match results.as_slice() {
            [] => Ok(py.None().into_bound(py)),
            [one] => Ok(Bound::new(py, ObjectRef::new(&self.client, *one))?.into_any()),
            many => {
                let list = PyList::empty(py);
                for id in many {
                    list.append(Bound::new(py, ObjectRef::new(&self.client, *id))?)?;
                }
                Ok(list.into_any())
            }
        }
    }
}

/// The arguments as one value: `(args, kwargs)`, or `(args, kwargs, places)` where top-level refs were taken out and
/// their places (indices and names) listed; the executor puts the values there.
fn pack<'py>(py: Python<'py>, args: Bound<'py, PyTuple>, kwargs: Bound<'py, PyDict>, deps: &mut Refs) -> PyResult<Bound<'py, PyAny>> {
    let is_ref = |item: &Bound<'py, PyAny>| item.cast::<ObjectRef>().map(|object| object.get().id).ok();
    let any = args.iter_borrowed().any(|item| is_ref(&item).is_some()) || kwargs.values().iter().any(|item| is_ref(&item).is_some());
    if !any {
        return Ok(if kwargs.is_empty() { (args, py.None()).into_pyobject(py)? } else { (args, kwargs).into_pyobject(py)? }.into_any());
    }
    let places = PyList::empty(py);
    let positional = PyList::empty(py);
    for (index, item) in args.iter().enumerate() {
        match is_ref(&item) {
            Some(id) => {
                deps.push(id);
                places.append(index)?;
                positional.append(py.None())?;
            }
            None => positional.append(item)?,
        }
    }
    let named = PyDict::new(py);
    for (name, item) in kwargs.iter() {
        match is_ref(&item) {
            Some(id) => {
                deps.push(id);
                places.append(&name)?;
                named.set_item(name, py.None())?;
            }
            None => named.set_item(name, item)?,
        }
    }
    Ok((positional.to_tuple(), named, places).into_pyobject(py)?.into_any())
}
