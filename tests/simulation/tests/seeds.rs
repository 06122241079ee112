//! Whole clusters, one per seed. A failure prints its seed; `scripts/simulate --seed N` replays it.

use simulation::{Plan, run};

/// Seeds that once showed a bug, with what it was.
const REGRESSIONS: &[u64] = &[];

#[test]
fn small_clusters_keep_every_invariant() {
    for seed in REGRESSIONS.iter().copied().chain(0..150) {
        if let Err(error) = run(Plan::small(seed)) {
            panic!("{error}");
        }
    }
}

#[test]
fn hundreds_of_nodes_keep_every_invariant() {
    if let Err(error) = run(Plan::large(1)) {
        panic!("{error}");
    }
}
