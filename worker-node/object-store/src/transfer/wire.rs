//! The bytes of the data port's protocol.

/// Version of the protocol; both sides must have the same.
pub const VERSION: u16 = 2;
/// The longest token in bytes.
pub const MAX_TOKEN: usize = 512;

pub(super) const MAGIC: [u8; 4] = *b"CMLD";
/// What comes before the token.
pub(super) const HELLO: usize = 8;
pub(super) const VERDICT: usize = 8;
pub(super) const REQUEST: usize = 17;
pub(super) const RESPONSE: usize = 16;

/// Why a server does not serve this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The two run different versions of this software.
    #[error("it speaks version {0} of the data protocol, this node version {VERSION}")]
    Version(u16),
    /// The token is not the cluster's.
    #[error("it does not accept this cluster's token")]
    Token,
    /// It has as many connections as it allows.
    #[error("it has no connection free")]
    Busy,
}

const WELCOME: u8 = 0;
const BAD_VERSION: u8 = 1;
const BAD_TOKEN: u8 = 2;
const BUSY: u8 = 3;

pub(super) fn hello(token: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HELLO + token.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((token.len() as u16).to_le_bytes());
    bytes.extend(token);
    bytes
}

/// The client's version and the length of its token; `None` for a stranger.
pub(super) fn read_hello(bytes: [u8; HELLO]) -> Option<(u16, usize)> {
    let [a, b, c, d, v0, v1, t0, t1] = bytes;
    let len = usize::from(u16::from_le_bytes([t0, t1]));
    ([a, b, c, d] == MAGIC && len <= MAX_TOKEN).then_some((u16::from_le_bytes([v0, v1]), len))
}

pub(super) fn verdict(refusal: Option<Refusal>) -> [u8; VERDICT] {
    let code = match refusal {
        None => WELCOME,
        Some(Refusal::Version(_)) => BAD_VERSION,
        Some(Refusal::Token) => BAD_TOKEN,
        Some(Refusal::Busy) => BUSY,
    };
    let [a, b, c, d] = MAGIC;
    let [v0, v1] = VERSION.to_le_bytes();
    [a, b, c, d, v0, v1, code, 0]
}

/// `None` if the peer is no data port.
pub(super) fn read_verdict(bytes: [u8; VERDICT]) -> Option<Result<(), Refusal>> {
    let [a, b, c, d, v0, v1, code, _] = bytes;
    if [a, b, c, d] != MAGIC {
        return None;
    }
    match code {
        WELCOME => Some(Ok(())),
        BAD_VERSION => Some(Err(Refusal::Version(u16::from_le_bytes([v0, v1])))),
        BAD_TOKEN => Some(Err(Refusal::Token)),
        BUSY => Some(Err(Refusal::Busy)),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Get([u8; 16]),
    Received([u8; 16]),
    /// The connection is for something else from here on.
    Tunnel,
}

impl Request {
    pub fn encode(self) -> [u8; REQUEST] {
        let (op, key) = match self {
            Request::Get(key) => (1, key),
            Request::Received(key) => (2, key),
            Request::Tunnel => (3, [0; 16]),
        };
        let mut bytes = [op; REQUEST];
        bytes[1..].copy_from_slice(&key);
        bytes
    }

    pub fn decode(bytes: [u8; REQUEST]) -> Option<Request> {
        let mut key = [0; 16];
        key.copy_from_slice(&bytes[1..]);
        match bytes[0] {
            1 => Some(Request::Get(key)),
            2 => Some(Request::Received(key)),
            3 => Some(Request::Tunnel),
            _ => None,
        }
    }
}

/// Found with its length in bytes, or missing.
pub(super) fn response(len: Option<u64>) -> [u8; RESPONSE] {
    let mut bytes = [0; RESPONSE];
    bytes[0] = u8::from(len.is_none());
    bytes[8..].copy_from_slice(&len.unwrap_or(0).to_le_bytes());
    bytes
}

/// The outer `None` is nonsense.
pub(super) fn read_response(bytes: [u8; RESPONSE]) -> Option<Option<u64>> {
    let [status, z @ .., a, b, c, d, e, f, g, h] = bytes;
    let len = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    match (status, z) {
        (0, [0, 0, 0, 0, 0, 0, 0]) => Some(Some(len)),
        (1, _) => Some(None),
        _ => None,
    }
}

/// Compares in a time that tells nothing of where the two differ.
pub(super) fn same_token(a: &[u8], b: &[u8]) -> bool {
    let mut difference = u8::from(a.len() != b.len());
    for (i, byte) in a.iter().enumerate() {
        // Goes through all of what the stranger sent, whatever the secret's length.
        let secret = if b.is_empty() { !byte } else { b[i % b.len()] };
        difference = std::hint::black_box(difference | (byte ^ secret));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_written() {
        let hello = hello(b"secret");
        assert_eq!(read_hello(hello[..HELLO].try_into().unwrap()), Some((VERSION, 6)));
        assert_eq!(read_hello(*b"GET / HT"), None);
        assert_eq!(read_hello([b'C', b'M', b'L', b'D', 1, 0, 0xFF, 0xFF]), None);
        for refusal in [None, Some(Refusal::Version(VERSION)), Some(Refusal::Token), Some(Refusal::Busy)] {
            let expect = refusal.map_or(Ok(()), Err);
            assert_eq!(read_verdict(verdict(refusal)), Some(expect));
        }
        assert_eq!(read_verdict([0; 8]), None);
        for request in [Request::Get([7; 16]), Request::Received([9; 16]), Request::Tunnel] {
            assert_eq!(Request::decode(request.encode()), Some(request));
        }
        assert_eq!(Request::decode([0; REQUEST]), None);
        for len in [None, Some(0), Some(u64::MAX)] {
            assert_eq!(read_response(response(len)), Some(len));
        }
        assert_eq!(read_response([0xFF; 16]), None);
    }

    #[test]
    fn tokens() {
        assert!(same_token(b"abc", b"abc") && same_token(b"", b""));
        for (a, b) in
            [(&b"abc"[..], &b"abd"[..]), (b"abc", b""), (b"", b"abc"), (b"abcabc", b"abc"), (b"ab", b"abc")]
        {
            assert!(!same_token(a, b));
        }
    }
}
