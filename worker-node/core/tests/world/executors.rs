//! Executors: they attach, claim, run, block, complete and die.

use super::*;

impl World {
    pub(super) fn run(&mut self, client: ClientId, run: RunTask) {
        let Some(number) =
            self.executors.iter().find(|(_, known)| known.client == Some(client)).map(|(n, _)| *n)
        else {
            self.fail("a task was sent to what is no executor");
        };
        if run.tag == 0 || !self.tags.insert(run.tag) {
            self.fail("S3: a tag was used twice");
        }
        for (object, value) in &run.values {
            match value {
                Value::Local(location) => self.told(client, *object, *location),
                Value::Inline(_) => {}
                Value::Failed(_) => self.fail("DEP-1: a task was sent with an argument that failed"),
            }
        }
        let needed: BTreeSet<ObjectId> =
            run.spec.needed().filter(|object| *object != run.spec.template.function).collect();
        if needed.iter().any(|object| !run.values.iter().any(|(given, _)| given == object)) {
            self.fail("DEP-1: a task was sent without an argument");
        }
        let Some(known) = self.executors.get_mut(&number) else { return };
        let free = matches!(known.slots[usize::from(run.slot)], Slot::Empty | Slot::Revoked);
        if !free {
            self.fail("S3: a slot was offered that is in use");
        }
        if !known.inbox.is_empty() || known.running.is_some() {
            self.ahead += 1;
        }
        known.slots[usize::from(run.slot)] = Slot::Offered(run.tag);
        known.inbox.push_back(run);
    }

    /// One thing that an executor does.
    pub fn executor_acts(&mut self) {
        let all: Vec<u32> = self.executors.keys().copied().collect();
        let Some(number) = self.random.pick(&all) else { return };
        let known = &self.executors[&number];
        if known.told_exit {
            return self.exit_executor(number, "told to end");
        }
        let Some(client) = known.client else {
            if self.trouble && self.random.chance(10) {
                return self.exit_executor(number, "could not start");
            }
            return self.attach_executor(number);
        };
        if self.trouble && self.random.chance(60) {
            return self.exit_executor(number, "killed by signal 9 (SIGKILL)");
        }
        if known.running.is_none() {
            return self.claim(number, client);
        }
        let (tag, blocked) = (known.running.as_ref().map_or(0, |run| run.tag), known.blocked);
        if blocked || self.random.chance(12) {
            let message = match blocked {
                true => ClientToNode::Unblocked { tag },
                false => ClientToNode::Blocked { tag, on: vec![] },
            };
            if let Some(known) = self.executors.get_mut(&number) {
                known.blocked = !blocked;
            }
            return self.says(client, message);
        }
        self.complete(number, client);
    }

    pub(super) fn attach_executor(&mut self, number: u32) {
        self.next_client += 1;
        let client = ClientId(self.next_client);
        self.processes.insert(client, Process { shares_memory: true, ..Process::default() });
        if let Some(known) = self.executors.get_mut(&number) {
            known.client = Some(client);
        }
        let kind = ClientKind::Executor { executor: number };
        self.step(Event::ClientAttached { client, pid: number, kind, shares_memory: true });
    }

    pub(super) fn claim(&mut self, number: u32, client: ClientId) {
        let Some(known) = self.executors.get_mut(&number) else { return };
        let Some(run) = known.inbox.pop_front() else { return };
        let slot = &mut known.slots[usize::from(run.slot)];
        if *slot == Slot::Offered(run.tag) {
            *slot = Slot::Claimed(run.tag);
            self.ran += 1;
            let leased = matches!(self.head.tasks.get(&run.spec.id), Some((_, n, _)) if *n == run.attempt.n);
            known.running = Some(run);
            let _ = leased;
            return;
        }
        // Taken back: what it was lent is released all the same.
        for (object, value) in run.values {
            if matches!(value, Value::Local(_)) {
                self.release_once(client, object);
            }
        }
    }

    pub(super) fn release_once(&mut self, client: ClientId, object: ObjectId) {
        let Some(process) = self.processes.get_mut(&client) else { return };
        let Some((times, _)) = process.told.get_mut(&object) else { return };
        *times -= 1;
        if *times == 0 {
            process.told.remove(&object);
        }
        self.says(client, ClientToNode::Release(vec![object]));
    }

    pub(super) fn complete(&mut self, number: u32, client: ClientId) {
        let Some(known) = self.executors.get_mut(&number) else { return };
        let Some(run) = known.running.take() else { return };
        known.slots[usize::from(run.slot)] = Slot::Empty;
        let object = run.spec.id.result(0);
        let micros = if self.random.chance(10) { 20_000 } else { 50 };
        let result = if self.random.chance(12) {
            let failure = failure(FailureKind::Exception, "ValueError");
            Err(ExecutorFailure { failure, retryable: self.random.chance(2) })
        } else {
            let len = 5_000 + self.random.next() % 300_000;
            let stored = self.random.chance(2);
            let process = self.processes.get_mut(&client);
            let place = process.filter(|_| stored).and_then(|process| alloc(process, &self.segments, len));
            let value = match place {
                Some(location) => {
                    self.sealed.insert(location, (client, object));
                    PutValue::Stored(location)
                }
                None => PutValue::Inline(Bytes::from_static(b"result")),
            };
            Ok(vec![ExecutorResult { value, contains: Refs::new() }])
        };
        for (object, value) in run.values {
            if matches!(value, Value::Local(_)) && !self.random.chance(4) {
                self.release_once(client, object);
            }
        }
        self.says(client, ClientToNode::Completed(Completion { tag: run.tag, result, micros }));
        let wants = self
            .processes
            .get(&client)
            .is_some_and(|process| process.leased.is_empty() && process.asked_memory.is_none());
        if wants && self.random.chance(3) {
            if let Some(process) = self.processes.get_mut(&client) {
                process.asked_memory = Some(400_000);
            }
            self.says(client, ClientToNode::RequestMemory { bytes: 400_000 });
        }
    }

    pub(super) fn exit_executor(&mut self, number: u32, cause: &str) {
        let Some(known) = self.executors.remove(&number) else { return };
        let unstarted = known.slots.iter().filter_map(|slot| match slot {
            Slot::Offered(tag) => Some(*tag),
            _ => None,
        });
        let unstarted = unstarted.collect();
        self.step(Event::ExecutorExited { executor: number, cause: cause.into(), unstarted });
        if let Some(client) = known.client {
            self.end_client(client);
        }
        let _ = known.job;
    }
}
