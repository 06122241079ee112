//! Concurrent-ML for Rust: functions and types whose calls run on a cluster, and values that all its processes share.
//!
//! ```no_run
//! use concurrent_ml::remote;
//!
//! #[remote]
//! fn square(x: i64) -> i64 {
//!     x * x
//! }
//!
//! fn main() -> concurrent_ml::Result<()> {
//!     let _cluster = concurrent_ml::init()?;
//!     let squares: Vec<_> = (0..4).map(|x| square.remote(x)).collect();
//!     assert_eq!(concurrent_ml::get(&squares)?, [0, 1, 4, 9]);
//!     Ok(())
//! }
//! ```
//!
//! Call [`init`] first in `main`: the program itself is what runs its tasks. It is sent to the cluster's nodes, started
//! there, and serves tasks from within `init` instead of returning from it. Without an address (in the environment's
//! `CLUSTER_ADDRESS`, or given to a [`Builder`]) the program gets a cluster of its own on this machine, which ends with
//! it.
//!
//! | to | use |
//! | --- | --- |
//! | call a function | [`remote`] on it, `f.remote(x)`, `f.options(\|options\| options.cpus(2.0)).remote(x)` |
//! | read, wait | [`ObjectRef::get`], [`get`], [`wait`], `.await` on a ref |
//! | share a value | [`put`], or a [`SharedArray`], which is read without a copy |
//! | keep state | [`remote`] on an `impl` block: an actor |
//! | read what a function yields | return `impl Iterator<Item = T>`, and loop over the [`Stream`] |
//! | end it | [`ObjectRef::cancel`], [`is_cancelled`], `handle.kill(false)` |
//! | use a GPU | `gpu::context` in a task that has leased one |
//! | call Python | [`python::function`], [`python::actor`] |
//! | set resources aside | [`PlacementGroup`] |
//! | submit programs | [`jobs`] |

mod actor;
mod array;
mod awaiting;
mod cluster;
mod codec;
mod current;
mod embedded;
mod error;
mod executor;
mod function;
#[cfg(feature = "gpu")]
pub mod gpu;
mod group;
pub mod jobs;
mod object;
mod options;
mod program;
pub mod python;
mod stream;

pub use actor::Actor;
pub use array::{Element, SharedArray};
pub use awaiting::Getting;
pub use cluster::{Builder, Cluster, init};
pub use cluster_types::FailureKind;
pub use cluster_types::task::GroupStrategy;
pub use concurrent_ml_macros::remote;
pub use current::is_cancelled;
pub use error::{Error, Result, TaskError};
pub use executor::serve_if_executor;
pub use function::Arg;
pub use group::{Bundle, PlacementGroup};
pub use object::{ObjectRef, get, put, put_plain, wait};
pub use options::Options;
pub use stream::Stream;

/// What the code that [`remote`] writes uses. Nothing here is for people, or stays as it is.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
    pub use serde;

    pub use crate::actor::RemoteClass;
    pub use crate::executor::{ActorEntry, Execution, Fault, FunctionEntry, another_type, no_method, raised};
    pub use crate::function::{Arguments, Callable, RemoteFunction, Results, call};
}
