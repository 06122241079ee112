//! What the head's store has of actors, groups and durable objects, which an earlier version or a broken disk may have
//! written: whatever is understood means the same when it is written and read again.
#![no_main]

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(kept) = Codec::default().decode_kept_actor(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::default().encode_kept_actor(&kept, &mut written);
        assert_eq!(Codec::default().decode_kept_actor(written.freeze()).as_ref(), Ok(&kept));
    }
    if let Ok(kept) = Codec::default().decode_kept_group(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::default().encode_kept_group(&kept, &mut written);
        assert_eq!(Codec::default().decode_kept_group(written.freeze()).as_ref(), Ok(&kept));
    }
    if let Ok(kept) = Codec::decode_kept_durable(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::encode_kept_durable(&kept, &mut written);
        assert_eq!(Codec::decode_kept_durable(written.freeze()).as_ref(), Ok(&kept));
    }
});
