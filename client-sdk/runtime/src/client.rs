//! The face of this crate.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster_store::alloc::Allocator;
use cluster_store::layout::{Kind, Layout};
use cluster_types::client_node::{Cancellation, LogLine, Welcome};
use cluster_types::ids::MAX_RETURNS;
use cluster_types::query::{Query, QueryReply};
use cluster_types::{
    Attempt, ClientId, ClientToNode, Failure, FailureKind, GpuShare, INLINE_MAX, JobId, ObjectId, PART,
    Payload, Refs, TaskSpec, TaskTemplate,
};

use crate::completion::CompletionQueue;
use crate::connect::connect;
use crate::failing::Failing;
use crate::shared::{BACKLOG_MAX, Inner, Shared, mark_forked};
use crate::value::Memory;
use crate::waiting::{For, Manner, Step, poll};
use crate::{ClientError, ConnectError, ConnectOptions, Draft, Got, HandleSource, Interrupt, Parcel, Target};

/// At its end a client waits this long for the daemon to take what it still had to say.
const FAREWELL: Duration = Duration::from_secs(1);

/// One process's connection to its daemon. A cheap clone; the last one to go disconnects.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What clones share. The helper and the views hold `Shared` only, so that the last client's end is noticed.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.disconnect();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.id()).finish()
    }
}

/// One call of a remote function.
#[derive(Debug)]
pub struct Call {
    /// What it shares with its like. Keep the `Arc` and reuse it: equal pointers are encoded once.
    pub template: Arc<TaskTemplate>,
    /// The arguments, with placeholders for `deps`. Of any size: a large one is put by itself.
    pub payload: Parcel,
    /// Top-level refs among the arguments, in placeholder order.
    pub deps: Refs,
    /// Refs nested inside the arguments.
    pub borrowed: Refs,
    /// The running task whose code does this, by its tag. Only needed where several run at once.
    pub within: Option<u64>,
    /// The job it belongs to, where that is not the client's: a detached actor is one of its own (rule A6).
    pub job: Option<JobId>,
}

/// Something for an executor to do.
#[derive(Debug)]
pub enum Work {
    /// A task, claimed.
    Run(Task),
    /// Stop the call under this tag; it runs, or was handed out, at once with others. One that runs alone is
    /// interrupted by a signal (rule E3) and not told here.
    Cancel(u64),
}

/// A task for this executor, claimed: nobody else will run this attempt.
#[derive(Debug)]
pub struct Task {
    /// Names this execution towards the daemon.
    pub tag: u64,
    /// Which try this is.
    pub attempt: Attempt,
    /// What to run.
    pub spec: Arc<TaskSpec>,
    /// The values of `spec.needed()` by id: function (only where this executor was not given it before), payload if it
    /// is stored, arguments. An inline payload is in `spec.payload`.
    pub values: Vec<(ObjectId, Got)>,
    /// The devices it may use.
    pub gpus: Vec<GpuShare>,
}

/// Something for a person to read.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A line printed by an executor of the job.
    Log(LogLine),
    /// A sentence from the cluster: a task that no node can run at present, say.
    Text(String),
}

impl Client {
    /// Connects and says hello. Waits at most `options.timeout`.
    ///
    /// # Errors
    /// A sentence that says what was tried, or the daemon's reason for refusing.
    pub fn connect(
        target: Target,
        options: ConnectOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Client, ConnectError> {
        connect(target, options, interrupt).map(|shared| Client { handle: Arc::new(Handle { shared }) })
    }

    /// Tells every client of this process that it is a forked child now: from here on calls say so and drops do
    /// nothing (rule P6). For `os.register_at_fork(after_in_child=…)`; callable in any state.
    pub fn mark_forked() {
        mark_forked();
    }

    /// This client's id: random, new after each connect.
    pub fn id(&self) -> ClientId {
        self.shared().id
    }

    /// The job it belongs to.
    pub fn job(&self) -> JobId {
        self.shared().welcome.job
    }

    /// What the daemon told at the start: node, job, the job's description, store capacity, cores.
    pub fn welcome(&self) -> &Welcome {
        &self.shared().welcome
    }

    /// Ends the connection: unsent messages are flushed, the daemon is told, the helper thread joined. Waiting calls
    /// end with [`ClientError::Closed`]. Views stay valid. Idempotent.
    pub fn disconnect(&self) {
        self.shared().disconnect();
    }

    /// Why the connection is of no use any more, if it is.
    pub fn broken(&self) -> Option<ClientError> {
        match self.shared().check_process() {
            Err(forked) => Some(forked),
            Ok(()) => self.shared().lock().lost.clone(),
        }
    }

    // ---- values ----

    /// Memory for a value of these lengths. Waits where the store has no room at present, and goes on when it has.
    ///
    /// # Errors
    /// [`ClientError::NoMemory`] if it can never fit.
    pub fn reserve(
        &self,
        kind: Kind,
        in_band_len: usize,
        buffer_lens: &[usize],
        interrupt: Interrupt<'_>,
    ) -> Result<Draft, ClientError> {
        let shared = self.shared();
        let layout = Layout::plan(kind, in_band_len, buffer_lens)?;
        let len = layout.total_len();
        if len <= INLINE_MAX {
            return Ok(Draft { layout, memory: Memory::Heap(vec![0; len]) });
        }
        shared.check_room(len)?;
        let memory = match shared.shares_memory {
            true => Memory::Store(shared.allocate(len, interrupt)?),
            false if len <= PART => Memory::Heap(vec![0; len]),
            false => Memory::Far(shared.borrow_far(len, interrupt)?),
        };
        Ok(Draft { layout, memory })
    }

    /// Makes an object of a value, with one handle. `contains` are the refs inside it; each needs a handle now.
    /// Never waits.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn put(&self, value: Parcel, contains: &[ObjectId]) -> Result<ObjectId, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        inner.usable()?;
        let object = value.put(&mut inner, Refs::from_slice(contains));
        shared.after_append(inner, false);
        Ok(object)
    }

    /// Submits a task. Each result has one handle. Waits only while this process is more than 64 MiB ahead of its
    /// daemon.
    ///
    /// # Errors
    /// If the connection is of no use, or the wait was interrupted (then nothing was submitted).
    pub fn submit(&self, call: Call, interrupt: Interrupt<'_>) -> Result<Refs, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        if call.template.num_returns > MAX_RETURNS {
            let asked = call.template.num_returns;
            return Err(ClientError::Misuse(format!(
                "num_returns={asked}: a task can return at most {MAX_RETURNS} values"
            )));
        }
        shared.wait_for_room(BACKLOG_MAX, interrupt)?;
        let mut inner = shared.lock();
        inner.usable()?;
        let Call { template, payload, deps, borrowed, within, job } = call;
        let quiet = inner.core.unfinished() == 0 && !inner.core.has_messages();
        let mut stored = None;
        let payload = match payload.into_small() {
            Ok(bytes) => Payload::Inline(bytes),
            Err(large) => Payload::Stored(*stored.insert(large.put(&mut inner, Refs::new()))),
        };
        let within = inner.running(within);
        let parent = within.as_ref().map(|current| current.task);
        let job = job.unwrap_or(shared.welcome.job);
        let (_, results) = inner.core.submit_for(job, &template, payload, deps, borrowed, parent);
        if let Some(parent) = within {
            inner.note_child(&parent, &results);
        }
        if let Some(payload) = stored {
            // From here on the task holds it.
            inner.core.drop_handle(payload);
        }
        let alone = quiet && shared.unsent.load(Ordering::Relaxed) == 0;
        shared.after_append(inner, alone);
        Ok(results)
    }

    /// Whether [`Client::submit`] would wait at this moment.
    pub fn is_far_ahead(&self) -> bool {
        let shared = self.shared();
        !shared.is_forked() && shared.backlog(&shared.lock()) > BACKLOG_MAX
    }

    /// Asks that the task which makes an object be cancelled. Never waits.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn cancel(&self, what: Cancellation) -> Result<(), ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        inner.usable()?;
        if what.force && inner.core.is_own_call(what.object) {
            return Err(ClientError::Misuse(
                "force=True is not supported for calls of actors, whose process is the actor's: kill(actor) ends \
                 that, cancel(ref) interrupts the call"
                    .to_owned(),
            ));
        }
        if !inner.core.cancel_call(what.object, &what.reason, what.recursive) {
            inner.core.push(ClientToNode::Cancel(what));
        }
        shared.tell_of_news(inner);
        shared.flush();
        Ok(())
    }

    /// Asks that an actor end. Never waits.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn kill(&self, actor: ObjectId, restart: bool) -> Result<(), ClientError> {
        self.ask(ClientToNode::Kill { actor, restart })
    }

    /// Says something at once.
    fn ask(&self, message: ClientToNode) -> Result<(), ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        inner.usable()?;
        inner.core.push(message);
        drop(inner);
        shared.flush();
        Ok(())
    }

    // ---- handles ----

    /// One more handle on an object.
    pub fn add_handle(&self, object: ObjectId, source: HandleSource) {
        self.add_handles(&[object], source);
    }

    /// As [`Client::add_handle`] for each, under one lock.
    pub fn add_handles(&self, objects: &[ObjectId], source: HandleSource) {
        let shared = self.shared();
        if shared.is_forked() {
            return;
        }
        let mut inner = shared.lock();
        for &object in objects {
            inner.core.add_handle(object, source);
        }
        shared.after_change(inner);
    }

    /// One handle more on an object that this process has one on; false where it has none.
    pub fn add_known_handle(&self, object: ObjectId) -> bool {
        let shared = self.shared();
        if shared.is_forked() {
            return false;
        }
        let mut inner = shared.lock();
        let known = inner.core.add_known_handle(object);
        shared.after_change(inner);
        known
    }

    /// One handle less.
    pub fn drop_handle(&self, object: ObjectId) {
        self.drop_handles(&[object]);
    }

    /// As [`Client::drop_handle`] for each, under one lock.
    pub fn drop_handles(&self, objects: &[ObjectId]) {
        let shared = self.shared();
        if shared.is_forked() {
            return;
        }
        let mut inner = shared.lock();
        for &object in objects {
            inner.core.drop_handle(object);
        }
        shared.after_change(inner);
    }

    // ---- reading and waiting ----

    /// Whether the object's task has ended, or its value is known to exist. Never waits, never reads the socket.
    pub fn is_ready(&self, object: ObjectId) -> bool {
        !self.shared().is_forked() && self.shared().lock().core.is_ready(object)
    }

    /// The value, if it is in this process or on this node already. Never waits.
    pub fn try_get(&self, object: ObjectId) -> Option<Got> {
        let shared = self.shared();
        if shared.is_forked() {
            return None;
        }
        let mut inner = shared.lock();
        shared.read_value(&mut inner, object)
    }

    /// All these values, in order. As soon as one of several has failed, the wait is over: what is returned ends with
    /// that failure then, and values may be left out.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], [`ClientError::Interrupted`], [`ClientError::NoHandle`], or a broken connection.
    pub fn get(
        &self,
        objects: &[ObjectId],
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Got>, ClientError> {
        self.get_within(None, objects, deadline, interrupt)
    }

    /// As [`Client::get`], by the code of the task that runs under this tag.
    ///
    /// # Errors
    /// As [`Client::get`], and [`ClientError::Cancelled`] when that task is to stop.
    pub fn get_within(
        &self,
        within: Option<u64>,
        objects: &[ObjectId],
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Got>, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut got = Vec::with_capacity(objects.len());
        let next = Cell::new(0);
        let mut asked = false;
        let mut failing = Failing::new(objects);
        let missing = |inner: &Inner| {
            let left = objects[next.get()..].iter().copied();
            left.filter(|&object| !inner.core.is_here(object)).collect()
        };
        let manner = Manner { may_spin: true, blocks_on: Some(&missing), within, ..Manner::until(deadline) };
        shared.wait_until(manner, interrupt, |inner| {
            while let Some(&object) = objects.get(next.get()) {
                if let Some(value) = shared.read_value(inner, object) {
                    let failed = matches!(value, Got::Failed(_));
                    got.push(value);
                    if failed {
                        return Ok(Step::Done(()));
                    }
                    next.set(next.get() + 1);
                    continue;
                }
                // All at once, not one after the other; evicted meanwhile, it is asked for again.
                let left = &objects[next.get()..];
                let ask = if asked { 1 } else { left.len() };
                asked = true;
                for &object in &left[..ask] {
                    inner.core.poll(object, true).ok_or(ClientError::NoHandle(object))?;
                }
                if let Some(failed) = failing.look(&inner.core, left) {
                    got.extend(shared.read_value(inner, failed));
                    return Ok(Step::Done(()));
                }
                return Ok(Step::Wait(failing.or_here(object)));
            }
            Ok(Step::Done(()))
        })?;
        Ok(got)
    }

    /// Waits until `num_ready` of the objects are ready or the deadline passes, and returns the indices of ready ones
    /// in ascending order, at most `num_ready`. With `fetch`, ready means: the value is on this node.
    ///
    /// # Errors
    /// As [`Client::get`], but a passed deadline is none.
    pub fn wait(
        &self,
        objects: &[ObjectId],
        num_ready: usize,
        deadline: Option<Instant>,
        fetch: bool,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<usize>, ClientError> {
        self.wait_within(None, objects, num_ready, deadline, fetch, interrupt)
    }

    /// As [`Client::wait`], by the code of the task that runs under this tag.
    ///
    /// # Errors
    /// As [`Client::wait`], and [`ClientError::Cancelled`] when that task is to stop.
    pub fn wait_within(
        &self,
        within: Option<u64>,
        objects: &[ObjectId],
        num_ready: usize,
        deadline: Option<Instant>,
        fetch: bool,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<usize>, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let enough = num_ready.min(objects.len());
        let mut found: Vec<usize> = Vec::with_capacity(enough.min(1024));
        // What was not ready at the last look; `None` before the first.
        let mut pending: Option<Vec<usize>> = None;
        let mut look_at = 0;
        let missing = |_: &Inner| objects.to_vec();
        let manner = Manner { blocks_on: Some(&missing), within, ..Manner::until(deadline) };
        let waited = shared.wait_until(manner, interrupt, |inner| {
            if let Some(pending) = &mut pending {
                // Each of those still needed makes progress when it becomes ready, so before that no look can help.
                if inner.core.progress() >= look_at {
                    pending.retain(|&index| {
                        let ready = inner.core.poll(objects[index], fetch) == Some(true);
                        if ready && found.len() < enough {
                            found.push(index);
                        }
                        !ready
                    });
                }
            } else {
                let mut unready = Vec::new();
                for (index, &object) in objects.iter().enumerate() {
                    if found.len() == enough {
                        break;
                    }
                    match inner.core.poll(object, fetch) {
                        Some(true) => found.push(index),
                        Some(false) => unready.push(index),
                        None => return Err(ClientError::NoHandle(object)),
                    }
                }
                pending = Some(unready);
            }
            if found.len() == enough {
                return Ok(Step::Done(()));
            }
            if inner.core.progress() >= look_at {
                look_at = inner.core.progress() + (enough - found.len()) as u64;
            }
            Ok(Step::Wait(For::Progress(look_at)))
        });
        match waited {
            Ok(()) => {}
            Err(ClientError::TimedOut) => {
                // Too few for the wait to be over, so nobody has looked since it began.
                let mut inner = shared.lock();
                for index in pending.into_iter().flatten() {
                    if found.len() < enough && inner.core.poll(objects[index], fetch) == Some(true) {
                        found.push(index);
                    }
                }
            }
            Err(error) => return Err(error),
        }
        found.sort_unstable();
        Ok(found)
    }

    /// A queue for one event loop.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn completion_queue(&self) -> Result<CompletionQueue, ClientError> {
        CompletionQueue::new().map_err(|error| {
            ClientError::System(format!(
                "no descriptor for an event loop's queue: {error}; raise `ulimit -n`"
            ))
        })
    }

    /// Puts `token` into the queue once `try_get` of the object will answer (at once, if it already does), or once the
    /// connection is of no use any more.
    ///
    /// # Errors
    /// [`ClientError::NoHandle`], or a broken connection.
    pub fn on_ready(&self, object: ObjectId, queue: &CompletionQueue, token: u64) -> Result<(), ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let mut inner = shared.lock();
        if !inner.core.knows(object) {
            return Err(ClientError::NoHandle(object));
        }
        if inner.core.is_here(object) {
            drop(inner);
            queue.queue.push(token);
            return Ok(());
        }
        inner.usable()?;
        inner.core.hook(object);
        inner.hooks.entry(object).or_default().push((queue.queue.clone(), token));
        shared.after_append(inner, false);
        Ok(())
    }

    /// Waits until there is something in the queue to drain; false: the deadline passed. `on` are objects of those that
    /// the queue tells of, some at least: a task that waits lends its CPU to what makes them.
    ///
    /// # Errors
    /// As [`Client::get_within`], but a passed deadline is none, nor a broken connection, which fills the queue.
    pub fn wait_queue(
        &self,
        within: Option<u64>,
        queue: &CompletionQueue,
        on: &[ObjectId],
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<bool, ClientError> {
        let shared = self.shared();
        let awaited = |_: &Inner| on.to_vec();
        let manner = Manner { blocks_on: Some(&awaited), within, ..Manner::until(deadline) };
        let waited = shared.wait_until(manner, interrupt, |inner| {
            if !queue.is_empty() {
                return Ok(Step::Done(()));
            }
            Ok(Step::Wait(For::Progress(inner.core.progress() + 1)))
        });
        match waited {
            Ok(()) => Ok(true),
            Err(ClientError::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    // ---- people ----

    /// Sends a line that user code printed.
    pub fn log(&self, line: LogLine) {
        let shared = self.shared();
        if shared.is_forked() {
            return;
        }
        let mut inner = shared.lock();
        if inner.lost.is_none() {
            // What is written to stderr may be the last that this process says, and tell why.
            let at_once = line.stderr;
            inner.core.push(ClientToNode::Log(line));
            shared.after_append(inner, at_once);
        }
    }

    /// The next thing to print; `Ok(None)` after `timeout`. For a thread of its own.
    ///
    /// # Errors
    /// Once the connection has ended and all was printed.
    pub fn next_notice(&self, timeout: Duration) -> Result<Option<Notice>, ClientError> {
        let shared = self.shared();
        let deadline = Instant::now() + timeout;
        // It does not read: it would take the socket from the threads that are in a hurry.
        let manner = Manner { can_read: false, ..Manner::until(Some(deadline)) };
        let waited = shared.wait_until(manner, &mut || Ok(()), |inner| {
            if inner.notices_lost > 0 {
                let lost = std::mem::take(&mut inner.notices_lost);
                return Ok(Step::Done(Notice::Text(format!(
                    "{lost} lines that tasks printed are not shown: they came faster than this program prints them \
                     (`cluster logs` has them)"
                ))));
            }
            Ok(inner.notices.pop_front().map_or(Step::Wait(For::Notice), Step::Done))
        });
        match waited {
            Ok(notice) => Ok(Some(notice)),
            Err(ClientError::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the cluster about its state.
    ///
    /// # Errors
    /// [`ClientError::Query`] with the reason, or as [`Client::get`].
    pub fn query(
        &self,
        query: Query,
        deadline: Option<Instant>,
        interrupt: Interrupt<'_>,
    ) -> Result<QueryReply, ClientError> {
        let shared = self.shared();
        shared.check_generation()?;
        let number = {
            let mut inner = shared.lock();
            inner.usable()?;
            let number = inner.next_query;
            inner.next_query += 1;
            inner.replies.insert(number, None);
            if let Query::KeepState { object, .. } | Query::MakeDurable { object } = &query
                && let Ok(object) = object.parse()
            {
                inner.core.share(&[object]);
            }
            inner.core.push(ClientToNode::Query { number, query });
            number
        };
        let waited = shared.wait_until(Manner::until(deadline), interrupt, |inner| {
            Ok(match inner.replies.get_mut(&number).and_then(Option::take) {
                Some(reply) => Step::Done(reply),
                None => Step::Wait(For::Reply(number)),
            })
        });
        shared.lock().replies.remove(&number);
        waited?.map_err(ClientError::Query)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Shared {
    pub(crate) fn check_generation(&self) -> Result<(), ClientError> {
        if self.is_forked() { Err(ClientError::Forked { parent: self.pid }) } else { Ok(()) }
    }

    fn check_room(&self, len: usize) -> Result<(), ClientError> {
        let too_large = |message: String| {
            let kind = FailureKind::ObjectTooLarge;
            Err(ClientError::NoMemory(Failure {
                kind,
                message: message.into(),
                payload: bytes::Bytes::new(),
                task: None,
            }))
        };
        let capacity = self.welcome.store_capacity;
        if len as u64 > capacity {
            return too_large(format!(
                "a value of {} can never fit the object store of {}; split it, or give the store more memory \
                 (object_store_memory)",
                mib(len as u64),
                mib(capacity)
            ));
        }
        Ok(())
    }

    /// Waits until no more than these bytes wait to be sent.
    pub(crate) fn wait_for_room(&self, limit: usize, interrupt: Interrupt<'_>) -> Result<(), ClientError> {
        if self.backlog(&self.lock()) <= limit {
            return Ok(());
        }
        self.wait_until(Manner::until(None), interrupt, |inner| {
            Ok(if self.backlog(inner) <= limit { Step::Done(()) } else { Step::Wait(For::Room(limit)) })
        })
    }

    /// Memory of the own lease; asks for more, and waits for it, only where there is no room.
    fn allocate(
        &self,
        len: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<cluster_store::segment::WriteBuf, ClientError> {
        // Not under the lock: fresh memory is populated here, which takes a while.
        self.claim(Allocator::segment_len(len as u64), interrupt, || self.arena.alloc(len))
    }

    /// Takes memory of a lease, once there is some; asks for a segment of so many bytes where there is none.
    pub(crate) fn claim<T>(
        &self,
        bytes: u64,
        interrupt: Interrupt<'_>,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<T, ClientError> {
        self.check_generation()?;
        let begun = self.lock().memory_news;
        let mut seen = begun;
        loop {
            if let Some(taken) = take() {
                return Ok(taken);
            }
            seen = self.wait_until(Manner::until(None), interrupt, |inner| {
                let refused = |(number, asked, _): &&(u64, u64, Failure)| *number > begun && *asked == bytes;
                if let Some((_, _, failure)) = inner.denied.iter().find(refused) {
                    return Err(ClientError::NoMemory(failure.clone()));
                }
                if inner.memory_news > seen {
                    return Ok(Step::Done(inner.memory_news));
                }
                if !inner.requested.iter().any(|&asked| asked >= bytes) {
                    inner.requested.push(bytes);
                    inner.core.push(ClientToNode::RequestMemory { bytes });
                }
                Ok(Step::Wait(For::Memory(seen)))
            })?;
        }
    }

    pub(crate) fn disconnect(&self) {
        if self.check_process().is_err() {
            return;
        }
        {
            let mut inner = self.lock();
            // The daemon takes a farewell for the end of all views. While there are some it finds out by itself, when
            // the process ends (rule P1).
            inner.core.release_held();
            if inner.lost.is_none() && !inner.core.has_views() {
                inner.core.push(ClientToNode::Goodbye);
            }
        }
        self.flush();
        let deadline = Instant::now() + FAREWELL;
        while self.unsent.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            let mut fds = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::OUT)];
            let _ = poll(&mut fds, Some(deadline));
            self.flush();
        }
        self.lock().lose(ClientError::Closed);
        self.helper.stop();
        // Wakes whoever still reads.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// A size for people.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
