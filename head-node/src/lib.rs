//! The head daemon around the pure `head-core`: it owns the sockets, the clock and the state store, and does nothing
//! else.
//!
//! - [`serve`]: the daemon, from a listener to its end.
//! - [`config`]: what it is told.
//! - [`store`]: what survives it, behind one trait; [`state`]: what it keeps there.
//!
//! Within: `service` turns gRPC calls into inputs (`http` those of jobs over HTTP), `driver` steps the core with them and carries its effects out,
//! `outbox` is the bounded queue of one node (rule S7); `leadership` says when a head leads, and `tenure` for how long.

pub mod config;
mod driver;
mod history;
mod http;
mod leadership;
mod outbox;
mod serve;
mod service;
pub mod state;
pub mod store;
mod tenure;

pub use config::{Config, StateAt};
pub use driver::Core;
pub use serve::{HeadError, serve};
