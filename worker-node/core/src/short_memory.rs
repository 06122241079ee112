//! When memory runs out: somebody ends before the kernel chooses, and whoever asked for so much takes no more.
//!
//! The store's own memory is another matter (see `pressure`); here it is what executors' code allocates. The newest
//! task that may be tried again ends first, because least is lost with it, and the oldest always gets through: however
//! many there are, work goes on.

use cluster_types::node_head::Retry;
use cluster_types::{Span, TaskId, Time};

use crate::attempts::Assigned;
use crate::event::{Effect, MemoryShort};
use crate::node::Node;

/// How often executors whose task said how much it needs are measured.
const MEASURE: Span = Span::millis(250);
/// After one was ended nothing begins for so long: what it had is given back only when it is gone.
const HOLD: Span = Span::secs(1);
/// Processes that an error names.
const NAMED: usize = 5;

/// What is being done about it.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    /// The executor that is being ended.
    victim: Option<u32>,
    hold_until: Time,
    measure_at: Time,
}

/// Why an executor is being ended, and whether what it runs may be tried again.
#[derive(Clone, Debug)]
pub(crate) struct OutOfMemory {
    pub(crate) why: String,
    pub(crate) retry: Retry,
}

/// How little is lost with an executor: the greatest ends.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    can_be_tried_again: bool,
    is_task: bool,
    since: Time,
    executor: u32,
}

impl Node {
    /// Memory is about to run out: ends one executor, and the next only when that is gone and it was not enough.
    pub(crate) fn memory_short(&mut self, short: &MemoryShort, effects: &mut Vec<Effect>) {
        if self.shortage.victim.is_some_and(|victim| self.executors.contains_key(&victim)) {
            return;
        }
        self.end_idle_executors(effects);
        let busy: Vec<Choice> = self.executors.keys().filter_map(|id| self.choice(*id)).collect();
        let alone = busy.len() == 1;
        let Some(Choice { executor, .. }) = busy.into_iter().max() else { return };
        let mib = |bytes: u64| bytes >> 20;
        let why = format!(
            "{} has run out: {} of {} MiB are used, and the newest task that can be tried again ends before the \
             kernel ends something. The largest processes: {}. Ask for memory=… (or more num_cpus), so that fewer run \
             at once",
            short.of,
            mib(short.used),
            mib(short.limit),
            self.largest(short)
        );
        // With nobody else to blame, it would be the same again and again.
        let retry = if alone { Retry::Infrastructure } else { Retry::NoRoom };
        self.end_for_memory(
            executor,
            OutOfMemory { why: format!("on node {} {why}", self.me()), retry },
            effects,
        );
        self.shortage.hold_until = self.now + HOLD;
        effects.push(Effect::WakeAt(self.shortage.hold_until));
    }

    /// Nothing begins while the memory of what was ended is not back.
    pub(crate) fn waits_for_memory(&self) -> bool {
        self.now < self.shortage.hold_until
    }

    pub(crate) fn look_at_shortage(&mut self, effects: &mut Vec<Effect>) {
        if self.shortage.hold_until != Time::default() && !self.waits_for_memory() {
            self.shortage.hold_until = Time::default();
            let mut pools: Vec<_> = self.pools.keys().copied().collect();
            pools.sort_unstable();
            pools.into_iter().for_each(|pool| self.feed(pool, effects));
        }
        if self.now < self.shortage.measure_at {
            return;
        }
        self.shortage.measure_at = self.now + MEASURE;
        let asked = |id: &u32| self.memory_asked(*id).is_some();
        let executors: Vec<u32> = self.executors.keys().copied().filter(asked).collect();
        if !executors.is_empty() {
            effects.push(Effect::MeasureMemory { executors });
        }
    }

    /// Whoever takes more than its task asked for is ended.
    pub(crate) fn memory_measured(&mut self, executors: &[(u32, u64)], effects: &mut Vec<Effect>) {
        for &(executor, bytes) in executors {
            let Some(asked) = self.memory_asked(executor).filter(|asked| bytes > *asked) else { continue };
            let why = format!(
                "it asked for memory={asked} bytes ({} MiB) and its process took {bytes} ({} MiB) on node {}. Ask for \
                 more, or hold less at once",
                asked >> 20,
                bytes >> 20,
                self.me()
            );
            self.end_for_memory(executor, OutOfMemory { why, retry: Retry::Infrastructure }, effects);
        }
    }

    fn end_for_memory(&mut self, executor: u32, ended: OutOfMemory, effects: &mut Vec<Effect>) {
        let Some(known) = self.executors.get_mut(&executor).filter(|known| known.out_of_memory.is_none())
        else {
            return;
        };
        known.out_of_memory = Some(ended);
        known.ending = true;
        self.shortage.victim = Some(executor);
        effects.push(Effect::EndExecutor { executor, force: true });
    }

    fn end_idle_executors(&mut self, effects: &mut Vec<Effect>) {
        let idle: Vec<u32> = self.pools.values().flat_map(|pool| pool.idle.iter().copied()).collect();
        idle.into_iter().for_each(|executor| self.end_executor(executor, effects));
    }

    fn choice(&self, executor: u32) -> Option<Choice> {
        let known = self.executors.get(&executor).filter(|known| !known.ending && known.client.is_some())?;
        if let Some(actor) = known.actor.and_then(|handle| self.actors.get(&handle)) {
            let (can_be_tried_again, since) = (actor.restarts, actor.since);
            return Some(Choice { can_be_tried_again, is_task: false, since, executor });
        }
        let running = self.runs_on(executor)?;
        let can_be_tried_again = running.spec.template.max_retries != 0;
        Some(Choice { can_be_tried_again, is_task: true, since: known.since, executor })
    }

    /// Bytes that what runs there asked for, if it did.
    fn memory_asked(&self, executor: u32) -> Option<u64> {
        let known = self.executors.get(&executor).filter(|known| !known.ending)?;
        let asked = match known.actor.and_then(|handle| self.actors.get(&handle)) {
            Some(actor) => actor.memory,
            None => self.runs_on(executor)?.spec.template.resources.memory.as_f64() as u64,
        };
        (asked > 0).then_some(asked)
    }

    fn runs_on(&self, executor: u32) -> Option<&Assigned> {
        let sent = self.executors.get(&executor)?.sent.front()?;
        self.attempts.get(&sent.task)
    }

    /// For people: who takes it, with what it runs where that is known.
    fn largest(&self, short: &MemoryShort) -> String {
        let named = short.largest.iter().take(NAMED).map(|process| {
            let executor = self.executors.iter().find(|(_, known)| known.pid == process.pid);
            let runs = executor.and_then(|(id, known)| {
                let actor =
                    known.actor.and_then(|handle| self.actors.get(&handle)).map(|actor| actor.title());
                actor
                    .or_else(|| Some(self.name(known.sent.front().map(|sent: &_| -> TaskId { sent.task })?)))
                    .or_else(|| Some(format!("executor {id}, idle")))
            });
            let who = runs.unwrap_or_else(|| process.name.clone());
            format!("pid {} ({who}) {} MiB", process.pid, process.bytes >> 20)
        });
        named.collect::<Vec<_>>().join(", ")
    }
}
