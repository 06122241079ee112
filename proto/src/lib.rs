//! The wire: protobuf messages and gRPC services (package `cluster.v1`), and their conversion to and from the domain
//! types of `cluster-types`. No wire type goes further in than the edge that calls this.
//!
//! - [`Codec`]: batches of messages and hellos, both ways. One per thread; it remembers task templates.
//! - [`frame`]: length-prefixed frames on a Unix socket.
//! - [`auth`]: the cluster's token on every call.
//! - [`heads`]: how a head that does not lead says who does.
//! - [`session`]: what a client elsewhere and its gateway agree on.
//! - [`stream`]: numbered frames on a gRPC stream, large batches cut into pieces.
//! - [`v1`]: what the build generates, services included.
//!
//! Whatever bytes a peer sends, decoding them returns a [`WireError`] that names the field, or a message that obeys
//! the limits in [`limits`]; it never panics.

pub mod auth;
mod codec;
mod error;
pub mod frame;
pub mod heads;
pub mod limits;
pub mod session;
pub mod strangers;
pub mod stream;

/// Messages and services as generated from `cluster/v1/*.proto`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("cluster.v1");
}

pub use codec::Codec;
pub use codec::query::{decode_query, decode_reply, encode_query, encode_reply};
pub use error::{WireError, check_protocol};
