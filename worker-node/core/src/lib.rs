//! The node as a pure state machine: clients, executors, object index.
