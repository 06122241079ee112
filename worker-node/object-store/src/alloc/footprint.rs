//! What fragmentation costs, measured: a mix of sizes, churned for many generations, with a few objects that stay.

use super::{Allocator, SLOT_MAX};
use cluster_types::{Location, SegmentId};

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 64 * MIB;
const LIVE: u64 = 256 * MIB;

/// A small generator of its own, so that the figure is the same on each machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 8
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Returns the worst footprint seen once the live set was full, in percent of what was live at that moment.
fn churn(seed: u64, size: impl Fn(&mut Random) -> u64) -> u64 {
    let mut random = Random(seed);
    let mut allocator = Allocator::new();
    let mut segments = 0;
    let mut live: Vec<Location> = Vec::new();
    let mut lasting: Vec<Location> = Vec::new();
    let mut worst = 0;
    let mut allocated = 0;
    while allocated < 20 * LIVE {
        let len = size(&mut random);
        let range = allocator.alloc(len).unwrap_or_else(|| {
            allocator.add_segment(SegmentId(segments), SEGMENT).unwrap();
            segments += 1;
            allocator.alloc(len).unwrap()
        });
        allocated += len;
        if random.below(100) == 0 {
            lasting.push(range);
        } else {
            live.push(range);
        }
        while allocator.stats().live > LIVE {
            // Lasting objects live ten to twenty times as long as the rest.
            let from = if random.below(1000) == 0 && !lasting.is_empty() { &mut lasting } else { &mut live };
            let index = random.below(from.len() as u64) as usize;
            allocator.free(from.swap_remove(index)).unwrap();
        }
        if allocated > LIVE + LIVE / 2 {
            let stats = allocator.stats();
            worst = worst.max(stats.footprint() * 100 / stats.live);
        }
    }
    worst
}

#[test]
fn footprint_stays_below_twice_what_is_live() {
    let even = |r: &mut Random| 4096 + r.below(MIB - 4096);
    let log = |r: &mut Random| {
        let scale = r.below(8);
        (4096 << scale) + r.below(4096 << scale)
    };
    let small = |r: &mut Random| 64 + r.below(SLOT_MAX);
    for (name, percent) in [
        ("4 KiB to 1 MiB, even", churn(1, even)),
        ("4 KiB to 1 MiB, even in the logarithm", churn(2, log)),
        ("up to the largest slot", churn(3, small)),
    ] {
        println!("{name}: {percent} % of live bytes");
        assert!(percent <= 200, "{name}: {percent} %");
    }
}

/// The same, in waves: nearly all of a generation is freed at once, as when a stage of a pipeline ends.
#[test]
fn footprint_after_waves_stays_below_twice_what_is_live() {
    let mut random = Random(4);
    let mut allocator = Allocator::new();
    let mut segments = 0;
    let mut lasting: Vec<Location> = Vec::new();
    for wave in 0..20 {
        let mut passing = Vec::new();
        while allocator.stats().live < LIVE {
            let len = 4096 + random.below(MIB - 4096);
            let range = allocator.alloc(len).unwrap_or_else(|| {
                allocator.add_segment(SegmentId(segments), SEGMENT).unwrap();
                segments += 1;
                allocator.alloc(len).unwrap()
            });
            if random.below(100) == 0 { &mut lasting } else { &mut passing }.push(range);
        }
        let stats = allocator.stats();
        let percent = stats.footprint() * 100 / stats.live;
        println!("wave {wave}: {percent} %");
        assert!(percent <= 200);
        for range in passing {
            allocator.free(range).unwrap();
        }
    }
}
