//! The head as a pure state machine: task table, ledger, scheduler.
