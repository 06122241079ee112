//! `Function`: what all calls of one remote function with the same options share, and the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_runtime::{Call, Client as Runtime, Interrupted};
use cluster_types::task::Backoff;
use cluster_types::{
    ActorTraits, Amount, JobId, ObjectId, Refs, Resources, StreamLimits, TaskKind, TaskTemplate,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::connection::{Client, interruptible};
use crate::errors::client_error;
use crate::executor::{for_executor, within};
use crate::generator::ObjectRefGenerator;
use crate::object_ref::ObjectRef;
use crate::placement::{self, Given};
use crate::plain;
use crate::value::to_parcel;

/// A remote function, a class to make actors of, or a method of an actor: ready to be called.
#[pyclass(frozen, module = "concurrent_ml._native")]
pub(crate) struct Function {
    client: Runtime,
    template: Arc<TaskTemplate>,
    /// The pickled function or class, or the actor's handle: kept alive.
    _function: Py<ObjectRef>,
    parameters: Option<Parameters>,
    /// Called with the arguments of a call that cannot be made; raises what is wrong with them.
    complain: Py<PyAny>,
    /// Its arguments and results are plain values: it is in another language.
    plain: bool,
}

/// What a call's arguments must be like, so that a wrong call fails where it is written and not on some node. From a
/// dict with these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Parameters {
    /// In order, keyword-only ones last: name, and whether it has no default.
    names: Vec<(String, bool)>,
    /// How many of them may be given by position; `None`: any number.
    positional: Option<usize>,
    /// How many of the first can be given only by position.
    positional_only: usize,
    /// How many must be given when all are given by position; `None`: some can not.
    required: Option<usize>,
    /// Whether it takes names that are not among these.
    any_names: bool,
}

impl Parameters {
    fn fit(&self, args: &Bound<'_, PyTuple>, kwargs: &Bound<'_, PyDict>) -> bool {
        let given = args.len();
        if self.positional.is_some_and(|most| given > most) {
            return false;
        }
        if kwargs.is_empty() {
            return self.required.is_some_and(|least| given >= least);
        }
        let known = |name: &Bound<'_, PyAny>| {
            let Ok(name) = name.extract::<std::borrow::Cow<'_, str>>() else { return false };
            match self.names.iter().position(|(known, _)| *known == name) {
                Some(index) => index >= given && index >= self.positional_only,
                None => self.any_names,
            }
        };
        let missing = |name: &str| !kwargs.contains(name).unwrap_or(false);
        kwargs.iter().all(|(name, _)| known(&name))
            && !self.names.iter().skip(given).any(|(name, required)| *required && missing(name))
    }
}

/// What an actor is; from a dict with these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Traits {
    name: String,
    namespace: String,
    detached: bool,
    max_restarts: i32,
    max_concurrency: u32,
    groups: BTreeMap<String, u32>,
    is_async: bool,
    handle: Vec<u8>,
}

impl From<Traits> for ActorTraits {
    fn from(traits: Traits) -> Self {
        let Traits { name, namespace, detached, max_restarts, max_concurrency, groups, is_async, handle } =
            traits;
        let handle = handle.into();
        Self { name, namespace, detached, max_restarts, max_concurrency, groups, is_async, handle }
    }
}

pub(crate) fn amount(name: &str, number: f64) -> PyResult<Amount> {
    Amount::from_f64(number).map_err(|error| PyValueError::new_err(format!("{name} {error}")))
}

#[pymethods]
impl Function {
    #[new]
    #[pyo3(signature = (client, function, name, *, num_cpus, num_gpus, memory, resources, num_returns, max_retries, retry_exceptions, env_vars, strategy, parameters, complain, actor=None, method=None, plain=false, timeout=None, stream=None, variants=Vec::new(), backoff=(0, 0, 0), durable=false))]
    #[allow(clippy::too_many_arguments)]
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
        strategy: Given<'_>,
        parameters: Option<Parameters>,
        complain: Py<PyAny>,
        actor: Option<Traits>,
        method: Option<(String, String, bool)>,
        plain: bool,
        timeout: Option<f64>,
        stream: Option<(u32, u64)>,
        variants: Vec<BTreeMap<String, f64>>,
        backoff: (u32, u32, u32),
        durable: bool,
    ) -> PyResult<Self> {
        let kind = match (actor, method) {
            (Some(traits), _) => TaskKind::Actor(Arc::new(traits.into())),
            (None, Some((method, group, concurrent))) => {
                TaskKind::Method { method: method.into(), group: group.into(), concurrent }
            }
            (None, None) => TaskKind::Function,
        };
        let mut request = Resources {
            cpu: amount("num_cpus", num_cpus)?,
            gpu: amount("num_gpus", num_gpus)?,
            memory: amount("memory", memory)?,
            ..Resources::default()
        };
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
            retry_exceptions: for_executor(timeout, retry_exceptions).into(),
            env_vars,
            strategy: placement::strategy(strategy)?,
            kind,
            stream: stream.map(|(max_items, max_bytes)| StreamLimits { max_items, max_bytes }),
            variants: variants.into_iter().map(placement::request).collect::<PyResult<_>>()?,
            backoff: Backoff { first_ms: backoff.0, growth: backoff.1, most_ms: backoff.2 },
            durable,
        };
        Ok(Self {
            client: client.inner.clone(),
            template: Arc::new(template),
            _function: function.unbind(),
            parameters,
            complain,
            plain,
        })
    }

    /// Submits a call: a ref, or a list of refs where the function returns several values, or a generator of refs where it
    /// yields.
    fn call<'py>(
        &self,
        py: Python<'py>,
        args: Bound<'py, PyTuple>,
        kwargs: Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.parameters.as_ref().is_some_and(|parameters| !parameters.fit(&args, &kwargs)) {
            self.complain.bind(py).call1((&args, &kwargs))?;
        }
        let mut deps = Refs::new();
        let written = if self.plain {
            plain::arguments(py, &self.client, &args, &kwargs, &mut deps, &self.template.name)
        } else {
            let value = pack(py, args.clone(), kwargs.clone(), &mut deps)?;
            to_parcel(py, &self.client, &value, &self.template.name)
        };
        let (payload, borrowed) = match written {
            Err(error) if self.plain => return Err(error),
            Ok(parcel) => parcel,
            Err(error) => {
                if error.is_instance_of::<PyTypeError>(py) {
                    self.complain.bind(py).call1((args, kwargs, &error))?;
                }
                return Err(error);
            }
        };
        let borrowed: Refs = borrowed.into_iter().filter(|id: &ObjectId| !deps.contains(id)).collect();
        let job = match &self.template.kind {
            // It outlives the job that makes it, so it is one of its own (rule A6).
            TaskKind::Actor(traits) if traits.detached => Some(random_job()?),
            _ => None,
        };
        let call = Call { template: self.template.clone(), payload, deps, borrowed, within: within(py), job };
        // Letting go of the GIL costs more than the call; only a wait is worth it.
        let results = if self.client.is_far_ahead() {
            interruptible(py, |interrupt| self.client.submit(call, interrupt))?
        } else {
            let submitted = self.client.submit(call, &mut || py.check_signals().map_err(|_| Interrupted));
            submitted.map_err(|error| client_error(py, error, None))?
        };
        match results.as_slice() {
            [] => Ok(py.None().into_bound(py)),
            [one] if self.template.stream.is_some() => {
                let Some((task, _)) = one.task() else { return Ok(py.None().into_bound(py)) };
                Ok(Bound::new(py, ObjectRefGenerator::new(&self.client, task, *one))?.into_any())
            }
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

    /// Submits a call for each tuple of arguments, all with the same named ones; what `call` returns, in order.
    fn call_many<'py>(
        &self,
        py: Python<'py>,
        calls: &Bound<'py, PyAny>,
        kwargs: Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyList>> {
        /// So many calls are made before other threads and signals get their turn.
        const TURN: usize = 512;
        let results = PyList::empty(py);
        for (number, args) in calls.try_iter()?.enumerate() {
            if number % TURN == TURN - 1 {
                py.detach(std::thread::yield_now);
                py.check_signals()?;
            }
            results.append(self.call(py, args?.cast_into::<PyTuple>()?, kwargs.clone())?)?;
        }
        Ok(results)
    }
}

pub(crate) fn random_job() -> PyResult<JobId> {
    getrandom::u32().map(JobId).map_err(|error| PyValueError::new_err(format!("no random numbers: {error}")))
}

/// The arguments as one value: `(args, kwargs)`, or `(args, kwargs, places)` where top-level refs were taken out and
/// their places (indices and names) listed; the executor puts the values there.
fn pack<'py>(
    py: Python<'py>,
    args: Bound<'py, PyTuple>,
    kwargs: Bound<'py, PyDict>,
    deps: &mut Refs,
) -> PyResult<Bound<'py, PyAny>> {
    let is_ref = |item: &Bound<'py, PyAny>| item.cast::<ObjectRef>().map(|object| object.get().id).ok();
    let any = args.iter_borrowed().any(|item| is_ref(&item).is_some())
        || kwargs.values().iter().any(|item| is_ref(&item).is_some());
    if !any {
        return Ok(if kwargs.is_empty() {
            (args, py.None()).into_pyobject(py)?
        } else {
            (args, kwargs).into_pyobject(py)?
        }
        .into_any());
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
