//! Deterministic simulation of a whole cluster in one process.
