//! What must hold between steps; for tests, which call it after each.

use crate::attempts::Stage;
use crate::node::Node;
use crate::objects::{Fetch, Memory, Writer};

impl Node {
    /// Checks the cross-references of everything this node believes.
    ///
    /// # Errors
    /// The first broken one, by name.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.audit_memory()?;
        self.audit_far()?;
        self.audit_remembered()?;
        let used: cluster_types::Amount = self.attempts.values().map(|known| known.cpu()).sum();
        if used != self.cpu_used {
            return Err(format!("S4: {used} cores are used, {} are counted", self.cpu_used));
        }
        for (id, assigned) in &self.attempts {
            match assigned.stage {
                Stage::Arguments => {
                    let waits = assigned.spec.needed().any(|object| {
                        self.objects.get(&object).is_some_and(|known| known.waiting_tasks.contains(id))
                    });
                    if !waits {
                        return Err(format!("DEP-1: {id} waits for arguments and none knows"));
                    }
                    if assigned.admission != self.memory.admissions.contains(id) {
                        return Err(format!("P5: whether {id} waits for memory is not certain"));
                    }
                    let stuck = |object| {
                        let known = self.objects.get(&object);
                        !assigned.admission
                            && known.is_some_and(|known| {
                                let found = known.disk && known.fetch == Fetch::Idle && !known.evicting;
                                found || known.fetch == Fetch::Waiting
                            })
                    };
                    if assigned.spec.needed().all(|object| {
                        stuck(object) || self.objects.get(&object).is_some_and(|known| known.is_here())
                    }) {
                        return Err(format!("P5: {id} waits for memory and nobody knows"));
                    }
                }
                Stage::Ready => {
                    let queued = if let Some(actor) = assigned.spec.called_actor() {
                        self.actors.get(&actor).is_some_and(|actor| actor.queue.contains(id))
                    } else if assigned.lease.is_some() {
                        self.pools.get(&assigned.pool).is_some_and(|pool| pool.waiting.contains(id))
                    } else {
                        self.ahead.get(&assigned.shape).is_some_and(|queue| queue.contains(id))
                    };
                    if !queued {
                        return Err(format!("TASK-1: {id} is ready and in no queue"));
                    }
                }
                Stage::Sent { executor, tag } => {
                    let sent = self.executors.get(&executor).is_some_and(|known| {
                        known.sent.iter().any(|sent| sent.tag == tag && sent.task == *id)
                            || known.ended.as_ref().is_some_and(|ended| ended.task == *id)
                    }) || self.durable.orphans.contains_key(id);
                    if !sent {
                        return Err(format!(
                            "TASK-2: {id} was sent to executor {executor}, which does not have it"
                        ));
                    }
                }
            }
        }
        for (id, known) in &self.objects {
            for (viewer, _) in &known.viewers {
                if !self.clients.get(viewer).is_some_and(|client| client.views.contains(id)) {
                    return Err(format!("P1: {id} is viewed by {viewer}, which does not know"));
                }
            }
        }
        Ok(())
    }

    /// What must hold between steps.
    pub(crate) fn audit_memory(&self) -> Result<(), String> {
        let leased: u64 = self
            .memory
            .segments
            .values()
            .filter(|segment| !segment.file_backed)
            .map(|segment| segment.len)
            .sum();
        if leased != self.memory.leased {
            return Err(format!("P2: {} bytes are leased, {} are counted", leased, self.memory.leased));
        }
        let mut live = 0;
        let mut own = self.memory.arriving.values().fold(0u64, |sum, size| sum.saturating_add(*size));
        for (id, known) in &self.objects {
            if known.can_spill() && !known.idle {
                return Err(format!("P4: {id} could go to disk and its turn never comes"));
            }
            if (known.fetch == Fetch::Arriving) != self.memory.arriving.contains_key(id) {
                return Err(format!("P5: {id} is {:?}, which its reserved memory denies", known.fetch));
            }
            if known.waits_for_memory() && !known.wanted {
                return Err(format!("P5: clients wait for {id}, and it does not wait for memory"));
            }
            let Some(Memory { location, writer }) = known.memory else { continue };
            live += location.len;
            match writer {
                Writer::Own => own += location.len,
                Writer::Client(client) if !self.clients.contains_key(&client) => {
                    return Err(format!("P1: {id} lies in memory of {client}, which is gone"));
                }
                Writer::Client(_) | Writer::Orphan => {
                    let listed = self.memory.segments.get(&location.segment);
                    let listed = listed.and_then(|segment| segment.objects.get(&location.offset));
                    if listed != Some(&(location.len, *id)) {
                        return Err(format!("P1: {id} is said to lie where {listed:?} does: {location:?}"));
                    }
                }
            }
        }
        if (live, own) != (self.memory.live, self.memory.own) {
            let counted = (self.memory.live, self.memory.own);
            return Err(format!(
                "P2: {live} bytes are live and {own} the daemon's own, counted are {counted:?}"
            ));
        }
        for (segment, known) in &self.memory.segments {
            let mut from = 0;
            for (offset, (len, id)) in &known.objects {
                if *offset < from || offset + len > known.len {
                    return Err(format!("P1: {id} lies over another, or beyond its segment {segment:?}"));
                }
                from = offset + len;
            }
            let listed = known.objects.values().map(|(_, id)| id);
            if let Some(id) = listed.into_iter().find(|id| {
                self.objects
                    .get(id)
                    .and_then(|known| known.memory)
                    .is_none_or(|at| at.location.segment != *segment)
            }) {
                return Err(format!("P1: {segment:?} is said to hold {id}, which is elsewhere"));
            }
        }
        Ok(())
    }
}
