//! The node as a pure state machine: clients, executors, object index.

pub mod event;

pub use event::{Effect, Event, NodeConfig, ServeFrom};
