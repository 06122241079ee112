//! A whole cluster in one process, deterministically: one head core, many node and client cores, and between them
//! streams with random delays that overtake each other, nodes that die and are born, executors that crash.
//!
//! After every step the invariants of the core that moved are checked. Values carry the id of their object, so a read
//! of the wrong bytes (a range reused while somebody could see it) is found too. A failure names its seed, and the seed
//! replays it:
//!
//! ```no_run
//! let report = simulation::run(simulation::Plan::small(42)).expect("seed 42 passes");
//! println!("{} steps", report.steps);
//! ```

mod actors;
mod client;
mod direct;
mod disk;
mod durable;
mod groups;
mod host;
mod jobs;
mod plan;
mod random;
mod streams;
mod tunnels;
mod world;
mod yields;

pub use plan::{Plan, Report};
pub use world::run;
