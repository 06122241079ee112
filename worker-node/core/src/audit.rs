//! What must hold between steps; for tests, which call it after each.

use crate::attempts::Stage;
use crate::node::Node;

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
}
