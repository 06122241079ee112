//! What waits to be written to one client's socket. Writing never blocks (rule S7).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::client_socket::ClientSocket;

/// Beyond this a client that does not read is considered stuck.
pub(crate) const OUTBOX_MAX: usize = 256 << 20;
/// Beyond this lines that executors printed are not sent to it.
pub(crate) const OUTBOX_LOGS: usize = 4 << 20;

/// Frames that the socket has not taken yet, each with the descriptors that go with its first byte.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(Bytes, Vec<Arc<OwnedFd>>)>,
    bytes: usize,
}

/// What came of writing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Everything.
    All,
    /// The socket is full: go on when it is writable.
    Blocked,
    /// Nobody reads any more.
    Broken,
}

impl Outbox {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes frames, or keeps what the socket does not take. Leaves `frames` empty, with its capacity if all of it
    /// was written at once, which is the usual case.
    pub(crate) fn write(
        &mut self,
        socket: &ClientSocket,
        frames: &mut BytesMut,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Written {
        if self.waiting.is_empty() {
            match socket.try_send(frames, &fds) {
                Ok(sent) if sent == frames.len() => {
                    frames.clear();
                    return Written::All;
                }
                Ok(sent) => {
                    frames.advance(sent);
                    self.keep(frames.split().freeze(), Vec::new());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.keep(frames.split().freeze(), fds);
                }
                Err(_) => {
                    frames.clear();
                    return Written::Broken;
                }
            }
            return Written::Blocked;
        }
        self.keep(frames.split().freeze(), fds);
        Written::Blocked
    }

    fn keep(&mut self, bytes: Bytes, fds: Vec<Arc<OwnedFd>>) {
        self.bytes += bytes.len();
        self.waiting.push_back((bytes, fds));
    }

    /// Writes what waits.
    pub(crate) fn drain(&mut self, socket: &ClientSocket) -> Written {
        while let Some((bytes, fds)) = self.waiting.front_mut() {
            match socket.try_send(bytes, fds) {
                Ok(sent) => {
                    bytes.advance(sent);
                    fds.clear();
                    self.bytes -= sent;
                    if bytes.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Written::Blocked,
                Err(_) => return Written::Broken,
            }
        }
        Written::All
    }
}
