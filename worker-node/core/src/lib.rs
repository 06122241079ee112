//! The node as a pure state machine: clients, executors, attempts, objects.
//!
//! [`Node::step`] takes one [`Event`] and appends the [`Effect`]s it has. It knows no clock, socket or file.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `node` | the state, and dispatch |
//! | `clients`, `head_says` | the two conversations |
//! | `attempts`, `assign`, `admission`, `ending` | an attempt's life (rule S2) |
//! | `catalogue` | pools and shapes of tasks |
//! | `executors` | processes, and what each was sent (rule S3) |
//! | `direct`, `far` | calls to actors past the head: on this node, and between nodes (rules A1 to A5) |
//! | `objects`, `values`, `located` | what lies here, who asked for it, who sees it, when it goes (rule P1) |
//! | `durable` | copies in durable storage, and the ends of tasks that wait for them |
//! | `streams` | items that tasks yield while they run |
//! | `places` | what lies where in memory, and what may go to disk |
//! | `memory`, `segments`, `pressure` | who waits for memory, leases of it, and what makes room (rules P2 to P5) |
//! | `audit`, `sizes` | what must hold between steps, and how much is remembered |

mod actors;
mod admission;
mod assign;
mod attempts;
mod audit;
mod catalogue;
mod clients;
mod direct;
mod durable;
mod ending;
pub mod event;
mod executors;
mod far;
mod head_says;
mod jobs;
mod located;
mod memory;
mod node;
mod objects;
mod places;
mod pressure;
mod segments;
mod short_memory;
mod sizes;
mod streams;
mod successor;
#[cfg(test)]
mod tests;
mod values;

pub use event::{Effect, Event, MemoryShort, NodeConfig, ProcessMemory, ServeFrom};
pub use node::Node;
