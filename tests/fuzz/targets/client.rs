//! The client's half, told whatever a daemon can say: it never panics.
#![no_main]

use bytes::Bytes;
use client_core::ClientCore;
use cluster_proto::Codec;
use cluster_types::{ClientId, JobId, Payload, Refs, Resources, TaskTemplate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(messages) = Codec::default().decode_node_batch(Bytes::copy_from_slice(data)) else { return };
    let mut core = ClientCore::new(ClientId(0xd), JobId(1));
    let template = TaskTemplate {
        name: "f".into(),
        resources: Resources::cpus(1),
        num_returns: 1,
        ..TaskTemplate::default()
    };
    let template = template.into();
    let mut mine = Vec::new();
    for message in messages {
        let payload = Payload::Inline(Bytes::new());
        let (_, results) = core.submit(&template, payload, Refs::new(), Refs::new(), None);
        mine.extend(results);
        let _ = core.on_message(message);
        for object in &mine {
            core.want(*object, true);
            let _ = core.read(*object);
        }
        let _ = (core.take_batch(), core.take_freed(), core.take_fired(), core.take_direct());
    }
    for object in mine {
        core.drop_handle(object);
    }
});
