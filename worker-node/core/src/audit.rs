//! What must hold between steps; for tests, which call it after each.

use cluster_types::{Location, ObjectId};

use crate::attempts::Stage;
use crate::node::Node;
use crate::objects::{Memory, Writer};

impl Node {
    /// Checks the cross-references of everything this node believes.
    ///
    /// # Errors
    /// The first broken one, by name.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.audit_memory()?;
        for (id, assigned) in &self.attempts {
            match assigned.stage {
                Stage::Arguments => {
                    let waits = assigned.spec.needed().any(|object| {
                        self.objects.get(&object).is_some_and(|known| known.waiting_tasks.contains(id))
                    });
                    if !waits {
                        return Err(format!("DEP-1: {id} waits for arguments and none knows"));
                    }
                }
                Stage::Ready => {
                    let queued = if assigned.lease.is_some() {
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
                    });
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
        let mut ranges: Vec<(Location, ObjectId)> =
            self.objects.iter().filter_map(|(id, known)| Some((known.memory?.location, *id))).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let (a, b) = (pair[0].0, pair[1].0);
            if a.segment == b.segment && a.offset + a.len > b.offset {
                return Err(format!("P1: {} and {} lie over each other: {a:?}, {b:?}", pair[0].1, pair[1].1));
            }
        }
        for (id, known) in &self.objects {
            if let Some(Memory { writer: Writer::Client(client), .. }) = known.memory
                && !self.clients.contains_key(&client)
            {
                return Err(format!("P1: {id} lies in memory of {client}, which is gone"));
            }
        }
        Ok(())
    }
}
