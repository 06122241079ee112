//! Event tables: a few events, and what the node does about them. `Scene::event` audits the node after each.

mod attempts;
mod clients;
mod durable;
mod executors;
mod garbage;
mod head;
mod memory;
mod objects;
mod scene;
mod short_memory;
mod streams;
