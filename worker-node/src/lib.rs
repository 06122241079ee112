//! The worker daemon: registration, executor supervision, device discovery.

pub mod supervisor;
