//! The page that a daemon and one of its executors share: claims of pipelined tasks (rule S3) and cancellation
//! (rule E3).
//!
//! A task sent ahead to an executor has a slot. Before the executor runs it, it *claims* the slot; the daemon may
//! *revoke* it at any time before that. Both are one compare-and-swap from `Ready(tag)`, so exactly one side wins,
//! without a round trip and whatever the other side is doing. A tag names one attempt and is never used twice on a
//! page, so a late claim of a slot that has been given to another task fails.
//!
//! [`SlotPage`] is the state, without any sharing; [`DaemonPage`] and [`ExecutorPage`] are the two sides of one that
//! lies in shared memory. A broken executor can write nonsense there: nothing that is read makes this side panic.

mod page;
mod shared;

pub use page::{SLOTS, SlotPage, SlotState, Tag};
pub use shared::{DaemonPage, ExecutorPage};
