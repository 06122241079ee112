//! Steps the core with what came in and carries its effects out: the only place that holds both.
//!
//! Each turn takes what has gathered, steps the core with all of it, persists the turn's records in one transaction,
//! and only then lets the turn's messages leave (rule H4), as one batch for each node.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use cluster_proto::Codec;
use cluster_proto::heads::not_leading;
use cluster_proto::limits::{FRAME_TARGET, MAX_BATCH_MESSAGES};
use cluster_proto::stream::StreamEnd;
use cluster_types::query::QueryReply;
use cluster_types::{HeadToNode, Heads, Incarnation, Map, NodeId, Time};
use head_core::{Effect, Event};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::history::HistoryFile;
use crate::outbox::{Full, Outbox};
use crate::service::{Disconnect, Input};
use crate::state::write_of;
use crate::store::etcd::Position;
use crate::store::{StateStore, StoreError, Write};
use crate::tenure::Tenure;

/// The longest the core goes without knowing the time.
const TICK: Duration = Duration::from_millis(100);

/// Inputs of one turn; a flood of them must not delay what the first of them caused.
const INPUTS_PER_TURN: usize = 64;

/// What the driver needs of a head: `head_core::Head`, or a test's stand-in.
pub trait Core {
    /// One event; effects are appended. True: planning was cut short, call again with `Tick` soon (rule S6).
    fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) -> bool;
}

impl Core for head_core::Head {
    fn step(&mut self, now: Time, event: Event, effects: &mut Vec<Effect>) -> bool {
        head_core::Head::step(self, now, event, effects)
    }
}

pub(crate) struct Driver<C> {
    core: C,
    store: Box<dyn StateStore>,
    tenure: Tenure,
    history: Option<HistoryFile>,
    /// As nodes were told last.
    heads: Heads,
    started: Instant,
    /// Microseconds since 1970 at that moment: what is remembered of a task says the same in the next term.
    epoch: u64,
    connections: Map<u64, Connection>,
    /// The connection of each admitted node.
    nodes: Map<NodeId, u64>,
    questions: Map<u64, oneshot::Sender<Result<QueryReply, String>>>,
    next_question: u64,
    codec: Codec,
    buffer: BytesMut,
    effects: Vec<Effect>,
    /// The turn's changes for the store.
    records: Vec<Write>,
    /// Events that carrying out effects caused; stepped before the turn ends.
    caused: VecDeque<Event>,
    /// Whether the core wants to go on planning.
    unfinished: bool,
}

/// A node's stream, from its hello to its end.
struct Connection {
    node: NodeId,
    /// What its messages are stamped with (FENCE-1); `None` until the core admitted it.
    incarnation: Option<Incarnation>,
    gateway: String,
    same_host: bool,
    stream: StreamEnd,
    outbox: Outbox,
    /// The turn's messages.
    pending: Vec<HeadToNode>,
    /// Set when it is to end after `pending`.
    closing: Option<Status>,
}

impl<C: Core> Driver<C> {
    pub(crate) fn new(
        core: C,
        store: Box<dyn StateStore>,
        tenure: Tenure,
        history: Option<HistoryFile>,
    ) -> Self {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            core,
            store,
            tenure,
            history,
            heads: Heads::default(),
            started: Instant::now(),
            epoch: u64::try_from(epoch.as_micros()).unwrap_or_default(),
            connections: Map::default(),
            nodes: Map::default(),
            questions: Map::default(),
            next_question: 1,
            codec: Codec::default(),
            buffer: BytesMut::new(),
            effects: Vec::new(),
            records: Vec::new(),
            caused: VecDeque::new(),
            unfinished: false,
        }
    }

    /// Runs until `shutdown`, or an error after which this head must do nothing more; then tells every node.
    pub(crate) async fn run(
        mut self,
        inputs: mpsc::UnboundedReceiver<Input>,
        position: Option<watch::Receiver<Position>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), StoreError> {
        let shared = position.is_some();
        let ended = self.turns(inputs, position, shutdown).await;
        let others = Heads { leader: String::new(), ..self.heads };
        for connection in self.connections.values() {
            match &ended {
                Ok(()) if !shared => connection.outbox.end(Status::unavailable("the head is stopping")),
                Ok(()) => connection.outbox.end(not_leading(&others)),
                // What is still queued, a head said that may not lead any more.
                Err(_) => connection.outbox.cut(not_leading(&others)),
            }
        }
        ended
    }

    async fn turns(
        &mut self,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        mut position: Option<watch::Receiver<Position>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), StoreError> {
        tokio::pin!(shutdown);
        let mut next_tick = Instant::now();
        loop {
            let first = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                heads = news(&mut position) => {
                    self.tell_heads(heads);
                    None
                }
                input = inputs.recv() => match input {
                    Some(input) => Some(input),
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(next_tick) => None,
                // Planning goes on, but streams are read and written between its slices.
                () = tokio::task::yield_now(), if self.unfinished => None,
            };
            // Before anything is done with it: this process may have slept (FENCE-1).
            self.check_tenure()?;
            let mut tick = self.unfinished || Instant::now() >= next_tick;
            self.unfinished = false;
            if let Some(first) = first {
                self.take(first);
            }
            for _ in 1..INPUTS_PER_TURN {
                let Ok(input) = inputs.try_recv() else { break };
                self.take(input);
            }
            tick |= Instant::now() >= next_tick;
            if tick {
                next_tick = Instant::now() + TICK;
                self.step(Event::Tick);
            }
            self.settle()?;
        }
    }

    fn check_tenure(&self) -> Result<(), StoreError> {
        if self.tenure.holds() {
            return Ok(());
        }
        Err(StoreError::Deposed(
            "it could not renew its leadership, or was paused too long to know".to_owned(),
        ))
    }

    fn tell_heads(&mut self, heads: Heads) {
        if heads == self.heads {
            return;
        }
        for number in self.nodes.values() {
            if let Some(entry) = self.connections.get_mut(number) {
                entry.pending.push(HeadToNode::Heads(heads.clone()));
            }
        }
        self.heads = heads;
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Connected { connection, hello, same_host, outbox } => {
                let entry = Connection {
                    node: hello.node,
                    incarnation: None,
                    gateway: hello.gateway_address.clone(),
                    same_host,
                    stream: StreamEnd::once(),
                    outbox,
                    pending: Vec::new(),
                    closing: None,
                };
                self.connections.insert(connection, entry);
                self.step(Event::NodeConnected { connection, hello });
            }
            Input::Batch { connection, messages, .. } => {
                // Of a connection that was closed meanwhile: nothing of it counts any more.
                let Some(entry) = self.connections.get(&connection) else { return };
                let node = entry.node;
                let Some(incarnation) = entry.incarnation else {
                    let reason = "the node spoke before it was admitted";
                    self.drop_connection(connection, Status::failed_precondition(reason), reason);
                    return;
                };
                for message in messages {
                    self.step(Event::FromNode { node, incarnation, message });
                }
            }
            Input::Disconnected { connection, reason } => match reason {
                Disconnect::Gone(reason) => {
                    self.drop_connection(connection, Status::unavailable("the stream ended"), &reason);
                }
                Disconnect::Broken(error) => {
                    let reason = error.to_string();
                    self.drop_connection(connection, Status::invalid_argument(reason.as_str()), &reason);
                }
            },
            Input::Ask { query, answer } => {
                let number = self.next_question;
                self.next_question += 1;
                self.questions.insert(number, answer);
                self.step(Event::Query { number, query });
            }
            Input::FindGateway { answer } => {
                let _ = answer.send(self.gateways());
            }
        }
    }

    fn step(&mut self, event: Event) {
        let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let now = Time(self.epoch.saturating_add(elapsed));
        self.unfinished |= self.core.step(now, event, &mut self.effects);
        self.sort_effects();
    }

    /// Puts each effect where the end of the turn finds it: records, a node's batch, an answer.
    fn sort_effects(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::AdmitNode { connection, node, incarnation, message } => {
                    if let Some(entry) = self.connections.get_mut(&connection) {
                        entry.incarnation = Some(incarnation);
                        entry.pending.push(message);
                        if !self.heads.all.is_empty() {
                            entry.pending.push(HeadToNode::Heads(self.heads.clone()));
                        }
                        self.nodes.insert(node, connection);
                        info!(%node, incarnation = incarnation.0, "node admitted");
                    }
                }
                Effect::RefuseNode { connection, reason } => {
                    if let Some(entry) = self.connections.get_mut(&connection) {
                        warn!(node = %entry.node, reason, "node refused");
                        entry.closing = Some(Status::failed_precondition(reason));
                    }
                }
                Effect::ToNode { node, message } => {
                    let connection = self.nodes.get(&node).and_then(|at| self.connections.get_mut(at));
                    // A node that is gone: the core learns of it by an event that is on its way.
                    if let Some(entry) = connection {
                        entry.pending.push(message);
                    }
                }
                Effect::CloseNode { node, incarnation, reason } => {
                    let closed = |entry: &&mut Connection| {
                        entry.node == node && entry.incarnation == Some(incarnation)
                    };
                    if let Some(entry) = self.connections.values_mut().find(closed) {
                        warn!(%node, reason, "node closed");
                        entry.closing = Some(Status::aborted(reason));
                    }
                }
                Effect::Reply { number, mut reply } => {
                    if let Ok(QueryReply::Status(status)) = &mut reply {
                        status.heads = self.heads.clone();
                    }
                    if let Some(answer) = self.questions.remove(&number) {
                        // Who asked may have gone.
                        let _ = answer.send(reply);
                    }
                }
                Effect::Remember(history) => {
                    if let Some(file) = &mut self.history {
                        file.write(&history);
                    }
                }
                Effect::Persist(record) => self.records.push(write_of(&record, &mut self.codec)),
            }
        }
        self.effects = effects;
    }

    /// Ends the turn: records first, then messages.
    fn settle(&mut self) -> Result<(), StoreError> {
        loop {
            if !self.records.is_empty() {
                self.store.commit(&self.records)?;
                self.records.clear();
            }
            // Storing takes time, and so may stepping.
            self.check_tenure()?;
            self.flush();
            if self.caused.is_empty() {
                return Ok(());
            }
            while let Some(event) = self.caused.pop_front() {
                self.step(event);
            }
        }
    }

    fn flush(&mut self) {
        let mut ended = Vec::new();
        for (number, connection) in &mut self.connections {
            if connection.send_pending(&mut self.codec, &mut self.buffer) == Err(Full) {
                let reason = "the node read too slowly for what was sent to it";
                ended.push((*number, Status::resource_exhausted(reason), Some(reason)));
            } else if let Some(status) = connection.closing.take() {
                ended.push((*number, status, None));
            }
        }
        for (number, status, lost) in ended {
            match lost {
                Some(reason) => self.drop_connection(number, status, reason),
                // The core closed it, so it need not be told.
                None => {
                    if let Some(connection) = self.forget(number) {
                        connection.outbox.end(status);
                    }
                }
            }
        }
    }

    /// The connection is of no use: its queue is dropped, and the core learns of it.
    fn drop_connection(&mut self, number: u64, status: Status, reason: &str) {
        let Some(connection) = self.forget(number) else { return };
        connection.outbox.cut(status);
        let node = connection.node;
        match connection.incarnation {
            Some(incarnation) => {
                info!(%node, incarnation = incarnation.0, reason, "node disconnected");
                self.caused.push_back(Event::NodeDisconnected { node, incarnation });
            }
            None => debug!(%node, reason, "a node left before it was admitted"),
        }
    }

    fn forget(&mut self, number: u64) -> Option<Connection> {
        let connection = self.connections.remove(&number)?;
        if self.nodes.get(&connection.node) == Some(&number) {
            self.nodes.remove(&connection.node);
        }
        Some(connection)
    }

    /// Gateways of connected nodes, those on the head's own host first.
    fn gateways(&self) -> Vec<String> {
        let admitted = self.nodes.values().filter_map(|number| self.connections.get(number));
        let mut gateways: Vec<_> = admitted
            .filter(|connection| !connection.gateway.is_empty())
            .map(|connection| (!connection.same_host, connection.node, connection.gateway.clone()))
            .collect();
        gateways.sort();
        gateways.into_iter().map(|(_, _, gateway)| gateway).collect()
    }
}

/// Where heads are, when that changes; at first at once.
async fn news(position: &mut Option<watch::Receiver<Position>>) -> Heads {
    if let Some(position) = position
        && position.changed().await.is_ok()
    {
        return position.borrow_and_update().heads.clone();
    }
    // There is one head, or this one is about to end.
    std::future::pending().await
}

impl Connection {
    /// Encodes the turn's messages, in batches of about a megabyte.
    fn send_pending(&mut self, codec: &mut Codec, buffer: &mut BytesMut) -> Result<(), Full> {
        let mut messages = std::mem::take(&mut self.pending);
        let mut count = 0;
        for (at, message) in messages.iter().enumerate() {
            codec.encode_to_node_batch(std::slice::from_ref(message), buffer);
            count += 1;
            let last = at + 1 == messages.len();
            if last || count == MAX_BATCH_MESSAGES || buffer.len() >= FRAME_TARGET {
                count = 0;
                for piece in self.stream.send(buffer.split().freeze()) {
                    self.outbox.push(piece.into()).inspect_err(|Full| buffer.clear())?;
                }
            }
        }
        messages.clear();
        self.pending = messages;
        Ok(())
    }
}
