//! The first messages of clients and of nodes, to the head and to each other.
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
    if let Ok(hello) = Codec::decode_tunnel_hello(Bytes::copy_from_slice(data)) {
        let mut written = BytesMut::new();
        Codec::encode_tunnel_hello(&hello, &mut written);
        assert_eq!(Codec::decode_tunnel_hello(written.freeze()).as_ref(), Ok(&hello));
    }
    let _ = Codec::decode_tunnel_welcome(Bytes::copy_from_slice(data));
});
