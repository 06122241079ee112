//! Placement groups: resources set aside together.

use std::sync::Arc;
use std::time::Duration;

use client_runtime::{Call, Kind};
use cluster_types::task::{GroupStrategy, GroupTraits};
use cluster_types::{Amount, ObjectId, Refs, Resources, TaskKind, TaskTemplate};

use crate::object::{Live, ObjectRef};
use crate::{Error, Result, codec, current};

/// What one node is to set aside for a group.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    resources: Vec<(String, f64)>,
}

impl Bundle {
    /// Nothing yet.
    pub fn new() -> Bundle {
        Bundle::default()
    }

    /// Cores.
    #[must_use]
    pub fn cpus(self, number: f64) -> Bundle {
        self.resource("CPU", number)
    }

    /// GPUs.
    #[must_use]
    pub fn gpus(self, number: f64) -> Bundle {
        self.resource("GPU", number)
    }

    /// Any resource, by its name.
    #[must_use]
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Bundle {
        self.resources.push((name.into(), amount));
        self
    }

    fn request(&self) -> Result<Resources> {
        let mut request = Resources::default();
        for (name, number) in &self.resources {
            let amount = Amount::from_f64(*number)
                .map_err(|error| Error::Misuse(format!("the bundle's resource {name:?} {error}")))?;
            match name.as_str() {
                "CPU" => request.cpu = amount,
                "GPU" => request.gpu = amount,
                "memory" => request.memory = amount,
                _ => request.set_custom(name, amount),
            }
        }
        request.check_request().map_err(|error| Error::Misuse(format!("the bundle's GPUs {error}")))?;
        Ok(request)
    }
}

/// Resources set aside together, all or none, for tasks and actors that name the group
/// ([`crate::Options::placement_group`]). It is there until [`PlacementGroup::remove`], or until its program ends.
#[derive(Clone, Debug)]
pub struct PlacementGroup {
    made: ObjectRef<()>,
}

impl PlacementGroup {
    /// Asks for one; returns at once. See [`PlacementGroup::wait`].
    ///
    /// # Errors
    /// If the bundles make no sense, or there is no connection.
    pub fn new(bundles: &[Bundle], strategy: GroupStrategy) -> Result<PlacementGroup> {
        if bundles.is_empty() {
            return Err(Error::Misuse("a placement group has one bundle or more".to_owned()));
        }
        let client = current::client()?;
        let bundles = bundles.iter().map(Bundle::request).collect::<Result<Vec<_>>>()?;
        let traits = GroupTraits { strategy, bundles, ..GroupTraits::default() };
        let template = Arc::new(TaskTemplate {
            name: "placement group".into(),
            num_returns: 1,
            kind: TaskKind::Group(Arc::new(traits)),
            ..TaskTemplate::default()
        });
        let (payload, _) = codec::parcel(&client, codec::parts(Kind::BINCODE, &())?)?;
        let (deps, borrowed) = (Refs::new(), Refs::new());
        let call = Call { template, payload, deps, borrowed, within: None, job: None };
        let results = client.submit(call, &mut current::interrupt)?;
        let id = *results.first().ok_or_else(|| Error::Misuse("the group has no ref".to_owned()))?;
        Ok(PlacementGroup { made: ObjectRef::of(&client, id) })
    }

    /// Waits until all is set aside; false: it is not yet, after so long.
    ///
    /// # Errors
    /// If it can never be, or was removed.
    pub fn wait(&self, patience: Duration) -> Result<bool> {
        match self.made.get_timeout(patience) {
            Ok(()) => Ok(true),
            Err(Error::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives back what it holds. What runs in it is ended at once and fails, and so does what waits for it.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn remove(&self) -> Result<()> {
        let live: &Live = self.made.live()?;
        Ok(live.client.kill(live.id, false)?)
    }

    pub(crate) fn id(&self) -> Result<ObjectId> {
        Ok(self.made.live()?.id)
    }
}
