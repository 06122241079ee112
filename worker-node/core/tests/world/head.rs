//! A head, as far as one node can tell.

use super::*;

impl World {
    pub(super) fn head_hears(&mut self, message: NodeToHead) {
        match message {
            // Only a head of another term asks for these.
            NodeToHead::Kept { .. }
            | NodeToHead::Running { .. }
            | NodeToHead::Made(_)
            | NodeToHead::Told { .. }
            | NodeToHead::Lives { .. }
            | NodeToHead::Ended { .. }
            | NodeToHead::SnapshotEnd
            | NodeToHead::Mark { .. } => {}
            NodeToHead::Submit(spec) => {
                for result in (0..spec.template.num_returns).map(|index| spec.id.result(index)) {
                    *self.head.holds.entry(result).or_default() += 1;
                }
                for object in spec.held() {
                    *self.head.holds.entry(object).or_default() += 1;
                }
                if self.head.tasks.insert(spec.id, (Arc::new(spec), 0, HeadTask::Queued)).is_some() {
                    self.fail("a task was submitted twice");
                }
            }
            NodeToHead::Escaped { object, size, inline, .. } => {
                *self.head.holds.entry(object).or_default() += 1;
                self.head.values.insert(object, (inline.ok_or(size), true));
                self.available(object);
            }
            NodeToHead::Hold { objects, .. } => {
                for object in objects {
                    *self.head.holds.entry(object).or_default() += 1;
                }
            }
            NodeToHead::Drop { objects, .. } => objects.into_iter().for_each(|object| self.unhold(object)),
            NodeToHead::Done { task, attempt, outcome, retry, started, .. } => {
                self.done(task, attempt, outcome, retry, started);
            }
            NodeToHead::Returned(attempts) => {
                for (task, attempt) in attempts {
                    match self.head.tasks.get_mut(&task) {
                        Some((_, n, state @ HeadTask::Prefetched { called_back: true }))
                            if *n == attempt.n =>
                        {
                            *state = HeadTask::Queued;
                        }
                        other => {
                            let other = format!("{other:?}");
                            self.fail(&format!("{task} was returned, but is {other}"));
                        }
                    }
                }
            }
            NodeToHead::Blocked { task, attempt, .. } | NodeToHead::Unblocked { task, attempt } => {
                match self.head.tasks.get(&task) {
                    Some((_, n, HeadTask::Leased)) if *n == attempt.n => {}
                    other => self.fail(&format!("{task} is blocked, but {other:?}")),
                }
            }
            NodeToHead::Locate(object) | NodeToHead::SourceFailed { object, .. } => {
                self.head.asked.push(object)
            }
            NodeToHead::Durable { .. } | NodeToHead::DurableLost { .. } => {}
            NodeToHead::CopyAdded(object) => {
                if self.head.gone.contains(&object) {
                    self.answers.push_back(Event::FromHead(HeadToNode::Free(vec![object])));
                }
            }
            NodeToHead::CopyRemoved(object) => {
                if let Some((_, here)) = self.head.values.get_mut(&object) {
                    *here = false;
                }
            }
            NodeToHead::ClientGone { client } => {
                let mine: Vec<TaskId> =
                    self.head.tasks.keys().copied().filter(|task| task.client == client).collect();
                for task in mine {
                    let (_, n, state) = &self.head.tasks[&task];
                    if *state != HeadTask::Queued {
                        let attempt = Attempt { term: 1, n: *n };
                        let reason = "its submitter is gone".to_owned();
                        self.answers.push_back(Event::FromHead(HeadToNode::Cancel {
                            task,
                            attempt,
                            reason,
                            force: true,
                        }));
                    } else {
                        let failure = failure(FailureKind::Cancelled, "gone");
                        self.end_task(task, FinishedOutcome::Failed(failure));
                    }
                }
            }
            NodeToHead::ClientAttached { .. }
            | NodeToHead::Heartbeat { .. }
            | NodeToHead::Log(_)
            | NodeToHead::Query { .. }
            | NodeToHead::Cancel { .. }
            | NodeToHead::Yielded { .. }
            | NodeToHead::Taken { .. }
            | NodeToHead::Expect(_)
            | NodeToHead::PutFailed { .. }
            | NodeToHead::SubmitAgain { .. }
            | NodeToHead::Called(_)
            | NodeToHead::FindActor(_)
            | NodeToHead::Confirm(_)
            | NodeToHead::Promote(_)
            | NodeToHead::Kill { .. }
            | NodeToHead::Unanswered { .. }
            | NodeToHead::Jobs(_)
            | NodeToHead::Drain { .. } => {}
        }
    }

    pub(super) fn done(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        outcome: Outcome,
        retry: Retry,
        started: Option<(TaskId, Attempt)>,
    ) {
        let Some((spec, n, state)) = self.head.tasks.get(&task).cloned() else {
            if self.head.ended.contains(&task) {
                self.fail(&format!("TASK-1: {task} ended twice"));
            }
            self.fail(&format!("an unknown task {task} ended"));
        };
        if attempt.n != n || state == HeadTask::Queued {
            self.fail(&format!("TASK-1: attempt {attempt} of {task} ended, the current is #{n}, {state:?}"));
        }
        let leased = state == HeadTask::Leased;
        match started {
            Some((next, next_attempt)) => {
                if !leased {
                    self.fail(&format!("{next} inherits from {task}, which had no lease"));
                }
                match self.head.tasks.get_mut(&next) {
                    Some((_, n, state @ HeadTask::Prefetched { .. })) if *n == next_attempt.n => {
                        *state = HeadTask::Leased
                    }
                    // A grant crossed it: the head keeps the inherited lease and frees the granted one.
                    Some((_, n, HeadTask::Leased)) if *n == next_attempt.n => self.head.free_leases += 1,
                    other => {
                        let other = format!("{other:?}");
                        self.fail(&format!("{next} inherits, but is {other}"));
                    }
                }
            }
            None if leased => self.head.free_leases += 1,
            None => {}
        }
        if retry != Retry::No && n < 4 && self.processes.contains_key(&task.client) {
            if let Some((_, _, state)) = self.head.tasks.get_mut(&task) {
                *state = HeadTask::Queued;
            }
            return;
        }
        let outcome = match outcome {
            Outcome::Ok(results) => {
                if results.len() != spec.template.num_returns as usize {
                    self.fail("a task ended well with a wrong number of results");
                }
                for (index, result) in (0..).zip(&results) {
                    let value = match &result.value {
                        ResultValue::Inline(bytes) => Ok(bytes.clone()),
                        ResultValue::Stored { size } => Err(*size),
                    };
                    self.head.values.insert(task.result(index), (value, true));
                }
                FinishedOutcome::from(&Outcome::Ok(results))
            }
            Outcome::Failed(failure) => FinishedOutcome::Failed(failure),
        };
        self.end_task(task, outcome);
    }

    pub(super) fn end_task(&mut self, task: TaskId, outcome: FinishedOutcome) {
        let Some((spec, _, _)) = self.head.tasks.remove(&task) else { return };
        self.head.ended.insert(task);
        self.answers.push_back(Event::FromHead(HeadToNode::Finished { task, outcome }));
        for object in (0..spec.template.num_returns).map(|index| task.result(index)) {
            if !self.processes.contains_key(&task.client) && self.head.holds.contains_key(&object) {
                self.unhold(object);
            }
            self.available(object);
        }
        for object in spec.held().collect::<Vec<_>>() {
            self.unhold(object);
        }
    }

    pub(super) fn unhold(&mut self, object: ObjectId) {
        let Some(holds) = self.head.holds.get_mut(&object) else {
            // The head makes nothing of it.
            return;
        };
        *holds -= 1;
        if *holds == 0 {
            self.head.holds.remove(&object);
            self.head.gone.insert(object);
            if self.head.values.remove(&object).is_some() {
                self.answers.push_back(Event::FromHead(HeadToNode::Free(vec![object])));
            }
        }
    }

    /// It exists; if nobody can reach it any more, it goes at once.
    pub(super) fn available(&mut self, object: ObjectId) {
        if !self.head.holds.contains_key(&object) {
            self.head.gone.insert(object);
            if self.head.values.remove(&object).is_some() {
                self.answers.push_back(Event::FromHead(HeadToNode::Free(vec![object])));
            }
        }
    }

    pub(super) fn located(&mut self, object: ObjectId) -> Option<Located> {
        if let Some((value, here)) = self.head.values.get(&object) {
            return Some(match value {
                Ok(bytes) => Located::Inline(bytes.clone()),
                Err(size) => {
                    let mut copies = vec![(OTHER, "other:1".to_owned())];
                    if *here {
                        copies.insert(0, (NODE, "here:1".to_owned()));
                    }
                    Located::Stored { size: *size, copies }
                }
            });
        }
        let pending = object.task().is_some_and(|(task, _)| self.head.tasks.contains_key(&task));
        (!pending).then(|| Located::Failed(failure(FailureKind::ObjectFreed, "gone")))
    }

    /// One thing that a head does.
    pub fn head_acts(&mut self) {
        if !self.head.up {
            return self.admit();
        }
        match self.random.below(8) {
            0 | 1 => {
                // Answers what was asked, where there is an answer.
                let asked = std::mem::take(&mut self.head.asked);
                for object in asked {
                    match self.located(object) {
                        Some(located) => self.head_says(HeadToNode::Located { object, located }),
                        None => self.head.asked.push(object),
                    }
                }
            }
            2..=4 => self.assign(),
            5 => {
                let prefetched = self.in_state(|state| matches!(state, HeadTask::Prefetched { .. }));
                if let Some(task) = self.random.pick(&prefetched)
                    && self.head.free_leases > 0
                {
                    self.head.free_leases -= 1;
                    let attempt = self.set(task, HeadTask::Leased);
                    self.head_says(HeadToNode::Grant { task, attempt, lease: Lease::default() });
                }
            }
            6 => {
                let prefetched = self.in_state(|state| *state == HeadTask::Prefetched { called_back: false });
                let some: Vec<TaskId> = prefetched.into_iter().filter(|_| self.random.chance(2)).collect();
                let attempts: Vec<(TaskId, Attempt)> = some
                    .into_iter()
                    .map(|task| (task, self.set(task, HeadTask::Prefetched { called_back: true })))
                    .collect();
                if !attempts.is_empty() {
                    self.head_says(HeadToNode::CallBack(attempts));
                }
            }
            _ => {
                let sent = self.in_state(|state| *state != HeadTask::Queued);
                if self.random.chance(4)
                    && let Some(task) = self.random.pick(&sent)
                {
                    let attempt = Attempt { term: 1, n: self.head.tasks[&task].1 };
                    let force = self.random.chance(3);
                    self.head_says(HeadToNode::Cancel { task, attempt, reason: "asked to".into(), force });
                }
            }
        }
    }

    pub(super) fn in_state(&self, which: impl Fn(&HeadTask) -> bool) -> Vec<TaskId> {
        self.head.tasks.iter().filter(|(_, (_, _, state))| which(state)).map(|(task, _)| *task).collect()
    }

    pub(super) fn set(&mut self, task: TaskId, to: HeadTask) -> Attempt {
        match self.head.tasks.get_mut(&task) {
            Some((_, n, state)) => {
                *state = to;
                Attempt { term: 1, n: *n }
            }
            None => Attempt::default(),
        }
    }

    pub(super) fn assign(&mut self) {
        let ready: Vec<TaskId> = self
            .in_state(|state| *state == HeadTask::Queued)
            .into_iter()
            .filter(|task| {
                // DEP-1 at the head: what it depends on exists, or has failed.
                self.head.tasks[task].0.needed().all(|object| {
                    object.task().is_none_or(|(maker, _)| !self.head.tasks.contains_key(&maker))
                })
            })
            .collect();
        let Some(task) = ready.first().copied() else { return };
        let prefetched = self.in_state(|state| matches!(state, HeadTask::Prefetched { .. })).len();
        let lease = self.head.free_leases > 0 && !self.random.chance(5);
        if !lease && prefetched > 40 {
            return;
        }
        let spec = self.head.tasks[&task].0.clone();
        let needed: Vec<ObjectId> = spec.needed().collect();
        if needed.iter().any(|object| !self.head.values.contains_key(object)) {
            let failure = failure(FailureKind::ObjectLost, "an argument failed");
            return self.end_task(task, FinishedOutcome::Failed(failure));
        }
        if let Some((_, n, state)) = self.head.tasks.get_mut(&task) {
            *n += 1;
            *state = if lease { HeadTask::Leased } else { HeadTask::Prefetched { called_back: false } };
        }
        let attempt = Attempt { term: 1, n: self.head.tasks[&task].1 };
        if lease {
            self.head.free_leases -= 1;
        }
        let mut located = Vec::new();
        for object in needed {
            let known = object == spec.template.function && !self.head.hinted_functions.insert(object);
            if !known && let Some(at) = self.located(object) {
                located.push((object, at));
            }
        }
        let lease = lease.then(Lease::default);
        self.head_says(HeadToNode::Assign { spec, attempt, lease, located });
    }
}
