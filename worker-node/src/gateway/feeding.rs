//! Large values on their way to a remote client: in parts, several values by turns, no further ahead than the client has
//! acknowledged.
//!
//! An object is kept as it is only while a part of it is copied: a client that is away for long must not keep the node's
//! memory. If it has left the node before its last part, the core is asked for it anew, in the client's name.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use cluster_types::{ClientId, ClientToNode, Failure, Map, NodeToClient, ObjectId, Value};
use worker_core::Event;

use super::Session;
use crate::event_loop::Handle;

/// Bytes that a client has not acknowledged, beyond which no further part is sent.
const AHEAD_MAX: usize = 16 << 20;

/// What is to be sent to one client.
#[derive(Default)]
pub(super) struct Feed {
    /// How far each value is.
    sent: Map<ObjectId, u64>,
    /// Those that can go on, in turn.
    turns: VecDeque<ObjectId>,
}

/// A part of a value.
pub(crate) struct Part {
    pub(crate) bytes: Bytes,
    /// Of the whole value.
    pub(crate) len: u64,
}

/// Why there is no part.
pub(crate) enum NoPart {
    /// The object is not on this node any more.
    Gone,
    /// It cannot be read.
    Failed(Failure),
}

impl Feed {
    /// The client waits for this object, which is on this node.
    pub(super) fn want(&mut self, object: ObjectId) {
        self.sent.entry(object).or_default();
        if !self.turns.contains(&object) {
            self.turns.push_back(object);
        }
    }

    /// The client was told what became of it.
    pub(super) fn forget(&mut self, object: ObjectId) {
        self.sent.remove(&object);
    }

    /// Whose turn it is, and where its next part begins.
    fn next(&mut self) -> Option<(ObjectId, u64)> {
        loop {
            let object = self.turns.pop_front()?;
            if let Some(&offset) = self.sent.get(&object) {
                return Some((object, offset));
            }
        }
    }

    /// It has been sent so far; unless that is all, its turn comes again.
    fn went_on(&mut self, object: ObjectId, to: u64, len: u64) {
        if to >= len {
            self.forget(object);
        } else if let Some(sent) = self.sent.get_mut(&object) {
            *sent = to;
            self.want(object);
        }
    }
}

/// Sends what the session is to feed its client. Does not end.
pub(super) async fn feed(handle: Handle, client: ClientId, session: Rc<Session>) {
    loop {
        let next = (session.backlog() <= AHEAD_MAX).then(|| session.feed.borrow_mut().next()).flatten();
        let Some((object, offset)) = next else {
            session.hungry.notified().await;
            continue;
        };
        let read = handle.borrow().store.read_part(object, offset);
        let part = read.await;
        let mut daemon = handle.borrow();
        match part {
            Ok(Part { bytes, len }) => {
                session.feed.borrow_mut().went_on(object, offset + bytes.len() as u64, len);
                daemon.tell_client(client, NodeToClient::Part { object, offset, len, bytes });
                daemon.flush();
            }
            Err(NoPart::Gone) => {
                daemon.push(Event::FromClient { client, message: ClientToNode::Get(vec![object]) });
                daemon.pump();
            }
            Err(NoPart::Failed(failure)) => {
                daemon.tell_client(client, NodeToClient::Ready { object, value: Value::Failed(failure) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(seq: u64) -> ObjectId {
        ObjectId::put(ClientId(1), seq)
    }

    #[test]
    fn values_take_turns_until_each_is_sent() {
        let mut feed = Feed::default();
        feed.want(object(1));
        feed.want(object(2));
        feed.want(object(1));
        assert_eq!(feed.next(), Some((object(1), 0)));
        feed.went_on(object(1), 10, 20);
        assert_eq!(feed.next(), Some((object(2), 0)));
        feed.went_on(object(2), 10, 10);
        assert_eq!(feed.next(), Some((object(1), 10)));
        feed.went_on(object(1), 20, 20);
        assert_eq!(feed.next(), None);
        assert!(feed.sent.is_empty() && feed.turns.is_empty());
    }

    #[test]
    fn one_that_left_the_node_goes_on_when_it_is_back() {
        let mut feed = Feed::default();
        feed.want(object(1));
        feed.next();
        feed.went_on(object(1), 10, 20);
        // It is not there, and is asked for.
        assert_eq!(feed.next(), Some((object(1), 10)));
        assert_eq!(feed.next(), None);
        feed.want(object(1));
        assert_eq!(feed.next(), Some((object(1), 10)));
    }

    #[test]
    fn one_that_will_not_come_is_forgotten() {
        let mut feed = Feed::default();
        feed.want(object(1));
        feed.forget(object(1));
        assert_eq!(feed.next(), None);
        // A part that was being read then is none too many.
        feed.went_on(object(1), 10, 20);
        assert_eq!(feed.next(), None);
        feed.want(object(1));
        assert_eq!(feed.next(), Some((object(1), 0)));
    }
}
