//! The world: who is there, what is on its way, and what happens when it arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use client_core::{HandleSource, Reading};
use cluster_store::alloc::Allocator;
use cluster_types::client_node::{
    Completion, DIRECT_BIT, DIRECT_SLOT, ExecutorResult, FinishedOutcome, NO_SLOT, PutValue, RunTask,
};
use cluster_types::query::{Query, QueryReply};
use cluster_types::{
    Amount, ClientId, ClientKind, ClientToNode, Failure, HeadToNode, Incarnation, JobId, JobInfo, NodeHello,
    NodeId, NodeToClient, NodeToHead, NodeToNode, ObjectId, PROTOCOL_VERSION, Payload, Refs, Resources, Span,
    TaskId, TaskSpec, TaskTemplate, Time, Value,
};
use head_core::Head;

use crate::client::{Doing, Process, decode, encode};
use crate::direct::Channels;
use crate::disk::HeadDisk;
use crate::host::{Executor, Host, Slot, no};
use crate::plan::{Plan, Report};
use crate::random::Random;
use crate::streams::Streams;
use crate::tunnels::{End, Tunnels};

/// Who talks to whom: the streams are ordered each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    ToHead(NodeId),
    ToNode(NodeId),
    FromClient(ClientId),
    ToClient(ClientId),
    Calls(ClientId, ClientId),
    Answers(ClientId, ClientId),
    Peer(NodeId, NodeId, bool),
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Arrival {
    HeadTick,
    NodeTick(NodeId),
    Connect(NodeId),
    AtHead {
        node: NodeId,
        incarnation: Incarnation,
        message: NodeToHead,
    },
    LinkClosed {
        node: NodeId,
        incarnation: Incarnation,
    },
    AtNode {
        node: NodeId,
        incarnation: Incarnation,
        message: HeadToNode,
    },
    FromClient {
        node: NodeId,
        client: ClientId,
        message: ClientToNode,
    },
    AtClient {
        client: ClientId,
        message: NodeToClient,
    },
    /// The edge of a node finished something.
    Done {
        node: NodeId,
        event: worker_core::Event,
    },
    Pulled {
        node: NodeId,
        object: ObjectId,
        size: u64,
        source: NodeId,
    },
    ExecutorBorn {
        node: NodeId,
        executor: u32,
    },
    ExecutorGone {
        node: NodeId,
        executor: u32,
        cause: &'static str,
    },
    ExecutorReaped {
        node: NodeId,
        executor: u32,
        cause: String,
    },
    Act(ClientId),
    Called {
        executor: ClientId,
        in_order: bool,
        spec: TaskSpec,
    },
    Answered {
        executor: ClientId,
        caller: ClientId,
    },
    Finish {
        client: ClientId,
        tag: u64,
    },
    KillNode,
    KillHead,
    BornHead,
    /// A daemon notices that the head is gone.
    HeadLost(NodeId),
    /// Somebody submits a job, and asks again while no head hears it.
    SubmitJob {
        job: String,
        retries: u32,
    },
    StopJob(String),
    /// A job's program is further.
    JobGoesOn {
        node: NodeId,
        job: String,
        attempt: u32,
    },
    DrainNode,
    MemoryShort,
    BornNode,
    PeerMet {
        from: NodeId,
        to: NodeId,
        number: u64,
    },
    AtPeer {
        end: End,
        number: u64,
        message: NodeToNode,
    },
    PeerBroken {
        end: End,
        number: u64,
    },
    CutTunnel,
    PauseNode,
    DurableWritten {
        node: NodeId,
        object: ObjectId,
        well: bool,
    },
    DurableFetched {
        node: NodeId,
        object: ObjectId,
        size: u64,
        writer: NodeId,
    },
}

impl Arrival {
    /// Whose daemon takes it in.
    fn daemon(&self) -> Option<NodeId> {
        match self {
            Arrival::NodeTick(node)
            | Arrival::HeadLost(node)
            | Arrival::AtNode { node, .. }
            | Arrival::FromClient { node, .. }
            | Arrival::Done { node, .. }
            | Arrival::Pulled { node, .. }
            | Arrival::JobGoesOn { node, .. }
            | Arrival::DurableWritten { node, .. }
            | Arrival::DurableFetched { node, .. }
            | Arrival::ExecutorBorn { node, .. }
            | Arrival::ExecutorGone { node, .. }
            | Arrival::ExecutorReaped { node, .. } => Some(*node),
            Arrival::PeerMet { from, .. } => Some(*from),
            Arrival::AtPeer { end, .. } | Arrival::PeerBroken { end, .. } => Some(end.0),
            _ => None,
        }
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Arrival>,
    arrivals: u64,
    streams: Streams<Stream>,
    head: Head,
    pub(crate) disk: HeadDisk,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    pub(crate) processes: BTreeMap<ClientId, Process>,
    connections: u64,
    connecting: BTreeMap<u64, NodeId>,
    templates: BTreeMap<ClientId, Vec<Arc<TaskTemplate>>>,
    /// Handles of actors.
    pub(crate) actors: BTreeSet<ObjectId>,
    /// Streams being read: how many items were taken.
    pub(crate) reads: BTreeMap<TaskId, u32>,
    /// How many items of each task were told.
    pub(crate) items_told: BTreeMap<TaskId, u32>,
    /// Tasks that ended well.
    pub(crate) ended_well: BTreeSet<TaskId>,
    /// TASK-1: tasks of each living submitter that were told to have ended.
    pub(crate) told: BTreeSet<TaskId>,
    pub(crate) channels: Channels,
    pub(crate) tunnels: Tunnels,
    pub(crate) storage: crate::durable::Storage,
    /// Tasks that began to run, where each may only once.
    begun: BTreeSet<TaskId>,
    /// Daemons that stand still, and until when.
    paused: BTreeMap<NodeId, Time>,
    pub(crate) submitted: BTreeMap<TaskId, ClientId>,
    /// What each put and each stored result holds.
    sizes: BTreeMap<ObjectId, u64>,
    next_id: u64,
    pub(crate) report: Report,
    trace: std::collections::VecDeque<String>,
}

/// Runs a plan to its end and checks that everything is as before it began.
///
/// # Errors
/// What was broken, when, with the last events; the plan's seed replays it.
pub fn run(plan: Plan) -> Result<Report, String> {
    let seed = plan.seed;
    let mut world = World::new(plan);
    world.go().map_err(|error| {
        let trace: Vec<String> = world.trace.iter().cloned().collect();
        format!("seed {seed}, at {:?}: {error}\nthe last events:\n{}", world.now, trace.join("\n"))
    })
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        random.bits();
        let mut disk = HeadDisk::default();
        let config = disk.begin();
        let mut world = World {
            plan,
            random,
            now: Time(1),
            queue: BTreeMap::new(),
            arrivals: 0,
            streams: Streams::new(),
            head: Head::new(config),
            disk,
            begun: BTreeSet::new(),
            hosts: BTreeMap::new(),
            processes: BTreeMap::new(),
            connections: 0,
            connecting: BTreeMap::new(),
            templates: BTreeMap::new(),
            actors: BTreeSet::new(),
            reads: BTreeMap::new(),
            items_told: BTreeMap::new(),
            ended_well: BTreeSet::new(),
            channels: Channels::default(),
            tunnels: Tunnels::default(),
            storage: Default::default(),
            paused: BTreeMap::new(),
            told: BTreeSet::new(),
            submitted: BTreeMap::new(),
            sizes: BTreeMap::new(),
            next_id: 1,
            report: Report::default(),
            trace: std::collections::VecDeque::new(),
        };
        world.at(Time(100_000), Arrival::HeadTick);
        let nodes: Vec<NodeId> = (0..world.plan.nodes).map(|_| world.new_host()).collect();
        for _ in 0..world.plan.drivers {
            let node = *world.random.pick(&nodes).expect("a plan has nodes");
            world.new_driver(node);
        }
        for _ in 0..world.plan.node_losses {
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::KillNode);
            world.at(at + Span::millis(50), Arrival::BornNode);
        }
        for _ in 0..world.plan.head_losses {
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::KillHead);
        }
        for _ in 0..world.plan.drains {
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::DrainNode);
            world.at(at + Span::millis(50), Arrival::BornNode);
        }
        world.plan_jobs();
        if world.plan.crash_one_in > 0 {
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::MemoryShort);
        }
        for _ in 0..world.plan.cuts {
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::CutTunnel);
            let at = Time(world.random.between(10_000, 400_000));
            world.at(at, Arrival::PauseNode);
        }
        world
    }

    pub(crate) fn at(&mut self, time: Time, arrival: Arrival) {
        self.arrivals += 1;
        self.queue.insert((time.max(self.now), self.arrivals), arrival);
    }

    pub(crate) fn after(&mut self, low: u64, high: u64, arrival: Arrival) {
        let delay = self.random.between(low, high);
        self.at(self.now + Span(delay), arrival);
    }

    pub(crate) fn say(&mut self, stream: Stream, arrival: Arrival) {
        let time = self.streams.arrival(stream, self.now, &mut self.random);
        self.at(time, arrival);
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn new_host(&mut self) -> NodeId {
        let node = NodeId(self.fresh());
        let cpus = self.random.between(1, 4) as i64;
        self.hosts.insert(node, Host::new(node, cpus));
        self.after(0, 2_000, Arrival::Connect(node));
        self.after(0, 100_000, Arrival::NodeTick(node));
        node
    }

    fn new_driver(&mut self, node: NodeId) {
        let id = ClientId(self.fresh() << 8 | 0xd);
        let job = JobId(self.fresh() as u32);
        let doing = Doing::Driving { actions: self.plan.actions };
        let process = Process::new(id, job, node, None, self.plan.direct, doing);
        self.processes.insert(id, process);
        let kind =
            ClientKind::Driver { job, info: Arc::new(JobInfo { log_to_driver: true, ..JobInfo::default() }) };
        let event = worker_core::Event::ClientAttached { client: id, pid: 1, kind, shares_memory: true };
        self.after(3_000, 5_000, Arrival::Done { node, event });
        self.after(6_000, 9_000, Arrival::Act(id));
    }

    // ---- the loop ----

    fn go(&mut self) -> Result<Report, String> {
        let limit = Time(600_000_000);
        while let Some(((time, _), arrival)) = self.queue.pop_first() {
            self.now = time;
            self.report.steps += 1;
            if let Some(word) = &self.plan.watch {
                let line = format!("{:>9} {arrival:?}", time.0);
                if line.contains(word.as_str()) {
                    eprintln!("{}", line.chars().take(1200).collect::<String>());
                }
            }
            if self.trace.len() == 40 {
                self.trace.pop_front();
            }
            if !matches!(arrival, Arrival::HeadTick | Arrival::NodeTick(_)) {
                let line = format!("{:>9} {arrival:?}", time.0);
                self.trace.push_back(line.chars().take(160).collect());
            }
            self.happen(arrival)?;
            if self.is_over() {
                return self.finish();
            }
            if self.now > limit {
                return Err(format!("it hangs: {}", self.hanging()));
            }
        }
        Err("nothing is left to happen".to_owned())
    }

    /// Whether all programs have ended and all that followed from it has arrived: only ticks are left.
    fn is_over(&self) -> bool {
        self.processes.values().all(|process| matches!(process.doing, Doing::Gone))
            && self.processes.values().all(|process| process.executor.is_none())
            && self.disk.is_up
            && self.hosts.values().all(|host| host.incarnation.is_some())
            && !self.head.is_recovering()
            && self.disk.jobs.values().all(|view| view.state.has_ended())
            && self.queue.values().all(|arrival| matches!(arrival, Arrival::HeadTick | Arrival::NodeTick(_)))
    }

    fn hanging(&mut self) -> String {
        let mut lines = Vec::new();
        for (id, process) in &self.processes {
            let doing = match &process.doing {
                Doing::Gone => continue,
                Doing::Idle => format!("is idle, {} tasks in its inbox", process.inbox.len()),
                Doing::Driving { actions } => format!(
                    "has {actions} actions left, {} unfinished tasks, {} puts waiting for memory",
                    process.core.unfinished(),
                    process.waiting_puts.len()
                ),
                Doing::Waiting { on, .. } => {
                    let on: Vec<_> = on.iter().filter(|object| !process.core.is_here(**object)).collect();
                    format!("waits for {on:?}")
                }
                Doing::Running { run, children, .. } => {
                    format!("runs {} and waits for {children:?}", run.spec.id)
                }
            };
            lines.push(format!("{id} on {} {doing}", process.node));
        }
        let mut effects = Vec::new();
        self.head.step(
            self.now,
            head_core::Event::Query { number: 0, query: Query::Tasks { limit: 10_000 } },
            &mut effects,
        );
        if let Some(head_core::Effect::Reply { reply: Ok(QueryReply::Tasks(tasks)), .. }) = effects.pop() {
            for task in tasks.iter().filter(|task| !["finished", "failed"].contains(&task.state.as_str())) {
                lines.push(format!("task {} is {} on {}", task.task, task.state, task.node));
            }
        }
        lines.join("; ")
    }

    fn finish(&mut self) -> Result<Report, String> {
        let mut effects = Vec::new();
        self.head.step(self.now, head_core::Event::Query { number: 0, query: Query::Status }, &mut effects);
        let Some(head_core::Effect::Reply { reply: Ok(QueryReply::Status(status)), .. }) = effects.pop()
        else {
            return Err("the head does not say how it is".to_owned());
        };
        if status.objects != 0 {
            self.head.step(
                self.now,
                head_core::Event::Query { number: 0, query: Query::Objects { limit: 10 } },
                &mut effects,
            );
            return Err(format!("REF-2: {} objects are left: {effects:?}", status.objects));
        }
        let pending: u64 = ["waiting", "queued", "prefetched", "running"]
            .iter()
            .filter_map(|state| status.tasks.get(*state))
            .sum();
        if pending != 0 {
            return Err(format!("TASK-1: {pending} tasks have not ended: {:?}", status.tasks));
        }
        if status.total != status.available {
            return Err(format!("LEDGER-1: of {:?} only {:?} came back", status.total, status.available));
        }
        self.check_jobs()?;
        for (node, host) in &self.hosts {
            if !host.served.is_empty() || !host.spilled.is_empty() {
                return Err(format!(
                    "REF-2: node {node} still has {:?} and {:?}",
                    host.served.keys(),
                    host.spilled.keys()
                ));
            }
        }
        // What a machine wrote and could not tell before it was lost stays, and what a head that was lost had just told to go.
        let nobody_left = self.plan.node_losses + self.plan.head_losses == 0
            && self.plan.drains == 0
            && !self.storage.unsure;
        if nobody_left && !self.storage.copies.is_empty() {
            return Err(format!("REF-2: in durable storage there still are {:?}", self.storage.copies));
        }
        self.report.seconds = self.now.0 as f64 / 1e6;
        Ok(self.report.clone())
    }

    /// A daemon stands still for a while; its executors do not.
    fn pause_node(&mut self) {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let Some(&node) = self.random.pick(&nodes) else { return };
        let until = self.now + Span(self.random.between(10_000, 500_000));
        // One that stands still already is left as it is: what waits for it must not overtake what waits longer.
        let known = self.paused.entry(node).or_default();
        if *known < self.now {
            *known = until;
        }
    }

    fn happen(&mut self, arrival: Arrival) -> Result<(), String> {
        if let Some(until) = arrival.daemon().and_then(|node| self.paused.get(&node)).copied()
            && until > self.now
        {
            self.at(until, arrival);
            return Ok(());
        }
        match arrival {
            Arrival::HeadTick => {
                self.at(self.now + Span::millis(100), Arrival::HeadTick);
                self.head_step(head_core::Event::Tick)
            }
            Arrival::NodeTick(node) => {
                if self.hosts.contains_key(&node) {
                    self.at(self.now + Span::millis(100), Arrival::NodeTick(node));
                }
                self.node_step(node, worker_core::Event::Tick)
            }
            Arrival::Connect(node) => self.connect(node),
            // A head of before does nothing about it.
            Arrival::AtHead { node, .. } if !self.disk.admitted.contains_key(&node) => Ok(()),
            Arrival::AtHead { node, incarnation, message } => {
                self.head_step(head_core::Event::FromNode { node, incarnation, message })
            }
            Arrival::LinkClosed { node, incarnation } => {
                self.head_step(head_core::Event::NodeDisconnected { node, incarnation })
            }
            Arrival::AtNode { node, incarnation, message } => {
                let current = match (&message, self.hosts.get_mut(&node)) {
                    (HeadToNode::Admitted { term, .. } | HeadToNode::Resumed { term, .. }, Some(host)) => {
                        host.incarnation = Some(incarnation);
                        host.previous = Some((*term, incarnation));
                        true
                    }
                    (_, Some(host)) => host.incarnation == Some(incarnation),
                    (_, None) => false,
                };
                if current { self.node_step(node, worker_core::Event::FromHead(message)) } else { Ok(()) }
            }
            Arrival::FromClient { node, client, message } => {
                self.node_step(node, worker_core::Event::FromClient { client, message })
            }
            Arrival::AtClient { client, message } => self.at_client(client, message),
            Arrival::Done { node, event } => self.node_step(node, event),
            Arrival::Pulled { node, object, size, source } => self.pulled(node, object, size, source),
            Arrival::DurableWritten { node, object, well } => self.durable_written(node, object, well),
            Arrival::DurableFetched { node, object, size, writer } => {
                self.durable_fetched(node, object, size, writer)
            }
            Arrival::ExecutorBorn { node, executor } => self.executor_born(node, executor),
            Arrival::ExecutorGone { node, executor, cause } => self.executor_gone(node, executor, cause),
            Arrival::ExecutorReaped { node, executor, cause } => self.executor_reaped(node, executor, &cause),
            Arrival::Act(client) => self.act(client),
            Arrival::Called { executor, in_order, spec } => self.called(executor, in_order, spec),
            Arrival::Answered { executor, caller } => self.answered(executor, caller),
            Arrival::Finish { client, tag } => self.task_ends(client, tag),
            Arrival::KillNode => match self.node_without_driver() {
                Some(node) => self.end_host(node),
                None => Ok(()),
            },
            Arrival::KillHead => {
                self.kill_head();
                Ok(())
            }
            Arrival::BornHead => {
                self.head = Head::new(self.disk.begin());
                Ok(())
            }
            Arrival::HeadLost(node) => {
                let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
                host.incarnation = None;
                self.after(100, 20_000, Arrival::Connect(node));
                self.node_step(node, worker_core::Event::HeadLost)
            }
            Arrival::SubmitJob { job, retries } => self.submit_job(job, retries),
            Arrival::StopJob(job) => self.stop_job(job),
            Arrival::JobGoesOn { node, job, attempt } => self.job_goes_on(node, job, attempt),
            Arrival::DrainNode => self.drain_node(),
            Arrival::MemoryShort => self.memory_short(),
            Arrival::BornNode => {
                self.new_host();
                Ok(())
            }
            Arrival::PeerMet { from, to, number } => self.peer_met(from, to, number),
            Arrival::AtPeer { end, number, message } => self.at_peer(end, number, message),
            Arrival::PeerBroken { end, number } => self.peer_broken(end, number),
            Arrival::CutTunnel => {
                self.cut_tunnel();
                Ok(())
            }
            Arrival::PauseNode => {
                self.pause_node();
                Ok(())
            }
        }
    }

    // ---- the head ----

    fn connect(&mut self, node: NodeId) -> Result<(), String> {
        let Some(host) = self.hosts.get(&node) else { return Ok(()) };
        if !self.disk.is_up {
            self.after(100, 20_000, Arrival::Connect(node));
            return Ok(());
        }
        let resources = host.resources.clone();
        let previous = host.previous;
        self.connections += 1;
        let connection = self.connections;
        self.connecting.insert(connection, node);
        let hello = NodeHello {
            protocol: PROTOCOL_VERSION,
            node,
            hostname: format!("host-{node}"),
            data_address: format!("{node}:8266"),
            gateway_address: String::new(),
            resources,
            labels: BTreeMap::new(),
            store_capacity: crate::host::STORE,
            previous,
        };
        self.head_step(head_core::Event::NodeConnected { connection, hello })
    }

    pub(crate) fn head_step(&mut self, event: head_core::Event) -> Result<(), String> {
        if !self.disk.is_up {
            return Ok(());
        }
        let mut effects = Vec::new();
        let mut again = self.head.step(self.now, event, &mut effects);
        while again {
            again = self.head.step(self.now, head_core::Event::Tick, &mut effects);
        }
        if self.hosts.len() < 50 || self.report.steps.is_multiple_of(100) {
            self.head.check_invariants()?;
        }
        for effect in effects {
            match effect {
                head_core::Effect::AdmitNode { connection, node, incarnation, message } => {
                    self.connecting.remove(&connection);
                    self.disk.admitted.insert(node, incarnation);
                    self.say(Stream::ToNode(node), Arrival::AtNode { node, incarnation, message });
                }
                head_core::Effect::ToNode { node, message } => {
                    // Stamped when it was admitted; the first messages may overtake nothing.
                    let incarnation = self.disk.admitted.get(&node).copied().unwrap_or(Incarnation(1));
                    if self.hosts.contains_key(&node) {
                        self.say(Stream::ToNode(node), Arrival::AtNode { node, incarnation, message });
                    }
                }
                head_core::Effect::RefuseNode { reason, .. } => {
                    return Err(format!("a node was refused: {reason}"));
                }
                head_core::Effect::CloseNode { node, reason, .. } => {
                    if self.hosts.contains_key(&node) && !reason.contains("it left") {
                        return Err(format!("a living node was given up: {reason}"));
                    }
                }
                head_core::Effect::Persist(record) => self.disk.write(record),
                head_core::Effect::Remember(_) => {}
                head_core::Effect::Reply { .. } => {}
            }
        }
        Ok(())
    }

    /// The head's process is gone, or deposed: it does nothing any more. Of what it said, each daemon may still read some;
    /// what daemons say, nobody hears. Some notice late, when another head may lead already, and read what the old one
    /// said until then (FENCE-1).
    fn kill_head(&mut self) {
        if !self.disk.is_up {
            return;
        }
        self.disk.is_up = false;
        self.report.heads += 1;
        self.connecting.clear();
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let deaf: BTreeSet<NodeId> = nodes.iter().copied().filter(|_| self.random.one_in(2)).collect();
        self.queue.retain(|_, arrival| match arrival {
            Arrival::AtHead { .. } | Arrival::LinkClosed { .. } | Arrival::Connect(_) => false,
            Arrival::AtNode { node, .. } => !deaf.contains(node),
            _ => true,
        });
        let mut told: BTreeSet<NodeId> = BTreeSet::new();
        told.extend(self.queue.values().filter_map(|arrival| match arrival {
            Arrival::HeadLost(node) => Some(*node),
            _ => None,
        }));
        for node in nodes.into_iter().filter(|node| !told.contains(node)) {
            match self.random.one_in(4) {
                true => self.notice_late(node),
                false => self.say(Stream::ToNode(node), Arrival::HeadLost(node)),
            }
        }
        self.after(1_000, 300_000, Arrival::BornHead);
    }

    fn notice_late(&mut self, node: NodeId) {
        let late = Span(self.random.between(10_000, 500_000));
        let to_node = |arrival: &Arrival| matches!(arrival, Arrival::AtNode { node: to, .. } if *to == node);
        let said: Vec<(Time, u64)> =
            self.queue.iter().filter(|(_, arrival)| to_node(arrival)).map(|(at, _)| *at).collect();
        let mut last = self.now + late;
        for at in said {
            let Some(arrival) = self.queue.remove(&at) else { continue };
            last = at.0 + late;
            self.at(last, arrival);
        }
        self.at(last + Span(1), Arrival::HeadLost(node));
    }

    fn drain_node(&mut self) -> Result<(), String> {
        let Some(node) = self.node_without_driver() else { return Ok(()) };
        // Long enough for whatever runs here, but for actors.
        self.node_step(node, worker_core::Event::ToldToLeave { within: Span::secs(5) })
    }

    fn memory_short(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let Some(node) = self.random.pick(&nodes).copied() else { return Ok(()) };
        let short = worker_core::MemoryShort { used: 99, limit: 100, of: "memory", largest: Vec::new() };
        self.node_step(node, worker_core::Event::MemoryShort(short))
    }

    fn node_without_driver(&mut self) -> Option<NodeId> {
        let with_driver: BTreeSet<NodeId> = self
            .processes
            .values()
            .filter(|process| process.executor.is_none())
            .map(|process| process.node)
            .collect();
        let free: Vec<NodeId> =
            self.hosts.keys().copied().filter(|node| !with_driver.contains(node)).collect();
        self.random.pick(&free).copied()
    }

    /// The machine is gone at once, with all that runs there.
    fn end_host(&mut self, node: NodeId) -> Result<(), String> {
        let Some(host) = self.hosts.remove(&node) else { return Ok(()) };
        self.processes.retain(|_, process| process.node != node);
        self.streams.forget(Stream::ToNode(node));
        self.drop_all_peers(node);
        if let Some(incarnation) = host.incarnation {
            self.say(Stream::ToHead(node), Arrival::LinkClosed { node, incarnation });
        }
        Ok(())
    }

    // ---- nodes ----

    pub(crate) fn node_step(&mut self, node: NodeId, event: worker_core::Event) -> Result<(), String> {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
            let mut effects = Vec::new();
            host.core.step(self.now, event, &mut effects);
            host.core.check_invariants().map_err(|error| format!("node {node}: {error}"))?;
            for effect in effects {
                if let Some(word) = &self.plan.watch {
                    let line = format!("{:>9}   {node} -> {effect:?}", self.now.0);
                    if line.contains(word.as_str()) {
                        eprintln!("{}", line.chars().take(1200).collect::<String>());
                    }
                }
                if let Some(event) = self.node_effect(node, effect)? {
                    events.push_back(event);
                }
            }
        }
        Ok(())
    }

    /// Does what the node asks for; gives back what it is answered at once.
    fn node_effect(
        &mut self,
        node: NodeId,
        effect: worker_core::Effect,
    ) -> Result<Option<worker_core::Event>, String> {
        use worker_core::{Effect, Event};
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(None) };
        match effect {
            Effect::ToHead(message) => {
                if let Some(incarnation) = host.incarnation {
                    self.say(Stream::ToHead(node), Arrival::AtHead { node, incarnation, message });
                }
            }
            Effect::ToClient { client, message } => {
                if let NodeToClient::Run(run) = &message {
                    let executor =
                        host.executors.values_mut().find(|executor| executor.client == Some(client));
                    let Some(executor) = executor else {
                        return Err(format!("{} is sent to nobody", run.spec.id));
                    };
                    if executor.slots.insert(run.tag, Slot::Ready).is_some() {
                        return Err(format!("tag {} was used twice", run.tag));
                    }
                }
                self.say(Stream::ToClient(client), Arrival::AtClient { client, message });
            }
            Effect::CloseClient { .. } | Effect::WakeAt(_) => {}
            Effect::StartExecutor { executor, job, .. } => {
                host.executors
                    .insert(executor, Executor { job, client: None, dead: false, slots: BTreeMap::new() });
                self.after(500, 5_000, Arrival::ExecutorBorn { node, executor });
            }
            Effect::EndExecutor { executor, .. } => {
                self.end_executor(node, executor, "killed by signal 9 (SIGKILL)")
            }
            Effect::Interrupt { .. } | Effect::MeasureMemory { .. } => {}
            Effect::End => self.end_host(node)?,
            Effect::JoinCalls { caller, executor, actor, in_order } => {
                self.join(caller, executor, actor, in_order);
            }
            Effect::ConnectPeer { node: peer, .. } => self.connect_peer(node, peer),
            Effect::ToPeer { node: peer, message } => self.tell_peer(node, peer, message),
            Effect::DropPeer { node: peer } => self.drop_peer(node, peer),
            Effect::Revoke { executor, tag, .. } => {
                let slot =
                    host.executors.get_mut(&executor).and_then(|executor| executor.slots.get_mut(&tag));
                let won = slot.is_some_and(|slot| {
                    let won = *slot == Slot::Ready;
                    if won {
                        *slot = Slot::Revoked;
                    }
                    won
                });
                return Ok(Some(Event::Revoked { executor, tag, won }));
            }
            Effect::CreateSegment { segment, .. } => {
                self.after(
                    10,
                    500,
                    Arrival::Done { node, event: Event::SegmentCreated { segment, failure: None } },
                );
            }
            Effect::DropSegment { segment } => host.memory.retain(|(of, _), _| *of != segment),
            Effect::PunchHole(location) => {
                host.memory.remove(&(location.segment, location.offset));
            }
            Effect::FreeOwn(location) => host.free_own(location)?,
            Effect::Pull { object, size, source, .. } => {
                self.after(50, 3_000, Arrival::Pulled { node, object, size, source })
            }
            Effect::StoreBytes { object, bytes } => {
                let location = host.store_own(object, bytes.len() as u64);
                return Ok(Some(Event::Stored { object, location }));
            }
            Effect::Serve { object, source } => {
                host.served.insert(object, source);
            }
            Effect::StopServing { object } => {
                host.served.remove(&object);
            }
            Effect::Spill { objects } => {
                for (object, location) in &objects {
                    if host.memory.get(&(location.segment, location.offset)) != Some(object) {
                        // Its maker dropped it meanwhile; the drop is on its way.
                        continue;
                    }
                    host.spilled.insert(*object, location.len);
                }
                let objects = objects.into_iter().map(|(object, _)| object).collect();
                self.after(100, 5_000, Arrival::Done { node, event: Event::Spilled { objects } });
            }
            Effect::Restore { object } => {
                let Some(size) = host.spilled.get(&object).copied() else {
                    return Err(format!("{object} is to be restored and is not on disk"));
                };
                let location = host.store_own(object, size);
                self.after(100, 3_000, Arrival::Done { node, event: Event::Restored { object, location } });
            }
            Effect::DeleteState { .. } => {}
            Effect::WriteDurable { object } => self.write_durable(node, object)?,
            Effect::FetchDurable { object, size, writer } => {
                self.after(100, 5_000, Arrival::DurableFetched { node, object, size, writer });
            }
            Effect::DeleteDurable { object, writer } => {
                self.storage.copies.remove(&(object, writer));
            }
            Effect::DeleteSpilled { object } => {
                host.spilled.remove(&object);
            }
            Effect::StartJob { order } => self.start_job(node, &order)?,
            Effect::StopJob { job, .. } => self.end_job(node, &job),
            Effect::SendBytes { .. }
            | Effect::DeleteJobLogs { .. }
            | Effect::ReadLog { .. }
            | Effect::KeepLine(_) => {}
        }
        Ok(None)
    }

    fn pulled(&mut self, node: NodeId, object: ObjectId, size: u64, source: NodeId) -> Result<(), String> {
        let found = match self.hosts.get(&source) {
            Some(source) => source.serves(object),
            None => Err(no(cluster_types::FailureKind::NodeLost, "the source is gone")),
        };
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let event = match found {
            Ok(()) => worker_core::Event::Stored { object, location: host.store_own(object, size) },
            Err(failure) if failure.kind == cluster_types::FailureKind::Internal => {
                return Err(format!("{object}: {}", failure.message));
            }
            Err(failure) => worker_core::Event::StoreFailed {
                object,
                missing: failure.kind == cluster_types::FailureKind::ObjectLost,
                reason: failure.message.to_string(),
                no_memory: false,
            },
        };
        self.node_step(node, event)
    }

    fn executor_born(&mut self, node: NodeId, executor: u32) -> Result<(), String> {
        let client = ClientId(self.fresh() << 8 | 0xe);
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let Some(known) = host.executors.get_mut(&executor).filter(|known| !known.dead) else {
            return Ok(());
        };
        known.client = Some(client);
        let job = known.job;
        let process = Process::new(client, job, node, Some(executor), self.plan.direct, Doing::Idle);
        self.processes.insert(client, process);
        let kind = ClientKind::Executor { executor };
        self.node_step(node, worker_core::Event::ClientAttached { client, pid: 2, kind, shares_memory: true })
    }

    /// The process is gone at once; its daemon notices after a while.
    pub(crate) fn end_executor(&mut self, node: NodeId, executor: u32, cause: &'static str) {
        let known = self.hosts.get_mut(&node).and_then(|host| host.executors.get_mut(&executor));
        let Some(known) = known else { return };
        known.dead = true;
        if let Some(client) = known.client {
            self.processes.remove(&client);
        }
        self.after(1, 3_000, Arrival::ExecutorGone { node, executor, cause });
    }

    /// The daemon reaps it: what it had not claimed by its end is revoked now.
    fn executor_gone(&mut self, node: NodeId, executor: u32, cause: &str) -> Result<(), String> {
        let Some(known) = self.hosts.get(&node).and_then(|host| host.executors.get(&executor)) else {
            return Ok(());
        };
        let reaped = Arrival::ExecutorReaped { node, executor, cause: cause.to_owned() };
        match known.client {
            // What it said before it died is read first.
            Some(client) => self.say(Stream::FromClient(client), reaped),
            None => return self.executor_reaped(node, executor, cause),
        }
        Ok(())
    }

    fn executor_reaped(&mut self, node: NodeId, executor: u32, cause: &str) -> Result<(), String> {
        let Some(known) = self.hosts.get_mut(&node).and_then(|host| host.executors.remove(&executor)) else {
            return Ok(());
        };
        let unstarted =
            known.slots.iter().filter(|(_, slot)| **slot == Slot::Ready).map(|(tag, _)| *tag).collect();
        let exited = worker_core::Event::ExecutorExited { executor, cause: cause.to_owned(), unstarted };
        self.node_step(node, exited)?;
        match known.client {
            Some(client) => self.node_step(node, worker_core::Event::ClientEnded { client }),
            None => Ok(()),
        }
    }

    // ---- processes ----

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

    fn at_client(&mut self, client: ClientId, message: NodeToClient) -> Result<(), String> {
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
                process.requested = process.requested.saturating_sub(1);
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
    fn says_what_made_it_is_not_kept(&self, failure: &Failure) -> bool {
        failure.message.contains("is not kept")
            && self.sizes.keys().any(|stored| failure.message.contains(&format!("what {stored} was made of")))
    }

    fn puts_go_on(&mut self, client: ClientId) -> Result<(), String> {
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        process.reuse_freed()?;
        while let Some((size, contains)) = process.waiting_puts.front().cloned() {
            let Some(location) = process.allocator.alloc(size) else {
                // What came for it was used by another, or was recalled.
                if process.requested == 0 {
                    process.requested += 1;
                    process.core.push(ClientToNode::RequestMemory { bytes: Allocator::segment_len(size) });
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

    fn put(&mut self, client: ClientId, contains: Refs) {
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
        process.requested += 1;
        process.core.push(ClientToNode::RequestMemory { bytes: Allocator::segment_len(size) });
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

    fn submit(&mut self, client: ClientId) {
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
    fn act(&mut self, client: ClientId) -> Result<(), String> {
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
    fn leave(&mut self, client: ClientId) -> Result<(), String> {
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

    // ---- executors ----

    pub(crate) fn next_task(&mut self, client: ClientId) -> Result<(), String> {
        loop {
            let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
            let Some(run) = process.inbox.pop_front() else { return Ok(()) };
            let (node, executor) = (process.node, process.executor);
            let slot = self
                .hosts
                .get_mut(&node)
                .and_then(|host| host.executors.get_mut(&executor?))
                .and_then(|known| known.slots.get_mut(&run.tag));
            match slot {
                _ if run.slot == NO_SLOT || run.slot == DIRECT_SLOT => {}
                Some(slot) if *slot == Slot::Ready => *slot = Slot::Claimed,
                // Taken back before it began: what came with it is given back.
                _ => {
                    for (object, value) in &run.values {
                        if matches!(value, Value::Local(_)) {
                            process.core.push(ClientToNode::Release(vec![*object]));
                        }
                    }
                    continue;
                }
            }
            return self.begin(client, run);
        }
    }

    fn begin(&mut self, client: ClientId, run: Box<RunTask>) -> Result<(), String> {
        self.report.ran += 1;
        self.report.made_again += u64::from(self.ended_well.contains(&run.spec.id));
        if self.plan.runs_once() && !self.begun.insert(run.spec.id) {
            return Err(format!("TASK-2: {} runs a second time, though only the head was lost", run.spec.id));
        }
        self.check_actor(client, &run)?;
        if self.plan.crash_one_in > 0 && self.random.one_in(self.plan.crash_one_in) {
            let Some(process) = self.processes.get(&client) else { return Ok(()) };
            let (node, executor) = (process.node, process.executor.unwrap_or_default());
            self.end_executor(node, executor, "killed by signal 11 (SIGSEGV)");
            return Ok(());
        }
        for object in &run.spec.deps {
            // DEP-1, and P1: every argument came along, and lies where it is said to lie.
            let value = run.values.iter().find(|(id, _)| id == object).map(|(_, value)| value);
            match value {
                None if *object == run.spec.template.function => {}
                None => return Err(format!("DEP-1: {} runs without its argument {object}", run.spec.id)),
                Some(Value::Failed(failure)) => {
                    return Err(format!(
                        "DEP-1: {} runs with a failed argument: {}",
                        run.spec.id, failure.message
                    ));
                }
                Some(Value::Inline(_)) => {}
                Some(Value::Local(at)) => {
                    let lies = self.processes.get(&client).and_then(|process| {
                        self.hosts.get(&process.node)?.memory.get(&(at.segment, at.offset))
                    });
                    if lies != Some(object) {
                        return Err(format!(
                            "P1: {} gets {object} at {at:?}, where {lies:?} lies",
                            run.spec.id
                        ));
                    }
                }
            }
        }
        let tag = run.tag;
        let nested = self.random.one_in(6);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        process.lend_arguments(&run);
        let borrowed = run.spec.borrowed.to_vec();
        process.take_out(&borrowed, HandleSource::Task);
        process.said = process.core.outbox().said();
        process.doing = Doing::Running { run, children: Vec::new(), blocked: false };
        if !nested {
            let long = if self.random.one_in(10) { 20_000 } else { 300 };
            self.after(1, long, Arrival::Finish { client, tag });
            return self.flush(client);
        }
        let before = self.processes[&client].refs.len();
        self.submit(client);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let made: Vec<ObjectId> = process.refs[before..].to_vec();
        for child in &made {
            process.core.want(*child, true);
        }
        if let Doing::Running { children, blocked, .. } = &mut process.doing {
            (*children, *blocked) = (made.clone(), true);
        }
        process.core.push(ClientToNode::Blocked { tag, on: made });
        self.flush(client)
    }

    /// A task does its next thing after a while.
    pub(crate) fn goes_on(&mut self, client: ClientId, tag: u64) {
        self.after(1, 300, Arrival::Finish { client, tag });
    }

    fn task_ends(&mut self, client: ClientId, tag: u64) -> Result<(), String> {
        let keep = self.random.one_in(20);
        let size = self.random.between(5_000, 1 << 20);
        let stored = self.random.one_in(4);
        let mut inner = self.some_refs(client, 1);
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        // What exists already cannot contain what is being returned: cycles of refs are never freed.
        inner.retain(|object| process.core.is_here(*object));
        let Doing::Running { run, .. } = &process.doing else { return Ok(()) };
        if run.tag != tag {
            return Ok(());
        }
        if self.yields(client, tag)? {
            return Ok(());
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        let Doing::Running { run, .. } = &process.doing else { return Ok(()) };
        let spec = run.spec.clone();
        let values = run.values.clone();
        let mut results = Vec::new();
        for index in 0..spec.template.num_returns {
            let object = spec.id.result(index);
            let contains = if index == 0 { inner.clone() } else { Refs::new() };
            process.core.share(&contains);
            let location = if stored && contains.is_empty() { process.allocator.alloc(size) } else { None };
            let value = match location {
                Some(location) => {
                    process.core.note_own_range(object, location);
                    self.sizes.insert(object, size);
                    if let Some(host) = self.hosts.get_mut(&process.node) {
                        host.memory.insert((location.segment, location.offset), object);
                    }
                    PutValue::Stored(location)
                }
                None => PutValue::Inline(encode(object, &contains)),
            };
            results.push(ExecutorResult { value, contains });
        }
        if stored && process.leased.is_empty() && process.requested == 0 {
            process.requested += 1;
            process.core.push(ClientToNode::RequestMemory { bytes: Allocator::segment_len(size) });
        }
        process.core.end_task_cover();
        let silent = process.core.outbox().said() == process.said;
        if tag & DIRECT_BIT != 0 && !process.forgotten.remove(&tag) {
            self.answer(client, spec.id, results, silent);
        } else {
            let completion = Completion { tag, result: Ok(results), micros: 100 };
            process.core.push(ClientToNode::Completed(completion));
        }
        let Some(process) = self.processes.get_mut(&client) else { return Ok(()) };
        for (object, value) in &values {
            if matches!(value, Value::Local(_)) {
                process.core.drop_view(*object);
            }
        }
        if !keep {
            while !process.refs.is_empty() {
                process.drop_ref(0);
            }
        }
        process.doing = Doing::Idle;
        self.next_task(client)?;
        self.flush(client)
    }
}
