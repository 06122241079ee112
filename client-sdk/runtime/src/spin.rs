//! When a driver's wait spins before it blocks (rule S8).
//!
//! Waking a thread on another CPU takes longer than a small task does. A wait that spins misses none of that, but takes
//! a CPU from whoever else could use it. So spinning must keep proving itself: a wait that ended during its spin paid,
//! one that had to block after all did not, and after a series of those more waits block at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long one wait spins. A small task's round trip takes 60 to 80 µs where everything is awake, and the first ones
/// of a sequence, or those that another program disturbs, take twice that.
pub(crate) const SPIN: Duration = Duration::from_micros(200);
/// So many spins in vain, one after the other, count as one failure: the first ones only teach the kernel to keep the
/// others off the CPU that spins.
const SERIES: u32 = 8;
/// At most this many waits in a row block at once before a series is tried again: under 2 µs of each wait.
const SKIP_MAX: u32 = 1023;

/// Decides by how the last spins ended. Shared by the threads of a process; a lost update only shifts a decision.
#[derive(Debug, Default)]
pub(crate) struct Spinning {
    /// Spins in vain since one that paid.
    in_vain: AtomicU32,
    /// Waits that are still to block at once.
    skip: AtomicU32,
    /// How many will after the next series in vain.
    penalty: AtomicU32,
}

impl Spinning {
    /// Whether the wait that begins now should spin.
    pub(crate) fn begins(&self) -> bool {
        let skip = self.skip.load(Ordering::Relaxed);
        self.skip.store(skip.saturating_sub(1), Ordering::Relaxed);
        skip == 0
    }

    /// What was waited for came during the spin.
    pub(crate) fn paid(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
        self.penalty.store(self.penalty.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
    }

    /// The wait blocked after all.
    pub(crate) fn was_in_vain(&self) {
        let in_vain = self.in_vain.load(Ordering::Relaxed) + 1;
        if in_vain < SERIES {
            self.in_vain.store(in_vain, Ordering::Relaxed);
            return;
        }
        let penalty = (self.penalty.load(Ordering::Relaxed) * 2).clamp(SERIES, SKIP_MAX);
        self.in_vain.store(0, Ordering::Relaxed);
        self.penalty.store(penalty, Ordering::Relaxed);
        self.skip.store(penalty, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs waits of which `short` says whether they end during a spin; how many spun.
    fn spun(spinning: &Spinning, waits: usize, short: impl Fn(usize) -> bool) -> usize {
        let mut spun = 0;
        for number in 0..waits {
            if spinning.begins() {
                spun += 1;
                if short(number) { spinning.paid() } else { spinning.was_in_vain() }
            }
        }
        spun
    }

    #[test]
    fn short_waits_always_spin() {
        assert_eq!(spun(&Spinning::default(), 1000, |_| true), 1000);
    }

    #[test]
    fn long_waits_hardly_ever_do() {
        let spinning = Spinning::default();
        spun(&spinning, 10_000, |_| false);
        assert!(spun(&spinning, 10_310, |_| false) <= 88);
    }

    #[test]
    fn a_disturbed_sequence_goes_on_spinning() {
        assert_eq!(spun(&Spinning::default(), 1000, |number| number % 10 != 0), 1000);
    }

    #[test]
    fn it_comes_back_when_waits_become_short_again() {
        let spinning = Spinning::default();
        spun(&spinning, 10_000, |_| false);
        spun(&spinning, 1000, |_| true);
        assert_eq!(spun(&spinning, 100, |_| true), 100);
    }
}
