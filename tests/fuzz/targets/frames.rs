//! Frames on a Unix socket: they are the same however the bytes arrive.
#![no_main]

use cluster_proto::frame::FrameReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (usize, &[u8])| {
    let (chunk, data) = input;
    let read = |chunks: &mut dyn Iterator<Item = &[u8]>| {
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) => return (frames, true),
                }
            }
        }
        (frames, false)
    };
    assert_eq!(read(&mut std::iter::once(data)), read(&mut data.chunks(chunk % 64 + 1)));
});
