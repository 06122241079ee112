//! Tests of the head: event tables in a small language, and random histories.

mod actors;
mod cancel;
mod checkpoints;
mod direct;
mod drain;
mod durable;
mod groups;
mod jobs;
mod lineage;
mod liveness;
mod places;
mod random;
mod recovery;
mod scene;
mod sequences;
mod streams;
mod values;
mod waiting;
