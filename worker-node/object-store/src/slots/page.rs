//! The page's state machine, in atomics.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many tasks can be sent ahead to one executor.
pub const SLOTS: usize = 496;

const STATE_BITS: u32 = 2;
const READY: u64 = 1;
const CLAIMED: u64 = 2;
const REVOKED: u64 = 3;

/// The attempt that a slot holds: the daemon's own number for it, never used twice on one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(NonZeroU64);

impl Tag {
    /// `None` for 0 and for 2^62 and above.
    pub fn new(number: u64) -> Option<Tag> {
        NonZeroU64::new(number).filter(|n| n.get() < 1 << (64 - STATE_BITS)).map(Tag)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing, or nonsense.
    Empty,
    /// Offered, and free to claim or revoke.
    Ready(Tag),
    /// The executor runs it, or is about to.
    Claimed(Tag),
    /// It will not run here.
    Revoked(Tag),
}

impl SlotState {
    fn decode(word: u64) -> SlotState {
        match (Tag::new(word >> STATE_BITS), word & ((1 << STATE_BITS) - 1)) {
            (Some(tag), READY) => SlotState::Ready(tag),
            (Some(tag), CLAIMED) => SlotState::Claimed(tag),
            (Some(tag), REVOKED) => SlotState::Revoked(tag),
            _ => SlotState::Empty,
        }
    }
}

fn word(tag: Tag, state: u64) -> u64 {
    tag.get() << STATE_BITS | state
}

/// The page's contents: 4096 bytes that both sides see.
///
/// All accesses are sequentially consistent: there are few, and `current` against `cancel` needs it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SlotPage {
    /// The attempt whose user code runs now; 0 for none.
    current: AtomicU64,
    _apart: [AtomicU64; 7],
    /// The attempt to cancel; 0 for none.
    cancel: AtomicU64,
    _apart_too: [AtomicU64; 7],
    slots: [AtomicU64; SLOTS],
}

impl Default for SlotPage {
    fn default() -> SlotPage {
        SlotPage {
            current: AtomicU64::new(0),
            _apart: [const { AtomicU64::new(0) }; 7],
            cancel: AtomicU64::new(0),
            _apart_too: [const { AtomicU64::new(0) }; 7],
            slots: [const { AtomicU64::new(0) }; SLOTS],
        }
    }
}

impl SlotPage {
    /// What slot `slot` holds; `Empty` if there is no such slot.
    pub fn state(&self, slot: usize) -> SlotState {
        SlotState::decode(self.slots.get(slot).map_or(0, |s| s.load(Ordering::SeqCst)))
    }

    fn swap(&self, slot: usize, from: u64, to: u64) -> bool {
        let slot = self.slots.get(slot);
        slot.is_some_and(|s| s.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok())
    }

    /// Daemon: puts an attempt into a slot that is empty or whose attempt was revoked. False if it is in use.
    pub fn offer(&self, slot: usize, tag: Tag) -> bool {
        match self.state(slot) {
            SlotState::Empty | SlotState::Revoked(_) => {}
            SlotState::Ready(_) | SlotState::Claimed(_) => return false,
        }
        // Nobody else changes an empty or revoked slot, and an executor that does so anyway harms only itself.
        self.slots.get(slot).is_some_and(|s| {
            s.store(word(tag, READY), Ordering::SeqCst);
            true
        })
    }

    /// Either side: takes an offered attempt back. True: it will never run here. False: it was claimed, or is gone.
    /// The daemon does this to move a task elsewhere, the executor to hand back what it has not started.
    pub fn revoke(&self, slot: usize, tag: Tag) -> bool {
        self.swap(slot, word(tag, READY), word(tag, REVOKED))
    }

    /// Executor: takes an offered attempt to run it. True: it is the executor's. False: revoked, do not run it.
    pub fn claim(&self, slot: usize, tag: Tag) -> bool {
        self.swap(slot, word(tag, READY), word(tag, CLAIMED))
    }

    /// Executor: an attempt it claimed has ended; the slot is free.
    pub fn done(&self, slot: usize, tag: Tag) -> bool {
        self.swap(slot, word(tag, CLAIMED), 0)
    }

    /// Daemon, once the executor has ended: empties the slot whatever it holds.
    pub fn reset(&self, slot: usize) {
        if let Some(slot) = self.slots.get(slot) {
            slot.store(0, Ordering::SeqCst);
        }
    }

    /// Executor: user code of this attempt begins.
    pub fn enter(&self, tag: Tag) {
        self.current.store(tag.get(), Ordering::SeqCst);
    }

    /// Executor: user code has ended; from here on nothing is raised.
    pub fn leave(&self) {
        self.current.store(0, Ordering::SeqCst);
    }

    /// The attempt whose user code runs now.
    pub fn current(&self) -> Option<Tag> {
        Tag::new(self.current.load(Ordering::SeqCst))
    }

    /// Daemon: asks that an attempt be cancelled; it signals the executor afterwards.
    pub fn request_cancel(&self, tag: Tag) {
        self.cancel.store(tag.get(), Ordering::SeqCst);
    }

    /// Daemon: whether user code of this attempt runs on and nobody has taken the request. A signal that comes just
    /// before a system call does not end it: it has to be sent again.
    pub fn cancel_is_open(&self, tag: Tag) -> bool {
        self.cancel.load(Ordering::SeqCst) == tag.get() && self.current() == Some(tag)
    }

    /// Executor, in its signal handler: true, once for each request, if the attempt to cancel is the one whose user
    /// code runs now. A request that came too late is left alone: its tag never runs again.
    pub fn take_cancel(&self) -> bool {
        let current = self.current.load(Ordering::SeqCst);
        current != 0 && self.cancel.compare_exchange(current, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(n: u64) -> Tag {
        Tag::new(n).unwrap()
    }

    #[test]
    fn it_is_one_page() {
        assert_eq!(size_of::<SlotPage>(), 4096);
        assert_eq!(Tag::new(0), None);
        assert_eq!(Tag::new(1 << 62), None);
    }

    #[test]
    fn one_side_wins() {
        let page = SlotPage::default();
        assert!(page.offer(3, tag(7)));
        assert!(!page.offer(3, tag(8)));
        assert!(page.claim(3, tag(7)));
        assert!(!page.revoke(3, tag(7)) && !page.claim(3, tag(7)));
        assert_eq!(page.state(3), SlotState::Claimed(tag(7)));
        assert!(!page.offer(3, tag(8)));
        assert!(page.done(3, tag(7)) && !page.done(3, tag(7)));
        assert!(page.offer(3, tag(8)) && page.revoke(3, tag(8)));
        assert!(!page.claim(3, tag(8)));
        assert_eq!(page.state(3), SlotState::Revoked(tag(8)));
        assert!(page.offer(3, tag(9)));
        assert!(!page.claim(3, tag(8)), "a stale claim of a reused slot");
        page.reset(3);
        assert_eq!(page.state(3), SlotState::Empty);
    }

    #[test]
    fn no_such_slot_is_no() {
        let page = SlotPage::default();
        assert!(!page.offer(SLOTS, tag(1)) && !page.claim(SLOTS, tag(1)) && !page.revoke(usize::MAX, tag(1)));
        page.reset(SLOTS);
        assert_eq!(page.state(SLOTS), SlotState::Empty);
    }

    #[test]
    fn nonsense_reads_as_empty() {
        for word in [0, 1, 2, 3, 4, 1 << 2] {
            assert_eq!(SlotState::decode(word), SlotState::Empty);
        }
        assert!(matches!(SlotState::decode(u64::MAX), SlotState::Revoked(_)));
    }

    #[test]
    fn cancel_hits_only_the_attempt_that_runs() {
        let page = SlotPage::default();
        page.request_cancel(tag(5));
        assert!(!page.take_cancel(), "nothing runs");
        page.enter(tag(6));
        assert!(!page.take_cancel(), "another runs");
        assert!(!page.cancel_is_open(tag(5)) && !page.cancel_is_open(tag(6)));
        page.request_cancel(tag(6));
        assert!(page.cancel_is_open(tag(6)));
        assert!(page.take_cancel());
        assert!(!page.cancel_is_open(tag(6)));
        assert!(!page.take_cancel(), "once");
        page.request_cancel(tag(6));
        page.leave();
        assert!(!page.take_cancel(), "its user code has ended");
        assert_eq!(page.current(), None);
    }
}
