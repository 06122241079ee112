//! A head that admits nodes and answers questions about them, until `head_core::Head` is there.

use cluster_types::query::{NodeView, Query, QueryReply, StatusView};
use cluster_types::{HeadToNode, Incarnation, Map, NodeId, Time};
use head_core::{Effect, Event, HeadConfig};

pub struct Head {
    config: HeadConfig,
    nodes: Map<NodeId, (u32, NodeView)>,
    admitted: u32,
}

impl Head {
    pub fn new(config: HeadConfig) -> Self {
        Self { config, nodes: Map::default(), admitted: 0 }
    }
}

impl head_node::Core for Head {
    fn step(&mut self, _now: Time, event: Event, effects: &mut Vec<Effect>) -> bool {
        match event {
            Event::NodeConnected { connection, hello } => {
                self.admitted += 1;
                let total: std::collections::BTreeMap<_, _> =
                    hello.resources.iter().map(|(name, amount)| (name.to_owned(), amount.as_f64())).collect();
                let view = NodeView {
                    node: hello.node.to_string(),
                    hostname: hello.hostname,
                    address: hello.data_address,
                    alive: true,
                    available: total.clone(),
                    total,
                    labels: hello.labels,
                    ..NodeView::default()
                };
                self.nodes.insert(hello.node, (self.admitted, view));
                let incarnation = Incarnation(self.admitted);
                let loss_timeout_ms = (self.config.loss_timeout.0 / 1000) as u32;
                let message = HeadToNode::Admitted { term: self.config.term, incarnation, loss_timeout_ms };
                effects.push(Effect::AdmitNode { connection, node: hello.node, incarnation, message });
            }
            Event::NodeDisconnected { node, incarnation } => {
                if self.nodes.get(&node).is_some_and(|(n, _)| *n == incarnation.0) {
                    self.nodes.remove(&node);
                }
            }
            Event::Query { number, query } => {
                let views = || self.nodes.values().map(|(_, view)| view.clone());
                let sum = || views().flat_map(|view| view.total).fold(Default::default(), add);
                let reply = match query {
                    Query::Status => Ok(QueryReply::Status(StatusView {
                        term: self.config.term.0,
                        nodes: self.nodes.len() as u32,
                        total: sum(),
                        available: sum(),
                        ..StatusView::default()
                    })),
                    Query::Nodes => Ok(QueryReply::Nodes(views().collect())),
                    Query::Tasks { .. } => Ok(QueryReply::Tasks(Vec::new())),
                    Query::Objects { .. } => Ok(QueryReply::Objects(Vec::new())),
                    Query::Why { task } => Err(format!("no task is called {task}")),
                };
                effects.push(Effect::Reply { number, reply });
            }
            Event::FromNode { .. } | Event::Tick => {}
        }
        false
    }
}

fn add(
    mut sum: std::collections::BTreeMap<String, f64>,
    (name, amount): (String, f64),
) -> std::collections::BTreeMap<String, f64> {
    *sum.entry(name).or_default() += amount;
    sum
}
