//! How long a head may still act as the leader, by its own clock.
//!
//! A standby leads once it has seen nothing of the leader for a time; a leader that has not renewed for a shorter time
//! has stopped by then. Both are measured from moments whose order is certain (a renewal is *begun* before a standby can
//! *see* it), so no two clocks need to agree, only to run about equally fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Asked before anything is done (FENCE-1): after a pause of the whole process, nothing else would know of it.
#[derive(Clone, Debug)]
pub(crate) struct Tenure(Option<Arc<AtomicU64>>);

/// A moment on the clock that goes on while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Since the machine's start, so neither is negative.
        Self(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
    }

    pub(crate) fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long it is until then.
    pub(crate) fn left(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(Self::now().0))
    }
}

impl Tenure {
    /// Of a head whose place nobody can take.
    pub(crate) fn forever() -> Self {
        Self(None)
    }

    /// Of a head that does not lead yet.
    pub(crate) fn not_begun() -> Self {
        Self(Some(Arc::default()))
    }

    /// May the head act?
    pub(crate) fn holds(&self) -> bool {
        self.until().left() > Duration::ZERO
    }

    /// Until when it may.
    pub(crate) fn until(&self) -> Moment {
        Moment(self.0.as_ref().map_or(u64::MAX, |until| until.load(Ordering::Acquire)))
    }

    /// It was renewed, which lets the head act until then if it could not longer anyway.
    pub(crate) fn extend(&self, to: Moment) {
        if let Some(until) = &self.0 {
            until.fetch_max(to.0, Ordering::AcqRel);
        }
    }

    /// Somebody else leads, or this head wants no more.
    pub(crate) fn end(&self) {
        if let Some(until) = &self.0 {
            until.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_itself() {
        let tenure = Tenure::not_begun();
        assert!(!tenure.holds());
        let begun = Moment::now();
        tenure.extend(begun.after(Duration::from_secs(60)));
        assert!(tenure.clone().holds());
        // A renewal that was begun earlier and is answered later shortens nothing.
        tenure.extend(begun);
        assert!(tenure.until().left() > Duration::from_secs(50));
        tenure.end();
        assert!(!tenure.holds());
        tenure.extend(begun);
        assert!(!tenure.holds(), "what was renewed is over already");
        assert!(Tenure::forever().holds());
    }
}
