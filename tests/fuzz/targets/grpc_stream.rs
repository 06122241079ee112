//! Numbered frames on a gRPC stream: cut batches come whole or not at all, and what is kept stays within its limit.
#![no_main]

use bytes::Bytes;
use cluster_proto::limits::MAX_FRAME;
use cluster_proto::stream::{Piece, StreamEnd};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<(u8, u8, bool, Vec<u8>)>| {
    let (mut once, mut resumable) = (StreamEnd::once(), StreamEnd::resumable());
    for (seq, ack, more, payload) in pieces {
        let piece = Piece { seq: seq.into(), ack: ack.into(), payload: Bytes::from(payload), more };
        for end in [&mut once, &mut resumable] {
            if let Ok(Some(batch)) = end.receive(piece.clone()) {
                assert!(batch.len() <= MAX_FRAME);
                end.send(batch);
            }
            end.replay(ack.into()).for_each(drop);
        }
    }
});
