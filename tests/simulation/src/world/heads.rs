//! The head: its messages, its death and its successor; what happens to machines.

use std::collections::{BTreeMap, BTreeSet};

use cluster_types::{HeadToNode, Incarnation, NodeHello, NodeId, PROTOCOL_VERSION, Span, Time};

use super::{Arrival, Stream, World};

impl World {
    pub(super) fn connect(&mut self, node: NodeId) -> Result<(), String> {
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
    pub(super) fn kill_head(&mut self) {
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

    pub(super) fn notice_late(&mut self, node: NodeId) {
        let late = Span(self.random.between(10_000, 500_000));
        let to_node = |arrival: &Arrival| matches!(arrival, Arrival::AtNode { node: to, .. } if *to == node);
        // What waits for the end of a pause came before what has yet to arrive within it.
        let pause = self.paused.get(&node).copied().unwrap_or_default();
        let in_order = |(at, number): (Time, u64)| (at.max(pause), at < pause, at, number);
        let mut said: Vec<(Time, u64)> =
            self.queue.iter().filter(|(_, arrival)| to_node(arrival)).map(|(at, _)| *at).collect();
        said.sort_by_key(|at| in_order(*at));
        let mut last = self.now + late;
        for at in said {
            let Some(arrival) = self.queue.remove(&at) else { continue };
            last = at.0.max(pause) + late;
            self.at(last, arrival);
        }
        self.at(last + Span(1), Arrival::HeadLost(node));
    }

    pub(super) fn drain_node(&mut self) -> Result<(), String> {
        let Some(node) = self.node_without_driver() else { return Ok(()) };
        // Long enough for whatever runs here, but for actors.
        self.node_step(node, worker_core::Event::ToldToLeave { within: Span::secs(5) })
    }

    pub(super) fn memory_short(&mut self) -> Result<(), String> {
        let nodes: Vec<NodeId> = self.hosts.keys().copied().collect();
        let Some(node) = self.random.pick(&nodes).copied() else { return Ok(()) };
        let short = worker_core::MemoryShort { used: 99, limit: 100, of: "memory", largest: Vec::new() };
        self.node_step(node, worker_core::Event::MemoryShort(short))
    }

    pub(super) fn node_without_driver(&mut self) -> Option<NodeId> {
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
    pub(super) fn end_host(&mut self, node: NodeId) -> Result<(), String> {
        let Some(host) = self.hosts.remove(&node) else { return Ok(()) };
        self.processes.retain(|_, process| process.node != node);
        self.streams.forget(Stream::ToNode(node));
        self.drop_all_peers(node);
        // It may have been admitted, and not have heard of it.
        let admitted = self.queue.values().find_map(|arrival| match arrival {
            Arrival::AtNode {
                node: to,
                incarnation,
                message: HeadToNode::Admitted { .. } | HeadToNode::Resumed { .. },
            } if *to == node => Some(*incarnation),
            _ => None,
        });
        if let Some(incarnation) = host.incarnation.or(admitted) {
            self.say(Stream::ToHead(node), Arrival::LinkClosed { node, incarnation });
        }
        Ok(())
    }
}
