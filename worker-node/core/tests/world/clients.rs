//! Drivers and what executors' code does.

use super::*;

impl World {
    pub(super) fn client_hears(&mut self, client: ClientId, message: NodeToClient) {
        if !self.processes.contains_key(&client) {
            self.fail(&format!("{client} is not attached, and is told {message:?}"));
        }
        match message {
            NodeToClient::Segment { segment, writable, .. } => {
                let Some(process) = self.processes.get_mut(&client) else { return };
                if writable {
                    process.leased.insert(segment, BTreeMap::new());
                    process.asked_memory = None;
                } else {
                    process.mapped.insert(segment);
                }
            }
            NodeToClient::NoMemory { .. } => {
                if let Some(process) = self.processes.get_mut(&client) {
                    process.asked_memory = None;
                }
            }
            NodeToClient::Ready { object, value } => {
                let Some(process) = self.processes.get_mut(&client) else { return };
                answered(&mut process.gets, object);
                if let Value::Local(location) = value {
                    self.told(client, object, location);
                }
            }
            NodeToClient::Finished { task, .. } => {
                let known =
                    self.processes.get_mut(&client).is_some_and(|process| process.unfinished.remove(&task));
                if !known {
                    self.fail(&format!("TASK-1: {task} finished twice"));
                }
            }
            NodeToClient::RangesFreed(ranges) => {
                for range in ranges {
                    self.nobody_sees(range, None);
                    match self.sealed.remove(&range) {
                        Some((writer, _)) if writer == client => {}
                        other => self.fail(&format!("{range:?} was freed to {client}, but is {other:?}")),
                    }
                    if let Some(process) = self.processes.get_mut(&client) {
                        process.leased.get_mut(&range.segment).map(|used| used.remove(&range.offset));
                    }
                }
            }
            NodeToClient::Evict { object } => {
                let Some((range, _)) =
                    self.sealed.iter().find(|(_, (writer, other))| *writer == client && *other == object)
                else {
                    // Dropped meanwhile; there is nothing left to free.
                    return self.answers.push_back(Event::FromClient {
                        client,
                        message: ClientToNode::Evicted { object, freed: true },
                    });
                };
                let range = *range;
                self.nobody_sees(range, Some(client));
                if !self.spilled.contains(&object) {
                    self.fail("an object was evicted that is not on disk");
                }
                let sees = self.random.chance(4);
                self.evict(client, object, range, !sees);
            }
            NodeToClient::RecallMemory => {
                let Some(process) = self.processes.get_mut(&client) else { return };
                let empty: Vec<SegmentId> =
                    process.leased.iter().filter(|(_, used)| used.is_empty()).map(|(id, _)| *id).collect();
                for segment in &empty {
                    process.leased.remove(segment);
                }
                if !empty.is_empty() {
                    let message = ClientToNode::ReturnMemory(empty);
                    self.answers.push_back(Event::FromClient { client, message });
                }
            }
            NodeToClient::Run(run) => self.run(client, *run),
            NodeToClient::Exit => {}
            NodeToClient::Rejected { .. }
            | NodeToClient::Welcome(_)
            | NodeToClient::Cancel { .. }
            | NodeToClient::Calls { .. }
            | NodeToClient::NoCalls { .. }
            | NodeToClient::CallsEnded { .. }
            | NodeToClient::Part { .. }
            | NodeToClient::FarCalls { .. }
            | NodeToClient::FarAnswer { .. }
            | NodeToClient::Called { .. }
            | NodeToClient::ForgetCalls(_)
            | NodeToClient::CancelOwn { .. }
            | NodeToClient::Serve { .. }
            | NodeToClient::CallerGone(_)
            | NodeToClient::Log(_)
            | NodeToClient::Notice { .. }
            | NodeToClient::Item { .. }
            | NodeToClient::Taken { .. }
            | NodeToClient::Reply { .. } => {}
        }
    }

    pub(super) fn told(&mut self, client: ClientId, object: ObjectId, location: Location) {
        let Some(process) = self.processes.get_mut(&client) else { return };
        if !process.shares_memory {
            self.fail("a client without shared memory was told a location");
        }
        let known =
            process.mapped.contains(&location.segment) || process.leased.contains_key(&location.segment);
        process.told.entry(object).or_insert((0, location)).0 += 1;
        if process.told[&object].1 != location {
            self.fail(&format!("{object} moved while {client} saw it"));
        }
        if !known {
            self.fail(&format!("{client} was told of {location:?} before it had the segment"));
        }
        let there =
            self.own.get(&location).copied().or(self.sealed.get(&location).map(|(_, object)| *object));
        if there != Some(object) {
            self.fail(&format!("{client} was told that {object} is at {location:?}, but there is {there:?}"));
        }
    }

    pub(super) fn evict(&mut self, client: ClientId, object: ObjectId, range: Location, freed: bool) {
        if freed {
            self.sealed.remove(&range);
            if let Some(process) = self.processes.get_mut(&client) {
                process.leased.get_mut(&range.segment).map(|used| used.remove(&range.offset));
                if let Some((times, _)) = process.told.remove(&object) {
                    let message = ClientToNode::Release(vec![object; times as usize]);
                    self.answers.push_back(Event::FromClient { client, message });
                }
            }
        }
        let message = ClientToNode::Evicted { object, freed };
        self.answers.push_back(Event::FromClient { client, message });
    }

    pub fn attach_driver(&mut self, shares_memory: bool) -> ClientId {
        self.next_client += 1;
        let client = ClientId(self.next_client);
        self.processes.insert(client, Process { shares_memory, is_driver: true, ..Process::default() });
        let (job, info) = (JobId(client.0 as u32), Arc::new(JobInfo::default()));
        let kind = ClientKind::Driver { job, info: info.clone() };
        self.step(Event::ClientAttached { client, pid: 1, kind, shares_memory });
        self.head_says(HeadToNode::Job { job, info });
        let function = self.put(client, Err(64));
        if let Some(function) = function {
            self.says(client, ClientToNode::Escape(vec![function]));
            if let Some(process) = self.processes.get_mut(&client) {
                process.private.remove(&function);
                process.held.insert(function);
            }
            self.templates.push(Arc::new(TaskTemplate {
                name: "f".into(),
                function,
                resources: Resources::cpus(1),
                num_returns: 1,
                max_retries: 3,
                retry_exceptions: Bytes::new(),
                env_vars: BTreeMap::new(),
                strategy: Default::default(),
                kind: Default::default(),
                ..TaskTemplate::default()
            }));
        }
        client
    }

    /// Puts something: so many bytes in the store, or (`Err`) inline.
    pub(super) fn put(&mut self, client: ClientId, size: Result<u64, u64>) -> Option<ObjectId> {
        let process = self.processes.get_mut(&client)?;
        let (value, at) = match size {
            Err(len) => (PutValue::Inline(Bytes::from(vec![7; len as usize % 64])), None),
            Ok(len) if !process.shares_memory => (PutValue::Inline(Bytes::from(vec![8; len as usize])), None),
            Ok(len) => {
                let Some(location) = alloc(process, &self.segments, len) else {
                    if process.asked_memory.is_none() {
                        process.asked_memory = Some(len);
                        self.says(client, ClientToNode::RequestMemory { bytes: len });
                    }
                    return None;
                };
                (PutValue::Stored(location), Some(location))
            }
        };
        process.seq += 1;
        let object = ObjectId::put(client, process.seq);
        process.private.insert(object, at);
        if let Some(at) = at {
            self.sealed.insert(at, (client, object));
        }
        self.says(client, ClientToNode::Put { object, value, contains: Refs::new() });
        Some(object)
    }

    /// One thing that a driver does, or an executor whose task uses the API.
    pub fn client_acts(&mut self) {
        let all: Vec<ClientId> = self.processes.keys().copied().collect();
        let Some(client) = self.random.pick(&all) else { return };
        let process = &self.processes[&client];
        let is_driver = process.is_driver;
        match self.random.below(10) {
            0..=2 if is_driver => self.submit(client),
            3 => {
                let size = 5_000 + self.random.next() % 900_000;
                let size = if self.random.chance(3) { Err(size % 4096) } else { Ok(size) };
                self.put(client, size);
            }
            4 => {
                let private: Vec<ObjectId> = self.processes[&client].private.keys().copied().collect();
                if let Some(object) = self.random.pick(&private) {
                    if let Some(process) = self.processes.get_mut(&client) {
                        process.private.remove(&object);
                        process.held.insert(object);
                    }
                    self.says(client, ClientToNode::Escape(vec![object]));
                }
            }
            5 | 6 => {
                // A client asks once.
                let held: Vec<ObjectId> = process
                    .held
                    .iter()
                    .chain(process.private.keys())
                    .copied()
                    .filter(|object| !process.gets.contains_key(object))
                    .collect();
                if let Some(object) = self.random.pick(&held)
                    && let Some(process) = self.processes.get_mut(&client)
                {
                    *process.gets.entry(object).or_default() += 1;
                    self.says(client, ClientToNode::Get(vec![object]));
                }
            }
            7 => {
                let told: Vec<ObjectId> = process.told.keys().copied().collect();
                if let Some(object) = self.random.pick(&told) {
                    self.release(client, object);
                }
            }
            _ => {
                // The handle goes: what it saw is released, then dropped.
                let functions: BTreeSet<ObjectId> =
                    self.templates.iter().map(|template| template.function).collect();
                let held: Vec<ObjectId> = process
                    .held
                    .iter()
                    .chain(process.private.keys())
                    .copied()
                    .filter(|object| !functions.contains(object) && !process.gets.contains_key(object))
                    .collect();
                if let Some(object) = self.random.pick(&held) {
                    self.drop_handle(client, object);
                }
            }
        }
    }

    pub(super) fn release(&mut self, client: ClientId, object: ObjectId) {
        let Some((times, _)) =
            self.processes.get_mut(&client).and_then(|process| process.told.remove(&object))
        else {
            return;
        };
        self.says(client, ClientToNode::Release(vec![object; times as usize]));
    }

    pub(super) fn drop_handle(&mut self, client: ClientId, object: ObjectId) {
        self.release(client, object);
        let Some(process) = self.processes.get_mut(&client) else { return };
        process.held.remove(&object);
        if let Some(Some(at)) = process.private.remove(&object)
            && self.sealed.get(&at) == Some(&(client, object))
        {
            // Its range is reused at once.
            self.sealed.remove(&at);
            process.leased.get_mut(&at.segment).map(|used| used.remove(&at.offset));
        }
        self.says(client, ClientToNode::Drop(vec![object]));
    }

    pub(super) fn submit(&mut self, client: ClientId) {
        let job = JobId(client.0 as u32);
        let Some(template) =
            self.templates.iter().find(|template| template.function.client == client).cloned()
        else {
            return;
        };
        let many = 1 + self.random.below(6);
        for _ in 0..many {
            let mut deps = Refs::new();
            let held: Vec<ObjectId> = self.processes[&client].held.iter().copied().collect();
            for _ in 0..self.random.below(4) {
                if self.random.chance(2)
                    && let Some(object) = self.random.pick(&held)
                {
                    deps.push(object);
                }
            }
            let Some(process) = self.processes.get_mut(&client) else { return };
            process.seq += 1;
            let id = TaskId { client, seq: process.seq };
            process.held.insert(id.result(0));
            process.unfinished.insert(id);
            let spec = TaskSpec {
                id,
                job,
                parent: None,
                template: template.clone(),
                payload: Payload::Inline(Bytes::from_static(b"args")),
                deps,
                borrowed: Refs::new(),
            };
            self.says(client, ClientToNode::Submit(spec));
        }
    }

    pub fn end_client(&mut self, client: ClientId) {
        let Some(process) = self.processes.remove(&client) else { return };
        for (object, at) in &process.private {
            if let Some(at) = at
                && self.sealed.get(at) == Some(&(client, *object))
            {
                self.sealed.remove(at);
            }
        }
        self.templates.retain(|template| template.function.client != client);
        let held: Vec<ObjectId> = process
            .held
            .iter()
            .copied()
            .filter(|object| object.task().is_none_or(|(task, _)| !self.head.tasks.contains_key(&task)))
            .collect();
        self.step(Event::ClientEnded { client });
        for object in held {
            self.unhold(object);
        }
    }

    pub fn end_a_driver(&mut self) {
        let drivers: Vec<ClientId> = self
            .processes
            .iter()
            .filter(|(_, process)| process.is_driver)
            .map(|(client, _)| *client)
            .collect();
        if let Some(client) = self.random.pick(&drivers) {
            self.end_client(client);
        }
    }
}
