//! Batches of messages, both ways.

mod client;
mod common;
mod node;
mod peer;
mod placement;
pub mod query;
mod state;
mod task;
mod template;
#[cfg(test)]
mod tests;

use bytes::{Buf, Bytes, BytesMut};
use cluster_types::{
    ClientHello, ClientToNode, HeadToNode, NodeHello, NodeToClient, NodeToHead, NodeToNode, SegmentId,
    TunnelHello, TunnelWelcome,
};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::frame::write_frame;
use crate::limits::{FRAME_TARGET, MAX_BATCH_MESSAGES, MAX_FRAME};
use crate::{WireError, v1};
use template::{TemplateReader, TemplateWriter};

/// Encodes and decodes. One per thread, kept for as long as the thread lives: it remembers the task templates it has
/// seen, so that a million calls of one function share one [`cluster_types::TaskTemplate`] and encode it once.
///
/// ```
/// use bytes::BytesMut;
/// use cluster_proto::Codec;
/// use cluster_types::{ClientToNode, ClientId, ObjectId};
/// let mut codec = Codec::default();
/// let messages = vec![ClientToNode::Drop(vec![ObjectId::put(ClientId(1), 2)]), ClientToNode::Goodbye];
/// let mut bytes = BytesMut::new();
/// codec.encode_client_batch(&messages, &mut bytes);
/// assert_eq!(codec.decode_client_batch(bytes.freeze()), Ok(messages));
/// ```
#[derive(Default)]
pub struct Codec {
    read: TemplateReader,
    write: TemplateWriter,
}

/// What decoders need at hand: known templates, and how long the frame is that byte fields would keep alive.
struct Reading<'a> {
    templates: &'a mut TemplateReader,
    frame: usize,
}

impl Reading<'_> {
    /// A value as it is kept. Decoding shares the frame's memory; a small value out of a large frame is copied, so that
    /// no kept value holds more than eight times its size.
    fn kept(&self, bytes: Bytes) -> Bytes {
        if bytes.len() * 8 >= self.frame { bytes } else { Bytes::copy_from_slice(&bytes) }
    }
}

macro_rules! batches {
    ($($message:ident, $wire:ty, $what:literal, $encode:ident, $frame:ident, $decode:ident, $to:path, $from:path;)*) => {
        impl Codec {$(
            #[doc = concat!("Appends one batch of `", stringify!($message), "`. Use at most [`MAX_BATCH_MESSAGES`].")]
            pub fn $encode(&mut self, messages: &[$message], out: &mut BytesMut) {
                for message in messages {
                    put_message(&$to(message, &mut self.write), out);
                }
            }

            #[doc = concat!("Appends as many frames of `", stringify!($message), "` as needed, for a socket.")]
            pub fn $frame(&mut self, messages: &[$message], out: &mut BytesMut) {
                let mut left = messages.iter().peekable();
                while left.peek().is_some() {
                    write_frame(out, |out| {
                        let start = out.len();
                        let mut count = 0;
                        while count < MAX_BATCH_MESSAGES && out.len() - start < FRAME_TARGET {
                            let Some(message) = left.next() else { break };
                            put_message(&$to(message, &mut self.write), out);
                            count += 1;
                        }
                    });
                }
            }

            #[doc = concat!("Reads one batch of `", stringify!($message), "`.")]
            ///
            /// # Errors
            /// If the bytes are no such batch or a message in it breaks a limit; nothing of it is to be believed then.
            pub fn $decode(&mut self, bytes: Bytes) -> Result<Vec<$message>, WireError> {
                let mut reading = Reading { templates: &mut self.read, frame: bytes.len() };
                read_batch(bytes, $what, |wire: $wire| $from(wire, &mut reading))
            }
        )*}
    };
}

batches! {
    ClientToNode, v1::ClientToNode, "batch of a client", encode_client_batch, frame_client_messages,
        decode_client_batch, client::to_node, client::from_client;
    NodeToClient, v1::NodeToClient, "batch for a client", encode_node_batch, frame_node_messages,
        decode_node_batch, client::to_client, client::from_node;
    NodeToHead, v1::NodeToHead, "batch of a node", encode_to_head_batch, frame_to_head_messages,
        decode_to_head_batch, node::to_head, node::from_node;
    HeadToNode, v1::HeadToNode, "batch of the head", encode_to_node_batch, frame_to_node_messages,
        decode_to_node_batch, node::to_node, node::from_head;
    NodeToNode, v1::NodeToNode, "batch of another node", encode_to_peer_batch, frame_to_peer_messages,
        decode_to_peer_batch, peer::to_peer, peer::from_peer;
}

impl Codec {
    /// Appends a batch of one [`ClientToNode::Write`], encoded straight from where its bytes lie.
    pub fn encode_write(segment: SegmentId, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
        client::encode_write(segment, offset, bytes, out);
    }

    /// Appends a client's hello.
    pub fn encode_hello(hello: &ClientHello, out: &mut BytesMut) {
        put(&client::hello_to_wire(hello), out);
    }

    /// Reads a client's hello.
    ///
    /// # Errors
    /// If the bytes are none, or of another protocol version: the error is the sentence for the client's user.
    pub fn decode_hello(bytes: Bytes) -> Result<ClientHello, WireError> {
        client::hello_from_wire(read(bytes, "client's hello")?)
    }

    /// Appends a node's hello.
    pub fn encode_node_hello(hello: &NodeHello, out: &mut BytesMut) {
        put(&node::hello_to_wire(hello), out);
    }

    /// Reads a node's hello.
    ///
    /// # Errors
    /// If the bytes are none, or of another protocol version: the error is the sentence for the node's log.
    pub fn decode_node_hello(bytes: Bytes) -> Result<NodeHello, WireError> {
        node::hello_from_wire(read(bytes, "node's hello")?)
    }

    /// Appends the hello of a node to another.
    pub fn encode_tunnel_hello(hello: &TunnelHello, out: &mut BytesMut) {
        put(&peer::hello_to_wire(hello), out);
    }

    /// Reads the hello of a node to another.
    ///
    /// # Errors
    /// If the bytes are none, or of another protocol version.
    pub fn decode_tunnel_hello(bytes: Bytes) -> Result<TunnelHello, WireError> {
        peer::hello_from_wire(&read(bytes, "other node's hello")?)
    }

    /// Appends the answer to such a hello.
    pub fn encode_tunnel_welcome(welcome: &TunnelWelcome, out: &mut BytesMut) {
        put(&peer::welcome_to_wire(welcome), out);
    }

    /// Reads the answer to such a hello.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode_tunnel_welcome(bytes: Bytes) -> Result<TunnelWelcome, WireError> {
        peer::welcome_from_wire(read(bytes, "other node's welcome")?)
    }
}

/// `BytesMut` grows to any length that memory allows, so encoding into it cannot fail.
fn put<M: Message>(message: &M, out: &mut BytesMut) {
    message.encode(out).expect("BytesMut grows");
}

/// Field 1 of a batch.
fn put_message<M: Message>(message: &M, out: &mut BytesMut) {
    prost::encoding::message::encode(1, message, out);
}

fn read<M: Message + Default>(bytes: Bytes, what: &'static str) -> Result<M, WireError> {
    if bytes.len() > MAX_FRAME {
        return Err(WireError::FrameTooLong { announced: bytes.len() as u64, limit: MAX_FRAME as u64 });
    }
    M::decode(bytes).map_err(|error| malformed(what, error))
}

fn malformed(what: &'static str, error: prost::DecodeError) -> WireError {
    WireError::Malformed { what, reason: error.to_string() }
}

/// Reads `repeated M = 1` one by one, each straight into its domain type, without a vector of wire types between.
fn read_batch<M: Message + Default, D>(
    mut bytes: Bytes,
    what: &'static str,
    mut convert: impl FnMut(M) -> Result<D, WireError>,
) -> Result<Vec<D>, WireError> {
    if bytes.len() > MAX_FRAME {
        return Err(WireError::FrameTooLong { announced: bytes.len() as u64, limit: MAX_FRAME as u64 });
    }
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(|error| malformed(what, error))?;
        if tag != 1 || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default())
                .map_err(|error| malformed(what, error))?;
            continue;
        }
        let len = decode_varint(&mut bytes).map_err(|error| malformed(what, error))?;
        if len > bytes.len() as u64 {
            return Err(WireError::Malformed { what, reason: "a message ends beyond its batch".to_owned() });
        }
        if messages.len() == MAX_BATCH_MESSAGES {
            let limit = MAX_BATCH_MESSAGES as u64;
            return Err(WireError::TooMany { field: "batch.messages", count: limit + 1, limit });
        }
        let message = M::decode(bytes.split_to(len as usize)).map_err(|error| malformed(what, error))?;
        messages.push(convert(message)?);
    }
    Ok(messages)
}
