//! The one thread of a client's own (rule T5): it sends what was gathered and nobody sent, and it reads when no thread
//! of the user does. A program that is busy with synchronous calls hardly wakes it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cluster_store::with_signals_blocked;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};

use crate::reader::watch;
use crate::shared::{Shared, eventfd, signal, unsignal};
use crate::waiting::poll;

/// What was appended waits this long for company.
const GATHER: Duration = Duration::from_millis(1);
/// After a user's thread has read, the helper leaves the socket alone for this long.
const USERS_TURN: Duration = Duration::from_millis(3);
/// It looks this often whether a user's thread that reads still gets anything …
const LOOK: Duration = Duration::from_millis(5);
/// … and after this many looks in vain it sleeps until that thread leaves.
const LOOKS: u32 = 20;

/// What the other threads must know of the helper, under the client's lock.
#[derive(Debug, Default)]
pub(crate) struct Duty {
    /// It will look for something to send.
    armed: bool,
    /// It sleeps until the reader leaves.
    parked: bool,
    /// It polls the socket.
    polling: bool,
}

impl Duty {
    /// Something was appended; true if the helper must be woken.
    pub(crate) fn arm(&mut self) -> bool {
        !std::mem::replace(&mut self.armed, true)
    }

    /// A user's thread reads now; true if the helper must be woken, to stop polling what the other polls.
    pub(crate) fn reader_came(&mut self) -> bool {
        std::mem::take(&mut self.polling)
    }

    /// Nobody reads now; true if the helper must be woken.
    pub(crate) fn reader_left(&mut self) -> bool {
        std::mem::take(&mut self.parked)
    }
}

/// The thread, from outside.
pub(crate) struct Helper {
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    started: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Helper {
    /// Not started yet.
    pub(crate) fn new() -> std::io::Result<Helper> {
        Ok(Helper {
            wake: Arc::new(eventfd()?),
            stop: Arc::default(),
            started: AtomicBool::new(false),
            thread: Mutex::default(),
        })
    }

    pub(crate) fn kick(&self) {
        signal(&self.wake);
    }

    pub(crate) fn start(&self, shared: &Arc<Shared>) -> std::io::Result<()> {
        if self.started.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let shared = shared.clone();
        let builder = std::thread::Builder::new().name("cluster-client".to_owned()).stack_size(512 << 10);
        let thread = with_signals_blocked(|| builder.spawn(move || Rounds::new(&shared).run()))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.kick();
        let thread = self.thread.lock().take();
        // It has no business with this client but what is guarded: a panic of it is shown on stderr already.
        let _ = thread.map(JoinHandle::join);
    }
}

struct Rounds<'a> {
    shared: &'a Shared,
    /// The counts seen in the last round.
    flushes: u64,
    reads: u64,
    /// Looks since the user's reader got something.
    looks: u32,
    /// The last round ended because its time was over.
    timed_out: bool,
}

impl<'a> Rounds<'a> {
    fn new(shared: &'a Shared) -> Self {
        Rounds { shared, flushes: 0, reads: 0, looks: 0, timed_out: false }
    }

    fn run(mut self) {
        while !self.shared.helper.stop.load(Ordering::Relaxed) && self.round() {}
    }

    /// False once there is nothing left to do.
    fn round(&mut self) -> bool {
        let shared = self.shared;
        let mut inner = shared.lock();
        let news =
            |inner: &crate::shared::Inner| inner.core.has_news() || shared.unsent.load(Ordering::Relaxed) > 0;
        // What waited a whole round, with nobody else sending, is sent.
        if news(&inner) && self.timed_out && inner.flushes == self.flushes {
            drop(inner);
            shared.flush();
            inner = shared.lock();
        }
        if inner.lost.is_some() {
            return false;
        }
        inner.report_if_due(Instant::now());
        let active = news(&inner) || inner.flushes != self.flushes;
        inner.duty.armed = active;
        let mut patience = active.then_some(GATHER);
        let mut polls = false;
        let mut shorten = |to: Duration| patience = Some(patience.map_or(to, |patience| patience.min(to)));
        if inner.reading {
            self.looks = if inner.reads == self.reads { self.looks + 1 } else { 0 };
            if self.looks < LOOKS {
                shorten(LOOK);
            } else {
                inner.duty.parked = true;
            }
        } else if inner.reads != self.reads {
            self.looks = 0;
            shorten(USERS_TURN);
        } else {
            polls = true;
            inner.duty.polling = true;
        }
        if let Some(at) = inner.report_at {
            shorten(at.saturating_duration_since(Instant::now()));
        }
        self.flushes = inner.flushes;
        self.reads = inner.reads;
        let channels = if polls { inner.channels.clone() } else { Vec::new() };
        drop(inner);
        let mut flags = if polls { PollFlags::IN } else { PollFlags::empty() };
        if polls && shared.unsent.load(Ordering::Relaxed) > 0 {
            flags |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::new(&*shared.helper.wake, PollFlags::IN)];
        // Without a user for it the socket is left out: its end would be told again and again.
        if polls {
            fds.push(PollFd::new(&shared.socket, flags));
            fds.extend(channels.iter().filter_map(|channel| watch(channel)));
        }
        self.timed_out = poll(&mut fds, patience.map(|patience| Instant::now() + patience)) == Ok(false);
        let woken = !fds[0].revents().is_empty();
        let socket = fds[1..].iter().any(|fd| !fd.revents().is_empty());
        if woken {
            unsignal(&*shared.helper.wake);
        }
        if polls {
            self.read(socket);
        }
        true
    }

    fn read(&mut self, ready: bool) {
        let shared = self.shared;
        let mut inner = shared.lock();
        inner.duty.polling = false;
        if !ready || inner.reading {
            return;
        }
        inner.reading = true;
        drop(inner);
        shared.read_once(Instant::now());
        let mut inner = shared.lock();
        inner.reading = false;
        self.reads = inner.reads;
        inner.hand_reading_on();
    }
}
