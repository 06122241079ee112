//! What a head of another term need not be told again (rule H2).
//!
//! A node keeps what it said until that has done all it will. The head sends numbered pulses to all nodes, and each
//! node says with its heartbeats which it heard last, in a numbered mark. What a node said before a mark had its effects
//! before the next pulse was sent; when every node has heard that pulse, every node has heard of the effects, for
//! streams are in order. One number per node and beat, whatever the rates.

use std::collections::VecDeque;

use cluster_types::{HeadToNode, Span, Time};

use crate::head::Head;
use crate::slab::NodeIx;

const EVERY: Span = Span::millis(500);

/// How far a node is.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// It says how far it is.
    marks: bool,
    /// The last pulse it heard.
    pulse: u64,
    /// Its marks, each with the last pulse sent before it came, the oldest first.
    waiting: VecDeque<(u64, u64)>,
    /// The last mark that is settled.
    settled: u64,
}

impl Heard {
    /// Marks that are not settled.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// The head's count.
#[derive(Debug, Default)]
pub(crate) struct Pulses {
    last: u64,
    at: Option<Time>,
}

impl Head {
    pub(crate) fn marked(&mut self, node: NodeIx, number: u64, heard: u64) {
        let last = self.pulses.last;
        if let Some(node) = self.nodes.get_mut(node) {
            node.heard.marks = true;
            node.heard.pulse = heard.min(last);
            node.heard.waiting.push_back((number, last));
        }
    }

    /// At every tick.
    pub(crate) fn send_pulses(&mut self) {
        let now = self.now;
        let all_heard = self.nodes.iter().map(|(_, node)| node.heard.pulse).min();
        let any_marks = self.nodes.iter().any(|(_, node)| node.heard.marks);
        let Some(all_heard) = all_heard.filter(|_| any_marks) else { return };
        if self.pulses.at.is_some_and(|at| now.since(at) < EVERY) {
            return;
        }
        self.pulses.at = Some(now);
        self.pulses.last += 1;
        let number = self.pulses.last;
        for at in 0..self.nodes.alive().len() {
            let ix = self.nodes.alive()[at];
            let Some(node) = self.nodes.get_mut(ix) else { continue };
            let heard = &mut node.heard;
            while let Some((mark, _)) = heard.waiting.front().filter(|(_, sent)| *sent < all_heard) {
                heard.settled = *mark;
                heard.waiting.pop_front();
            }
            let settled = heard.settled;
            self.send(ix, HeadToNode::Pulse { number, settled });
        }
    }
}
