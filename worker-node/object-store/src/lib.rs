//! The object store: shared-memory segments, allocation, spill, transfer.
