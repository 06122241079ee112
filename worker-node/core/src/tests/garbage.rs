//! Messages that cannot be meant, from clients, the head and the edge, in any order: nothing panics, and every
//! invariant holds after each (`Scene::event` checks).

use bytes::Bytes;
use cluster_types::client_node::{Completion, ExecutorFailure, ExecutorResult, PutValue};
use cluster_types::{
    ClientId, ClientKind, ClientToNode, FailureKind, HeadToNode, JobId, Lease, Located, NodeId, ObjectId,
    SegmentId, Span,
};
use proptest::prelude::*;

use super::scene::*;
use crate::{Effect, Event};

/// A few numbers from which an event is made.
type Step = (u8, u8, u8, u8);

fn client(n: u8) -> ClientId {
    [DRIVER, ClientId(0xe01), ClientId(0xe02), ClientId(0xe03), ClientId(0xbad)][usize::from(n % 5)]
}

fn object(a: u8, b: u8) -> ObjectId {
    match a % 4 {
        0 => put(u64::from(b % 8)),
        1 => ObjectId::put(client(b / 8), u64::from(b % 4)),
        _ => task(u64::from(b % 8)).result(u32::from(a % 2)),
    }
}

fn place(a: u8, b: u8) -> cluster_types::Location {
    let len = [64, 8192, MIB, 0, u64::MAX, 65 * MIB][usize::from(b % 6)];
    let segment = if a.is_multiple_of(9) { u32::MAX - u32::from(b % 2) } else { u32::from(a % 3) };
    at(SegmentId(segment), u64::from(b) * 64, len)
}

fn value(a: u8, b: u8) -> PutValue {
    match a % 3 {
        0 => PutValue::Inline(Bytes::from(vec![0; usize::from(b) * 40])),
        _ => PutValue::Stored(place(a, b)),
    }
}

fn event(scene: &Scene, (kind, a, b, c): Step) -> Event {
    let says = |message| Event::FromClient { client: client(a), message };
    let (named, tag) = (task(u64::from(b % 8)), u64::from(c % 12));
    let tries = attempt(u32::from(c % 2) + 1);
    match kind % 36 {
        0 => {
            let kind = match b % 3 {
                0 => ClientKind::Driver { job: JobId(u32::from(c % 2) + 7), info: Default::default() },
                1 => ClientKind::Executor { executor: u32::from(c % 4) },
                _ => ClientKind::Observer,
            };
            Event::ClientAttached { client: client(a), pid: 1, kind, shares_memory: !c.is_multiple_of(4) }
        }
        1 if c < 60 => Event::ClientEnded { client: client(a) },
        2 if c < 60 => says(ClientToNode::Goodbye),
        3 => says(ClientToNode::Submit(scene.spec(u64::from(b % 8), &[object(c, b)]))),
        4..=6 => {
            let object = ObjectId::put(client(a), u64::from(b % 8));
            says(ClientToNode::Put { object, value: value(b, c), contains: [object].into_iter().collect() })
        }
        7 => says(ClientToNode::Escape(vec![object(b, c), object(c, b)])),
        8 => says(ClientToNode::Drop(vec![object(b, c), object(b, c)])),
        9 | 10 => says(ClientToNode::Get(vec![object(b, c), object(c, b)])),
        11 => says(ClientToNode::Release(vec![object(b, c), object(c, b)])),
        12 => says(ClientToNode::RequestMemory { bytes: u64::from(b) << (c % 40) }),
        13 => says(ClientToNode::ReturnMemory(vec![SegmentId(u32::from(b % 4))])),
        14 => says(ClientToNode::Evicted { object: object(b, c), freed: c.is_multiple_of(2) }),
        15 => says(ClientToNode::Blocked { tag, on: vec![object(b, c)] }),
        16 => says(ClientToNode::Unblocked { tag }),
        17..=19 => {
            let result = match b % 4 {
                0 => Err(ExecutorFailure { failure: failed(FailureKind::Exception), retryable: true }),
                n => {
                    let result = ExecutorResult { value: value(c, b), contains: Default::default() };
                    Ok(vec![result; usize::from(n)])
                }
            };
            says(ClientToNode::Completed(Completion { tag, result, micros: u64::from(c) * 10 }))
        }
        20..=23 => {
            let spec = scene.spec(u64::from(b % 8), &[object(a, c), object(c, b)]);
            let lease = a.is_multiple_of(2).then(Lease::default);
            let located = vec![(object(a, c), located(c))];
            Event::FromHead(HeadToNode::Assign { spec: spec.into(), attempt: tries, lease, located })
        }
        24 => Event::FromHead(HeadToNode::Grant { task: named, attempt: tries, lease: Lease::default() }),
        25 => Event::FromHead(HeadToNode::CallBack(vec![(named, tries), (named, tries)])),
        26 => {
            let reason = "no".to_owned();
            let force = a.is_multiple_of(2);
            Event::FromHead(HeadToNode::Cancel { task: named, attempt: tries, reason, force })
        }
        27 => Event::FromHead(HeadToNode::Located { object: object(a, b), located: located(c) }),
        28 => Event::FromHead(HeadToNode::Free(vec![object(a, b), object(b, c)])),
        29 if c < 40 => Event::FromHead(admitted()),
        30 if c < 40 => Event::HeadLost,
        31 => Event::Revoked { executor: u32::from(a % 4), tag, won: b.is_multiple_of(2) },
        32 => {
            let (no_memory, missing) = (b.is_multiple_of(3), b.is_multiple_of(2));
            Event::StoreFailed { object: object(a, c), missing, reason: "no".into(), no_memory }
        }
        33 if c < 30 => {
            let unstarted = vec![tag];
            Event::ExecutorExited { executor: u32::from(a % 4), cause: "killed".into(), unstarted }
        }
        34 if c < 30 => Event::FromHead(HeadToNode::JobEnded(JOB)),
        _ => Event::Tick,
    }
}

fn located(c: u8) -> Located {
    match c % 4 {
        0 => Located::Failed(failed(FailureKind::ObjectLost)),
        1 => Located::Inline(Bytes::from_static(b"x")),
        2 => Located::Stored { size: u64::from(c) * MIB / 4, copies: vec![(NodeId(1), "me:1".to_owned())] },
        _ => elsewhere(u64::from(c) * MIB / 4),
    }
}

/// The edge's answers, some of them; what it never does (answer with another's range) it does not do here.
fn answers(scene: &mut Scene, next: &mut u64, c: u8) -> Vec<Event> {
    let mut answers = Vec::new();
    for effect in std::mem::take(&mut scene.said) {
        let late = c.is_multiple_of(5);
        match effect {
            Effect::CreateSegment { segment, .. } if !late => {
                let failure = c.is_multiple_of(7).then(|| failed(FailureKind::OutOfDisk));
                answers.push(Event::SegmentCreated { segment, failure });
            }
            Effect::Pull { object, .. } | Effect::Restore { object } | Effect::StoreBytes { object, .. }
                if !late =>
            {
                // The edge allocates what was announced.
                let len = scene.node.memory.arriving.get(&object).copied().unwrap_or(64);
                let location = own(*next, len);
                *next += len.next_multiple_of(64);
                answers.push(Event::Stored { object, location });
            }
            Effect::Spill { objects } => {
                let objects = objects.into_iter().map(|(object, _)| object).collect();
                answers.push(match c.is_multiple_of(3) {
                    true => Event::SpillFailed { objects, failure: failed(FailureKind::OutOfDisk) },
                    false => Event::Spilled { objects },
                });
            }
            Effect::StartExecutor { executor, .. } => {
                let kind = ClientKind::Executor { executor };
                let client = ClientId(0xe00 + u64::from(executor));
                answers.push(Event::ClientAttached { client, pid: 1, kind, shares_memory: true });
            }
            _ => {}
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_an_invariant(steps in proptest::collection::vec(any::<Step>(), 1..150)) {
        let mut scene = Scene::new();
        let mut next = 0;
        for step in steps {
            scene.now = scene.now + Span(u64::from(step.3) * 100);
            let happens = event(&scene, step);
            scene.event(happens);
            for answer in answers(&mut scene, &mut next, step.3) {
                scene.event(answer);
            }
        }
    }
}
