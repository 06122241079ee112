//! A wait for several values is over when one of them has failed: nobody waits an hour for the others to be told.

use client_core::ClientCore;
use cluster_types::{ObjectId, Set};

use crate::waiting::For;

/// Looks for a failed one among what a `get` waits for. Each look costs as much as failed since the last, of this process's
/// objects altogether; what is waited for is gone through once, or when very much failed at once.
pub(crate) struct Failing<'a> {
    objects: &'a [ObjectId],
    /// How many had failed at the last look; `None` before the first.
    seen: Option<u64>,
    /// What is waited for, made when it is needed.
    awaited: Option<Set<ObjectId>>,
}

impl<'a> Failing<'a> {
    pub(crate) fn new(objects: &'a [ObjectId]) -> Self {
        Self { objects, seen: None, awaited: None }
    }

    /// One that has failed. `left`: those that have no value yet.
    pub(crate) fn look(&mut self, core: &ClientCore, left: &[ObjectId]) -> Option<ObjectId> {
        if self.objects.len() < 2 {
            return None;
        }
        let before = self.seen.replace(core.failures());
        let all = || left.iter().copied().find(|&object| core.has_failed(object));
        match before {
            Some(seen) if seen == core.failures() => None,
            Some(seen) => match core.failed_since(seen) {
                Some(mut failed) => {
                    let awaited = self.awaited.get_or_insert_with(|| self.objects.iter().copied().collect());
                    failed.find(|&object| awaited.contains(&object) && core.has_failed(object))
                }
                None => all(),
            },
            None => all(),
        }
    }

    /// What to wait for, beside this value.
    pub(crate) fn or_here(&self, object: ObjectId) -> For {
        match self.seen {
            Some(seen) => For::HereOrFailed(object, seen),
            None => For::Here(object),
        }
    }
}
