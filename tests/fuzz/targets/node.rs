//! A node's state machine, told whatever a head, a client and another node can say: it never panics, and its invariants hold.
#![no_main]

use bytes::Bytes;
use cluster_proto::Codec;
use cluster_types::{ClientId, ClientKind, HeadToNode, Incarnation, JobId, NodeId, Resources, Span, Term, Time};
use fuzz::turns;
use libfuzzer_sys::fuzz_target;
use worker_core::{Event, Node, NodeConfig};

const DRIVER: ClientId = ClientId(0xd);

fuzz_target!(|data: &[u8]| {
    let mut node = Node::new(NodeConfig {
        node: NodeId(1),
        hostname: "here".into(),
        resources: Resources::cpus(2),
        cores: 2,
        store_capacity: 1 << 30,
        idle_executors: 1,
        idle_timeout: Span::secs(60),
        head_may_restart: true,
    });
    let mut effects = Vec::new();
    let mut now = Time(1_000);
    let admitted = HeadToNode::Admitted { term: Term(1), incarnation: Incarnation(1), loss_timeout_ms: 5_000 };
    node.step(now, Event::FromHead(admitted), &mut effects);
    let kind = ClientKind::Driver { job: JobId(1), info: Default::default() };
    node.step(now, Event::ClientAttached { client: DRIVER, pid: 2, kind, shares_memory: true }, &mut effects);
    let mut codecs = (Codec::default(), Codec::default());
    for turn in turns(data) {
        let batch = Bytes::copy_from_slice(turn.batch);
        if turn.first {
            for message in codecs.0.decode_to_node_batch(batch).unwrap_or_default() {
                node.step(now, Event::FromHead(message), &mut effects);
            }
        } else {
            // Another node speaks the same way: what is no batch of a client's may be one of its.
            for message in codecs.1.decode_to_peer_batch(batch.clone()).unwrap_or_default() {
                node.step(now, Event::FromPeer { node: NodeId(2), message }, &mut effects);
            }
            for message in codecs.1.decode_client_batch(batch).unwrap_or_default() {
                node.step(now, Event::FromClient { client: DRIVER, message }, &mut effects);
            }
        }
        now = now + Span::millis(turn.wait.as_millis() as u64);
        node.step(now, Event::Tick, &mut effects);
        effects.clear();
        node.check_invariants().expect("the invariants hold");
    }
});
