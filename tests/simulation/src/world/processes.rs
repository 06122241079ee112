//! Clients: what they are told, what they read, put and submit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use client_core::{HandleSource, Reading};
use cluster_store::alloc::Allocator;
use cluster_types::client_node::FinishedOutcome;
use cluster_types::{
    Amount, ClientId, ClientToNode, Failure, NodeToClient, ObjectId, Payload, Refs, Resources, TaskTemplate,
};

use super::{Arrival, Stream, World};
use crate::client::{Doing, decode, encode};

impl World {
    /// Sends what a process has to say, and takes back the memory it may use again.
    pub(crate) fn flush(&mut self, client: ClientId) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let node = process.node;
        let batch = process.core.take_batch();
        process.reuse_freed()?;
        for message in batch {
            if let ClientToNode::Submit(spec)
            | ClientToNode::SubmitAgain { spec, .. }
            | ClientToNode::CallFar(spec) = &message
            {
                self.submitted.insert(spec.id, client);
            }
            if let ClientToNode::CallFar(_) = message {
                self.report.direct += 1;
                self.report.far += 1;
            }
            self.say(Stream::FromClient(client), Arrival::FromClient { node, client, message });
        }
        self.send_calls(client);
        Ok(())
    }

    pub(super) fn at_client(&mut self, client: ClientId, message: NodeToClient) -> Result<(), String> {
        if let NodeToClient::CallsEnded { actor, .. } = &message {
            self.read_last_answers(client, *actor)?;
        }
        if !self.processes.contains_key(&client) {
            return Ok(());
        }
        self.hears_of_durable(&message);
        if let NodeToClient::FarAnswer { .. } = message {
            return self.far_answer(client, message);
        }
        if let NodeToClient::Finished { task, outcome } = &message {
            if !self.told.insert(*task) {
                return Err(format!("TASK-1: {client} was told twice that {task} ended"));
            }
            match outcome {
                FinishedOutcome::Ok(_) => {
                    self.report.finished += 1;
                    self.ended_well.insert(*task);
                }
                FinishedOutcome::Failed(failure) => {
                    self.report.failed += 1;
                    // A program may drop an actor that is not made yet.
                    let unwanted = failure.message.contains("nobody has a handle")
                        || failure.message.contains("was removed");
                    // An actor that lives on a machine which leaves dies with it at last.
                    let left = self.plan.drains > 0
                        && failure.kind == cluster_types::FailureKind::ActorDied
                        && failure.message.contains("it left");
                    if !self.plan.may_fail() && !unwanted && !left {
                        return Err(format!("{task} failed though nothing broke: {}", failure.message));
                    }
                }
            }
        }
        if let NodeToClient::Item { task, index, .. } = &message {
            self.item_told(*task, *index)?;
        }
        if let NodeToClient::Taken { tag, items, closed } = message
            && self.items_taken(client, tag, items, closed)
        {
            self.goes_on(client, tag);
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        match process.core.on_message(message) {
            None => {}
            Some(NodeToClient::Segment { segment, len, writable: true }) => {
                process
                    .allocator
                    .add_segment(segment, len)
                    .map_err(|error| format!("a segment is leased twice: {error}"))?;
                process.leased.insert(segment, len);
                process.served(len);
                self.puts_go_on(client)?;
            }
            Some(NodeToClient::Run(run)) => process.inbox.push_back(run),
            Some(NodeToClient::Calls { actor, in_order }) => process.core.calls_opened(actor, in_order),
            Some(NodeToClient::Called { in_order, spec }) => {
                return self.called(client, in_order, *spec);
            }
            Some(NodeToClient::ForgetCalls(caller)) => process.forget_calls(caller),
            Some(NodeToClient::Cancel { tag, .. }) => self.refuse_cancelled(client, tag),
            Some(NodeToClient::RecallMemory) => {
                let free = process.allocator.take_free_segments(0);
                for segment in &free {
                    process.leased.remove(segment);
                }
                if !free.is_empty() {
                    process.core.push(ClientToNode::ReturnMemory(free));
                }
            }
            Some(NodeToClient::Exit) => {
                if let (node, Some(executor)) = (process.node, process.executor) {
                    self.end_executor(node, executor, "exit code 0");
                    return Ok(());
                }
            }
            // Its job ended while it was being born.
            Some(NodeToClient::Rejected { .. }) if process.executor.is_some() => {
                let (node, executor) = (process.node, process.executor.unwrap_or_default());
                self.end_executor(node, executor, "exit code 1");
                return Ok(());
            }
            Some(NodeToClient::Rejected { reason }) => {
                return Err(format!("{client} was rejected: {reason}"));
            }
            Some(NodeToClient::NoMemory { failure, .. }) => {
                return Err(format!("{client} gets no memory: {}", failure.message));
            }
            Some(_) => {}
        }
        self.progress(client)?;
        self.flush(client)
    }

    pub(crate) fn progress(&mut self, client: ClientId) -> Result<(), String> {
        self.puts_go_on(client)?;
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        match &process.doing {
            Doing::Waiting { on, actions } => {
                let (on, actions) = (on.clone(), *actions);
                // A program that waits for the end of a stream that nobody reads waits for ever, in any cluster.
                self.read_all(client)?;
                let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
                // What was evicted meanwhile has to be asked for again.
                for object in &on {
                    process.core.want(*object, true);
                }
                if on.iter().all(|object| process.core.is_here(*object)) {
                    process.doing = Doing::Driving { actions };
                    for object in on {
                        self.check_read(client, object)?;
                    }
                    self.after(10, 500, Arrival::Act(client));
                }
            }
            Doing::Idle => self.next_task(client)?,
            Doing::Running { run, children, blocked: true } => {
                let children = children.clone();
                for child in &children {
                    process.core.want(*child, true);
                }
                if children.iter().all(|child| process.core.is_here(*child)) {
                    let tag = run.tag;
                    if let Doing::Running { blocked, .. } = &mut process.doing {
                        *blocked = false;
                    }
                    process.core.push(ClientToNode::Unblocked { tag });
                    self.after(1, 200, Arrival::Finish { client, tag });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The value is there: it must be this object's.
    pub(crate) fn check_read(&mut self, client: ClientId, object: ObjectId) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        match process.read(object) {
            None => return Err(format!("{object} was ready and cannot be read")),
            Some(Reading::Failed(failure)) => {
                let is_lost = failure.kind == cluster_types::FailureKind::ObjectLost;
                if is_lost && self.is_promised(object) {
                    return Err(format!("{object} is durable, and was said to be lost: {}", failure.message));
                }
                let removed = failure.message.contains("was removed");
                // What a task made comes again, unless that was a call, a stream, or what it needs is a put that is lost.
                // A small value goes with its home and a head that die at the same time.
                let may_be_lost = self.plan.crash_one_in > 0
                    || (self.plan.head_losses > 0
                        && self.plan.node_losses > 0
                        && !self.says_what_made_it_is_not_kept(&failure))
                    || self.plan.cuts > 0
                    || self.plan.actors
                    || self.plan.streams
                    || failure.message.contains("was put")
                    || failure.message.contains("is gone")
                    || self.plan.groups;
                if failure.kind == cluster_types::FailureKind::ObjectLost && !may_be_lost {
                    return Err(format!("{object} was not made again: {}", failure.message));
                }
                // An actor that lives on a machine which leaves dies with it at last.
                let left = self.plan.drains > 0 && failure.message.contains("it left");
                if !self.plan.may_fail() && !removed && !left {
                    return Err(format!("{object} failed though nothing broke: {}", failure.message));
                }
            }
            Some(Reading::Inline(bytes)) => {
                let ids = decode(&bytes);
                let [says, inner @ ..] = ids.as_slice() else { return Err(format!("{object} is empty")) };
                if *says != object && *says != ObjectId::default() {
                    return Err(format!("{object} reads as {says}"));
                }
                process.take_out(inner, HandleSource::Inside(object));
                self.report.read += 1;
            }
            Some(Reading::View(location)) => {
                let lies = self
                    .hosts
                    .get(&process.node)
                    .and_then(|host| host.memory.get(&(location.segment, location.offset)));
                if lies != Some(&object) {
                    return Err(format!("P1: {client} views {object} at {location:?}, where {lies:?} lies"));
                }
                process.core.drop_view(object);
                self.report.read += 1;
            }
        }
        Ok(())
    }

    /// Of something in the stores: what made that is kept by its submitter's node, whoever dies.
    pub(super) fn says_what_made_it_is_not_kept(&self, failure: &Failure) -> bool {
        failure.message.contains("is not kept")
            && self.sizes.keys().any(|stored| failure.message.contains(&format!("what {stored} was made of")))
    }

    pub(super) fn puts_go_on(&mut self, client: ClientId) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        process.reuse_freed()?;
        while let Some((size, contains)) = process.waiting_puts.front().cloned() {
            let Some(location) = process.allocator.alloc(size) else {
                // What came for it was used by another, or was recalled.
                let bytes = Allocator::segment_len(size);
                if !process.requested.iter().any(|asked| *asked >= bytes) {
                    process.request_memory(bytes);
                }
                break;
            };
            process.waiting_puts.pop_front();
            let node = process.node;
            for inner in &contains {
                process.core.drop_handle(*inner);
            }
            let object = process.put_stored(location, contains);
            process.refs.push(object);
            if let Some(host) = self.hosts.get_mut(&node) {
                host.memory.insert((location.segment, location.offset), object);
            }
        }
        Ok(())
    }

    pub(super) fn put(&mut self, client: ClientId, contains: Refs) {
        let large = self.random.one_in(2);
        let size = self.random.between(5_000, 6 << 20);
        let Some(process) = self.processes.get_mut(&client) else { return };
        if !large {
            let object = process.put_small(contains);
            process.refs.push(object);
            return;
        }
        // What is inside must live until the put is made.
        for inner in &contains {
            process.core.add_handle(*inner, HandleSource::Elsewhere);
        }
        process.waiting_puts.push_back((size, contains));
        process.request_memory(Allocator::segment_len(size));
    }

    /// A few of the refs that a process has.
    pub(crate) fn some_refs(&mut self, client: ClientId, most: u64) -> Refs {
        let count = self.random.between(0, most);
        let Some(process) = self.processes.get(&client) else { return Refs::new() };
        let mut refs = Refs::new();
        for _ in 0..count {
            if let Some(object) = self.random.pick(&process.refs)
                && !refs.contains(object)
            {
                refs.push(*object);
            }
        }
        refs
    }

    pub(super) fn submit(&mut self, client: ClientId) {
        let mut deps = self.some_refs(client, 2);
        if let Some(process) = self.processes.get(&client).filter(|process| process.executor.is_some()) {
            // A child that waits for a result of its own ancestor would wait for ever, in any cluster.
            deps.retain(|object| process.core.is_here(*object));
        }
        let borrowed = self.some_refs(client, 1);
        if !self.templates.contains_key(&client) {
            let Some(process) = self.processes.get_mut(&client) else { return };
            let function = process.put_small(Refs::new());
            process.function = Some(function);
            let mut templates = Vec::new();
            for (cpu, gpu, returns) in
                [(10_000, 0, 1), (5_000, 0, 2), (0, 0, 1), (10_000, 0, 1), (10_000, 0, 3)]
            {
                templates.push(Arc::new(TaskTemplate {
                    name: format!("f{returns}").into(),
                    function,
                    resources: Resources { cpu: Amount(cpu), gpu: Amount(gpu), ..Resources::default() },
                    num_returns: returns,
                    max_retries: 3,
                    retry_exceptions: Bytes::new(),
                    env_vars: BTreeMap::new(),
                    strategy: Default::default(),
                    kind: Default::default(),
                    durable: returns == 2,
                    ..TaskTemplate::default()
                }));
            }
            self.templates.insert(client, templates);
        }
        let is_driver = self.processes.get(&client).is_some_and(|process| process.executor.is_none());
        if self.plan.actors && is_driver {
            let dice = if self.plan.busy_actors { 6 } else { 11 };
            match self.random.between(0, dice) {
                0 => {
                    let function = self.templates[&client][0].function;
                    return self.make_actor(client, function);
                }
                // A task that called an actor and waited could wait for itself, in any cluster.
                1..=5 if self.call_actor(client) => return,
                _ => {}
            }
        }
        let template = self.random.pick(&self.templates[&client]).expect("there are templates").clone();
        if self.plan.groups && is_driver && self.use_groups(client, &template, &deps, &borrowed) {
            return;
        }
        if self.plan.streams && is_driver && self.random.one_in(5) {
            return self.submit_stream(client, &template, deps);
        }
        let Some(process) = self.processes.get_mut(&client) else { return };
        let payload = Payload::Inline(encode(ObjectId::default(), &borrowed));
        let (_, results) = process.core.submit(&template, payload, deps, borrowed, None);
        process.refs.extend(results);
    }

    /// A driver does the next thing.
    pub(super) fn act(&mut self, client: ClientId) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let Doing::Driving { actions } = &mut process.doing else { return Ok(()) };
        if *actions == 0 {
            return self.leave(client);
        }
        *actions -= 1;
        let actions = *actions;
        if self.plan.streams && self.random.one_in(3) && self.read_on(client)? {
            self.flush(client)?;
            self.after(1, 3_000, Arrival::Act(client));
            return Ok(());
        }
        if self.plan.cancels && self.random.one_in(6) {
            self.cancel_something(client);
        }
        match self.random.between(0, 9) {
            0..=4 => {
                for _ in 0..self.random.between(1, 8) {
                    self.submit(client);
                }
            }
            5 => {
                let contains = self.some_refs(client, 2);
                self.put(client, contains);
                self.ask_for_durable(client);
            }
            6 | 7 => {
                for _ in 0..self.random.between(1, 6) {
                    let Some(process) = self.processes.get_mut(&client) else { break };
                    if !process.refs.is_empty() {
                        let at = (self.random.bits() % process.refs.len() as u64) as usize;
                        process.drop_ref(at);
                    }
                }
            }
            _ => {
                let on: Vec<ObjectId> = self.some_refs(client, 4).to_vec();
                if let Some(process) = self.processes.get_mut(&client) {
                    for object in &on {
                        process.core.want(*object, true);
                    }
                    process.doing = Doing::Waiting { on, actions };
                }
                self.progress(client)?;
                return self.flush(client);
            }
        }
        self.flush(client)?;
        self.after(1, 3_000, Arrival::Act(client));
        Ok(())
    }

    /// A driver waits for all it submitted, drops everything, and goes.
    pub(super) fn leave(&mut self, client: ClientId) -> Result<(), String> {
        if !self.read_all(client)? {
            self.after(1_000, 2_000, Arrival::Act(client));
            return self.flush(client);
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        if process.core.unfinished() > 0 || !process.waiting_puts.is_empty() {
            self.after(1_000, 2_000, Arrival::Act(client));
            return Ok(());
        }
        while !process.refs.is_empty() {
            process.drop_ref(0);
        }
        for group in std::mem::take(&mut process.groups) {
            process.core.drop_handle(group);
        }
        if let Some(function) = process.function.take() {
            process.core.drop_handle(function);
        }
        process.doing = Doing::Gone;
        self.flush(client)?;
        let Some(process) = self.processes.get(&client) else { return Ok(()) };
        let (node, message) = (process.node, ClientToNode::Goodbye);
        self.say(Stream::FromClient(client), Arrival::FromClient { node, client, message });
        Ok(())
    }
}
