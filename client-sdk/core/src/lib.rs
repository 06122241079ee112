//! The client's half as a pure state machine: refs, waits, resends.
