//! Remote functions, as their callers see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_runtime::{Call, Client, Kind};
use cluster_types::{JobId, ObjectId, Refs, TaskKind, TaskTemplate};
use parking_lot::Mutex;
use serde::Serialize;

use crate::object::{Live, ObjectRef};
use crate::options::Options;
use crate::stream::Stream;
use crate::{Error, Result, codec, current, program};

/// An argument of a remote call: a value, or the ref of one, whose value the task gets.
pub enum Arg<T> {
    /// The value itself.
    Value(T),
    /// A ref of it.
    Ref(ObjectRef<T>),
}

impl<T> From<T> for Arg<T> {
    fn from(value: T) -> Arg<T> {
        Arg::Value(value)
    }
}

impl<T> From<ObjectRef<T>> for Arg<T> {
    fn from(object: ObjectRef<T>) -> Arg<T> {
        Arg::Ref(object)
    }
}

impl From<&str> for Arg<String> {
    fn from(text: &str) -> Arg<String> {
        Arg::Value(text.to_owned())
    }
}

impl<T> From<&ObjectRef<T>> for Arg<T> {
    fn from(object: &ObjectRef<T>) -> Arg<T> {
        Arg::Ref(object.clone())
    }
}

impl<A: crate::Element, D: ndarray::Dimension> From<ndarray::Array<A, D>> for Arg<crate::SharedArray<A, D>> {
    fn from(array: ndarray::Array<A, D>) -> Self {
        Arg::Value(array.into())
    }
}

/// Before a value among arguments, and before a place that a ref's value takes.
pub(crate) const IS_VALUE: u8 = 0;
pub(crate) const IS_REF: u8 = 1;

/// Arguments being written.
#[derive(Debug)]
pub struct Arguments {
    kind: Kind,
    bytes: Vec<u8>,
    /// Keeps the refs' handles until the call is made.
    refs: Vec<Live>,
    places: Vec<u32>,
    count: u32,
    writing: codec::Writing,
    error: Option<Error>,
}

impl Arguments {
    /// None yet.
    pub(crate) fn new(kind: Kind) -> Arguments {
        let (bytes, refs, places) = (Vec::with_capacity(64), Vec::new(), Vec::new());
        Arguments { kind, bytes, refs, places, count: 0, writing: codec::Writing::default(), error: None }
    }

    /// One more.
    pub fn push<T: Serialize>(&mut self, argument: impl Into<Arg<T>>) {
        if let Err(error) = self.try_push(argument.into()) {
            self.error.get_or_insert(error);
        }
    }

    /// One more, that is no ref.
    pub(crate) fn push_value<T: Serialize + ?Sized>(&mut self, value: &T) {
        if let Err(error) = self.try_push_value(value) {
            self.error.get_or_insert(error);
        }
    }

    fn try_push<T: Serialize>(&mut self, argument: Arg<T>) -> Result<()> {
        let is_plain = self.kind == Kind::PLAIN;
        match argument {
            Arg::Ref(object) => {
                self.refs.push(object.live()?.clone());
                self.places.push(self.count);
                self.bytes.push(if is_plain { rmp::Marker::Null.to_u8() } else { IS_REF });
            }
            Arg::Value(value) => return self.try_push_value(&value),
        }
        self.count += 1;
        Ok(())
    }

    fn try_push_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        if self.kind != Kind::PLAIN {
            self.bytes.push(IS_VALUE);
        }
        codec::with(&mut self.writing, || codec::append(self.kind, value, &mut self.bytes))?;
        self.count += 1;
        Ok(())
    }

    /// As a call's payload, with its refs.
    fn finish(self) -> Result<(codec::Parts, Refs, Vec<Live>)> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let deps: Refs = self.refs.iter().map(|live| live.id).collect();
        let mut in_band = self.bytes;
        if self.kind == Kind::PLAIN {
            // [places, args, kwargs]
            let mut whole = Vec::with_capacity(in_band.len() + 16);
            let write = |whole: &mut Vec<u8>| {
                rmp::encode::write_array_len(whole, 3)?;
                rmp::encode::write_array_len(whole, self.places.len() as u32)?;
                for place in &self.places {
                    rmp::encode::write_uint(whole, u64::from(*place))?;
                }
                rmp::encode::write_array_len(whole, self.count)?;
                whole.extend_from_slice(&in_band);
                rmp::encode::write_nil(whole).map_err(rmp::encode::ValueWriteError::InvalidMarkerWrite)
            };
            write(&mut whole)
                .map_err(|error| Error::Value(format!("the arguments cannot be written: {error}")))?;
            in_band = whole;
        }
        Ok((codec::Parts { kind: self.kind, in_band, writing: self.writing }, deps, self.refs))
    }
}

/// Something that can be called, with all that its calls share.
#[derive(Clone, Debug)]
pub struct Callable {
    pub(crate) client: Client,
    pub(crate) template: Arc<TaskTemplate>,
    kind: Kind,
}

impl Callable {
    pub(crate) fn new(client: Client, template: TaskTemplate, kind: Kind) -> Callable {
        Callable { client, template: Arc::new(template), kind }
    }

    /// For its arguments.
    pub fn arguments(&self) -> Arguments {
        Arguments::new(self.kind)
    }

    /// Calls it: its results.
    pub(crate) fn submit(&self, arguments: Arguments, job: Option<JobId>) -> Result<Vec<Live>> {
        // Until it is submitted, `held` keeps what they refer to.
        let (parts, deps, held) = arguments.finish()?;
        let (payload, inside) = codec::parcel(&self.client, parts)?;
        let mut borrowed = inside.ids();
        borrowed.retain(|id| !deps.contains(id));
        let call = Call { template: self.template.clone(), payload, deps, borrowed, within: None, job };
        let results = self.client.submit(call, &mut current::interrupt)?;
        drop((held, inside));
        Ok(results.iter().map(|&id| Live { client: self.client.clone(), id }).collect())
    }
}

/// What a call gave: a ref for each of its results.
#[derive(Debug)]
pub struct Results {
    results: std::result::Result<std::vec::IntoIter<Live>, Error>,
}

impl Results {
    pub(crate) fn of(results: Result<Vec<Live>>) -> Results {
        Results { results: results.map(Vec::into_iter) }
    }

    fn next(&mut self) -> Result<Live> {
        let none = || Error::Misuse("the call has no more results".to_owned());
        match &mut self.results {
            Ok(results) => results.next().ok_or_else(none),
            Err(error) => Err(error.clone()),
        }
    }

    /// The next one.
    pub fn one<T>(&mut self) -> ObjectRef<T> {
        ObjectRef::from_call(self.next())
    }

    /// What it yields.
    pub fn stream<T>(&mut self) -> Stream<T> {
        Stream::of(self.next())
    }
}

/// What an executor is to know of a task beside its arguments. In `TaskTemplate::retry_exceptions`, which only executors
/// read.
pub(crate) struct Entry<'a> {
    pub(crate) timeout: Option<f64>,
    pub(crate) retry_errors: bool,
    /// Which function or actor of the program.
    pub(crate) name: &'a str,
}

impl<'a> Entry<'a> {
    /// Begins as Python's does where there is a timeout: `T` and the seconds.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(seconds) = self.timeout {
            bytes.push(b'T');
            bytes.extend(seconds.to_be_bytes());
        }
        bytes.push(if self.retry_errors { b'R' } else { b'N' });
        bytes.extend(self.name.as_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Entry<'a>> {
        let (timeout, rest) = match bytes.split_first()? {
            (b'T', rest) => {
                let (seconds, rest) = rest.split_first_chunk()?;
                (Some(f64::from_be_bytes(*seconds)), rest)
            }
            _ => (None, bytes),
        };
        let (retry, name) = rest.split_first()?;
        Some(Entry { timeout, retry_errors: *retry == b'R', name: std::str::from_utf8(name).ok()? })
    }
}

/// What a function or actor of a program of ours is asked to run as.
pub(crate) fn template(
    options: &Options,
    shown: &str,
    entry: &str,
    cpus: f64,
    function: ObjectId,
    env_vars: BTreeMap<String, String>,
) -> Result<TaskTemplate> {
    let timeout = options.timeout.map(|timeout| timeout.as_secs_f64());
    let entry = Entry { timeout, retry_errors: options.retry_errors, name: entry };
    Ok(TaskTemplate {
        name: options.name.as_deref().unwrap_or(shown).into(),
        function,
        resources: options.request(cpus)?,
        num_returns: 1,
        max_retries: options.retries(),
        retry_exceptions: entry.encode().into(),
        env_vars,
        strategy: options.strategy()?,
        kind: TaskKind::Function,
        durable: options.durable,
        ..TaskTemplate::default()
    })
}

/// A function marked with `#[remote]`.
pub struct RemoteFunction {
    name: &'static str,
    entry: &'static str,
    num_returns: u32,
    streams: bool,
    defaults: fn() -> Options,
    /// As it was declared: made at its first call after each connect.
    declared: Mutex<Option<(u64, Callable)>>,
}

impl RemoteFunction {
    /// By what people call it, and by what its program finds it.
    pub const fn new(
        name: &'static str,
        entry: &'static str,
        num_returns: u32,
        streams: bool,
        defaults: fn() -> Options,
    ) -> RemoteFunction {
        RemoteFunction { name, entry, num_returns, streams, defaults, declared: Mutex::new(None) }
    }

    /// As it was declared.
    ///
    /// # Errors
    /// If there is no connection.
    pub fn callable(&self) -> Result<Callable> {
        let generation = current::generation();
        let mut known = self.declared.lock();
        if let Some((of, callable)) = &*known
            && *of == generation
        {
            return Ok(callable.clone());
        }
        let callable = self.with(&(self.defaults)())?;
        *known = Some((generation, callable.clone()));
        Ok(callable)
    }

    /// With options that differ from those declared.
    ///
    /// # Errors
    /// If they make no sense, or there is no connection.
    pub fn changed(&self, change: impl FnOnce(Options) -> Options) -> Result<Callable> {
        self.with(&change((self.defaults)()))
    }

    fn with(&self, options: &Options) -> Result<Callable> {
        let client = current::client()?;
        let (function, mut env_vars) = program::own(&client)?;
        env_vars.extend(options.env_vars.clone());
        let mut template = template(options, self.name, self.entry, 1.0, function, env_vars)?;
        template.num_returns = self.num_returns;
        template.stream = self.streams.then(|| options.stream());
        Ok(Callable::new(client, template, if options.plain { Kind::PLAIN } else { Kind::BINCODE }))
    }
}

/// Calls it.
pub fn call(callable: Result<Callable>, write: impl FnOnce(&mut Arguments)) -> Results {
    Results::of(callable.and_then(|callable| {
        let mut arguments = callable.arguments();
        write(&mut arguments);
        callable.submit(arguments, None)
    }))
}
