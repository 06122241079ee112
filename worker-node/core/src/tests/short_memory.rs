//! What ends when the machine's memory runs out, and what takes more than it asked for.

use cluster_types::node_head::Retry;
use cluster_types::{ClientId, Failure, FailureKind, NodeToHead, Outcome, Span};

use super::scene::*;
use crate::event::{MemoryShort, ProcessMemory};
use crate::{Effect, Event};

fn short(largest: &[(u32, &str, u64)]) -> Event {
    let named =
        |&(pid, name, mib): &(u32, &str, u64)| ProcessMemory { pid, name: name.into(), bytes: mib << 20 };
    Event::MemoryShort(MemoryShort {
        used: 7800 << 20,
        limit: 8000 << 20,
        of: "the machine's memory",
        largest: largest.iter().map(named).collect(),
    })
}

fn ended(effects: &[Effect]) -> Vec<u32> {
    let of = |effect: &Effect| match effect {
        Effect::EndExecutor { executor, force: true } => Some(*executor),
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

fn exits(scene: &mut Scene, executor: u32, client: ClientId) -> Option<(Failure, Retry)> {
    let cause = "killed by signal 9 (SIGKILL)".to_owned();
    scene.event(Event::ExecutorExited { executor, cause, unstarted: Vec::new() });
    scene.event(Event::ClientEnded { client });
    scene.told_head().into_iter().find_map(|message| match message {
        NodeToHead::Done { outcome: Outcome::Failed(failure), retry, .. } => Some((failure, retry)),
        _ => None,
    })
}

#[test]
fn the_newest_task_ends_and_is_tried_again_uncounted() {
    let mut scene = Scene::new();
    scene.running(1);
    scene.pass(Span::millis(10));
    let (second, _) = scene.running(2);
    scene.event(short(&[(4, "firefox", 3000), (5, "x", 10)]));
    assert_eq!(ended(&scene.todo()), [2]);
    scene.event(short(&[]));
    assert_eq!(ended(&scene.todo()), [], "the first is not gone yet");
    let (failure, retry) = exits(&mut scene, 2, second).unwrap();
    assert_eq!((failure.kind, retry), (FailureKind::OutOfMemory, Retry::NoRoom));
    for words in ["the machine's memory has run out: 7800 of 8000 MiB", "pid 4 (firefox) 3000 MiB, pid 5"] {
        assert!(failure.message.contains(words), "{failure:?}");
    }
}

#[test]
fn one_that_is_alone_is_to_blame_for_itself() {
    let mut scene = Scene::new();
    let (executor, _) = scene.running(1);
    scene.event(short(&[]));
    assert_eq!(ended(&scene.todo()), [1]);
    assert_eq!(exits(&mut scene, 1, executor).unwrap().1, Retry::Infrastructure);
}

#[test]
fn one_without_retries_outlives_an_older_one_with_them() {
    let mut scene = Scene::new();
    scene.running(1);
    scene.pass(Span::millis(10));
    scene.running_with(2, |template| template.max_retries = 0);
    scene.event(short(&[]));
    assert_eq!(ended(&scene.todo()), [1]);
}

#[test]
fn nothing_begins_while_memory_is_being_given_back() {
    let mut scene = Scene::new();
    scene.running(1);
    scene.pass(Span::millis(10));
    let (second, _) = scene.running(2);
    scene.event(short(&[]));
    exits(&mut scene, 2, second);
    scene.assign(3, true, &[]);
    let starts =
        |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::StartExecutor { .. }));
    assert!(!starts(&scene.todo()));
    scene.pass(Span::secs(2));
    assert!(starts(&scene.todo()));
}

#[test]
fn whoever_takes_more_than_it_asked_for_is_ended() {
    let mut scene = Scene::new();
    scene.running(1);
    scene.pass(Span::millis(300));
    let measured = |effects: &[Effect]| -> Vec<u32> {
        let of = |effect: &Effect| match effect {
            Effect::MeasureMemory { executors } => Some(executors.clone()),
            _ => None,
        };
        effects.iter().filter_map(of).flatten().collect()
    };
    assert_eq!(measured(&scene.todo()), [], "it did not say");
    let (second, _) = scene.running_with(2, |template| {
        template.resources.memory = cluster_types::Amount::from_f64(1e9).unwrap();
    });
    scene.pass(Span::millis(300));
    assert_eq!(measured(&scene.todo()), [2]);
    scene.event(Event::MemoryMeasured { executors: vec![(2, 1_000_000_000)] });
    assert_eq!(ended(&scene.todo()), []);
    scene.event(Event::MemoryMeasured { executors: vec![(2, 1_200_000_000), (9, 1)] });
    assert_eq!(ended(&scene.todo()), [2]);
    let (failure, retry) = exits(&mut scene, 2, second).unwrap();
    assert_eq!((failure.kind, retry), (FailureKind::OutOfMemory, Retry::Infrastructure));
    assert!(failure.message.contains("it asked for memory=1000000000 bytes (953 MiB)"), "{failure:?}");
}

#[test]
fn with_nobody_to_end_nothing_happens() {
    let mut scene = Scene::new();
    scene.event(short(&[(1, "init", 7000)]));
    assert_eq!(ended(&scene.todo()), []);
    scene.assign(1, true, &[]);
    assert!(scene.todo().iter().any(|effect| matches!(effect, Effect::StartExecutor { .. })));
}
