//! What only executors do: take tasks, run them, report.

use std::time::{Duration, Instant};

use cluster_store::slots::Tag;
use cluster_types::client_node::{
    Completion, DIRECT_SLOT, ExecutorFailure, ExecutorResult, NO_SLOT, PutValue,
};
use cluster_types::{ClientToNode, Refs};

use crate::shared::{Current, Inner};
use crate::waiting::{For, Manner, Step};
use crate::{Client, ClientError, Interrupt, Parcel, Task, Work};

/// While more tasks are at hand, completions are gathered up to this many.
const COMPLETIONS: usize = 16;

enum Next {
    Run(u16, Task),
    Cancel(u64),
}

impl Inner {
    fn begin(&mut self, slot: u16, task: &Task) {
        let task_name = task.spec.template.name.clone();
        let once = task.spec.template.max_retries == 0;
        let (tag, task, thread) = (task.tag, task.spec.id, std::thread::current().id());
        let caller = self.callers.remove(&tag);
        let name = caller.map(|_| task_name);
        let said = self.core.outbox().said();
        self.running.insert(tag, Current { tag, slot, task, thread, caller, name, said, once });
    }
}

impl Client {
    /// The next thing to do; `None` when no more will come: end the process. Call it from the thread that runs tasks
    /// one at a time; a `get` or `wait` of that thread lends the task's CPU to others while it blocks. Calls of an
    /// actor that takes several at once may be given to other threads; their code names its task by its tag.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`] and [`ClientError::Forked`].
    pub fn next_work(&self, interrupt: Interrupt<'_>) -> Result<Option<Work>, ClientError> {
        let shared = self.shared();
        loop {
            let next = shared.wait_until(Manner::until(None), &mut *interrupt, |inner| {
                if let Some(tag) = inner.to_cancel.pop_front() {
                    return Ok(Step::Done(Some(Next::Cancel(tag))));
                }
                while inner.runs.front().is_some_and(|(slot, _)| *slot == DIRECT_SLOT)
                    && let Some((slot, task)) = inner.runs.pop_front()
                {
                    if !inner.refuse_cancelled(&task) {
                        inner.begin(slot, &task);
                        return Ok(Step::Done(Some(Next::Run(slot, task))));
                    }
                }
                Ok(match inner.runs.pop_front() {
                    Some((slot, task)) => {
                        if slot == NO_SLOT {
                            inner.begin(slot, &task);
                            // Cancelled on its way: it is told after the task.
                            if inner.cancels.contains_key(&task.tag) {
                                inner.to_cancel.push_back(task.tag);
                            }
                        }
                        Step::Done(Some(Next::Run(slot, task)))
                    }
                    None if inner.exit => Step::Done(None),
                    None => Step::Wait(For::Run),
                })
            });
            let (slot, task) = match next {
                Ok(Some(Next::Run(slot, task))) => (slot, task),
                Ok(Some(Next::Cancel(tag))) => return Ok(Some(Work::Cancel(tag))),
                // The daemon's end is the executor's.
                Ok(None) | Err(ClientError::ConnectionLost(_) | ClientError::Closed) => return Ok(None),
                Err(error) => return Err(error),
            };
            if slot == NO_SLOT || slot == DIRECT_SLOT {
                return Ok(Some(Work::Run(task)));
            }
            // Rule S3: whoever swaps first has it. One that was revoked is dropped here, and its values with it.
            let claimed = match (&shared.page, Tag::new(task.tag)) {
                (Some(page), Some(tag)) => page.claim(slot.into(), tag),
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !claimed {
                shared.lock().yields.remove(&task.tag);
                continue;
            }
            shared
                .helper
                .start(shared)
                .map_err(|error| ClientError::System(format!("no thread can be started: {error}")))?;
            shared.lock().begin(slot, &task);
            return Ok(Some(Work::Run(task)));
        }
    }

    /// Whether there is something to do without waiting for it.
    pub fn has_work(&self) -> bool {
        let inner = self.shared().lock();
        !inner.runs.is_empty() || !inner.to_cancel.is_empty()
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

    /// Who cancelled the task and why, as the daemon said. A signal overtakes what it said: waits for so long.
    pub fn cancel_reason(&self, tag: u64, patience: Duration) -> Option<String> {
        let shared = self.shared();
        let known = shared.lock().cancels.get(&tag).cloned();
        if known.is_some() || patience.is_zero() {
            return known;
        }
        let manner = Manner::until(Some(Instant::now() + patience));
        let said = shared.wait_until(manner, &mut || Ok(()), |inner| {
            Ok(inner.cancels.get(&tag).cloned().map_or(Step::Wait(For::Cancel(tag)), Step::Done))
        });
        said.ok()
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
        let Some(current) = inner.running.remove(&tag) else {
            return Err(ClientError::Misuse(format!("execution {tag} is none that runs here")));
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
        if let Some(caller) = current.caller {
            inner.answer(current, caller, Completion { tag, result, micros });
            inner.report_if_due(Instant::now());
            inner.gathered += 1;
            let arm = inner.report_at.is_some() && inner.duty.arm();
            let now = inner.runs.is_empty() || inner.gathered >= COMPLETIONS;
            if now {
                drop(inner);
                shared.flush();
            } else {
                shared.after_change(inner);
            }
            if arm {
                shared.helper.kick();
            }
            return Ok(());
        }
        inner.cancels.remove(&tag);
        inner.forget_yields(tag);
        if let (Some(page), Some(tag), false) = (&shared.page, Tag::new(tag), current.slot == NO_SLOT) {
            page.done(current.slot.into(), tag);
        }
        inner.core.push(ClientToNode::Completed(Completion { tag, result, micros }));
        inner.gathered += 1;
        // The next task may end this process, and what was not reported then counts as failed with it.
        if inner.runs.is_empty() || inner.gathered >= COMPLETIONS || current.once {
            drop(inner);
            shared.flush();
        } else {
            shared.after_change(inner);
        }
        Ok(())
    }
}
