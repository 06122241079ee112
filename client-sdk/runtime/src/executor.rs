//! What only executors do: take tasks, run them, report.

use cluster_store::slots::Tag;
use cluster_types::client_node::{Completion, ExecutorFailure, ExecutorResult, NO_SLOT, PutValue};
use cluster_types::{ClientToNode, Refs};

use crate::shared::Current;
use crate::waiting::{For, Manner, Step};
use crate::{Client, ClientError, Interrupt, Parcel, Task};

/// While more tasks are at hand, completions are gathered up to this many.
const COMPLETIONS: usize = 16;

impl Client {
    /// The next task to run, claimed; `None` when no more will come: end the process. Call it from the thread that
    /// runs the tasks; a `get` or `wait` of that thread lends the task's CPU to others while it blocks.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`] and [`ClientError::Forked`].
    pub fn next_task(&self, interrupt: Interrupt<'_>) -> Result<Option<Task>, ClientError> {
        let shared = self.shared();
        loop {
            let next = shared.wait_until(Manner::until(None), &mut *interrupt, |inner| {
                Ok(match inner.runs.pop_front() {
                    Some(run) => Step::Done(Some(run)),
                    None if inner.exit => Step::Done(None),
                    None => Step::Wait(For::Run),
                })
            });
            let (slot, task) = match next {
                Ok(Some(run)) => run,
                // The daemon's end is the executor's.
                Ok(None) | Err(ClientError::ConnectionLost(_) | ClientError::Closed) => return Ok(None),
                Err(error) => return Err(error),
            };
            // Rule S3: whoever swaps first has it. One that was revoked is dropped here, and its values with it.
            let claimed = match (&shared.page, Tag::new(task.tag)) {
                _ if slot == NO_SLOT => true,
                (Some(page), Some(tag)) => page.claim(slot.into(), tag),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !claimed {
                continue;
            }
            shared
                .helper
                .start(shared)
                .map_err(|error| ClientError::System(format!("no thread can be started: {error}")))?;
            shared.lock().current = Some(Current {
                tag: task.tag,
                slot,
                task: task.spec.id,
                thread: std::thread::current().id(),
            });
            return Ok(Some(task));
        }
    }

    /// User code of the task begins: from here on it can be cancelled.
    pub fn enter_user_code(&self, tag: u64) {
        if let (Some(page), Some(tag)) = (&self.shared().page, Tag::new(tag)) {
            page.enter(tag);
        }
    }

    /// User code has ended: nothing is raised any more.
    pub fn leave_user_code(&self) {
        if let Some(page) = &self.shared().page {
            page.leave();
        }
    }

    /// In the signal handler: whether the running task is to be cancelled. True once for each request.
    pub fn take_cancel(&self) -> bool {
        self.shared().page.as_ref().is_some_and(|page| page.take_cancel())
    }

    /// Who cancelled the task and why, if the daemon said so.
    pub fn cancel_reason(&self, tag: u64) -> Option<String> {
        self.shared().lock().cancels.get(&tag).cloned()
    }

    /// Reports how a task ended: one value per result with the refs inside it (each with a handle now; drop those
    /// after this), or the exception. Never waits.
    ///
    /// # Errors
    /// If the connection is of no use, or this is not the task that runs.
    pub fn complete(
        &self,
        tag: u64,
        result: Result<Vec<(Parcel, Refs)>, ExecutorFailure>,
        micros: u64,
    ) -> Result<(), ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        inner.usable()?;
        let Some(current) = inner.current.take_if(|current| current.tag == tag) else {
            return Err(ClientError::Misuse(format!("execution {tag} is not the one that runs here")));
        };
        let result = result.map(|values| {
            let results = (0..).zip(values).map(|(index, (parcel, contains))| {
                inner.core.share(&contains);
                let value = parcel.into_put_value();
                if let PutValue::Stored(location) = value {
                    inner.core.note_own_range(current.task.result(index), location);
                }
                ExecutorResult { value, contains }
            });
            results.collect()
        });
        // Refs that user code kept are held from before the task ends: its own holds end with it.
        inner.core.end_task_cover();
        inner.cancels.remove(&tag);
        if let (Some(page), Some(tag)) = (&shared.page, Tag::new(tag))
            && current.slot != NO_SLOT
        {
            page.done(current.slot.into(), tag);
        }
        inner.core.push(ClientToNode::Completed(Completion { tag, result, micros }));
        inner.gathered += 1;
        if inner.runs.is_empty() || inner.gathered >= COMPLETIONS {
            drop(inner);
            shared.flush();
        } else {
            shared.after_change(inner);
        }
        Ok(())
    }
}
