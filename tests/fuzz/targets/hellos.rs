//! The first message of clients and of nodes.
#![no_main]

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(hello) = Codec::decode_hello(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::encode_hello(&hello, &mut written);
        assert_eq!(Codec::decode_hello(written.freeze()).as_ref(), Ok(&hello));
    }
    if let Ok(hello) = Codec::decode_node_hello(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::encode_node_hello(&hello, &mut written);
        assert_eq!(Codec::decode_node_hello(written.freeze()).as_ref(), Ok(&hello));
    }
});
