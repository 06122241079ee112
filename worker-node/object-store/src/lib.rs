//! The object store's building blocks: how values lie in memory, who may write where, and how bytes travel.
//!
//! This crate is I/O helpers and pure data structures. It is not the daemon's object index (that is a state machine
//! in `worker-core`), it starts no runtime, and it is the one place of the worker that holds `unsafe` code, so that
//! all of it can be read in one sitting.
//!
//! | module | what it is | pure |
//! | --- | --- | --- |
//! | [`layout`] | a value's bytes: header, in-band part, aligned buffers | yes |
//! | [`alloc`] | a writer's allocator over the segments leased to it | yes |
//! | [`segment`] | shared memory: making, mapping, passing, writing | |
//! | [`copy`](mod@copy) | copies by two threads | |
//! | [`slots`] | the page that a daemon and an executor share | its state |
//! | [`spill`] | objects on disk | |
//! | [`transfer`] | objects from node to node | |

pub mod alloc;
pub mod copy;
pub mod layout;
pub mod segment;
pub mod slots;
pub mod spill;
mod threads;
pub mod transfer;

pub use cluster_types::{Location, SegmentId};
pub use threads::with_signals_blocked;
