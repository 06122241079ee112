//! Objects from node to node: one TCP port per node, blocking sockets, threads of its own.
//!
//! The [`DataServer`] answers from segments and spill files by `sendfile`; the [`Puller`] receives straight into the
//! memory where the object is to lie. No copy is made on the way in user space.
//!
//! ```text
//! client                                           server
//! hello: "CMLD", version u16, token length u16, token
//!                                                  "CMLD", version u16, verdict u8, 0
//! get: 1, key (16 bytes)
//!                                                  status u8, 7 × 0, length u64, then the bytes
//! received: 2, key
//! get: ... or tunnel: 3, 16 × 0; from here on the connection is another's
//! ```
//!
//! Integers are little-endian; one request at a time on each connection.
//!
//! Why *received*: `sendfile` hands the kernel references to the object's pages, not a copy. Until the peer has read
//! the last byte they may still be sent (or, between two processes of one machine, read) from those pages, so the
//! range must not be reused before. The server therefore keeps the object's guard until the peer says so; if it does
//! not, the connection is reset before the guard is dropped, and a pull whose *received* cannot be sent has failed.

mod client;
mod connection;
mod pool;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{PullFailure, Puller, PullerConfig};
pub use connection::{Key, TransferError, TransferErrorKind, open_tunnel};
pub use server::{DataServer, ObjectSource, Opened, ServerConfig};
pub use wire::{MAX_TOKEN, Refusal, VERSION};
