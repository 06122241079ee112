//! Conversations with other nodes about calls to actors: which there are, and what goes on them.
//!
//! One connection for each, to the data port of the callee's node, whatever the number of callers and actors. It may
//! break and be made anew without anybody noticing (see `conversation`); the core hears only that a conversation is
//! open, and that it is over.

mod connection;
mod conversation;

use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use cluster_types::node_node::{NodeToNode, TunnelHello};
use cluster_types::{Map, NodeId, PROTOCOL_VERSION};
use worker_core::Event;

pub(crate) use connection::{accept, connect};
use conversation::{Conversation, RECONNECT_FOR, SILENCE};

use crate::clients::SocketLink;
use crate::event_loop::Daemon;
use crate::head_link::unframe;

/// With whom, and whether it was opened here.
type Key = (NodeId, bool);

/// Bytes that a connection does not take beyond this: the other end reads nothing.
const BACKLOG_MAX: usize = 64 << 20;

/// All conversations of this node.
#[derive(Default)]
pub(crate) struct Tunnels {
    known: Map<Key, Tunnel>,
    unflushed: Vec<Key>,
    /// To be connected, by number.
    wanted: Vec<(NodeId, u64)>,
    buffer: BytesMut,
}

struct Tunnel {
    conversation: Conversation,
    link: Option<Rc<SocketLink>>,
    gathered: Vec<NodeToNode>,
    /// Of one that was opened here: the other's data port.
    address: String,
    /// The core knows it.
    is_open: bool,
    /// Why there is no connection, for people.
    trouble: String,
}

impl Tunnel {
    fn new(number: u64, opened_here: bool, address: String) -> Tunnel {
        Tunnel {
            conversation: Conversation::new(number, opened_here, Instant::now()),
            link: None,
            gathered: Vec::new(),
            address,
            is_open: false,
            trouble: String::new(),
        }
    }

    /// The connection is of no use.
    fn disconnect(&mut self, trouble: &str) {
        if let Some(link) = self.link.take() {
            link.broken.notify_one();
            self.trouble = trouble.to_owned();
        }
    }

    fn write(&mut self, frames: &mut BytesMut) {
        if frames.is_empty() {
            return;
        }
        if let Some(link) = &self.link {
            link.write(frames, Vec::new());
            if link.backlog() > BACKLOG_MAX {
                self.disconnect("it does not read what it is told");
            }
        }
        // Without a connection the next one begins with it.
        frames.clear();
    }
}

impl Daemon {
    /// The core wants to talk to another node.
    pub(crate) fn connect_peer(&mut self, node: NodeId, address: String) {
        let Ok(number) = getrandom::u64() else {
            let why = "the system has no random numbers".to_owned();
            return self.push(Event::PeerClosed { node, opened_here: true, why });
        };
        self.tunnels.known.insert((node, true), Tunnel::new(number, true, address));
        self.tunnels.wanted.push((node, number));
        self.flush_soon();
    }

    /// Conversations to connect.
    pub(crate) fn take_wanted_peers(&mut self) -> Vec<(NodeId, u64)> {
        std::mem::take(&mut self.tunnels.wanted)
    }

    /// The core says something to another node: it is written when the turn ends.
    pub(crate) fn tell_peer(&mut self, node: NodeId, message: NodeToNode) {
        let key = (node, message.is_of_caller());
        let Some(tunnel) = self.tunnels.known.get_mut(&key) else { return };
        tunnel.gathered.push(message);
        if tunnel.gathered.len() == 1 {
            self.tunnels.unflushed.push(key);
            self.flush_soon();
        }
    }

    /// The core has done with another node.
    pub(crate) fn drop_peer(&mut self, node: NodeId) {
        for opened_here in [true, false] {
            if let Some(mut tunnel) = self.tunnels.known.remove(&(node, opened_here)) {
                tunnel.disconnect("");
            }
        }
    }

    /// Writes what was gathered for other nodes.
    pub(crate) fn flush_peers(&mut self) {
        if self.tunnels.unflushed.is_empty() {
            return;
        }
        let now = Instant::now();
        let Tunnels { known, unflushed, buffer, .. } = &mut self.tunnels;
        for key in unflushed.drain(..) {
            let Some(tunnel) = known.get_mut(&key) else { continue };
            self.codec.frame_to_peer_messages(&tunnel.gathered, buffer);
            tunnel.gathered.clear();
            let batches = unframe(buffer);
            let mut frames = BytesMut::new();
            for batch in batches {
                tunnel.conversation.say(batch, now, &mut frames);
            }
            tunnel.write(&mut frames);
        }
    }

    /// At every tick: signs of life, connections that are silent, conversations that nobody waits for any longer.
    pub(crate) fn care_for_peers(&mut self) {
        let now = Instant::now();
        let mut over: Vec<(Key, String)> = Vec::new();
        for (key, tunnel) in &mut self.tunnels.known {
            if tunnel.conversation.is_over(now) {
                let silent = tunnel.conversation.silent_for(now).as_secs();
                let trouble = match tunnel.trouble.as_str() {
                    "" => "nothing came from it",
                    trouble => trouble,
                };
                over.push((
                    *key,
                    format!("no word came through from node {} for {silent} s: {trouble}", key.0),
                ));
                continue;
            }
            if tunnel.link.is_some() && tunnel.conversation.silent_for(now) > SILENCE {
                tunnel.disconnect("nothing came on the connection, which is cut");
            }
            let mut frames = BytesMut::new();
            tunnel.conversation.care(now, &mut frames);
            tunnel.write(&mut frames);
        }
        over.sort_unstable();
        for (key, why) in over {
            self.end_peer(key, why);
        }
    }

    fn end_peer(&mut self, key: Key, why: String) {
        let Some(mut tunnel) = self.tunnels.known.remove(&key) else { return };
        tunnel.disconnect("");
        let (node, opened_here) = key;
        tracing::warn!(%node, opened_here, why, "a conversation with another node is over");
        self.push(Event::PeerClosed { node, opened_here, why });
    }

    fn tunnel(&mut self, key: Key, number: u64) -> Option<&mut Tunnel> {
        self.tunnels.known.get_mut(&key).filter(|tunnel| tunnel.conversation.number == number)
    }

    /// What to say to the other node to connect; `None`: it is not worth trying any more.
    fn tunnel_hello(&mut self, node: NodeId, number: u64) -> Option<(String, TunnelHello)> {
        let from = self.node_id;
        let tunnel = self.tunnel((node, true), number)?;
        if tunnel.conversation.silent_for(Instant::now()) > RECONNECT_FOR {
            return None;
        }
        let hello = TunnelHello {
            protocol: PROTOCOL_VERSION,
            from,
            to: node,
            conversation: number,
            received: tunnel.conversation.received(),
            first: !tunnel.is_open,
        };
        Some((tunnel.address.clone(), hello))
    }

    /// A hello came: what this end has received of the conversation, or why there is none.
    fn take_hello(&mut self, hello: &TunnelHello) -> Result<u64, String> {
        if hello.to != self.node_id {
            return Err(format!("this is node {}, not {}", self.node_id, hello.to));
        }
        let key = (hello.from, false);
        if let Some(tunnel) = self.tunnel(key, hello.conversation) {
            return Ok(tunnel.conversation.received());
        }
        if !hello.first {
            return Err("the conversation is over: nothing was heard for too long".to_owned());
        }
        self.end_peer(key, "the other node began anew".to_owned());
        let tunnel = Tunnel::new(hello.conversation, false, String::new());
        self.tunnels.known.insert(key, tunnel);
        Ok(0)
    }

    /// There is a connection, and the other end has everything up to `received`.
    fn tunnel_connected(&mut self, key: Key, number: u64, received: u64, link: &Rc<SocketLink>) {
        let Some(tunnel) = self.tunnel(key, number) else { return link.broken.notify_one() };
        tunnel.disconnect("");
        tunnel.link = Some(link.clone());
        tunnel.trouble.clear();
        let mut frames = BytesMut::new();
        tunnel.conversation.resume(received, Instant::now(), &mut frames);
        tunnel.write(&mut frames);
        if !std::mem::replace(&mut tunnel.is_open, true) && key.1 {
            self.push(Event::PeerOpened { node: key.0 });
            self.pump();
        }
    }

    /// A frame came on a connection.
    fn hear_peer(&mut self, key: Key, number: u64, frame: Bytes) -> Result<(), String> {
        let Some(tunnel) = self.tunnel(key, number) else { return Err("it is over".to_owned()) };
        let Some(batch) = tunnel.conversation.hear(frame, Instant::now())? else { return Ok(()) };
        for message in self.codec.decode_to_peer_batch(batch).map_err(|error| error.to_string())? {
            // Each says what its side of the conversation says, and nothing else.
            if message.is_of_caller() != key.1 {
                self.push(Event::FromPeer { node: key.0, message });
            }
        }
        Ok(())
    }

    /// What came was taken in: it is acknowledged if that is due.
    fn heard_peer(&mut self, key: Key) {
        self.pump();
        let Some(tunnel) = self.tunnels.known.get_mut(&key) else { return };
        // What is said in this turn acknowledges too.
        if tunnel.gathered.is_empty() {
            let mut frames = BytesMut::new();
            tunnel.conversation.care(Instant::now(), &mut frames);
            tunnel.write(&mut frames);
        }
    }

    /// The other node cannot be reached, or wants no more of it.
    fn tunnel_failed(&mut self, key: Key, number: u64, trouble: &str) {
        if self.tunnel(key, number).is_some() {
            self.end_peer(key, format!("node {} cannot be reached: {trouble}", key.0));
            self.pump();
        }
    }

    /// A connection ended, or none could be made.
    fn tunnel_broke(&mut self, key: Key, number: u64, link: Option<&Rc<SocketLink>>, trouble: String) {
        let Some(tunnel) = self.tunnel(key, number) else { return };
        match (link, &tunnel.link) {
            (Some(link), Some(current)) if !Rc::ptr_eq(link, current) => return,
            _ => tunnel.link = None,
        }
        if tunnel.trouble.is_empty() {
            tunnel.trouble = trouble;
        }
    }
}
