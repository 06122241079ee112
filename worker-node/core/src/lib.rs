//! The node as a pure state machine: clients, executors, attempts, objects.
//!
//! [`Node::step`] takes one [`Event`] and appends the [`Effect`]s it has. It knows no clock, socket or file.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `node` | dispatch, clients, an attempt's life (rule S2) |
//! | `attempts` | what an attempt is; pools and shapes |
//! | `executors` | processes, and what each was sent (rule S3) |
//! | `objects`, `values`, `located` | what lies here, who asked for it, who sees it, when it goes (rule P1) |
//! | `memory` | leases of memory, and what makes room (rules P2 to P5) |
//! | `audit` | what must hold between steps |

mod attempts;
mod audit;
pub mod event;
mod executors;
mod located;
mod memory;
mod node;
mod objects;
mod values;

pub use event::{Effect, Event, NodeConfig, ServeFrom};
pub use node::Node;
