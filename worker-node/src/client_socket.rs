//! A client's socket, as the event loop waits on it.
//!
//! It is watched for reading only. A Unix socket becomes writable anew whenever its peer has read, which is after every
//! message: who watches for that is woken twice for each of them, once for nothing, and wake-ups are what a small task
//! costs. Only a sender that really is blocked watches for room, and only as long as that takes.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use cluster_proto::frame::FrameReader;
use cluster_store::segment::send_with_fds;
use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::supervisor::poll::{register_readable, register_writable};

/// Read at once.
const READ_MAX: usize = 256 << 10;

/// Where what was read lies until it is cut into frames; the sockets of one thread share it.
pub(crate) type Scratch = Rc<RefCell<Box<[u8]>>>;

pub(crate) fn scratch() -> Scratch {
    Rc::new(RefCell::new(vec![0; READ_MAX].into()))
}

pub(crate) struct ClientSocket {
    fd: AsyncFd<OwnedFd>,
    scratch: Scratch,
}

/// What one attempt to read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Some,
    Nothing,
    End,
}

impl ClientSocket {
    pub(crate) fn new(stream: UnixStream, scratch: Scratch) -> io::Result<ClientSocket> {
        Self::of(stream.into_std()?.into(), scratch)
    }

    /// Any stream socket that does not block.
    pub(crate) fn of(fd: OwnedFd, scratch: Scratch) -> io::Result<ClientSocket> {
        Ok(ClientSocket { fd: register_readable(fd)?, scratch })
    }

    /// Waits for bytes and takes them.
    ///
    /// One system call to wait and one to read for each message that comes alone: after a read that did not fill the
    /// buffer it waits at once, without asking in vain. What comes in between is news to the event loop.
    pub(crate) async fn receive(&self, frames: &mut FrameReader) -> Received {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return Received::End };
            let (received, emptied) = self.read(frames);
            if emptied {
                ready.clear_ready();
            }
            if received != Received::Nothing {
                return received;
            }
        }
    }

    /// Takes what is there.
    pub(crate) fn try_receive(&self, frames: &mut FrameReader) -> Received {
        self.read(frames).0
    }

    fn read(&self, frames: &mut FrameReader) -> (Received, bool) {
        let mut bytes = self.scratch.borrow_mut();
        // Without control data: clients send no descriptors, and the kernel closes those of one that does.
        let (received, flags) = (&mut bytes[..], RecvFlags::empty());
        match rustix::net::recv(&self.fd, received, flags).map_err(io::Error::from) {
            Ok((_, 0)) => (Received::End, true),
            Ok((_, count)) => {
                frames.push(&bytes[..count]);
                (Received::Some, count < bytes.len())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => (Received::Nothing, true),
                // Reset: it ended without reading all it was told. What it said is still there, and comes first.
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset => (Received::Nothing, false),
                _ => (Received::End, true),
            },
        }
    }

    /// Writes what the kernel takes at once.
    pub(crate) fn try_send(&self, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> io::Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        send_with_fds(&self.fd, bytes, &fds)
    }

    /// Waits until the kernel takes more.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        // A duplicate, because one descriptor can be watched once only.
        let duplicate = register_writable(self.fd.get_ref().try_clone()?)?;
        duplicate.writable().await.map(drop)
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::frame::write_frame;
    use std::io::{Read, Write};
    use std::time::Duration;

    fn pair() -> (ClientSocket, std::os::unix::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        (ClientSocket::new(ours, scratch()).unwrap(), theirs)
    }

    #[tokio::test]
    async fn each_message_is_received_and_the_end_is_told() {
        let (socket, mut peer) = pair();
        let mut frames = FrameReader::default();
        for word in ["one", "two"] {
            let mut frame = bytes::BytesMut::new();
            write_frame(&mut frame, |out| out.extend_from_slice(word.as_bytes()));
            peer.write_all(&frame).unwrap();
            assert_eq!(socket.receive(&mut frames).await, Received::Some);
            assert_eq!(frames.next_frame().unwrap().unwrap(), word.as_bytes());
            assert_eq!(socket.try_receive(&mut frames), Received::Nothing);
        }
        drop(peer);
        assert_eq!(socket.receive(&mut frames).await, Received::End);
    }

    #[tokio::test]
    async fn a_peer_that_reads_wakes_only_who_is_blocked() {
        let (socket, mut peer) = pair();
        socket.try_send(b"taken at once", &[]).unwrap();
        let mut taken = [0; 13];
        peer.read_exact(&mut taken).unwrap();
        let turn = tokio::time::timeout(Duration::from_millis(20), socket.fd.readable()).await;
        assert!(turn.is_err(), "woken because the peer has read");

        let full = vec![7; 1 << 20];
        let mut sent = 0;
        while let Ok(count) = socket.try_send(&full, &[]) {
            sent += count;
        }
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut vec![0; sent]).unwrap();
            peer
        });
        tokio::time::timeout(Duration::from_secs(10), socket.writable()).await.expect("room").unwrap();
        assert!(socket.try_send(b"more", &[]).is_ok());
        drop(reader.join().unwrap());
    }
}
