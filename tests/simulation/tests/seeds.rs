//! Whole clusters, one per seed. A failure prints its seed; `scripts/simulate --seed N` replays it.

use std::time::{Duration, Instant};

use simulation::{Plan, run};

/// As many seeds as fit; `scripts/simulate` runs any number.
const A_MINUTE: Duration = Duration::from_mins(1);

/// Seeds that once showed a bug, with what it was. A seed draws other events once the code asks for more or fewer random
/// numbers, so that each bug has a small test of its own too, beside the code.
const REGRESSIONS: &[(u64, &str)] = &[
    (23, "lineage was forgotten before all nodes had come back to a new head"),
    (37, "where a value was came too late for whoever had asked, and was kept for good"),
    (99, "a small value that came along with a call that went back at once was kept for good"),
    (114, "a job that only a node knew of, and no head any more, was kept for good"),
    (167, "lineage was forgotten when nodes were lost, and with them the room for it"),
    (1259, "an object that somebody waited for while the head came back was not made again"),
    (1743, "the handle of an actor made again was not what the head said of it, and was never freed"),
    (2039, "a freed result that was asked for late was counted among what lineage is kept for"),
    (2387, "the node of a driver that ran nothing of its job was not told of its end"),
    (3117, "an answer on its way from an actor's node named a value that the next head had freed"),
    (4643, "an item that had been said to be lost came again, and was counted twice"),
    (5133, "as 3117, and a task waited for it"),
    (6239, "a task that a node made again for the head before was not known to the next one"),
    (
        10271,
        "a put waited for memory that its process had taken for another: the simulated client did not ask again",
    ),
    (11412, "calls on an actor that could not be made were told by the next head that it was never made"),
    (12395, "a result that came while a copy of it was pulled never went to disk"),
    (
        12843,
        "the node of a driver was taken to know its job, when it had been told by the head before that it ended",
    ),
    (13027, "a copy told of while its object was being made again was never freed"),
    (15059, "as 4643"),
    (16899, "an item that its reader was not told of stayed when its task failed under the next head"),
    (
        17572,
        "the next head was not told why a task had failed whose result a task needed and its submitter had dropped",
    ),
    (18510, "of an actor without handles the next head told its submitter a second time"),
    (200779, "the function of a task that was made again was never freed where it ran"),
    (201707, "the end of a task that was being made again came before the next head knew of the task"),
];

#[test]
fn small_clusters_keep_every_invariant() {
    let begun = Instant::now();
    for seed in REGRESSIONS.iter().map(|(seed, _)| *seed).chain(0..) {
        if begun.elapsed() > A_MINUTE {
            return;
        }
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
