//! The worker daemon: registration, executor supervision, device discovery.
