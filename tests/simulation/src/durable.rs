//! Storage that outlives every machine: what is there, what is being written, what must be readable.

use std::collections::BTreeSet;

use cluster_types::query::{Query, QueryReply};
use cluster_types::{ClientId, ClientToNode, NodeId, NodeToClient, ObjectId};

use crate::world::{Arrival, World};

/// What lies there, and who was promised that it does.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    pub(crate) copies: BTreeSet<(ObjectId, NodeId)>,
    promised: BTreeSet<ObjectId>,
    /// Nobody deletes what these wrote and could not tell.
    pub(crate) unsure: bool,
}

impl World {
    /// A driver asks that something it put become durable.
    pub(crate) fn ask_for_durable(&mut self, client: ClientId) {
        let puts: Vec<ObjectId> = match self.processes.get(&client) {
            Some(process) => {
                process.refs.iter().copied().filter(|id| id.is_put() && id.client == client).collect()
            }
            None => return,
        };
        let Some(object) = self.random.pick(&puts).copied() else { return };
        let Some(process) = self.processes.get_mut(&client) else { return };
        process.core.share(&[object]);
        let query = Query::MakeDurable { object: object.to_string() };
        process.core.push(ClientToNode::Query { number: object.local, query });
    }

    pub(crate) fn write_durable(&mut self, node: NodeId, object: ObjectId) -> Result<(), String> {
        let Some(host) = self.hosts.get(&node) else { return Ok(()) };
        if let Err(failure) = host.serves(object)
            && failure.kind == cluster_types::FailureKind::Internal
        {
            return Err(format!("{object} is to be written: {}", failure.message));
        }
        let fails = self.plan.crash_one_in > 0 && self.random.one_in(20);
        let is_there = self.hosts.get(&node).is_some_and(|host| host.serves(object).is_ok());
        self.after(100, 8_000, Arrival::DurableWritten { node, object, well: is_there && !fails });
        Ok(())
    }

    pub(crate) fn durable_written(
        &mut self,
        node: NodeId,
        object: ObjectId,
        well: bool,
    ) -> Result<(), String> {
        if well {
            self.storage.copies.insert((object, node));
        }
        if !self.hosts.contains_key(&node) {
            self.storage.unsure = true;
            return Ok(());
        }
        let event = match well {
            true => worker_core::Event::DurableWritten { object },
            false => worker_core::Event::DurableFailed { object, reason: "the disk is full".to_owned() },
        };
        self.node_step(node, event)
    }

    pub(crate) fn durable_fetched(
        &mut self,
        node: NodeId,
        object: ObjectId,
        size: u64,
        writer: NodeId,
    ) -> Result<(), String> {
        let is_there = self.storage.copies.contains(&(object, writer));
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let event = match is_there {
            true => {
                self.report.from_storage += 1;
                worker_core::Event::Stored { object, location: host.store_own(object, size) }
            }
            false => worker_core::Event::StoreFailed {
                object,
                missing: true,
                reason: "it is not in storage".to_owned(),
                no_memory: false,
            },
        };
        self.node_step(node, event)
    }

    /// Whether a client hears that its put is durable.
    pub(crate) fn hears_of_durable(&mut self, message: &NodeToClient) {
        if let NodeToClient::Reply { reply: Ok(QueryReply::States(objects)), .. } = message {
            self.storage.promised.extend(objects.iter().filter_map(|object| object.parse::<ObjectId>().ok()));
        }
    }

    /// Nobody may hear that this is lost.
    pub(crate) fn is_promised(&self, object: ObjectId) -> bool {
        self.storage.promised.contains(&object)
    }
}
