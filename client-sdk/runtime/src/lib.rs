//! The client's I/O edge, shared by the SDKs of both languages: sockets, threads and shared memory around the pure
//! state machine of `client-core`.
//!
//! | to | use |
//! | --- | --- |
//! | connect | [`Client::connect`] with a [`Target`] and [`ConnectOptions`] |
//! | make a value | [`Client::reserve`] → [`Draft::write`] (without the GIL) → [`Parcel`] |
//! | put it, pass it as arguments, return it | [`Client::put`], [`Client::submit`], [`Client::complete`] |
//! | count handles | [`Client::add_handle`], [`Client::drop_handle`] and their plural forms |
//! | read and wait | [`Client::try_get`], [`Client::get`], [`Client::wait`], [`Client::completion_queue`] |
//! | read what a task yields | [`Client::next_item`], [`Client::take_item`], [`Client::close_stream`] |
//! | execute | [`Client::next_work`], [`Client::enter_user_code`], [`Client::complete`] |
//! | yield | [`Client::yield_item`], [`Client::wait_for_room`] |
//!
//! A [`Client`] is a cheap clone, usable from all threads. No call holds a lock while it runs the caller's interrupt
//! check, and none calls back into the caller otherwise, so callers may hold a lock of their own (the GIL) around any
//! call that does not wait; the ones that may wait take an [`Interrupt`] and are to be called without it.

mod bridge;
mod client;
mod completion;
mod connect;
mod direct;
mod error;
mod executor;
mod failing;
mod far;
mod helper;
mod options;
mod reader;
mod shared;
mod spin;
mod streams;
mod value;
mod waiting;

pub use client::{Call, Client, Notice, Task, Work};
pub use client_core::{HandleSource, Taking};
pub use cluster_store::layout::{Kind, View};
pub use completion::CompletionQueue;
pub use error::{ClientError, ConnectError, Interrupt, Interrupted};
pub use options::{ConnectOptions, Target};
pub use value::{Draft, Got, Parcel, ValueBytes};
