//! What a put costs: copies of 800 MB into shared memory, fresh and recycled. Run with `--release`.

use std::time::Instant;

use cluster_store::SegmentId;
use cluster_store::copy::copy_into;
use cluster_store::segment::{Arena, Segment, WriteMapping};

const LEN: usize = 800_000_000;

fn report(what: &str, run: impl FnOnce()) {
    let start = Instant::now();
    run();
    println!("{what:<58} {:6.2} GB/s", LEN as f64 / start.elapsed().as_secs_f64() / 1e9);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let zeros = vec![0u8; LEN];
    let touched: Vec<u8> = (0..LEN).map(|i| i as u8).collect();
    let arena = Arena::new();
    let len = (LEN as u64).next_multiple_of(4096);
    for id in 0..2 {
        let mut segment = None;
        report("segment: allocated", || segment = Some(Segment::create(len)));
        let segment = segment.ok_or("not made")??;
        let mapping = WriteMapping::map(segment.writer_fd())?;
        if id == 0 {
            // Without the populating that the arena does, for comparison.
            let plain = WriteMapping::map(segment.writer_fd())?;
            report("segment: pages populated", || plain.populate(0, len));
        }
        arena.add_segment(SegmentId(id), mapping)?;
    }
    let mut location = None;
    report("cold, touched source: allocated, populated, copied", || {
        if let Some(mut buf) = arena.alloc(LEN) {
            copy_into(&mut buf, &touched);
            location = Some(buf.seal());
        }
    });
    arena.free(location.ok_or("no room")?)?;
    for round in 1..=3 {
        for (name, source) in [("untouched zeros", &zeros), ("touched source", &touched)] {
            report(&format!("warm, {name}, copy_into, round {round}"), || {
                if let Some(mut buf) = arena.alloc(LEN) {
                    copy_into(&mut buf, source);
                }
            });
            report(&format!("warm, {name}, one thread, round {round}"), || {
                if let Some(mut buf) = arena.alloc(LEN) {
                    buf.copy_from_slice(source);
                }
            });
        }
    }
    Ok(())
}
