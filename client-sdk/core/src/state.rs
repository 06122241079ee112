//! What is known of one object.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::{Failure, Location};

/// Where an object's value is, as far as this process knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Somebody else's; nothing was asked, or no answer came yet.
    Unknown,
    /// The result of an own task that has not ended.
    Pending,
    /// It exists, in some store. `Get` brings it here.
    Stored,
    /// Here.
    Inline(Bytes),
    /// In this process's own lease; no daemon needs to be asked.
    Own(Location),
    /// On this node; ours to view until released.
    Located(Location),
    /// There will be no value.
    Failed(Arc<Failure>),
}

impl State {
    /// Whether the object is known to exist, or to have failed.
    pub(crate) fn is_ready(&self) -> bool {
        !matches!(self, State::Unknown | State::Pending)
    }

    /// Whether reading needs no message.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self, State::Unknown | State::Pending | State::Stored)
    }
}

/// An object of which this process has a handle or a view, or had one when the last batch was sent.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// Handles of the language, and refs inside own puts.
    pub(crate) refs: u32,
    /// Values being viewed.
    pub(crate) views: u32,
    /// How often its location was told and not released (rule P1).
    pub(crate) told: u32,
    /// The head (or, for an own put that never escaped, the daemon's knowledge of it) counts this process as a holder,
    /// or will when the outbox is sent.
    pub(crate) held: bool,
    /// In the list of a container or of the running task, whose hold keeps it alive.
    pub(crate) covered: bool,
    /// Own puts: the daemon knows it.
    pub(crate) announced: bool,
    /// Own puts: the head knows it. True for everything else.
    pub(crate) escaped: bool,
    /// `Get` was sent and not answered.
    pub(crate) asked: bool,
    /// Somebody waits for the value: ask for it as soon as it exists.
    pub(crate) wanted: bool,
    /// Tell the edge when it becomes readable.
    pub(crate) hooked: bool,
    /// In the list of those that may be gone.
    pub(crate) listed: bool,
    /// Others are listed under it in `covers`.
    pub(crate) covers: bool,
    /// An own put with refs inside.
    pub(crate) contains: bool,
}

impl Entry {
    /// Nobody here uses it.
    pub(crate) fn is_idle(&self) -> bool {
        self.refs == 0 && self.views == 0
    }
}

impl Default for Entry {
    /// Somebody else's object, unheld.
    fn default() -> Entry {
        Entry {
            state: State::Unknown,
            refs: 0,
            views: 0,
            told: 0,
            held: false,
            covered: false,
            announced: false,
            escaped: true,
            asked: false,
            wanted: false,
            hooked: false,
            listed: false,
            covers: false,
            contains: false,
        }
    }
}
