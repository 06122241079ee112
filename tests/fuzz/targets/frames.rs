//! Frames on a Unix socket: they are the same however the bytes arrive, and in whatever pieces they are passed on.
#![no_main]

use bytes::Bytes;
use cluster_proto::frame::{FrameReader, PieceReader};
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
    let whole = read(&mut std::iter::once(data));
    assert_eq!(whole, read(&mut data.chunks(chunk % 64 + 1)));
    let mut reader = PieceReader::after(FrameReader::default(), chunk % 64 + 1);
    let (mut frames, mut begun) = (Vec::new(), Vec::new());
    reader.buffer().extend_from_slice(data);
    let is_broken = loop {
        match reader.next_piece() {
            Ok(Some((piece, goes_on))) => {
                begun.extend_from_slice(&piece);
                if !goes_on {
                    frames.push(Bytes::from(std::mem::take(&mut begun)));
                }
            }
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert_eq!(whole, (frames, is_broken));
});
