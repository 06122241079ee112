//! What tasks and actors ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_types::task::{InGroup, LabelMatch, LabelRule, LabelSelector, Strategy};
use cluster_types::{ActorTraits, Amount, Resources, StreamLimits};

use crate::group::PlacementGroup;
use crate::{Error, Result};

/// What a task or actor asks for: `square::options(Options::new().cpus(2.0)).remote(3)`.
///
/// Tasks ask for one CPU unless they say otherwise, actors for none.
#[derive(Clone, Debug, Default)]
pub struct Options {
    cpus: Option<f64>,
    gpus: f64,
    memory: u64,
    resources: BTreeMap<String, f64>,
    max_retries: Option<i32>,
    pub(crate) retry_errors: bool,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) env_vars: BTreeMap<String, String>,
    strategy: Strategy,
    group: Option<(PlacementGroup, Option<u32>)>,
    pub(crate) plain: bool,
    max_items: u32,
    max_bytes: u64,
    namespace: String,
    detached: bool,
    max_restarts: i32,
    max_task_retries: i32,
    pub(crate) durable: bool,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty => |$options:ident, $value:ident| $set:expr;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(self, $value: $kind) -> Self {
            let mut $options = self;
            $set;
            $options
        })*
    };
}

impl Options {
    /// As without any.
    pub fn new() -> Options {
        Options::default()
    }

    setters! {
        /// Cores; fractions are fine.
        cpus: f64 => |options, number| options.cpus = Some(number);
        /// GPUs; a fraction shares one.
        gpus: f64 => |options, number| options.gpus = number;
        /// Memory, in bytes.
        memory: u64 => |options, bytes| options.memory = bytes;
        /// How often it is tried again when its process or node was lost (3; -1 is without end).
        max_retries: i32 => |options, times| options.max_retries = Some(times);
        /// Whether what it returns as `Err`, and panics, count as failures to retry too.
        retry_errors: bool => |options, retry| options.retry_errors = retry;
        /// What people see. Of an actor: what it is found by, see [`crate::Actor::named`].
        name: impl Into<String> => |options, name| options.name = Some(name.into());
        /// How long it may run; then it is cancelled.
        timeout: Duration => |options, time| options.timeout = Some(time);
        /// Its results outlive every node.
        durable: bool => |options, durable| options.durable = durable;
        /// Results in the encoding that Python reads too.
        plain: bool => |options, plain| options.plain = plain;
        /// Of a task that yields: how many items it may be ahead of who takes them. 0: as many as it likes.
        max_items: u32 => |options, items| options.max_items = items;
        /// Of a task that yields: how many bytes of items it may be ahead.
        max_bytes: u64 => |options, bytes| options.max_bytes = bytes;
        /// Of an actor: where its name counts.
        namespace: impl Into<String> => |options, namespace| options.namespace = namespace.into();
        /// Of an actor: it lives until it is killed, whoever has handles.
        detached: bool => |options, detached| options.detached = detached;
        /// Of an actor: how often it is made anew when it died by no wish of anybody.
        max_restarts: i32 => |options, times| options.max_restarts = times;
        /// Of an actor: how often a call is tried again that may have run when the actor died.
        max_task_retries: i32 => |options, times| options.max_task_retries = times;
    }

    /// An amount of a resource of the cluster's own.
    #[must_use]
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.resources.insert(name.into(), amount);
        self
    }

    /// A variable of its process's environment.
    #[must_use]
    pub fn env_var(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env_vars.insert(name.into(), value.into());
        self
    }

    /// On as many nodes as there are.
    #[must_use]
    pub fn spread(mut self) -> Self {
        self.strategy = Strategy::Spread;
        self
    }

    /// On nodes whose label has this value.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let rule = LabelRule { key: key.into(), rule: LabelMatch::In(vec![value.into()]) };
        let mut selector = match self.strategy {
            Strategy::Labels(selector) => (*selector).clone(),
            _ => LabelSelector::default(),
        };
        selector.hard.push(rule);
        self.strategy = Strategy::Labels(Arc::new(selector));
        self
    }

    /// In what the group set aside; without a bundle, in any that has room.
    #[must_use]
    pub fn placement_group(mut self, group: &PlacementGroup, bundle: Option<u32>) -> Self {
        self.group = Some((group.clone(), bundle));
        self
    }

    pub(crate) fn request(&self, cpus: f64) -> Result<Resources> {
        let amount = |name: &str, number: f64| {
            Amount::from_f64(number).map_err(|error| Error::Misuse(format!("{name} {error}")))
        };
        let mut request = Resources {
            cpu: amount("cpus", self.cpus.unwrap_or(cpus))?,
            gpu: amount("gpus", self.gpus)?,
            memory: amount("memory", self.memory as f64)?,
            ..Resources::default()
        };
        for (name, number) in &self.resources {
            request.set_custom(name, amount(&format!("resource {name:?}"), *number)?);
        }
        request.check_request().map_err(|error| Error::Misuse(format!("gpus {error}")))?;
        Ok(request)
    }

    pub(crate) fn strategy(&self) -> Result<Strategy> {
        Ok(match &self.group {
            Some((group, bundle)) => {
                Strategy::Group(InGroup { group: group.id()?, bundle: *bundle, capture: false })
            }
            None => self.strategy.clone(),
        })
    }

    pub(crate) fn retries(&self) -> i32 {
        self.max_retries.unwrap_or(3)
    }

    pub(crate) fn stream(&self) -> StreamLimits {
        StreamLimits { max_items: self.max_items, max_bytes: self.max_bytes }
    }

    pub(crate) fn restarts(&self) -> i32 {
        self.max_restarts
    }

    pub(crate) fn call_retries(&self) -> i32 {
        self.max_task_retries
    }

    pub(crate) fn actor(&self, handle: bytes::Bytes, namespace: &str) -> ActorTraits {
        ActorTraits {
            name: self.name.clone().unwrap_or_default(),
            namespace: if self.namespace.is_empty() { namespace.to_owned() } else { self.namespace.clone() },
            detached: self.detached,
            max_restarts: self.max_restarts,
            max_concurrency: 1,
            groups: BTreeMap::new(),
            is_async: false,
            handle,
        }
    }
}
