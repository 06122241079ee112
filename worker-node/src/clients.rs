//! One attached client: what it is, and what waits to be told to it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use cluster_proto::Codec;
use cluster_store::segment::MAX_FDS;
use cluster_types::{ClientId, ClientKind, NodeToClient};
use tokio::sync::{Notify, watch};

use crate::client_socket::ClientSocket;
use crate::gateway::Session;
use crate::outbox::{OUTBOX_LOGS, OUTBOX_MAX, Outbox, Written};

pub(crate) struct Client {
    pub(crate) kind: ClientKind,
    pub(crate) link: ClientLink,
    /// Gathered in this turn.
    pub(crate) messages: Vec<NodeToClient>,
    /// Printed lines that it was not told, because it does not read.
    unread: usize,
    /// One for each `Segment`, `Calls` and `Serve` among them, in order.
    pub(crate) descriptors: VecDeque<Arc<OwnedFd>>,
    /// Whether it is listed as having something to write.
    pub(crate) marked: bool,
    /// Close after what is gathered.
    pub(crate) closing: bool,
    /// Becomes true when nothing more will be read from it.
    pub(crate) drained: watch::Receiver<bool>,
    buffer: BytesMut,
}

/// Whether a client knows of all printed lines that were for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    All,
    /// It reads too slowly; how many it was not shown is to be said.
    NotAll,
}

pub(crate) enum ClientLink {
    Socket(Rc<SocketLink>),
    Remote(Rc<Session>),
}

/// A client's socket, with what is to be written to it.
pub(crate) struct SocketLink {
    socket: ClientSocket,
    outbox: RefCell<Outbox>,
    /// The outbox has something for the writer task.
    blocked: Notify,
    /// No more is to be written, and nobody will read: the connection is of no use.
    pub(crate) broken: Notify,
}

impl SocketLink {
    pub(crate) fn new(socket: ClientSocket) -> Rc<SocketLink> {
        let (outbox, blocked, broken) = (RefCell::default(), Notify::new(), Notify::new());
        Rc::new(SocketLink { socket, outbox, blocked, broken })
    }

    pub(crate) fn socket(&self) -> &ClientSocket {
        &self.socket
    }

    /// Writes what the socket would not take at once. Ends when the connection is broken.
    pub(crate) async fn write_leftovers(&self) {
        loop {
            self.blocked.notified().await;
            loop {
                if self.socket.writable().await.is_err() {
                    return;
                }
                let written = self.outbox.borrow_mut().drain(&self.socket);
                match written {
                    Written::All => break,
                    Written::Blocked => {}
                    Written::Broken => return,
                }
            }
        }
    }

    /// Bytes that the connection has not taken.
    pub(crate) fn backlog(&self) -> usize {
        self.outbox.borrow().bytes()
    }

    /// Writes, or keeps what the connection does not take.
    pub(crate) fn write(&self, frames: &mut BytesMut, fds: Vec<Arc<OwnedFd>>) {
        match self.outbox.borrow_mut().write(&self.socket, frames, fds) {
            Written::All => {}
            Written::Blocked => self.blocked.notify_one(),
            Written::Broken => self.broken.notify_one(),
        }
    }

    /// Everything was taken by the kernel, or never will be.
    pub(crate) async fn flushed(&self) {
        loop {
            let written = self.outbox.borrow_mut().drain(&self.socket);
            if written != Written::Blocked || self.socket.writable().await.is_err() {
                return;
            }
        }
    }
}

impl Client {
    pub(crate) fn new(kind: ClientKind, link: ClientLink, drained: watch::Receiver<bool>) -> Client {
        let (messages, descriptors, buffer) = (Vec::new(), VecDeque::new(), BytesMut::new());
        Client {
            kind,
            link,
            messages,
            unread: 0,
            descriptors,
            marked: false,
            closing: false,
            drained,
            buffer,
        }
    }

    /// Bytes that its connection has not taken.
    fn backlog(&self) -> usize {
        match &self.link {
            ClientLink::Socket(socket) => socket.backlog(),
            ClientLink::Remote(remote) => remote.backlog(),
        }
    }

    /// Writes what was gathered.
    pub(crate) fn flush(&mut self, client: ClientId, codec: &mut Codec) -> Shown {
        let backlog = self.backlog();
        if backlog > OUTBOX_LOGS {
            let unread = &mut self.unread;
            self.messages.retain(|message| match message {
                NodeToClient::Log(lines) => {
                    *unread += lines.len();
                    false
                }
                _ => true,
            });
        } else if self.unread > 0 {
            let lines = std::mem::take(&mut self.unread);
            let text = format!(
                "{lines} lines that tasks printed are not shown: they came faster than this program reads them \
                 (`cluster logs` has them)"
            );
            self.messages.insert(0, NodeToClient::Notice { text });
        }
        if backlog > OUTBOX_MAX {
            tracing::warn!(%client, backlog, "a client does not read what it is told; parting with it");
            self.messages.clear();
            self.descriptors.clear();
            self.disconnect();
            return Shown::All;
        }
        match &self.link {
            ClientLink::Socket(socket) => {
                let mut left = self.messages.as_slice();
                while !left.is_empty() {
                    let (now, fds) = take_batch(&mut left, &mut self.descriptors);
                    codec.frame_node_messages(now, &mut self.buffer);
                    socket.write(&mut self.buffer, fds);
                }
                if self.buffer.capacity() > 1 << 20 {
                    self.buffer = BytesMut::new();
                }
            }
            ClientLink::Remote(remote) => remote.send(&self.messages, codec, &mut self.buffer),
        }
        self.messages.clear();
        if self.closing {
            self.disconnect();
        }
        if self.unread > 0 { Shown::NotAll } else { Shown::All }
    }

    /// Ends the connection, after what the kernel or the stream already took.
    fn disconnect(&mut self) {
        match &self.link {
            ClientLink::Socket(socket) => {
                let socket = socket.clone();
                tokio::task::spawn_local(async move {
                    let grace = std::time::Duration::from_secs(1);
                    let _ = tokio::time::timeout(grace, socket.flushed()).await;
                    let _ = rustix::net::shutdown(socket.socket(), rustix::net::Shutdown::Both);
                    socket.broken.notify_one();
                });
            }
            ClientLink::Remote(remote) => remote.close(),
        }
    }
}

/// As many messages as go in one write, with their descriptors.
fn take_batch<'a>(
    left: &mut &'a [NodeToClient],
    descriptors: &mut VecDeque<Arc<OwnedFd>>,
) -> (&'a [NodeToClient], Vec<Arc<OwnedFd>>) {
    let with_descriptor = |message: &&NodeToClient| {
        use NodeToClient::{Calls, Segment, Serve};
        matches!(message, Segment { .. } | Calls { .. } | Serve { .. })
    };
    let count = match left.iter().enumerate().filter(|(_, message)| with_descriptor(message)).nth(MAX_FDS) {
        Some((one_too_many, _)) => one_too_many,
        None => left.len(),
    };
    let (now, later) = left.split_at(count);
    *left = later;
    let with_it = now.iter().filter(with_descriptor).count().min(descriptors.len());
    (now, descriptors.drain(..with_it).collect())
}
