//! Why bytes are no message.

use cluster_types::PROTOCOL_VERSION;

/// Bytes that a peer sent and that are no message of ours.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or not of the expected layout.
    #[error("the peer sent bytes that are no {what}: {reason}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What prost said.
        reason: String,
    },
    /// A field that must be there is not. Also what an older reader sees of a newer kind of message.
    #[error("the peer sent a message without `{field}`")]
    Missing {
        /// `Message.field`.
        field: &'static str,
    },
    /// A field holds what it cannot.
    #[error("the peer sent a message whose `{field}` {problem}")]
    Invalid {
        /// `Message.field`.
        field: &'static str,
        /// Goes on the sentence: `is …`.
        problem: String,
    },
    /// More than the limit.
    #[error("the peer sent a message whose `{field}` holds {count}, more than the {limit} allowed")]
    TooMany {
        /// `Message.field`.
        field: &'static str,
        /// How many, or how many bytes.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A frame that announces more than a frame may hold: not our protocol, or a broken peer.
    #[error(
        "the peer announced a frame of {announced} bytes, more than the {limit} allowed; is it a cluster client?"
    )]
    FrameTooLong {
        /// By the peer.
        announced: u64,
        /// The limit.
        limit: u64,
    },
    /// A stream's frames are numbered without holes; this one is out of order.
    #[error("the peer's stream has a gap: frame {got} came where {expected} was due")]
    Gap {
        /// The number of the frame.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// The peers speak different protocols.
    #[error(
        "this {here} speaks protocol {PROTOCOL_VERSION}, the {peer} speaks protocol {version}: \
         install the same version of concurrent-ml on both and start them again"
    )]
    Protocol {
        /// Who reads this.
        here: &'static str,
        /// Who sent it.
        peer: &'static str,
        /// The peer's version.
        version: u32,
    },
}

impl WireError {
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        WireError::Invalid { field, problem: problem.into() }
    }
}

/// Checks the protocol version of a hello.
///
/// # Errors
/// A sentence that names both versions and what to do, if they differ.
pub fn check_protocol(here: &'static str, peer: &'static str, version: u32) -> Result<(), WireError> {
    if version == PROTOCOL_VERSION { Ok(()) } else { Err(WireError::Protocol { here, peer, version }) }
}

/// The field, or an error that names it.
pub(crate) trait Required<T> {
    fn required(self, field: &'static str) -> Result<T, WireError>;
}

impl<T> Required<T> for Option<T> {
    fn required(self, field: &'static str) -> Result<T, WireError> {
        self.ok_or(WireError::Missing { field })
    }
}
