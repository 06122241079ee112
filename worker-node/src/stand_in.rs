//! Until the cores are there.
use cluster_types::{Incarnation, Time};
pub(crate) struct Node;
impl Node {
    pub(crate) fn new(_: worker_core::NodeConfig) -> Self {
        Self
    }
    pub(crate) fn step(&mut self, _: Time, _: worker_core::Event, _: &mut Vec<worker_core::Effect>) {}
}
pub(crate) struct Head;
impl Head {
    pub(crate) fn new(_: head_core::HeadConfig) -> Self {
        let _ = Incarnation(0);
        Self
    }
    pub(crate) fn step(&mut self, _: Time, _: head_core::Event, _: &mut Vec<head_core::Effect>) -> bool {
        false
    }
}
