//! Actors, as their callers see them.

use std::collections::HashMap;
use std::sync::Arc;

use client_runtime::{HandleSource, Kind};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{JobId, ObjectId, TaskKind, TaskTemplate};
use parking_lot::Mutex;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::function::{Arguments, Callable, Entry, Results, template};
use crate::object::{Live, read_reference, write_reference};
use crate::options::Options;
use crate::{Error, Result, current, program};

/// Begins what the cluster keeps of a Rust actor, for who looks it up.
pub(crate) const HANDLE: &[u8] = b"rust\n";

/// What a handle knows beside whose it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The type, with its module.
    pub(crate) class: String,
    pub(crate) max_task_retries: i32,
}

impl About {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = HANDLE.to_vec();
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<About> {
        serde_json::from_slice(bytes.strip_prefix(HANDLE)?).ok()
    }

    fn short(&self) -> &str {
        self.class.rsplit("::").next().unwrap_or(&self.class)
    }
}

/// A handle on an actor: on a value that lives in a process of its own, whose methods run there one after the other.
/// [`crate::remote`] on an `impl` block makes a typed one.
#[derive(Clone)]
pub struct Actor {
    made: Result<Live, Arc<Error>>,
    about: Arc<About>,
    /// Made at the first call of each.
    methods: Arc<Mutex<HashMap<String, Callable>>>,
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.made {
            Ok(live) => write!(f, "Actor({}, {})", self.about.class, live.id),
            Err(error) => write!(f, "Actor({}, {error})", self.about.class),
        }
    }
}

impl Actor {
    pub(crate) fn new(made: Result<Live>, about: About) -> Actor {
        Actor { made: made.map_err(Arc::new), about: Arc::new(about), methods: Arc::default() }
    }

    fn live(&self) -> Result<&Live> {
        self.made.as_ref().map_err(|error| (**error).clone())
    }

    /// Its id, as it prints everywhere.
    ///
    /// # Errors
    /// If it could not be asked for.
    pub fn id(&self) -> Result<String> {
        Ok(self.live()?.id.to_string())
    }

    /// Ends the actor, whoever has handles. `restart`: it may be made anew, as its options say.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn kill(&self, restart: bool) -> Result<()> {
        let live = self.live()?;
        Ok(live.client.kill(live.id, restart)?)
    }

    /// Calls a method: what the methods of typed handles do.
    #[doc(hidden)]
    pub fn call_with(
        &self,
        method: &str,
        num_returns: u32,
        streams: bool,
        write: impl FnOnce(&mut Arguments),
    ) -> Results {
        Results::of(self.method(method, num_returns, streams).and_then(|callable| {
            let mut arguments = callable.arguments();
            write(&mut arguments);
            callable.submit(arguments, None)
        }))
    }

    fn method(&self, method: &str, num_returns: u32, streams: bool) -> Result<Callable> {
        let live = self.live()?;
        let mut methods = self.methods.lock();
        if let Some(known) = methods.get(method) {
            return Ok(known.clone());
        }
        let entry = Entry { timeout: None, retry_errors: false, name: "" };
        let made = TaskTemplate {
            name: format!("{}.{method}", self.about.short()).into(),
            function: live.id,
            num_returns,
            max_retries: self.about.max_task_retries,
            retry_exceptions: entry.encode().into(),
            kind: TaskKind::Method { method: method.into(), group: "".into(), concurrent: false },
            stream: streams.then(|| Options::new().stream()),
            ..TaskTemplate::default()
        };
        let callable = Callable::new(live.client.clone(), made, Kind::BINCODE);
        methods.insert(method.to_owned(), callable.clone());
        Ok(callable)
    }
}

impl Serialize for Actor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The handle's object, in the middle of the value.
        struct Reference<'a>(&'a Live);
        impl Serialize for Reference<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                write_reference(self.0, serializer)
            }
        }
        let live = self.live().map_err(S::Error::custom)?;
        (Reference(live), &*self.about).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Actor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reference(Live);
        impl<'de> Deserialize<'de> for Reference {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read_reference(deserializer).map(Reference)
            }
        }
        let (reference, about): (Reference, About) = Deserialize::deserialize(deserializer)
            .map_err(|error| D::Error::custom(format!("it is no handle of an actor: {error}")))?;
        Ok(Actor::new(Ok(reference.0), about))
    }
}

/// A type whose `impl` block is marked with `#[remote]`.
pub struct RemoteClass {
    name: &'static str,
    entry: &'static str,
    defaults: fn() -> Options,
}

impl RemoteClass {
    /// By what people call it, and by what its program finds it.
    pub const fn new(name: &'static str, entry: &'static str, defaults: fn() -> Options) -> RemoteClass {
        RemoteClass { name, entry, defaults }
    }

    /// As they were declared.
    pub fn options(&self) -> Options {
        (self.defaults)()
    }

    /// Makes an actor.
    pub fn make(&self, options: Options, write: impl FnOnce(&mut Arguments)) -> Actor {
        let about = About { class: self.entry.to_owned(), max_task_retries: options.call_retries() };
        Actor::new(self.try_make(&options, &about, write), about)
    }

    fn try_make(&self, options: &Options, about: &About, write: impl FnOnce(&mut Arguments)) -> Result<Live> {
        let client = current::client()?;
        let (function, mut env_vars) = program::own(&client)?;
        env_vars.extend(options.env_vars.clone());
        let traits = options.actor(about.encode().into(), &client.welcome().info.namespace);
        let (name, namespace, detached) = (traits.name.clone(), traits.namespace.clone(), traits.detached);
        let mut template = template(options, self.name, self.entry, 0.0, function, env_vars)?;
        template.name = self.name.into();
        template.max_retries = options.restarts();
        template.kind = TaskKind::Actor(Arc::new(traits));
        let callable = Callable::new(client.clone(), template, Kind::BINCODE);
        let mut arguments = callable.arguments();
        write(&mut arguments);
        // It outlives the job that makes it, so it is one of its own (rule A6).
        let job = if detached { Some(random_job()?) } else { None };
        let made = callable.submit(arguments, job)?.into_iter().next();
        let made = made.ok_or_else(|| Error::Misuse("the actor has no handle".to_owned()))?;
        if !name.is_empty() {
            // The same stream carries both, so this is the answer to whether the name was free.
            let found = look_up(&namespace, &name)?;
            if found.is_some_and(|(live, _)| live.id != made.id) {
                return Err(Error::Misuse(format!(
                    "the name {name:?} is taken in namespace {namespace:?} by another actor: take another name, kill \
                     that actor, or get it by {}::named({name:?})",
                    self.name
                )));
            }
        }
        Ok(made)
    }

    /// The actor of this name, in this program's namespace.
    ///
    /// # Errors
    /// If there is none, or it is of another type or language.
    pub fn named(&self, name: &str) -> Result<Actor> {
        let namespace = current::client()?.welcome().info.namespace.clone();
        let Some((live, handle)) = look_up(&namespace, name)? else {
            return Err(Error::Misuse(format!(
                "there is no actor named {name:?} in namespace {namespace:?}: it was not made or has ended (see \
                 `cluster list actors`)"
            )));
        };
        match About::decode(&handle) {
            Some(about) if about.class == self.entry || about.short() == self.name => {
                Ok(Actor::new(Ok(live), about))
            }
            Some(about) => Err(Error::Misuse(format!(
                "the actor named {name:?} is a {}, no {}",
                about.class, self.entry
            ))),
            None => Err(Error::Misuse(format!(
                "the actor named {name:?} is Python's: call it by concurrent_ml::python::actor({name:?})"
            ))),
        }
    }
}

/// The actor of a name, and what is kept for handles on it.
pub(crate) fn look_up(namespace: &str, name: &str) -> Result<Option<(Live, Vec<u8>)>> {
    let client = current::client()?;
    let query = Query::NamedActor { namespace: namespace.to_owned(), name: name.to_owned() };
    let QueryReply::NamedActor(Some(found)) = client.query(query, None, &mut current::interrupt)? else {
        return Ok(None);
    };
    let id: ObjectId = found
        .actor
        .parse()
        .map_err(|_| Error::Misuse(format!("the cluster named an actor {:?}: that is no id", found.actor)))?;
    client.add_handle(id, HandleSource::Elsewhere);
    Ok(Some((Live { client, id }, found.handle)))
}

pub(crate) fn random_job() -> Result<JobId> {
    getrandom::u32().map(JobId).map_err(|error| Error::Misuse(format!("no random numbers: {error}")))
}
