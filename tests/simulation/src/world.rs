//! The world: who is there, what is on its way, and what happens when it arrives.

mod end;
mod executors;
mod heads;
mod nodes;
mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cluster_types::{
    ClientId, ClientKind, ClientToNode, HeadToNode, Incarnation, JobId, JobInfo, NodeId, NodeToClient,
    NodeToHead, NodeToNode, ObjectId, Span, TaskId, TaskSpec, TaskTemplate, Time,
};
use head_core::Head;

use crate::client::{Doing, Process};
use crate::direct::Channels;
use crate::disk::HeadDisk;
use crate::host::Host;
use crate::plan::{Plan, Report};
use crate::random::Random;
use crate::streams::Streams;
use crate::tunnels::{End, Tunnels};

/// When nobody is left, so soon is everything forgotten that was kept for somebody: some of it goes with heartbeats.
const FORGOTTEN_WITHIN: Span = Span::secs(5);

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

    fn go(&mut self) -> Result<Report, String> {
        let limit = Time(600_000_000);
        let mut over = None;
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
            if over.is_none() && self.is_over() {
                over = Some(self.now);
            }
            if over.is_some_and(|over| self.now.since(over) >= FORGOTTEN_WITHIN) {
                return self.finish();
            }
            if over.is_none() && self.now > limit {
                return Err(format!("it hangs: {}", self.hanging()));
            }
        }
        Err("nothing is left to happen".to_owned())
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
}
