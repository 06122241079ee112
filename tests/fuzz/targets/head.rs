//! The head's state machine, told whatever two nodes can say: it never panics, and its invariants hold.
#![no_main]

use bytes::Bytes;
use cluster_proto::Codec;
use cluster_types::{Incarnation, NodeHello, NodeId, PROTOCOL_VERSION, Resources, Span, Time};
use head_core::{Event, Head, HeadConfig};
use fuzz::turns;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut head = Head::new(HeadConfig::default());
    let mut effects = Vec::new();
    let mut now = Time(1_000);
    for n in 1..=2 {
        let hello = NodeHello {
            protocol: PROTOCOL_VERSION,
            node: NodeId(n),
            hostname: format!("host-{n}"),
            data_address: String::new(),
            gateway_address: String::new(),
            resources: Resources::cpus(2),
            labels: Default::default(),
            store_capacity: 1 << 30,
            previous: None,
        };
        head.step(now, Event::NodeConnected { connection: n, hello }, &mut effects);
    }
    let mut codecs = [Codec::default(), Codec::default()];
    for turn in turns(data) {
        let speaker = usize::from(!turn.first);
        let node = NodeId(1 + speaker as u64);
        let batch = Bytes::copy_from_slice(turn.batch);
        let Ok(messages) = codecs[speaker].decode_to_head_batch(batch) else { continue };
        for message in messages {
            head.step(now, Event::FromNode { node, incarnation: Incarnation(1), message }, &mut effects);
        }
        now = now + Span::millis(turn.wait.as_millis() as u64);
        head.step(now, Event::Tick, &mut effects);
        effects.clear();
        head.check_invariants().expect("the invariants hold");
    }
});
