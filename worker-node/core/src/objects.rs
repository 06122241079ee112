//! The index of objects on this node: where each one's bytes are, who looks at them, who waits for them.
//!
//! Rule P1: a range may be used again only when nobody can reach the object (the head said `Free`, or its maker dropped
//! a put that never escaped) *and* every client that was told the location has released it as often as it was told.

use bytes::Bytes;
use cluster_types::{ClientId, Location, NodeId, ObjectId, Refs, TaskId};
use smallvec::SmallVec;

/// Who may write where an object lies, and so gets the range back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A client attached here.
    Client(ClientId),
    /// The daemon.
    Own,
    /// A client that is gone, or that shares no memory and wrote just this.
    Orphan,
}

/// Bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) location: Location,
    pub(crate) writer: Writer,
}

/// What is being done to bring an object here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// Nothing.
    Idle,
    /// The head was asked where it is.
    Locating,
    /// It is known where it is; who needs it waits for memory.
    Waiting,
    /// It is being copied from another node or a remote client, or read from disk.
    Arriving,
}

/// An object with a copy here, or one that somebody here waits for.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) size: u64,
    pub(crate) inline: Option<Bytes>,
    pub(crate) memory: Option<Memory>,
    pub(crate) disk: bool,
    pub(crate) fetch: Fetch,
    /// Who has it, and that node's data port.
    pub(crate) source: Option<(NodeId, String)>,
    /// No node has it: it is read from durable storage, where this one wrote it.
    pub(crate) written_by: Option<NodeId>,
    /// This node wrote it to durable storage.
    pub(crate) durable: bool,
    /// The head wants a copy here, for a node that leaves: nobody else need wait for it.
    pub(crate) moving_in: bool,
    /// It is among what waits for memory.
    pub(crate) wanted: bool,
    /// `Spill` was asked for and not answered.
    pub(crate) spilling: bool,
    /// `Evict` was asked for and not answered.
    pub(crate) evicting: bool,
    /// The head knows it.
    pub(crate) escaped: bool,
    /// Other nodes may have it from here.
    pub(crate) served: bool,
    /// A copy of the head's cache that the head does not count: it goes when nobody here needs it.
    pub(crate) cached: bool,
    /// Nobody can reach it: it goes when the last viewer does.
    pub(crate) freed: bool,
    /// Refs inside a put that has not escaped.
    pub(crate) contains: Refs,
    /// How often each client was told the location and has not released it.
    pub(crate) viewers: SmallVec<[(ClientId, u32); 2]>,
    /// Attempts here that are about to use it: not to be spilled (rule P5).
    pub(crate) pins: u32,
    pub(crate) waiting_clients: SmallVec<[ClientId; 1]>,
    pub(crate) waiting_tasks: SmallVec<[TaskId; 1]>,
    /// It waits for its turn to go to disk.
    pub(crate) idle: bool,
    /// Grows with each use.
    pub(crate) used: u64,
}

impl Default for Object {
    fn default() -> Self {
        Self {
            size: 0,
            inline: None,
            memory: None,
            disk: false,
            fetch: Fetch::Idle,
            source: None,
            written_by: None,
            durable: false,
            moving_in: false,
            wanted: false,
            spilling: false,
            evicting: false,
            escaped: true,
            served: false,
            cached: false,
            freed: false,
            contains: Refs::new(),
            viewers: SmallVec::new(),
            pins: 0,
            idle: false,
            waiting_clients: SmallVec::new(),
            waiting_tasks: SmallVec::new(),
            used: 0,
        }
    }
}

impl Object {
    /// Whether it can be handed out now. While its writer is asked to give it up it cannot: the range may be in use
    /// again before the answer is here.
    pub(crate) fn is_here(&self) -> bool {
        self.inline.is_some() || (self.memory.is_some() && !self.evicting)
    }

    pub(crate) fn has_copy(&self) -> bool {
        self.inline.is_some() || self.memory.is_some() || self.disk
    }

    /// Whether anybody here waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.moving_in || !self.waiting_clients.is_empty() || !self.waiting_tasks.is_empty()
    }

    /// Whether it could be brought here for a client that waits, or for good.
    pub(crate) fn waits_for_memory(&self) -> bool {
        self.fetch == Fetch::Waiting && (self.moving_in || !self.waiting_clients.is_empty())
    }

    pub(crate) fn told(&mut self, client: ClientId) {
        match self.viewers.iter_mut().find(|(viewer, _)| *viewer == client) {
            Some((_, times)) => *times += 1,
            None => self.viewers.push((client, 1)),
        }
    }

    /// True if the client views it no more.
    pub(crate) fn released(&mut self, client: ClientId) -> bool {
        let Some(at) = self.viewers.iter().position(|(viewer, _)| *viewer == client) else { return false };
        self.viewers[at].1 -= 1;
        let over = self.viewers[at].1 == 0;
        if over {
            self.viewers.swap_remove(at);
        }
        over
    }

    /// Whether something still reads or writes its memory.
    pub(crate) fn is_busy(&self) -> bool {
        !self.viewers.is_empty() || self.spilling || self.evicting || self.fetch == Fetch::Arriving
    }

    /// Whether its memory could be given up in favour of a copy on disk.
    pub(crate) fn can_spill(&self) -> bool {
        self.memory.is_some() && !self.is_busy() && !self.freed && self.pins == 0
    }
}

/// Everything this node knows of objects. Boxed, so that the table's growth moves little: with a million small results
/// here it would else stop the daemon for seconds.
pub(crate) type Objects = cluster_types::Map<ObjectId, Box<Object>>;
