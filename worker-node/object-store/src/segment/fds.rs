//! Descriptors over Unix sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors in one message.
pub const MAX_FDS: usize = 32;

/// Sends bytes and, with the first of them, descriptors. Returns how many bytes went (as `write`, it may be fewer);
/// the descriptors went if it is at least one, so send what is left without them.
///
/// # Errors
/// What the system says (`WouldBlock` on a non-blocking socket); `InvalidInput` for more than [`MAX_FDS`]
/// descriptors, or for descriptors without bytes to carry them.
///
/// ```
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use cluster_store::segment::{recv_with_fds, send_with_fds};
///
/// let (a, b) = UnixStream::pair()?;
/// send_with_fds(&a, b"take this", &[a.as_fd()])?;
/// let (mut bytes, mut fds) = ([0; 64], Vec::new());
/// assert_eq!(recv_with_fds(&b, &mut bytes, &mut fds)?, 9);
/// assert_eq!(fds.len(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors, or no bytes with them",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        // There is space for MAX_FDS.
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives bytes, and appends to `fds` the descriptors that came with them, each close-on-exec. Returns the number
/// of bytes, 0 at the end of the stream.
///
/// # Errors
/// What the system says; `InvalidData` if descriptors were lost, because the sender sent more than [`MAX_FDS`] or
/// this process is out of them. Those that came with that message are closed then.
pub fn recv_with_fds(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let iov = &mut [IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(&socket, iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let came: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors were lost on the way"));
    }
    fds.extend(came);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::super::{ReadMapping, Segment};
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_segment_passes_to_another_process() {
        let (a, b) = UnixStream::pair().unwrap();
        let segment = Segment::create(4096).unwrap();
        rustix::io::pwrite(segment.writer_fd(), b"shared", 0).unwrap();
        send_with_fds(&a, b"!", &[segment.reader_fd(), segment.reader_fd()]).unwrap();
        drop((segment, a));
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv_with_fds(&b, &mut bytes, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), 2);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let mapping = ReadMapping::map(&fds[0]).unwrap();
        assert_eq!(mapping.bytes(0, 6), Some(&b"shared"[..]));
        assert_eq!(recv_with_fds(&b, &mut bytes, &mut fds).unwrap(), 0);
    }

    #[test]
    fn bytes_without_descriptors_and_limits() {
        let (a, b) = UnixStream::pair().unwrap();
        assert_eq!(send_with_fds(&a, b"plain", &[]).unwrap(), 5);
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv_with_fds(&b, &mut bytes, &mut fds).unwrap(), 5);
        assert!(fds.is_empty());
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert!(send_with_fds(&a, b"x", &many).is_err());
        assert!(send_with_fds(&a, b"", &many[..1]).is_err());
        send_with_fds(&a, b"x", &many[..MAX_FDS]).unwrap();
        assert_eq!(recv_with_fds(&b, &mut bytes, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), MAX_FDS);
        drop(b);
        assert_eq!(send_with_fds(&a, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
