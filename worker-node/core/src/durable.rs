//! Copies in durable storage, which outlive every node.
//!
//! A task whose results are to be durable has ended only when each is written: its end is held until then, like that of
//! one whose heir is not certain. A put is made durable by its maker's question, which is answered then. The copy bears
//! this node's name, so that what an old attempt writes late, on another node, spoils nothing (TASK-2).

use cluster_types::query::QueryReply;
use cluster_types::{
    Attempt, ClientId, FailureKind, Map, NodeId, NodeToClient, NodeToHead, ObjectId, Outcome, TaskId,
};

use crate::event::{Effect, Event};
use crate::executors::Ended;
use crate::node::{Node, failure};
use crate::objects::Object;
use cluster_types::node_head::Retry;

/// What is being written, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    writes: Map<ObjectId, Write>,
    /// Results that are still to be written, of tasks that have ended.
    tasks: Map<TaskId, Results>,
    /// Ends of tasks whose executors are gone, held until their results are written.
    pub(crate) orphans: Map<TaskId, (Option<ClientId>, Ended)>,
    /// What their executors said since, for one ordered stream goes to the head (rule T3): what is inside a result is
    /// held by it before its maker drops it (rule R1). An executor that waits runs nothing, so there is little.
    held: Map<ClientId, Vec<Event>>,
    /// Executors whose tasks count as ended by now.
    released: Vec<ClientId>,
}

impl Durable {
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("durable writes", self.writes.len()),
            ("tasks with durable results", self.tasks.len()),
            ("ends without executors", self.orphans.len()),
            ("events held back", self.held.values().map(Vec::len).sum()),
        ]
    }
}

#[derive(Debug)]
struct Results {
    executor: ClientId,
    attempt: Attempt,
    missing: u32,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Write {
    waiting: Vec<Waiting>,
    /// It is to be written once more: this value came after the write had begun.
    again: bool,
    /// Nobody can reach it any more: it is deleted as soon as it is written.
    freed: bool,
}

#[derive(Debug)]
enum Waiting {
    /// A client that put it, and the number of its question.
    Client(ClientId, u64),
    /// The attempt that made it.
    Task(TaskId, Attempt),
}

impl Durable {
    /// Whether the end of this task waits for its results to be written.
    pub(crate) fn is_written_for(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Every attempt here is over: what is being written for one is deleted when it is written.
    pub(crate) fn forget_ends(&mut self) {
        self.tasks.clear();
        self.orphans.clear();
        self.released.extend(self.held.keys());
    }

    /// Keeps what an executor says whose task has not ended yet.
    pub(crate) fn hold_back(&mut self, event: Event) -> Option<Event> {
        let (Event::FromClient { client, .. } | Event::ClientEnded { client }) = &event else {
            return Some(event);
        };
        match self.held.get_mut(client) {
            Some(held) => {
                held.push(event);
                None
            }
            None => Some(event),
        }
    }
}

impl Node {
    /// A client asks for a durable copy of what it put.
    pub(crate) fn make_put_durable(
        &mut self,
        client: ClientId,
        number: u64,
        object: &str,
        effects: &mut Vec<Effect>,
    ) {
        let id: Option<ObjectId> = object.parse().ok();
        let known = id.filter(|id| {
            let known = self.objects.get(id);
            id.client == client
                && known.is_some_and(|known| known.escaped && known.has_copy() && !known.freed)
        });
        match known {
            Some(object) if self.objects.get(&object).is_some_and(|known| known.durable) => {
                let reply = Ok(QueryReply::States(vec![object.to_string()]));
                self.tell_client(client, NodeToClient::Reply { number, reply }, effects);
            }
            Some(object) => self.write_durable(object, Waiting::Client(client, number), effects),
            None => {
                let reply = Err(format!("{object} is no object that its maker put on this node"));
                self.tell_client(client, NodeToClient::Reply { number, reply }, effects);
            }
        }
    }

    /// The results of this attempt are here, and are to be written before it counts as ended.
    pub(crate) fn make_results_durable(
        &mut self,
        executor: ClientId,
        task: TaskId,
        attempt: Attempt,
        results: u32,
        effects: &mut Vec<Effect>,
    ) {
        if results == 0 {
            return;
        }
        self.durable.held.entry(executor).or_default();
        let waits = Results { executor, attempt, missing: results, failed: None };
        self.durable.tasks.insert(task, waits);
        for index in 0..results {
            self.write_durable(task.result(index), Waiting::Task(task, attempt), effects);
        }
    }

    fn write_durable(&mut self, object: ObjectId, waiting: Waiting, effects: &mut Vec<Effect>) {
        self.serve(object, effects);
        if let Some(write) = self.durable.writes.get_mut(&object) {
            // Of a put there is one value; of a result that is made anew, the newer counts.
            write.again |= matches!(waiting, Waiting::Task(..));
            write.freed = false;
            write.waiting.push(waiting);
            return;
        }
        let write = Write { waiting: vec![waiting], ..Write::default() };
        self.durable.writes.insert(object, write);
        effects.push(Effect::WriteDurable { object });
    }

    pub(crate) fn durable_written(&mut self, object: ObjectId, effects: &mut Vec<Effect>) {
        let Some(write) = self.durable.writes.get_mut(&object) else { return };
        if std::mem::take(&mut write.again) {
            effects.push(Effect::WriteDurable { object });
            return;
        }
        let Some(write) = self.durable.writes.remove(&object) else { return };
        let writer = self.config.node;
        let mut is_wanted = false;
        for waiting in write.waiting {
            match waiting {
                Waiting::Client(client, number) => {
                    is_wanted |= !write.freed;
                    let reply = Ok(QueryReply::States(vec![object.to_string()]));
                    self.tell_client(client, NodeToClient::Reply { number, reply }, effects);
                }
                Waiting::Task(task, attempt) => {
                    is_wanted |= self.result_settled(task, attempt, None, effects);
                }
            }
        }
        let known = self.objects.get_mut(&object).filter(|known| !known.freed);
        if is_wanted && !write.freed {
            if let Some(known) = known {
                known.durable = true;
            }
            // Of a result the report of its task says it.
            if object.is_put() {
                self.tell_head(NodeToHead::Durable { object, writer }, effects);
            }
        } else {
            effects.push(Effect::DeleteDurable { object, writer });
        }
        self.let_speak(effects);
    }

    /// Those whose tasks have ended are listened to again.
    pub(crate) fn let_speak(&mut self, effects: &mut Vec<Effect>) {
        for client in std::mem::take(&mut self.durable.released) {
            for event in self.durable.held.remove(&client).unwrap_or_default() {
                // Among what it said may be the end of its next task, which is to be written too.
                let Some(event) = self.durable.hold_back(event) else { continue };
                match event {
                    Event::FromClient { client, message } if self.clients.contains_key(&client) => {
                        self.client_says(client, message, effects);
                    }
                    Event::ClientEnded { client } => self.client_ended(client, effects),
                    _ => {}
                }
            }
        }
    }

    pub(crate) fn durable_failed(&mut self, object: ObjectId, reason: &str, effects: &mut Vec<Effect>) {
        let Some(write) = self.durable.writes.remove(&object) else { return };
        if write.freed {
            // An earlier attempt's copy may be there.
            effects.push(Effect::DeleteDurable { object, writer: self.config.node });
        }
        let why = format!("no durable copy of {object} could be written on node {}: {reason}", self.me());
        for waiting in write.waiting {
            match waiting {
                Waiting::Client(client, number) => {
                    let reply = Err(why.clone());
                    self.tell_client(client, NodeToClient::Reply { number, reply }, effects);
                }
                Waiting::Task(task, attempt) => {
                    self.result_settled(task, attempt, Some(&why), effects);
                }
            }
        }
        self.let_speak(effects);
    }

    /// One result of this attempt is written, or cannot be. True: the attempt still counts (TASK-2).
    fn result_settled(
        &mut self,
        task: TaskId,
        attempt: Attempt,
        failed: Option<&str>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(results) = self.durable.tasks.get_mut(&task).filter(|results| results.attempt == attempt)
        else {
            return false;
        };
        results.missing -= 1;
        if let Some(why) = failed {
            results.failed.get_or_insert_with(|| why.to_owned());
        }
        if results.missing > 0 {
            return true;
        }
        let Some(Results { failed, executor: client, .. }) = self.durable.tasks.remove(&task) else {
            return false;
        };
        self.durable.released.push(client);
        let is_current = self.attempts.get(&task).is_some_and(|current| current.attempt == attempt);
        let executor = self.executors.iter().find_map(|(id, known)| {
            known.ended.as_ref().is_some_and(|ended| ended.task == task).then_some(*id)
        });
        let orphan = self.durable.orphans.remove(&task);
        match (executor, orphan) {
            (Some(executor), _) => {
                let ended = self.executors.get_mut(&executor).and_then(|known| known.ended.take());
                let ended = ended.map(|ended| self.judge(ended, failed, effects));
                if let Some(known) = self.executors.get_mut(&executor) {
                    known.ended = ended;
                }
                self.settle_ended(executor, effects);
            }
            (None, Some((client, ended))) => {
                let Ended { task, outcome, retry, micros } = self.judge(ended, failed, effects);
                self.end_attempt(task, client, outcome, retry, micros, None, effects);
            }
            (None, None) => {}
        }
        is_current
    }

    /// What could not be written is not there: the attempt failed, and what it made goes.
    fn judge(&mut self, ended: Ended, failed: Option<String>, effects: &mut Vec<Effect>) -> Ended {
        let (Some(why), Outcome::Ok(results)) = (failed, &ended.outcome) else { return ended };
        let task = ended.task;
        for index in 0..results.len() as u32 {
            let object = task.result(index);
            self.freed(object, effects);
            if !self.durable.writes.contains_key(&object) {
                effects.push(Effect::DeleteDurable { object, writer: self.config.node });
            }
        }
        let message = format!("{} returned, but {why}", self.name(task));
        let outcome = Outcome::Failed(failure(FailureKind::ObjectLost, message, Some(task)));
        Ended { outcome, retry: Retry::Infrastructure, ..ended }
    }

    /// Nobody can reach it any more.
    pub(crate) fn delete_durable(&mut self, object: ObjectId, writer: NodeId, effects: &mut Vec<Effect>) {
        match self.durable.writes.get_mut(&object).filter(|_| writer == self.config.node) {
            Some(write) => write.freed = true,
            None => effects.push(Effect::DeleteDurable { object, writer }),
        }
    }

    /// Tells a head of a new term which copies this node wrote.
    pub(crate) fn report_durable(&self, object: ObjectId, known: &Object, effects: &mut Vec<Effect>) {
        if known.durable {
            let writer = self.config.node;
            effects.push(Effect::ToHead(NodeToHead::Durable { object, writer }));
        }
    }
}
