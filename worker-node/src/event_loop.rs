//! The daemon's one thread: events in, a step of the core, effects out.
//!
//! Whoever has events puts them into the queue and pumps it; a step never calls another (rule T2). What the cores want
//! told is gathered per peer and written once per turn of the event loop, when all that was readable has been read.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_proto::Codec;
use cluster_types::client_node::LogLine;
use cluster_types::{
    ClientId, ClientKind, ClientToNode, Incarnation, JobId, Map, NodeHello, NodeId, NodeToClient, NodeToHead,
    ObjectId, PART, Time,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::{Notify, mpsc};
use worker_core::{Effect, Event};

use crate::client_socket::{Scratch, scratch};
use crate::clients::{Client, ClientLink, Shown};
use crate::config::Machine;
use crate::executors::Executors;
use crate::head_side::HeadSide;
use crate::jobs::{JobsHere, Work};
use crate::store_host::{StoreHost, StoreNotice};
use crate::supervisor::{ExecutorEvent, Supervisor};
use crate::tunnels::Tunnels;

/// The cores are called at least this often.
const TICK: Duration = Duration::from_millis(100);

/// Two connected sockets.
fn socket_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Everything the daemon has. One thread; shared by its tasks.
#[derive(Clone)]
pub(crate) struct Handle {
    daemon: Rc<RefCell<Daemon>>,
    signals: Rc<Signals>,
    pub(crate) scratch: Scratch,
}

/// What wakes the loop's own tasks.
#[derive(Default)]
struct Signals {
    /// Something is to be written.
    flush: Notify,
    /// The time of the next tick was brought forward.
    tick: Notify,
    /// The node has left the cluster.
    left: Notify,
}

/// How often the log hears how long the tables are, if it hears of such things at all.
const SIZES_EVERY: Duration = Duration::from_secs(10);

/// The node's state machine, as the loop uses it; the loop's own tests have another behind it.
pub(crate) trait NodeCore {
    fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>);

    /// How long its tables are.
    fn sizes(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }
}

impl NodeCore for worker_core::Node {
    fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) {
        worker_core::Node::step(self, now, event, effects);
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        worker_core::Node::sizes(self)
    }
}

/// An event for one of the cores of this process.
enum Pending {
    Node(Event),
    Head(head_core::event::Event),
}

pub(crate) struct Daemon {
    pub(crate) node_id: NodeId,
    pub(crate) token: String,
    pub(crate) machine: Rc<Machine>,
    pub(crate) codec: Codec,
    pub(crate) clients: Map<ClientId, Client>,
    pub(crate) executors: Executors,
    pub(crate) store: StoreHost,
    pub(crate) supervisor: Supervisor,
    pub(crate) head: HeadSide,
    pub(crate) tunnels: Tunnels,
    pub(crate) jobs: JobsHere,
    node: Box<dyn NodeCore>,
    queue: VecDeque<Pending>,
    effects: Vec<Effect>,
    head_effects: Vec<head_core::event::Effect>,
    /// Clients with something to write.
    unflushed: Vec<ClientId>,
    /// Clients that are to be told how many lines they were not shown, once they read again.
    short_of_lines: Vec<ClientId>,
    origin: Instant,
    wake_at: Option<Time>,
    /// Executors that were interrupted, and in which task, until they have taken notice.
    interrupted: Vec<(u32, u64)>,
    /// The head's planning was cut short (rule S6): it goes on after the I/O that is due.
    head_again: bool,
    signals: Rc<Signals>,
    /// When the log is told next how long the tables are.
    tell_sizes_at: Instant,
}

/// What a daemon is put together from.
pub(crate) struct Parts {
    pub(crate) node_id: NodeId,
    pub(crate) node: Box<dyn NodeCore>,
    pub(crate) token: String,
    pub(crate) machine: Rc<Machine>,
    pub(crate) store: StoreHost,
    pub(crate) supervisor: Supervisor,
    pub(crate) head: HeadSide,
}

impl Handle {
    pub(crate) fn new(parts: Parts) -> Handle {
        let signals = Rc::new(Signals::default());
        let daemon = Daemon {
            node_id: parts.node_id,
            token: parts.token,
            machine: parts.machine,
            codec: Codec::default(),
            clients: Map::default(),
            executors: Executors::default(),
            store: parts.store,
            supervisor: parts.supervisor,
            head: parts.head,
            tunnels: Tunnels::default(),
            jobs: JobsHere::default(),
            node: parts.node,
            queue: VecDeque::new(),
            effects: Vec::new(),
            head_effects: Vec::new(),
            unflushed: Vec::new(),
            short_of_lines: Vec::new(),
            origin: Instant::now(),
            wake_at: None,
            interrupted: Vec::new(),
            head_again: false,
            signals: signals.clone(),
            tell_sizes_at: Instant::now(),
        };
        Handle { daemon: Rc::new(RefCell::new(daemon)), signals, scratch: scratch() }
    }

    /// Never held across an await.
    pub(crate) fn borrow(&self) -> RefMut<'_, Daemon> {
        self.daemon.borrow_mut()
    }

    /// The node has left the cluster: the daemon ends.
    pub(crate) async fn left(&self) {
        self.signals.left.notified().await;
    }

    /// The loop's own tasks; they end with the `LocalSet`.
    pub(crate) fn start(
        &self,
        mut store: mpsc::UnboundedReceiver<StoreNotice>,
        mut executors: mpsc::UnboundedReceiver<ExecutorEvent>,
    ) {
        let handle = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                handle.signals.flush.notified().await;
                let wanted = {
                    let mut daemon = handle.borrow();
                    daemon.flush();
                    daemon.take_wanted_peers()
                };
                for (node, number) in wanted {
                    tokio::task::spawn_local(crate::tunnels::connect(handle.clone(), node, number));
                }
            }
        });
        let handle = self.clone();
        tokio::task::spawn_local(async move { handle.tick_for_ever().await });
        crate::jobs::start(self);
        tokio::task::spawn_local(crate::memory_monitor::watch(self.clone()));
        let handle = self.clone();
        tokio::task::spawn_local(async move {
            while let Some(notice) = store.recv().await {
                handle.store_says(notice);
                while let Ok(notice) = store.try_recv() {
                    handle.store_says(notice);
                }
                handle.borrow().pump();
            }
        });
        let handle = self.clone();
        tokio::task::spawn_local(async move {
            while let Some(event) = executors.recv().await {
                crate::executors::on_event(&handle, event);
            }
        });
    }

    fn store_says(&self, notice: StoreNotice) {
        match notice {
            StoreNotice::Tunnel(stream) => {
                tokio::task::spawn_local(crate::tunnels::accept(self.clone(), stream));
            }
            notice => self.borrow().store_says(notice),
        }
    }

    async fn tick_for_ever(&self) {
        loop {
            let deadline = self.borrow().next_tick();
            let sleep = tokio::time::sleep_until(deadline.into());
            tokio::select! {
                () = sleep => self.borrow().tick(),
                () = self.signals.tick.notified() => {
                    // Brought forward; if it is due by now, not even a timer is needed.
                    let mut daemon = self.borrow();
                    if daemon.next_tick() <= Instant::now() {
                        daemon.tick();
                    }
                }
            }
        }
    }
}

impl Daemon {
    fn now(&self) -> Time {
        Time(self.origin.elapsed().as_micros() as u64)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.queue.push_back(Pending::Node(event));
    }

    pub(crate) fn push_head(&mut self, event: head_core::event::Event) {
        self.queue.push_back(Pending::Head(event));
    }

    fn next_tick(&self) -> Instant {
        let now = Instant::now();
        if self.head_again {
            return now;
        }
        match self.wake_at {
            Some(at) => (self.origin + Duration::from_micros(at.0)).min(now + TICK),
            None => now + TICK,
        }
    }

    fn tick(&mut self) {
        self.wake_at = None;
        self.head_again = false;
        self.interrupt_again();
        self.care_for_peers();
        self.tell_sizes();
        // The sentence comes also if no further line follows.
        for client in std::mem::take(&mut self.short_of_lines) {
            self.mark(client);
        }
        self.push(Event::Tick);
        if matches!(self.head, HeadSide::Embedded { .. }) {
            self.push_head(head_core::event::Event::Tick);
        }
        self.pump();
    }

    /// For whoever asks what a daemon needs its memory for.
    fn tell_sizes(&mut self) {
        if tracing::enabled!(tracing::Level::DEBUG) && Instant::now() >= self.tell_sizes_at {
            self.tell_sizes_at = Instant::now() + SIZES_EVERY;
            let tables = self.node.sizes().into_iter().filter(|(_, size)| *size > 0);
            let tables: Vec<String> = tables.map(|(table, size)| format!("{table} {size}")).collect();
            tracing::debug!(tables = tables.join(", "), "what is remembered");
        }
    }

    /// A signal that arrives between the executor's last look and its system call ends neither.
    fn interrupt_again(&mut self) {
        self.interrupted.retain(|&(executor, tag)| {
            let open = self.executors.cancel_is_open(executor, tag);
            if open {
                self.supervisor.interrupt(executor);
            }
            open
        });
    }

    /// Steps the cores until nothing is pending, and does what they want done.
    pub(crate) fn pump(&mut self) {
        let now = self.now();
        while let Some(pending) = self.queue.pop_front() {
            match pending {
                Pending::Node(event) => {
                    let mut effects = std::mem::take(&mut self.effects);
                    self.node.step(now, event, &mut effects);
                    for effect in effects.drain(..) {
                        self.perform(effect);
                    }
                    self.effects = effects;
                }
                Pending::Head(event) => self.step_head(now, event),
            }
        }
    }

    fn step_head(&mut self, now: Time, event: head_core::event::Event) {
        let HeadSide::Embedded { head, .. } = &mut self.head else { return };
        let mut effects = std::mem::take(&mut self.head_effects);
        if head.step(now, event, &mut effects) {
            self.head_again = true;
            self.signals.tick.notify_one();
        }
        for effect in effects.drain(..) {
            self.perform_for_head(effect);
        }
        self.head_effects = effects;
    }

    /// The embedded head's only node is the one beside it.
    fn perform_for_head(&mut self, effect: head_core::event::Effect) {
        use head_core::event::Effect;
        match effect {
            Effect::AdmitNode { incarnation, message, .. } => {
                if let HeadSide::Embedded { incarnation: ours, .. } = &mut self.head {
                    *ours = incarnation;
                }
                self.push(Event::FromHead(message));
            }
            Effect::ToNode { message, .. } => self.push(Event::FromHead(message)),
            Effect::RefuseNode { reason, .. } | Effect::CloseNode { reason, .. } => {
                tracing::error!(reason, "the embedded head parted with its own node");
            }
            // Nobody asks an embedded head itself, and nothing of it outlives its driver.
            Effect::Reply { .. } | Effect::Persist(_) | Effect::Remember(_) => {}
        }
    }

    /// Begins the conversation with an embedded head.
    pub(crate) fn connect_embedded(&mut self, hello: NodeHello) {
        self.push_head(head_core::event::Event::NodeConnected { connection: 1, hello });
        self.pump();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::ToHead(message) => self.tell_head(message),
            Effect::ToClient { client, message } => self.tell_client(client, message),
            Effect::CloseClient { client } => {
                if let Some(known) = self.clients.get_mut(&client) {
                    known.closing = true;
                    self.mark(client);
                }
            }
            Effect::StartExecutor { executor, job, info, env_vars, gpus, program } => {
                self.start_executor(executor, job, &info, &env_vars, &gpus, program);
            }
            Effect::EndExecutor { executor, force } => self.supervisor.end(executor, force),
            Effect::DeleteState { object } => self.supervisor.delete_state(&object.to_string()),
            Effect::Interrupt { executor, tag } => {
                self.executors.request_cancel(executor, tag);
                self.supervisor.interrupt(executor);
                self.interrupted.push((executor, tag));
            }
            Effect::JoinCalls { caller, executor, actor, in_order } => {
                self.join_calls(caller, executor, actor, in_order);
            }
            Effect::ConnectPeer { node, address } => self.connect_peer(node, address),
            Effect::ToPeer { node, message } => self.tell_peer(node, message),
            Effect::DropPeer { node } => self.drop_peer(node),
            Effect::Revoke { executor, slot, tag } => {
                let won = self.executors.revoke(executor, slot, tag);
                self.push(Event::Revoked { executor, tag, won });
            }
            Effect::End => self.signals.left.notify_one(),
            Effect::MeasureMemory { executors } => {
                let executors = crate::memory_monitor::measure(&self.supervisor, &executors);
                self.push(Event::MemoryMeasured { executors });
            }
            Effect::WakeAt(at) => {
                if self.wake_at.is_none_or(|known| at < known) {
                    self.wake_at = Some(at);
                    if at.since(self.now()).0 < TICK.as_micros() as u64 {
                        self.signals.tick.notify_one();
                    }
                }
            }
            Effect::KeepLine(line) => self.jobs.keep_line(&line),
            Effect::StopJob { job, at_once } => self.stop_job(&job, at_once),
            Effect::DeleteJobLogs { job } => self.delete_job_logs(&job),
            Effect::StartJob { order } => self.start_job(order),
            Effect::ReadLog { ask, log, ended } => self.jobs.later(Work::Read { ask, log, ended }),
            Effect::WriteDurable { object } => self.store.write_durable(object, self.node_id),
            Effect::SendBytes { client, object } => self.send_bytes(client, object),
            other => self.store.perform(other),
        }
    }

    pub(crate) fn tell_head(&mut self, message: NodeToHead) {
        match &mut self.head {
            HeadSide::Embedded { incarnation, .. } => {
                let (node, incarnation): (NodeId, Incarnation) = (self.node_id, *incarnation);
                self.push_head(head_core::event::Event::FromNode { node, incarnation, message });
            }
            HeadSide::Remote(link) => {
                if link.tell(message) {
                    self.signals.flush.notify_one();
                }
            }
        }
    }

    /// Gives a caller and an actor's executor a socket between them.
    fn join_calls(&mut self, caller: ClientId, executor: ClientId, actor: ObjectId, in_order: bool) {
        let both_here = self.clients.contains_key(&caller) && self.clients.contains_key(&executor);
        let pair = both_here.then(socket_pair).and_then(|pair| {
            pair.inspect_err(
                |error| tracing::warn!(%error, %actor, "no socket for calls; they go by the head"),
            )
            .ok()
        });
        let Some((ours, theirs)) = pair else {
            return self.tell_client(caller, NodeToClient::NoCalls { actor });
        };
        for (client, end, message) in [
            (executor, ours, NodeToClient::Serve { caller, in_order }),
            (caller, theirs, NodeToClient::Calls { actor, in_order }),
        ] {
            if let Some(known) = self.clients.get_mut(&client) {
                known.descriptors.push_back(Arc::new(end));
                self.tell_client(client, message);
            }
        }
    }

    /// Gathers a message; it is written when the turn ends.
    pub(crate) fn tell_client(&mut self, client: ClientId, message: NodeToClient) {
        let message = match message {
            NodeToClient::RangesFreed(ranges) => match self.store.free_now(client, ranges) {
                ranges if ranges.is_empty() => return,
                ranges => NodeToClient::RangesFreed(ranges),
            },
            NodeToClient::Evict { object } if !self.store.evict_now(client, object) => return,
            other => other,
        };
        let Some(known) = self.clients.get_mut(&client) else { return };
        let message = match message {
            NodeToClient::Segment { segment, writable, .. } => {
                let Some((len, descriptor)) = self.store.descriptor(segment, writable) else {
                    tracing::error!(?segment, "a client was to be told of a segment that is gone");
                    return;
                };
                match &known.link {
                    ClientLink::Socket(_) => known.descriptors.push_back(descriptor),
                    ClientLink::Remote(session) => session.lease(segment, len, descriptor),
                }
                // Of segments that the store made for itself the core does not know the length.
                NodeToClient::Segment { segment, len, writable }
            }
            other => other,
        };
        if let ClientLink::Remote(session) = &known.link {
            session.note_told(&message);
        }
        if let (NodeToClient::Run(run), ClientKind::Executor { executor }) = (&message, &known.kind) {
            self.executors.offer(*executor, run.slot, run.tag);
        }
        known.messages.push(message);
        self.mark(client);
    }

    /// Sends an object to a client that shares no memory.
    fn send_bytes(&mut self, client: ClientId, object: ObjectId) {
        let link = self.clients.get(&client).map(|known| &known.link);
        match (link, self.store.served_len(object)) {
            (Some(ClientLink::Remote(session)), Some(len)) if len > PART as u64 => session.want(object),
            _ => self.store.send_bytes(client, object),
        }
    }

    /// Something is to be written at the end of this turn.
    pub(crate) fn flush_soon(&self) {
        self.signals.flush.notify_one();
    }

    fn mark(&mut self, client: ClientId) {
        if let Some(known) = self.clients.get_mut(&client)
            && !known.marked
        {
            known.marked = true;
            self.unflushed.push(client);
            self.signals.flush.notify_one();
        }
    }

    /// Writes what was gathered: one frame and one system call for each peer.
    pub(crate) fn flush(&mut self) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        for client in unflushed.drain(..) {
            let Some(known) = self.clients.get_mut(&client) else { continue };
            known.marked = false;
            if known.flush(client, &mut self.codec) == Shown::NotAll {
                self.short_of_lines.push(client);
            }
        }
        self.unflushed = unflushed;
        self.flush_peers();
        if let HeadSide::Remote(link) = &mut self.head {
            link.flush(&mut self.codec);
        }
    }

    fn store_says(&mut self, notice: StoreNotice) {
        match notice {
            StoreNotice::Event(event) => self.push(event),
            // The loop's own task takes it.
            StoreNotice::Tunnel(_) => {}
            StoreNotice::Ready { client, object, value } => {
                self.tell_client(client, NodeToClient::Ready { object, value });
            }
            StoreNotice::TransferEnded(range) => {
                for (client, message) in self.store.transfer_ended(range) {
                    self.tell_client(client, message);
                }
            }
        }
    }

    /// A line that an executor, or something it started, wrote past Python.
    pub(crate) fn printed(&mut self, client: ClientId, job: JobId, pid: u32, stderr: bool, text: String) {
        let line = LogLine { job, task: None, pid, node: self.node_id, stderr, text };
        self.push(Event::FromClient { client, message: ClientToNode::Log(line) });
    }
}
