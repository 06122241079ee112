//! Python's functions and actors, by name, with plain values.
//!
//! ```no_run
//! use concurrent_ml::python;
//!
//! # fn main() -> concurrent_ml::Result<()> {
//! let _cluster = concurrent_ml::init()?;
//! let root = python::function("math:sqrt")?.arg(&2.0).remote::<f64>();
//! println!("{}", root.get()?);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use client_runtime::Kind;
use cluster_types::{TaskKind, TaskTemplate};
use serde::Serialize;

use crate::actor::look_up;
use crate::function::{Arg, Arguments, Callable, Results};
use crate::object::{Live, ObjectRef};
use crate::options::Options;
use crate::stream::Stream;
use crate::{Error, Result, codec, current};

/// Where Python's SDK looks for what a method of an actor is: nothing, of a call with plain values.
const PICKLED_NOTHING: &[u8] = b"";

/// A function of a Python module, `"module:function"`; its executors import the module. Of a job of this program, they
/// look for it in this program's working directory too.
///
/// # Errors
/// If that is no such name, or there is no connection.
pub fn function(name: &str) -> Result<PythonCall> {
    function_with(name, &Options::new())
}

/// As [`function`], with options.
///
/// # Errors
/// As [`function`], or if the options make no sense.
pub fn function_with(name: &str, options: &Options) -> Result<PythonCall> {
    let client = current::client()?;
    let (module, attribute) = name.split_once(':').unwrap_or_default();
    let is_word =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    if !is_word(module) || !is_word(attribute) || attribute.contains('.') {
        return Err(Error::Misuse(format!(
            "{name:?} names no function of Python's: write \"module:function\", like \"math:sqrt\""
        )));
    }
    // A pickle that is nothing but a name.
    let pickle = format!("c{module}\n{attribute}\n.");
    let parts = codec::collect(Kind::PICKLE5, |out| {
        out.extend_from_slice(pickle.as_bytes());
        Ok(())
    })?;
    let (parcel, _) = codec::parcel(&client, parts)?;
    let function = Live { id: client.put(parcel, &[])?, client: client.clone() };
    let template = TaskTemplate {
        name: options.name.as_deref().unwrap_or(attribute).into(),
        function: function.id,
        resources: options.request(1.0)?,
        num_returns: 1,
        max_retries: options.retries(),
        env_vars: options.env_vars.clone(),
        strategy: options.strategy()?,
        durable: options.durable,
        ..TaskTemplate::default()
    };
    Ok(PythonCall::new(Callable::new(client, template, Kind::PLAIN), function))
}

/// An actor of Python's, by its name in this program's namespace.
///
/// # Errors
/// If there is none.
pub fn actor(name: &str) -> Result<PythonActor> {
    let namespace = current::client()?.welcome().info.namespace.clone();
    let Some((live, _)) = look_up(&namespace, name)? else {
        return Err(Error::Misuse(format!(
            "there is no actor named {name:?} in namespace {namespace:?}: it was not made or has ended"
        )));
    };
    Ok(PythonActor { live })
}

/// A handle on an actor of Python's.
#[derive(Clone, Debug)]
pub struct PythonActor {
    live: Live,
}

impl PythonActor {
    /// A method, to be called.
    pub fn method(&self, name: &str) -> PythonCall {
        let template = TaskTemplate {
            name: name.into(),
            function: self.live.id,
            num_returns: 1,
            retry_exceptions: PICKLED_NOTHING.into(),
            kind: TaskKind::Method { method: name.into(), group: "".into(), concurrent: false },
            ..TaskTemplate::default()
        };
        let callable = Callable::new(self.live.client.clone(), template, Kind::PLAIN);
        PythonCall::new(callable, self.live.clone())
    }

    /// Ends the actor.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn kill(&self, restart: bool) -> Result<()> {
        Ok(self.live.client.kill(self.live.id, restart)?)
    }
}

/// A call of Python's: give it its arguments, then start it. They are plain values: numbers, strings, bytes (as
/// `serde_bytes` writes them), lists, maps, [`crate::SharedArray`]s and refs.
#[derive(Debug)]
pub struct PythonCall {
    callable: Callable,
    arguments: Arguments,
    /// The function or the actor: kept until the call is made.
    _of: Live,
}

impl PythonCall {
    fn new(callable: Callable, of: Live) -> PythonCall {
        PythonCall { arguments: callable.arguments(), callable, _of: of }
    }

    /// The next argument.
    #[must_use]
    pub fn arg<T: Serialize + ?Sized>(mut self, value: &T) -> PythonCall {
        self.arguments.push_value(value);
        self
    }

    /// The next argument: the value of a ref.
    #[must_use]
    pub fn arg_ref<T: Serialize>(mut self, object: &ObjectRef<T>) -> PythonCall {
        self.arguments.push::<T>(Arg::Ref(object.clone()));
        self
    }

    /// Starts it. Its result is to be a `T`.
    pub fn remote<T>(self) -> ObjectRef<T> {
        Results::of(self.callable.submit(self.arguments, None)).one()
    }

    /// Starts a generator function. Its items are to be `T`s.
    pub fn stream<T>(mut self) -> Stream<T> {
        let template =
            TaskTemplate { stream: Some(Options::new().stream()), ..(*self.callable.template).clone() };
        self.callable.template = Arc::new(template);
        Results::of(self.callable.submit(self.arguments, None)).stream()
    }
}
