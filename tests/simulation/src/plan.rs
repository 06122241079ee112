//! What a run is to do, and what it did.

/// How large and how rough a simulated run is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything random comes from it.
    pub seed: u64,
    /// Machines at the start.
    pub nodes: u32,
    /// Programs, each attached to some machine.
    pub drivers: u32,
    /// Things each program does: submit, put, get, drop.
    pub actions: u32,
    /// Machines that die on the way (never one with a program on it).
    pub node_losses: u32,
    /// How often the head is killed, and started again.
    pub head_losses: u32,
    /// Machines that are told to leave on the way, and come again.
    pub drains: u32,
    /// One task in this many kills its executor; 0: none does.
    pub crash_one_in: u64,
    /// Whether programs make actors and call them.
    pub actors: bool,
    /// Whether tasks and calls yield.
    pub streams: bool,
    /// Whether calls may go straight to actors of the same machine.
    pub direct: bool,
    /// Whether programs do little else than call actors.
    pub busy_actors: bool,
    /// Links between nodes that break on the way, for calls to actors, while both nodes live; and daemons that stand still
    /// for a while.
    pub cuts: u32,
    /// Whether programs cancel calls and tasks, their own and others'.
    pub cancels: bool,
    /// Whether programs make placement groups.
    pub groups: bool,
    /// Programs that are submitted for the cluster to run.
    pub jobs: u32,
    /// Prints every event in which this word occurs.
    pub watch: Option<String>,
}

impl Plan {
    /// A few machines, for many seeds.
    pub fn small(seed: u64) -> Self {
        let shape = seed % 4;
        Plan {
            seed,
            nodes: 1 + (seed % 5) as u32,
            drivers: 1 + (seed % 3) as u32,
            actions: 60,
            node_losses: if shape == 3 { 2 } else { 0 },
            head_losses: if seed % 13 >= 7 { 1 + (seed % 3) as u32 } else { 0 },
            drains: if seed % 7 < 3 { 1 + (seed % 2) as u32 } else { 0 },
            crash_one_in: if shape >= 2 && seed % 8 != 7 { 40 } else { 0 },
            actors: seed.is_multiple_of(3),
            streams: seed % 8 < 6,
            direct: !seed.is_multiple_of(2),
            busy_actors: seed % 6 == 3,
            cuts: if seed % 7 >= 5 { 3 } else { 0 },
            cancels: seed % 11 >= 7,
            groups: seed % 5 < 3,
            jobs: if seed % 9 >= 5 { 6 } else { 0 },
            watch: None,
        }
    }

    /// Whether tasks may fail, because something breaks or somebody wants it.
    pub(crate) fn may_fail(&self) -> bool {
        self.node_losses > 0 || self.crash_one_in > 0 || self.cuts > 0 || self.cancels
    }

    /// Whether every task runs once at most: nothing but the head is lost.
    pub(crate) fn runs_once(&self) -> bool {
        !self.may_fail() && self.drains == 0
    }

    /// Hundreds of machines.
    pub fn large(seed: u64) -> Self {
        Plan {
            seed,
            nodes: 300,
            drivers: 8,
            actions: 200,
            node_losses: 20,
            head_losses: 2,
            drains: 10,
            crash_one_in: 100,
            actors: true,
            streams: true,
            direct: true,
            busy_actors: false,
            cuts: 50,
            cancels: true,
            groups: true,
            jobs: 40,
            watch: None,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events that were handled.
    pub steps: u64,
    /// Tasks that ended well.
    pub finished: u64,
    /// Tasks that failed, as tasks may when machines die.
    pub failed: u64,
    /// Calls that went straight to their actor.
    pub direct: u64,
    /// Of those, that went to another machine.
    pub far: u64,
    /// Heads killed.
    pub heads: u64,
    /// Links cut.
    pub cuts: u64,
    /// Tasks that ran once more because what they had made was lost.
    pub made_again: u64,
    /// Values read from durable storage.
    pub from_storage: u64,
    /// Attempts that ran.
    pub ran: u64,
    /// Values read and found right.
    pub read: u64,
    /// Submitted jobs that ended.
    pub jobs: u64,
    /// Streams read to their end.
    pub streams: u64,
    /// Simulated seconds.
    pub seconds: f64,
}
