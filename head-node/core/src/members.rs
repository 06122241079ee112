//! Nodes join and are lost (FENCE-1).

use std::sync::Arc;

use cluster_types::node_head::Retry;
use cluster_types::query::StoreUsage;
use cluster_types::task::Strategy;
use cluster_types::{FailureKind, HeadToNode, Incarnation, Map, NodeHello, Outcome, PROTOCOL_VERSION, Set};

use crate::event::{Effect, Record};
use crate::head::{Head, failure};
use crate::ledger::{Ledger, check_amounts};
use crate::nodes::Node;
use crate::pulse::Heard;
use crate::slab::NodeIx;
use crate::tasks::TaskState;

/// The label that every node has: its id.
const NODE_LABEL: &str = "node-id";

impl Head {
    pub(crate) fn node_connected(&mut self, connection: u64, hello: NodeHello) {
        if hello.protocol != PROTOCOL_VERSION {
            let reason = format!(
                "node {} speaks protocol {}, this head {PROTOCOL_VERSION}: install the same version of Concurrent-ML on both",
                hello.hostname, hello.protocol
            );
            self.out.push(Effect::RefuseNode { connection, reason });
            return;
        }
        if let Err(problem) = check_amounts(&hello.resources) {
            let reason = format!("node {} offers resources that cannot be: {problem}", hello.hostname);
            self.out.push(Effect::RefuseNode { connection, reason });
            return;
        }
        if let Some(old) = self.nodes.find(hello.node) {
            self.lose_node(old, "it connected again");
        }
        // FENCE-1: higher than any that this head or the one before it gave.
        let seen = self.nodes.incarnations.get(&hello.node).copied().unwrap_or_default();
        let told = hello.previous.map_or(Incarnation(0), |(_, incarnation)| incarnation);
        let incarnation = Incarnation(seen.max(told).0.saturating_add(1));
        self.nodes.incarnations.insert(hello.node, incarnation);

        let term = self.config.term;
        let loss_timeout_ms = u32::try_from(self.config.loss_timeout.0 / 1000).unwrap_or(u32::MAX);
        let (since, message) = match self.recognises(&hello) {
            Some(since) => (since, HeadToNode::Resumed { term, incarnation, loss_timeout_ms }),
            None => (incarnation, HeadToNode::Admitted { term, incarnation, loss_timeout_ms }),
        };
        let address: Arc<str> = hello.data_address.as_str().into();
        self.out.push(Effect::Persist(Record::NodeJoined { node: hello.node, incarnation, since, address }));
        self.out.push(Effect::AdmitNode { connection, node: hello.node, incarnation, message });

        let id = hello.node;
        let mut labels = hello.labels;
        labels.insert(NODE_LABEL.to_owned(), id.to_string());
        let ix = self.nodes.insert(Node {
            id,
            incarnation,
            hostname: hello.hostname.into(),
            data_address: hello.data_address,
            labels,
            store: StoreUsage { capacity: hello.store_capacity, ..StoreUsage::default() },
            executors: 0,
            ledger: Ledger::new(hello.resources),
            last_heard: self.now,
            heard: Heard::default(),
            attempts: Set::default(),
            running: 0,
            blocked: 0,
            prefetched: 0,
            shapes: Map::default(),
            clients: Set::default(),
            jobs: Set::default(),
            callers: Set::default(),
            functions: Set::default(),
            reserved: None,
            kept_for: None,
            dirty: false,
            crowd_next: None,
            draining: None,
            wanting: Vec::new(),
        });
        for at in 0..self.shapes.alive().len() {
            let shape = self.shapes.alive()[at];
            self.count_feasible(shape);
        }
        self.nodes.mark_dirty(ix);
        self.measure_lineage();
        self.judge_feasibility();
    }

    /// The node is lost: so are its clients, its attempts, and the only copies of objects that lay there (the last
    /// are found when somebody next asks for one: a lost node's index finds nothing).
    pub(crate) fn lose_node(&mut self, ix: NodeIx, why: &str) {
        let Some(node) = self.nodes.remove(ix) else { return };
        self.await_no_more(node.id);
        // Who was asked to leave is no machine that failed: what that cost is not counted against anybody.
        let asked = node.draining.is_some();
        let reason = format!("node {} is lost: {why}", node.hostname);
        self.out.push(Effect::CloseNode {
            node: node.id,
            incarnation: node.incarnation,
            reason: reason.clone(),
        });
        self.out.push(Effect::Persist(Record::NodeLeft { node: node.id }));
        for at in 0..self.shapes.alive().len() {
            let shape_ix = self.shapes.alive()[at];
            let Some(shape) = self.shapes.get_mut(shape_ix) else { continue };
            shape.candidates.remove(ix);
            shape.promoted_candidates.remove(ix);
            shape.room.remove(ix);
            if shape.pack == Some(ix) {
                shape.pack = None;
            }
            if shape.reservation == Some(ix) {
                shape.reservation = None;
            }
            self.count_feasible(shape_ix);
        }
        for client in node.clients {
            self.client_gone(client, &reason);
        }
        self.find_other_homes(ix);
        let mut attempts: Vec<_> = node.attempts.into_iter().collect();
        // Actors first: their calls are tried again only if they are.
        attempts.sort_unstable_by_key(|task_ix| (!self.is_living(*task_ix), *task_ix));
        for task_ix in attempts {
            let Some(task) = self.tasks.get(task_ix).filter(|task| task.node() == Some(ix)) else { continue };
            if let TaskState::Alive { .. } = task.state {
                let handle = task.spec.id.result(0);
                let cause = format!("node {} is lost: {why}", node.hostname);
                let failure = self.death_of(handle, &cause);
                self.actor_died(task_ix, failure, Retry::Infrastructure);
                continue;
            }
            let was_leased = matches!(task.state, TaskState::Leased { .. } | TaskState::HandedOut { .. });
            let may_retry = if asked { task.may_try_again_uncounted() } else { task.may_retry() };
            let cancelled = task.cancelled;
            let id = task.spec.id;
            let spec = task.spec.clone();
            let message = format!(
                "task {} ({id}) ran on node {}, which is lost ({why}), and it was tried {} times already",
                task.spec.template.name,
                node.hostname,
                task.retries + 1
            );
            self.detach(task_ix);
            if cancelled {
                self.end_cancelled(task_ix);
            } else if !was_leased {
                self.enqueue(task_ix, true);
            } else if may_retry {
                if let Some(task) = self.tasks.get_mut(task_ix) {
                    task.retries += u32::from(!asked);
                }
                self.enqueue(task_ix, true);
            } else {
                let failure = match spec.called_actor() {
                    Some(handle) => self.lost_call(&spec, handle, None),
                    None => failure(FailureKind::NodeLost, message, Some(id)),
                };
                self.finish(task_ix, Outcome::Failed(failure), None, Some(node.hostname.clone()), 0);
            }
        }
        self.tell_callers(node.callers, node.id, &reason);
        self.bundles_lost(ix);
        self.jobs_lost(ix, &node.hostname, why);
        self.fail_tasks_bound_to(node.id, &node.hostname);
        for at in 0..self.shapes.alive().len() {
            let shape = self.shapes.alive()[at];
            if self
                .shapes
                .get(shape)
                .is_some_and(|shape| matches!(shape.strategy, Strategy::Node { id, .. } if id == node.id))
            {
                self.offer_all_nodes(shape);
            }
        }
        self.judge_feasibility();
    }
}
