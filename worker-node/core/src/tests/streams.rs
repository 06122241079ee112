//! Tasks that yield: each item is kept and told of, and what is taken reaches the executor.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{ExecutorResult, PutValue, YieldedItem};
use cluster_types::{
    ClientId, ClientToNode, HeadToNode, Lease, NodeToClient, NodeToHead, ResultValue, StreamLimits,
    TaskTemplate,
};

use super::scene::*;
use crate::{Effect, Event};

fn assign(scene: &mut Scene, n: u64) {
    let mut spec = scene.spec(n, &[]);
    let limits = StreamLimits { max_items: 2, max_bytes: 0 };
    spec.template = Arc::new(TaskTemplate { stream: Some(limits), ..(*spec.template).clone() });
    let lease = Some(Lease::default());
    scene.head(HeadToNode::Assign { spec: Arc::new(spec), attempt: attempt(1), lease, located: Vec::new() });
}

fn yields(scene: &mut Scene, client: ClientId, tag: u64, index: u32, value: PutValue) {
    let item = ExecutorResult { value, contains: Default::default() };
    scene.says(client, ClientToNode::Yielded(YieldedItem { tag, index, item }));
}

fn small() -> PutValue {
    PutValue::Inline(Bytes::from_static(b"item"))
}

fn told_items(scene: &mut Scene) -> Vec<(u32, ResultValue)> {
    let of = |message| match message {
        NodeToHead::Yielded { index, item, .. } => Some((index, item.value)),
        _ => None,
    };
    scene.told_head().into_iter().filter_map(of).collect()
}

#[test]
fn an_item_is_kept_here_and_the_head_is_told() {
    let mut scene = Scene::new();
    assign(&mut scene, 1);
    let executor = scene.executor();
    let run = scene.run(executor);
    let (segment, _) = scene.lease(executor, MIB);
    yields(&mut scene, executor, run.tag, 0, small());
    yields(&mut scene, executor, run.tag, 1, PutValue::Stored(at(segment, 0, 10_000)));
    let told = told_items(&mut scene);
    assert_eq!(told[1], (1, ResultValue::Stored { size: 10_000 }));
    assert!(matches!(&told[0], (0, ResultValue::Inline(_))));
    scene.driver_says(ClientToNode::Get(vec![task(1).item(1)]));
    assert!(scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::Ready { .. })));
    // Freed and released, its range is the executor's again.
    scene.driver_says(ClientToNode::Release(vec![task(1).item(1)]));
    scene.head(HeadToNode::Free(vec![task(1).item(1)]));
    assert_eq!(scene.told(executor), [NodeToClient::RangesFreed(vec![at(segment, 0, 10_000)])]);
}

#[test]
fn an_item_yielded_again_does_not_displace_the_first() {
    let mut scene = Scene::new();
    assign(&mut scene, 1);
    let executor = scene.executor();
    let run = scene.run(executor);
    let (segment, _) = scene.lease(executor, MIB);
    for offset in [0, 10_048] {
        yields(&mut scene, executor, run.tag, 0, PutValue::Stored(at(segment, offset, 10_000)));
    }
    let again = at(segment, 10_048, 10_000);
    assert_eq!(scene.told(executor), [NodeToClient::RangesFreed(vec![again])]);
    assert_eq!(told_items(&mut scene).len(), 2, "whether it counts is the head's to say");
}

#[test]
fn what_is_taken_reaches_the_executor_behind_the_task() {
    let mut scene = Scene::new();
    assign(&mut scene, 1);
    let (task, attempt) = (task(1), attempt(1));
    scene.head(HeadToNode::Taken { task, attempt, items: 3, closed: false });
    let executor = scene.executor();
    let told = scene.told(executor);
    let [.., NodeToClient::Run(run), NodeToClient::Taken { tag, items: 3, closed: false }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(*tag, run.tag);
    let tag = *tag;
    scene.head(HeadToNode::Taken { task, attempt, items: 4, closed: true });
    assert_eq!(scene.told(executor), [NodeToClient::Taken { tag, items: 4, closed: true }]);
    // FENCE-1: of another attempt it says nothing.
    let attempt = super::scene::attempt(2);
    scene.head(HeadToNode::Taken { task, attempt, items: 5, closed: true });
    assert_eq!(scene.told(executor), []);
}

#[test]
fn items_of_what_does_not_yield_or_does_not_run_are_given_back() {
    let mut scene = Scene::new();
    let (executor, run) = scene.running(1);
    let (segment, _) = scene.lease(executor, MIB);
    for tag in [run.tag, 77] {
        yields(&mut scene, executor, tag, 0, PutValue::Stored(at(segment, 0, 10_000)));
        assert_eq!(scene.told(executor), [NodeToClient::RangesFreed(vec![at(segment, 0, 10_000)])]);
        assert_eq!(told_items(&mut scene), []);
    }
}

#[test]
fn an_executor_that_yields_what_is_not_its_own_is_ended() {
    let mut scene = Scene::new();
    assign(&mut scene, 1);
    let executor = scene.executor();
    let run = scene.run(executor);
    yields(&mut scene, executor, run.tag, 0, PutValue::Stored(at(cluster_types::SegmentId(5), 0, 10)));
    assert!(scene.todo().iter().any(|todo| matches!(todo, Effect::EndExecutor { force: true, .. })));
}

#[test]
fn items_outlive_the_executor_that_yielded_them() {
    let mut scene = Scene::new();
    assign(&mut scene, 1);
    let executor = scene.executor();
    let run = scene.run(executor);
    let (segment, _) = scene.lease(executor, MIB);
    yields(&mut scene, executor, run.tag, 0, PutValue::Stored(at(segment, 0, 10_000)));
    scene.event(Event::ExecutorExited { executor: 1, cause: "killed".to_owned(), unstarted: vec![] });
    scene.event(Event::ClientEnded { client: executor });
    scene.driver_says(ClientToNode::Get(vec![task(1).item(0)]));
    assert!(scene.told(DRIVER).iter().any(|told| matches!(told, NodeToClient::Ready { .. })));
}
