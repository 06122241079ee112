//! The head as a pure state machine: task table, ledger, scheduler.
//!
//! [`Head::step`] is the only mutator: an [`Event`] in, [`Effect`]s out, time as an argument.
//!
//! Where to look:
//! - [`head`]: the machine and what each message leads to.
//! - `submit`, `complete`, `values`: a task's way from its submission to its results.
//! - `objects`, `holds`, `durable`: who can reach which value (REF-1, REF-2, rules R1 to R4).
//! - `nodes`, `members`, `clients`: who joined, who is gone (FENCE-1).
//! - `ledger`: what each node has and what is leased (LEDGER-1).
//! - `shapes`, `scheduler`, `prefetch`, `promotion`: which task goes where (rules S2, S4, S6).
//! - `groups`, `places`, `bundles`: placement groups, where they go, and what runs in them.
//! - `notices`, `queries`: what people are told.
//! - `audit`: every cross-reference, for tests.

mod actors;
mod audit;
mod bundles;
mod calls;
mod cancel;
mod checkpoints;
mod clients;
mod complete;
mod direct;
mod drain;
mod durable;
pub mod event;
mod groups;
pub mod head;
mod holds;
mod jobs;
mod ledger;
mod lineage;
mod logs;
mod members;
mod nodes;
mod notices;
mod objects;
mod places;
mod prefetch;
mod promotion;
mod pulse;
mod queries;
mod records;
mod recovery;
mod scheduler;
mod shapes;
mod sizes;
mod slab;
mod starving;
mod streams;
mod submit;
mod tasks;
#[cfg(test)]
mod tests;
mod values;

pub use event::{Effect, Event, HeadConfig, Member, Record};
pub use head::Head;
pub use tasks::{Ended, History};
