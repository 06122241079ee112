//! The client's half as a pure state machine: which objects this process knows, who holds them, what its daemon must
//! be told, and what has become ready (rule T5). No clock, no sockets, no threads: `client-runtime` is the edge.
//!
//! - [`ClientCore`]: the table of objects and the only mutator.
//! - [`DirectBatch`]: calls that go straight to their actor.
//! - [`outbox`]: what is to be sent, in order (rule T3).
//! - [`state`]: what is known of one object.
//! - `streams`: what own tasks yield while they run.
//!
//! What it promises its daemon, and the simulation checks:
//! - REF-1, this process's part: an object has a hold of this process at the head for as long as a handle or a view of
//!   it lives here, or is *covered* by something that has one: the container or the task that its ref came out of.
//! - Rule R1: a hold goes out before the drop of whatever the ref came out of. Holds are appended where they arise,
//!   drops wait for the end of the batch, so a drop never overtakes anything.
//! - Rule P1: a location is released when the last view and the last handle here are gone, once for each time that it
//!   was told, so that a release that crosses a new telling on the way does not undo it.
//! - Own puts that never escaped cost the head nothing, and their range is reused without a round trip.

mod calls;
mod core;
mod escape;
mod incoming;
pub mod outbox;
pub mod state;
mod streams;
#[cfg(test)]
mod tests;

pub use calls::DirectBatch;
pub use core::{ClientCore, HandleSource, Reading};
pub use outbox::Outbox;
pub use streams::Taking;
