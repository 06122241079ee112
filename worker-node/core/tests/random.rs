//! Random lives of a node: whatever happens in whichever order, its rules hold from outside and inside.

mod world;

use proptest::prelude::*;
use world::World;

fn live(seed: u64, capacity: u64, trouble: bool, steps: usize) -> World {
    let mut world = World::new(seed, capacity, trouble);
    if !seed.is_multiple_of(3) {
        world.admit();
    }
    world.attach_driver(true);
    if seed.is_multiple_of(2) {
        world.attach_driver(false);
    }
    for _ in 0..steps {
        world.act();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing fails, and there is room for everything.
    #[test]
    fn a_quiet_life(seed: u64) {
        let mut world = live(seed, 1 << 30, false, 1_500);
        world.settle();
        world.drop_everything();
    }

    /// Nothing fails, but memory is short.
    #[test]
    fn a_crowded_life(seed: u64) {
        let mut world = live(seed, 16 << 20, false, 1_500);
        world.settle();
        world.drop_everything();
    }

    /// Executors die, disks fill, sources vanish, peers talk nonsense.
    #[test]
    fn a_troubled_life(seed: u64) {
        let mut world = live(seed, 16 << 20, true, 2_500);
        world.settle();
        world.drop_everything();
    }
}

/// The lives above do what they are meant to: tasks run, some are sent ahead, some objects are spilled.
#[test]
fn lives_are_not_empty() {
    let (mut ran, mut ahead, mut spills) = (0, 0, 0);
    for seed in 0..20 {
        let world = live(seed, 16 << 20, false, 1_500);
        ran += world.ran;
        ahead += world.ahead;
        spills += world.spills;
    }
    assert!(
        ran > 1_000 && ahead > 20 && spills > 5,
        "{ran} ran, {ahead} were sent ahead, {spills} batches spilled"
    );
}
