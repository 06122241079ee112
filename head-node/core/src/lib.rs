//! The head as a pure state machine: task table, ledger, scheduler.

pub mod event;

pub use event::{Effect, Event, HeadConfig, Record};
