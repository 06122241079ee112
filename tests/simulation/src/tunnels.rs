//! Conversations between nodes about calls to actors.
//!
//! As the edge keeps them: in order, through short breaks; after a long one each end is told that it is over, and the
//! callee's end first (see worker-core's `far`).

use std::collections::BTreeMap;

use cluster_types::{NodeId, NodeToNode};

use crate::world::{Arrival, Stream, World};

/// By how much the callee's end of a broken conversation is ahead of the caller's: more than anything takes that is said
/// on one machine.
const MARGIN: u64 = 200_000;

/// One end: whose, with whom, and whether its node opened the conversation.
pub(crate) type End = (NodeId, NodeId, bool);

/// What is open.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    /// Which conversation each end is of.
    ends: BTreeMap<End, u64>,
    last: u64,
}

fn other((me, peer, opened_here): End) -> End {
    (peer, me, !opened_here)
}

impl World {
    /// A node wants to talk to another.
    pub(crate) fn connect_peer(&mut self, from: NodeId, to: NodeId) {
        self.tunnels.last += 1;
        let number = self.tunnels.last;
        self.tunnels.ends.insert((from, to, true), number);
        let unreachable = self.plan.cuts > 0 && self.random.one_in(10);
        if unreachable || !self.hosts.contains_key(&to) {
            return self.after(1_000, 50_000, Arrival::PeerBroken { end: (from, to, true), number });
        }
        self.after(100, 3_000, Arrival::PeerMet { from, to, number });
    }

    /// The two are connected.
    pub(crate) fn peer_met(&mut self, from: NodeId, to: NodeId, number: u64) -> Result<(), String> {
        if self.tunnels.ends.get(&(from, to, true)) != Some(&number) {
            return Ok(());
        }
        if !self.hosts.contains_key(&to) {
            return self.peer_broken((from, to, true), number);
        }
        if let Some(old) = self.tunnels.ends.get(&(to, from, false)).copied() {
            self.peer_broken((to, from, false), old)?;
        }
        self.tunnels.ends.insert((to, from, false), number);
        self.node_step(from, worker_core::Event::PeerOpened { node: to })
    }

    /// A node says something to another.
    pub(crate) fn tell_peer(&mut self, node: NodeId, peer: NodeId, message: NodeToNode) {
        let end = (node, peer, message.is_of_caller());
        if let Some(&number) = self.tunnels.ends.get(&end) {
            let arrival = Arrival::AtPeer { end: other(end), number, message };
            self.say(Stream::Peer(node, peer, end.2), arrival);
        }
    }

    pub(crate) fn at_peer(&mut self, end: End, number: u64, message: NodeToNode) -> Result<(), String> {
        if self.tunnels.ends.get(&end) != Some(&number) {
            return Ok(());
        }
        let (me, node, _) = end;
        self.node_step(me, worker_core::Event::FromPeer { node, message })
    }

    /// One end finds that it is over.
    pub(crate) fn peer_broken(&mut self, end: End, number: u64) -> Result<(), String> {
        if self.tunnels.ends.get(&end) != Some(&number) {
            return Ok(());
        }
        self.tunnels.ends.remove(&end);
        let (me, node, opened_here) = end;
        let why = "the link between the two is cut".to_owned();
        self.node_step(me, worker_core::Event::PeerClosed { node, opened_here, why })
    }

    /// A node ends its conversations with another without a word.
    pub(crate) fn drop_peer(&mut self, node: NodeId, peer: NodeId) {
        for opened_here in [true, false] {
            let end = (node, peer, opened_here);
            if let Some(number) = self.tunnels.ends.remove(&end) {
                self.after(1_000, 100_000, Arrival::PeerBroken { end: other(end), number });
            }
        }
    }

    /// A machine is gone: the others notice by and by.
    pub(crate) fn drop_all_peers(&mut self, node: NodeId) {
        let peers: Vec<NodeId> =
            self.tunnels.ends.keys().filter(|(me, ..)| *me == node).map(|(_, peer, _)| *peer).collect();
        peers.into_iter().for_each(|peer| self.drop_peer(node, peer));
    }

    /// A link breaks, for longer than the ends wait.
    pub(crate) fn cut_tunnel(&mut self) {
        let opened: Vec<(End, u64)> =
            self.tunnels.ends.iter().filter(|(end, _)| end.2).map(|(end, number)| (*end, *number)).collect();
        let Some(&(end, number)) = self.random.pick(&opened) else { return };
        self.report.cuts += 1;
        // Nothing gets through from now on; what was on its way neither.
        self.tunnels.last += 1;
        let (broken, callee) = (self.tunnels.last, other(end));
        self.tunnels.ends.insert(end, broken);
        self.after(MARGIN, 2 * MARGIN, Arrival::PeerBroken { end, number: broken });
        if self.tunnels.ends.get(&callee) == Some(&number) {
            self.tunnels.last += 1;
            let broken = self.tunnels.last;
            self.tunnels.ends.insert(callee, broken);
            self.after(1, 50_000, Arrival::PeerBroken { end: callee, number: broken });
        }
    }
}
