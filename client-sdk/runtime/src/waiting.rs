//! Threads that wait (design: a thread that calls `get` flushes the outbox itself and waits on the socket itself).
//!
//! At any time at most one thread is the *reader*: it polls the socket, reads, and applies what came. A thread that
//! begins to wait becomes the reader if nobody is. Otherwise it waits on a descriptor of its own until the reader finds
//! that its condition may be met, or leaves and hands the role on. Waits are `poll`, never condition variables, so that
//! signals end them (rule E4).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster_types::{ClientToNode, ObjectId, StreamLimits};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::shared::{Inner, Shared, eventfd, signal, unsignal};
use crate::spin::SPIN;
use crate::{ClientError, Interrupt};

/// The longest that a wait goes on without asking whether it should: a signal may have come to another thread, or
/// just before the wait began.
const ASK_AT_LEAST: Duration = Duration::from_millis(200);
/// A task that only fetches is not said to be blocked for this long.
const FETCH_GRACE: Duration = Duration::from_millis(1);

/// What a waiting thread waits for. When it may be there, the thread is woken and looks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For {
    /// The value, here.
    Here(ObjectId),
    /// The value, here, or that more objects failed than these.
    HereOrFailed(ObjectId, u64),
    /// That it exists, or will never.
    Ready(ObjectId),
    /// The task under this tag to have few items that were not taken.
    Taken(u64, StreamLimits),
    /// The core's progress to reach this.
    Progress(u64),
    /// Memory to allocate from, or a refusal.
    Memory(u64),
    /// An answer to a query.
    Reply(u64),
    /// A task to run.
    Run,
    /// Why the task under this tag is to stop.
    Cancel(u64),
    /// Something to print.
    Notice,
    /// The daemon to catch up, to so many bytes.
    Room(usize),
}

/// A thread that waits and does not read.
pub(crate) struct Waiter {
    number: u64,
    what: For,
    fd: Arc<OwnedFd>,
    /// May become the reader.
    can_read: bool,
}

/// Names what a wait waits for.
type BlocksOn<'a> = dyn Fn(&Inner) -> Vec<ObjectId> + 'a;

/// How a thread waits.
pub(crate) struct Manner<'a> {
    pub(crate) deadline: Option<Instant>,
    /// What a passed deadline is: an error, or left to the check, which is asked once more.
    pub(crate) can_read: bool,
    pub(crate) may_spin: bool,
    /// For waits that lend the running task's CPU to others (rule S4): what is waited for.
    pub(crate) blocks_on: Option<&'a BlocksOn<'a>>,
    /// The task whose code waits, where several run.
    pub(crate) within: Option<u64>,
}

impl Manner<'_> {
    pub(crate) fn until(deadline: Option<Instant>) -> Self {
        Self { deadline, can_read: true, may_spin: false, blocks_on: None, within: None }
    }
}

/// What a check says.
pub(crate) enum Step<T> {
    /// The wait is over.
    Done(T),
    /// Not yet.
    Wait(For),
}

impl Inner {
    fn may_be_met(&self, what: For, backlog: usize) -> bool {
        self.lost.is_some()
            || match what {
                For::Here(object) => self.core.is_here(object) || !self.core.knows(object),
                For::HereOrFailed(object, seen) => {
                    self.core.failures() > seen || self.core.is_here(object) || !self.core.knows(object)
                }
                For::Ready(object) => self.core.is_ready(object) || !self.core.knows(object),
                For::Taken(tag, limits) => self.may_yield(tag, limits),
                For::Progress(at_least) => self.core.progress() >= at_least,
                For::Memory(seen) => self.memory_news > seen,
                For::Reply(number) => !matches!(self.replies.get(&number), Some(None)),
                For::Run => !self.runs.is_empty() || !self.to_cancel.is_empty() || self.exit,
                For::Cancel(tag) => self.cancels.contains_key(&tag),
                For::Notice => !self.notices.is_empty(),
                For::Room(limit) => backlog < limit,
            }
    }

    /// Those to wake now.
    pub(crate) fn met(&self, backlog: usize) -> Vec<Arc<OwnedFd>> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let met = |waiter: &&Waiter| self.may_be_met(waiter.what, backlog);
        self.waiters.iter().filter(met).map(|waiter| waiter.fd.clone()).collect()
    }

    /// All look again: something concerns some of them, beside what they wait for.
    pub(crate) fn wake_all(&self) {
        for waiter in &self.waiters {
            signal(&waiter.fd);
        }
    }

    /// The reader has left: another that waits takes over. False if there is none.
    pub(crate) fn hand_reading_on(&self) -> bool {
        let heir = self.waiters.iter().find(|waiter| waiter.can_read);
        heir.inspect(|heir| signal(&heir.fd)).is_some()
    }

    /// Ends everything that waits.
    pub(crate) fn lose(&mut self, error: ClientError) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(error);
        self.wake_all();
        for (queue, token) in std::mem::take(&mut self.hooks).into_values().flatten() {
            queue.push(token);
        }
        for tag in self.yields.keys().copied().collect::<Vec<_>>() {
            self.items_taken(tag, 0, false);
        }
    }
}

/// A thread's part in waiting; leaving it is dropping it.
struct Place<'a> {
    shared: &'a Shared,
    reads: bool,
    waiter: Option<(u64, Arc<OwnedFd>)>,
    /// `Blocked` was said of this task.
    blocked: Option<u64>,
}

impl Shared {
    /// Waits until `check` says that it is over. `check` runs under the lock and may append messages.
    pub(crate) fn wait_until<T>(
        &self,
        manner: Manner<'_>,
        interrupt: Interrupt<'_>,
        mut check: impl FnMut(&mut Inner) -> Result<Step<T>, ClientError>,
    ) -> Result<T, ClientError> {
        let mut place = Place { shared: self, reads: false, waiter: None, blocked: None };
        let mut begun: Option<Instant> = None;
        let mut spins_until: Option<Instant> = None;
        let mut looked = false;
        loop {
            let mut inner = self.lock();
            let what = match check(&mut inner)? {
                Step::Done(value) => {
                    drop(inner);
                    if spins_until.is_some() {
                        self.spinning.paid();
                    }
                    return Ok(value);
                }
                Step::Wait(what) => what,
            };
            inner.usable()?;
            if inner.is_cancelled(manner.within) {
                return Err(ClientError::Cancelled);
            }
            if begun.is_none() {
                drop(inner);
                self.check_process()?;
                let now = Instant::now();
                begun = Some(now);
                spins_until = (manner.may_spin && self.may_spin()).then_some(now + SPIN);
                // Others may have appended what this wait depends on.
                self.flush();
                continue;
            }
            // Into a full socket nothing more is written: whoever reads does it when there is room. A reader that tried
            // on and on would never read, and the daemon may not take more before that.
            let is_full = self.unsent.load(Ordering::Relaxed) > 0;
            if (inner.core.has_messages() && !is_full) || !inner.answers.is_empty() {
                drop(inner);
                self.flush();
                // What came while the lock was free may end the wait.
                continue;
            }
            let now = Instant::now();
            // Even a wait of no length looks at what has come.
            if looked && manner.deadline.is_some_and(|deadline| now >= deadline) {
                return Err(ClientError::TimedOut);
            }
            looked = true;
            let mut until = now + ASK_AT_LEAST;
            if let Some(deadline) = manner.deadline {
                until = until.min(deadline);
            }
            if let Some(lend_at) = place.lend_cpu(&mut inner, &manner, begun.unwrap_or(now), now) {
                until = until.min(lend_at);
            } else if !inner.core.outbox().is_empty() && !is_full {
                drop(inner);
                self.flush();
                continue;
            }
            let interrupted = if place.take_role(&mut inner, what, manner.can_read)? {
                let kick = inner.duty.reader_came();
                drop(inner);
                if kick {
                    self.helper.kick();
                }
                if let Some(end) = spins_until
                    && !self.read_spinning(until.min(end))
                {
                    // One that the wait's own deadline cut short proves nothing.
                    if end <= until {
                        self.spinning.was_in_vain();
                    }
                    spins_until = None;
                }
                spins_until.is_none() && self.read_once(until)
            } else if inner.may_be_met(what, self.backlog(&inner)) {
                false
            } else {
                drop(inner);
                place.sleep(until)
            };
            if interrupted || Instant::now() >= now + ASK_AT_LEAST {
                interrupt().map_err(|_| ClientError::Interrupted)?;
            }
        }
    }

    /// A CPU must be left for those that are waited for.
    fn may_spin(&self) -> bool {
        self.is_driver && self.welcome.cores >= 2 && self.spinning.begins()
    }
}

impl Place<'_> {
    /// True: this thread is the reader. False: it sleeps on a descriptor of its own.
    fn take_role(&mut self, inner: &mut Inner, what: For, can_read: bool) -> Result<bool, ClientError> {
        if can_read && (self.reads || !inner.reading) {
            if let Some((number, fd)) = self.waiter.take() {
                inner.waiters.retain(|waiter| waiter.number != number);
                unsignal(&fd);
                inner.wake_fds.push(fd);
            }
            inner.reading = true;
            self.reads = true;
            return Ok(true);
        }
        if let Some((number, _)) = &self.waiter {
            for waiter in inner.waiters.iter_mut().filter(|waiter| waiter.number == *number) {
                waiter.what = what;
            }
            return Ok(false);
        }
        let fd = match inner.wake_fds.pop() {
            Some(fd) => fd,
            None => Arc::new(eventfd().map_err(|error| {
                ClientError::System(format!("cannot wait: no descriptor is left in this process ({error})"))
            })?),
        };
        inner.next_waiter += 1;
        let number = inner.next_waiter;
        inner.waiters.push(Waiter { number, what, fd: fd.clone(), can_read });
        self.waiter = Some((number, fd));
        Ok(false)
    }

    /// True if a signal came.
    fn sleep(&self, until: Instant) -> bool {
        let Some((_, fd)) = &self.waiter else { return false };
        let polled = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(until));
        if polled == Ok(true) {
            unsignal(fd);
        }
        polled == Err(Errno::INTR)
    }

    /// Says, once, that the running task waits. Returns when to say so, if it is too early.
    fn lend_cpu(
        &mut self,
        inner: &mut Inner,
        manner: &Manner<'_>,
        begun: Instant,
        now: Instant,
    ) -> Option<Instant> {
        let blocks_on = manner.blocks_on?;
        if self.blocked.is_some() {
            return None;
        }
        let current = inner.running(manner.within)?;
        if manner.within.is_none() && current.thread != std::thread::current().id() {
            return None;
        }
        let on = blocks_on(inner);
        // What only has to be brought here comes soon, unless it does not.
        let fetches = on.iter().all(|&object| !inner.core.is_pending(object));
        if fetches && now < begun + FETCH_GRACE {
            return Some(begun + FETCH_GRACE);
        }
        self.blocked = Some(current.tag);
        inner.core.push(ClientToNode::Blocked { tag: current.tag, on });
        None
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.reads && self.waiter.is_none() && self.blocked.is_none() {
            return;
        }
        let mut inner = self.shared.lock();
        if let Some((number, fd)) = self.waiter.take() {
            inner.waiters.retain(|waiter| waiter.number != number);
            unsignal(&fd);
            inner.wake_fds.push(fd);
        }
        let mut kick = false;
        if self.reads {
            inner.reading = false;
            kick = !inner.hand_reading_on() && inner.duty.reader_left();
        }
        if let Some(tag) = self.blocked.take() {
            inner.core.push(ClientToNode::Unblocked { tag });
            drop(inner);
            self.shared.flush();
        } else {
            drop(inner);
        }
        if kick {
            self.shared.helper.kick();
        }
    }
}

/// Whether one of these became ready before `until`.
pub(crate) fn poll(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<bool, Errno> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: left.as_secs().min(1 << 30) as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    Ok(rustix::event::poll(fds, timeout.as_ref())? > 0)
}
