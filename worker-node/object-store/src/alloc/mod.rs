//! The writer's allocator over the segments leased to it (rule P2 of the store). Pure: it never touches the memory.
//!
//! Small objects get slots of a size class, cut from slabs; larger ones get extents of whole pages. Slabs are
//! themselves extents, and go back when their last slot is freed, so no memory is bound to a size for ever.
//!
//! Two preferences shape it:
//! - *Warm first.* Memory never used since its segment was leased costs page faults on first touch, five to twenty
//!   times the price of a copy; so freed memory is reused, the most recently freed first, before fresh memory.
//! - *Few segments.* Small objects fill segments already in use before they break into a wholly free one, so that
//!   whole segments drain and can be handed back.

mod allocator;
mod classes;
mod extents;
#[cfg(test)]
mod footprint;

pub use allocator::{AllocError, Allocated, Allocator, Stats};
pub use classes::SLOT_MAX;
