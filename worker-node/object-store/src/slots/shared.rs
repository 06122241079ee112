//! The page in shared memory, and its two sides.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::SlotPage;
use crate::segment::Mapped;

const LEN: usize = size_of::<SlotPage>();

#[derive(Debug)]
struct Shared(Mapped);

impl Shared {
    fn map(fd: impl AsFd) -> io::Result<Shared> {
        Ok(Shared(Mapped::map(fd, 0, Some(LEN), true)?))
    }
}

impl Deref for Shared {
    type Target = SlotPage;

    fn deref(&self) -> &SlotPage {
        // SAFETY: the mapping is LEN bytes, aligned to a page, lives as long as `self`, and any bytes are a SlotPage:
        // it is atomics throughout, so what the other process does to it at the same time is a race of atomics.
        unsafe { self.0.base().cast::<SlotPage>().as_ref() }
    }
}

/// The daemon's side: it makes the page. Derefs to [`SlotPage`]: `offer`, `revoke`, `reset`, `request_cancel`.
#[derive(Debug)]
pub struct DaemonPage {
    page: Shared,
    fd: OwnedFd,
}

impl DaemonPage {
    /// Makes an empty page.
    ///
    /// # Errors
    /// What the system says: out of descriptors or memory.
    pub fn create() -> io::Result<DaemonPage> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("cluster-slots", flags)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, LEN as u64)?;
        // An executor that shortened the page would end the daemon by SIGBUS.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(DaemonPage { page: Shared::map(&fd)?, fd })
    }

    /// The descriptor to send to the executor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Deref for DaemonPage {
    type Target = SlotPage;

    fn deref(&self) -> &SlotPage {
        &self.page
    }
}

/// The executor's side. Derefs to [`SlotPage`]: `claim`, `done`, `revoke`, `enter`, `leave`, `take_cancel`. All of
/// them may be called in a signal handler.
#[derive(Debug)]
pub struct ExecutorPage {
    page: Shared,
}

impl ExecutorPage {
    /// Maps the page that the daemon sent. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` if it is shorter than a page.
    pub fn map(fd: impl AsFd) -> io::Result<ExecutorPage> {
        Ok(ExecutorPage { page: Shared::map(fd)? })
    }
}

impl Deref for ExecutorPage {
    type Target = SlotPage;

    fn deref(&self) -> &SlotPage {
        &self.page
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SLOTS, Tag};
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn both_sides_see_one_page() {
        let daemon = DaemonPage::create().unwrap();
        let executor = ExecutorPage::map(daemon.fd()).unwrap();
        let tag = Tag::new(42).unwrap();
        assert!(daemon.offer(0, tag) && executor.claim(0, tag) && !daemon.revoke(0, tag));
        executor.enter(tag);
        assert_eq!(daemon.current(), Some(tag));
        daemon.request_cancel(tag);
        assert!(executor.take_cancel());
        assert!(rustix::fs::ftruncate(daemon.fd(), 0).is_err());
    }

    #[test]
    fn exactly_one_side_wins_each_tag() {
        const ROUNDS: u64 = 200_000;
        let daemon = DaemonPage::create().unwrap();
        let executor = ExecutorPage::map(daemon.fd()).unwrap();
        let offered = AtomicU64::new(0);
        let settled = AtomicU64::new(0);
        let slot = |n: u64| n as usize % SLOTS;
        let (claimed, revoked) = std::thread::scope(|scope| {
            let claims = scope.spawn(|| {
                let mut won = Vec::new();
                for n in 1..=ROUNDS {
                    while offered.load(Ordering::Acquire) < n {
                        std::thread::yield_now();
                    }
                    let tag = Tag::new(n).unwrap();
                    if executor.claim(slot(n), tag) {
                        won.push(n);
                        assert!(executor.done(slot(n), tag));
                    }
                    settled.store(n, Ordering::Release);
                }
                won
            });
            let mut won = Vec::new();
            for n in 1..=ROUNDS {
                let tag = Tag::new(n).unwrap();
                assert!(daemon.offer(slot(n), tag));
                offered.store(n, Ordering::Release);
                // A changing delay, so that each side is first now and then.
                (0..n % 64).for_each(|_| std::hint::spin_loop());
                if daemon.revoke(slot(n), tag) {
                    won.push(n);
                }
                while settled.load(Ordering::Acquire) < n {
                    std::thread::yield_now();
                }
            }
            (claims.join().unwrap(), won)
        });
        let mut all: Vec<u64> = claimed.iter().chain(&revoked).copied().collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..=ROUNDS));
    }
}
