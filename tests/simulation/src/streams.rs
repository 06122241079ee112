//! Ordered streams with delays: what one party says to another arrives in order, but streams overtake each other.

use cluster_types::{Map, Time};

use crate::random::Random;

/// When the next message of each stream arrives.
#[derive(Debug, Default)]
pub struct Streams<K: std::hash::Hash + Eq + Copy> {
    last: Map<K, Time>,
}

impl<K: std::hash::Hash + Eq + Copy> Streams<K> {
    /// Nothing was said yet.
    pub fn new() -> Self {
        Self { last: Map::default() }
    }

    /// The arrival time of something said now: after a random delay, and not before what was said earlier on the same
    /// stream. Mostly some microseconds; sometimes, so that orders get mixed, much longer.
    pub fn arrival(&mut self, stream: K, now: Time, random: &mut Random) -> Time {
        let delay = match random.between(0, 99) {
            0 => random.between(1_000, 50_000),
            1..=9 => random.between(100, 2_000),
            _ => random.between(5, 100),
        };
        let last = self.last.entry(stream).or_default();
        let at = Time((now.0 + delay).max(last.0));
        *last = at;
        at
    }

    /// The stream ended; a new one of that name owes nothing to it.
    pub fn forget(&mut self, stream: K) {
        self.last.remove(&stream);
    }
}
