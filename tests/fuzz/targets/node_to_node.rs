//! Batches of `NodeToNode`, as daemons send them to each other: whatever is understood means the same when it is written
//! and read again.
#![no_main]

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(messages) = Codec::default().decode_to_peer_batch(Bytes::copy_from_slice(data)) else { return };
    let mut written = BytesMut::new();
    Codec::default().encode_to_peer_batch(&messages, &mut written);
    let again = Codec::default().decode_to_peer_batch(written.freeze());
    assert_eq!(again.as_ref(), Ok(&messages));
});
