//! The table of objects.

use std::collections::VecDeque;
use std::collections::hash_map::Entry as Entered;
use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::PutValue;
use cluster_types::ids::MAX_SEQ;
use cluster_types::{
    ClientId, ClientToNode, Failure, JobId, Location, Map, ObjectId, Payload, Refs, SegmentId, TaskId,
    TaskKind, TaskSpec, TaskTemplate,
};

use crate::Outbox;
use crate::calls::{DirectBatch, Route, Unfinished};
use crate::state::{Entry, State};
use crate::streams::Stream;

/// Where the refs that become handles came from: what keeps their objects alive until this process holds them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleSource {
    /// Inside the value of this object, on which the process has a handle at this moment.
    Inside(ObjectId),
    /// Among the arguments of the task that runs.
    Task,
    /// Anything else; the process tells its daemon at once.
    Elsewhere,
}

/// A value that can be read without a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// The bytes.
    Inline(Bytes),
    /// Where they lie. A view was counted: `drop_view` ends it.
    View(Location),
    /// There is none.
    Failed(Arc<Failure>),
}

/// The client's half. Every method is a step: it changes the table and appends to the outbox.
#[derive(Debug)]
pub struct ClientCore {
    client: ClientId,
    job: JobId,
    next_seq: u64,
    pub(crate) objects: Map<ObjectId, Entry>,
    /// Refs inside own puts; each counts as a handle while the put lives here.
    pub(crate) contains: Map<ObjectId, Refs>,
    /// By container: refs that came out of it and need no hold of their own while the container has one.
    covers: Map<ObjectId, Vec<ObjectId>>,
    /// The same for the arguments of the running task.
    task_covers: Vec<ObjectId>,
    /// What own tasks yield, while anybody may take it.
    pub(crate) streams: Map<TaskId, Stream>,
    /// Own tasks that have not ended.
    pub(crate) unfinished: Map<TaskId, Unfinished>,
    /// How calls reach the actors that this client calls.
    pub(crate) routes: Map<ObjectId, Route>,
    /// Calls to send on actors' sockets.
    pub(crate) direct_out: Vec<DirectBatch>,
    /// Own tasks among the unfinished that make actors.
    pub(crate) creating: usize,
    /// Sockets to actors can be had.
    pub(crate) opens_calls: bool,
    /// Ranges of the own lease that the daemon knows, by object and by place.
    pub(crate) own_ranges: Map<ObjectId, Location>,
    own_places: Map<(SegmentId, u64), ObjectId>,
    /// Further ranges of objects that this process made more than once: of items that a task yielded again.
    spare_ranges: Map<ObjectId, Vec<Location>>,
    /// Lie in memory that is not of this process; those that came to since, too.
    pub(crate) located: Vec<ObjectId>,
    /// May be gone; looked at when the next batch is taken.
    idle: Vec<ObjectId>,
    /// Own ranges that are free again, for the edge's allocator.
    pub(crate) freed: Vec<Location>,
    /// Hooked objects that became readable, for the edge.
    pub(crate) fired: Vec<ObjectId>,
    /// Counts every time that an object became ready or readable.
    pub(crate) progress: u64,
    /// Counts the objects that failed …
    pub(crate) failures: u64,
    /// … and the latest of them.
    pub(crate) failed: VecDeque<ObjectId>,
    pub(crate) out: Outbox,
}

/// How many failed objects are remembered.
pub(crate) const FAILED_KEPT: usize = 256;

impl ClientCore {
    /// A client that knows nothing yet.
    pub fn new(client: ClientId, job: JobId) -> ClientCore {
        ClientCore {
            client,
            job,
            next_seq: 1,
            objects: Map::default(),
            contains: Map::default(),
            covers: Map::default(),
            task_covers: Vec::new(),
            streams: Map::default(),
            unfinished: Map::default(),
            routes: Map::default(),
            direct_out: Vec::new(),
            creating: 0,
            opens_calls: false,
            own_ranges: Map::default(),
            own_places: Map::default(),
            spare_ranges: Map::default(),
            located: Vec::new(),
            idle: Vec::new(),
            freed: Vec::new(),
            fired: Vec::new(),
            progress: 0,
            failures: 0,
            failed: VecDeque::new(),
            out: Outbox::default(),
        }
    }

    // ---- making objects ----

    /// Submits a task, in the name of the task whose code does it; each result has one handle. Everything the task
    /// names has a handle here at this moment.
    pub fn submit(
        &mut self,
        template: &Arc<TaskTemplate>,
        payload: Payload,
        deps: Refs,
        borrowed: Refs,
        parent: Option<TaskId>,
    ) -> (TaskId, Refs) {
        self.submit_for(self.job, template, payload, deps, borrowed, parent)
    }

    /// As [`ClientCore::submit`], for a job that need not be this client's: a detached actor is a job of its own
    /// (rule A6).
    pub fn submit_for(
        &mut self,
        job: JobId,
        template: &Arc<TaskTemplate>,
        payload: Payload,
        deps: Refs,
        borrowed: Refs,
        parent: Option<TaskId>,
    ) -> (TaskId, Refs) {
        let id = TaskId { client: self.client, seq: self.take_seq() };
        let spec = TaskSpec { id, job, template: template.clone(), payload, parent, deps, borrowed };
        let actor = spec.called_actor();
        let creates = matches!(template.kind, TaskKind::Actor(_));
        let (returns, own_way) = (template.num_returns, actor.is_some());
        self.unfinished.insert(id, Unfinished { returns, actor, creates, own_way, expected: false });
        self.creating += usize::from(creates);
        if let Some(limits) = template.stream {
            self.open_stream(id, limits);
        }
        let results: Refs = (0..returns).map(|index| id.result(index)).collect();
        for &result in &results {
            // Rule R2: the submitter holds them from the start.
            let (state, escaped) = (State::Pending, actor.is_none());
            self.objects.insert(result, Entry { state, refs: 1, held: true, escaped, ..Entry::default() });
        }
        match actor {
            Some(actor) => self.enter_call(actor, spec),
            None => {
                self.share_all(spec.held());
                self.out.push(ClientToNode::Submit(spec));
            }
        }
        (id, results)
    }

    /// A value of this process's own becomes an object with one handle. Small values stay here until they escape;
    /// others are announced at once, so that the daemon can spill them. A client without shared memory gives bytes of
    /// any length and announces large ones (`keep` false: the daemon keeps them).
    pub fn put(&mut self, value: PutValue, contains: Refs, keep: bool) -> ObjectId {
        let object = ObjectId::put(self.client, self.take_seq());
        match value {
            PutValue::Inline(bytes) if keep => self.enter_put(object, State::Inline(bytes), None, contains),
            PutValue::Inline(_) => self.enter_put(object, State::Stored, Some(value), contains),
            PutValue::Stored(location) => {
                self.note_own_range(object, location);
                self.enter_put(object, State::Own(location), Some(value), contains);
            }
        }
        object
    }

    /// As [`ClientCore::put`], of a value that a client without shared memory wrote into a segment lent for just that:
    /// it is the daemon's from here on.
    pub fn put_far(&mut self, location: Location, contains: Refs) -> ObjectId {
        let object = ObjectId::put(self.client, self.take_seq());
        self.enter_put(object, State::Stored, Some(PutValue::Stored(location)), contains);
        object
    }

    fn enter_put(&mut self, object: ObjectId, state: State, announced: Option<PutValue>, contains: Refs) {
        let entry = Entry {
            refs: 1,
            escaped: false,
            held: true,
            contains: !contains.is_empty(),
            announced: announced.is_some(),
            state,
            ..Entry::default()
        };
        for &inner in &contains {
            self.add_handle(inner, HandleSource::Elsewhere);
        }
        if let Some(value) = announced {
            self.share_all(contains.iter().copied());
            self.out.push(ClientToNode::Put { object, value, contains: contains.clone() });
        }
        if entry.contains {
            self.contains.insert(object, contains);
        }
        self.objects.insert(object, entry);
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        // 2^40 at a million a second is twelve days of nothing else, twelve times over.
        assert!(seq <= MAX_SEQ, "this client has made 2^40 objects");
        self.next_seq += 1;
        seq
    }

    /// A range of the own lease now holds this object, also beyond this process's interest in it.
    pub fn note_own_range(&mut self, object: ObjectId, location: Location) {
        self.own_places.insert((location.segment, location.offset), object);
        match self.own_ranges.entry(object) {
            Entered::Vacant(entry) => {
                entry.insert(location);
            }
            Entered::Occupied(_) => self.spare_ranges.entry(object).or_default().push(location),
        }
    }

    // ---- handles and views ----

    /// One more handle.
    pub fn add_handle(&mut self, object: ObjectId, source: HandleSource) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.refs += 1;
            if entry.held || entry.covered {
                return;
            }
        } else {
            self.objects.insert(object, Entry { refs: 1, ..Entry::default() });
        }
        self.protect(object, source);
    }

    /// As [`Core::add_handle`], for an object that this process has a handle on; false where it has none.
    pub fn add_known_handle(&mut self, object: ObjectId) -> bool {
        let known = self.objects.get(&object).is_some_and(|entry| entry.refs > 0);
        if known {
            self.add_handle(object, HandleSource::Elsewhere);
        }
        known
    }

    /// Keeps a new handle's object alive: by what it came out of, if that has a hold itself, else by a hold (REF-1).
    fn protect(&mut self, object: ObjectId, source: HandleSource) {
        let covered = match source {
            HandleSource::Inside(container) => match self.objects.get_mut(&container) {
                Some(entry) if entry.held && container != object => {
                    entry.covers = true;
                    self.covers.entry(container).or_default().push(object);
                    true
                }
                _ => false,
            },
            HandleSource::Task => {
                self.task_covers.push(object);
                true
            }
            HandleSource::Elsewhere => false,
        };
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.covered = covered;
            entry.held = !covered;
        }
        if !covered {
            self.out.hold(object);
        }
    }

    /// One handle less.
    pub fn drop_handle(&mut self, object: ObjectId) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.refs = entry.refs.saturating_sub(1);
            if entry.is_idle() {
                self.became_idle(object);
            }
        }
    }

    /// A view that [`ClientCore::read`] or [`ClientCore::lend`] counted has ended.
    pub fn drop_view(&mut self, object: ObjectId) {
        if let Some(entry) = self.objects.get_mut(&object) {
            entry.views = entry.views.saturating_sub(1);
            if entry.is_idle() {
                self.became_idle(object);
            }
        }
    }

    /// An argument lies here; counts a view of it. It needs no hold, only its release (rule P1).
    pub fn lend(&mut self, object: ObjectId, location: Location) {
        let entry = self.objects.entry(object).or_default();
        entry.told += 1;
        if entry.views == 0 && !matches!(entry.state, State::Own(_)) {
            entry.state = State::Located(location);
        }
        entry.views += 1;
        self.note_located(object);
    }

    pub(crate) fn became_idle(&mut self, object: ObjectId) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        if !entry.escaped {
            self.forget_unescaped(object);
        } else if !entry.listed {
            entry.listed = true;
            self.idle.push(object);
        }
    }

    /// An own put that nobody else ever knew: its range is reused at once.
    fn forget_unescaped(&mut self, object: ObjectId) {
        let mut todo = vec![object];
        while let Some(object) = todo.pop() {
            let Some(entry) = self.objects.remove(&object) else { continue };
            self.out.release(object, entry.told);
            // What lies in the daemon's memory is the daemon's to free, whether it has heard of it or not.
            let retractable = matches!(entry.state, State::Own(_));
            if entry.announced && !(retractable && self.out.retract_put(object)) {
                self.out.drop(object);
            }
            if let Some(location) = self.forget_own_range(object) {
                self.freed.push(location);
            }
            self.uncover(object, &entry);
            for inner in self.take_contained(object, &entry) {
                let Some(inside) = self.objects.get_mut(&inner) else { continue };
                inside.refs = inside.refs.saturating_sub(1);
                if !inside.is_idle() {
                    continue;
                }
                if !inside.escaped {
                    todo.push(inner);
                } else if !inside.listed {
                    inside.listed = true;
                    self.idle.push(inner);
                }
            }
        }
    }

    fn take_contained(&mut self, object: ObjectId, entry: &Entry) -> Refs {
        if entry.contains { self.contains.remove(&object).unwrap_or_default() } else { Refs::new() }
    }

    pub(crate) fn forget_own_range(&mut self, object: ObjectId) -> Option<Location> {
        let location = self.own_ranges.remove(&object)?;
        self.own_places.remove(&(location.segment, location.offset));
        if let Entered::Occupied(mut spares) = self.spare_ranges.entry(object) {
            if let Some(next) = spares.get_mut().pop() {
                self.own_ranges.insert(object, next);
            }
            if spares.get().is_empty() {
                spares.remove();
            }
        }
        Some(location)
    }

    /// This range is one that the object's value lies in a second time; it is so no more.
    pub(crate) fn forget_spare_range(&mut self, object: ObjectId, range: Location) -> bool {
        let Entered::Occupied(mut spares) = self.spare_ranges.entry(object) else { return false };
        let before = spares.get().len();
        spares.get_mut().retain(|spare| *spare != range);
        let found = spares.get().len() < before;
        if spares.get().is_empty() {
            spares.remove();
        }
        if found {
            self.own_places.remove(&(range.segment, range.offset));
        }
        found
    }

    pub(crate) fn object_at(&self, location: Location) -> Option<ObjectId> {
        self.own_places.get(&(location.segment, location.offset)).copied()
    }

    /// What came out of a container that is about to go needs holds of its own now, before the container's drop
    /// (rule R1).
    fn uncover(&mut self, container: ObjectId, entry: &Entry) {
        if entry.covers {
            let covered = self.covers.remove(&container).unwrap_or_default();
            self.end_cover(covered);
        }
    }

    fn end_cover(&mut self, covered: Vec<ObjectId>) {
        for object in covered {
            let Some(entry) = self.objects.get_mut(&object) else { continue };
            entry.covered = false;
            if entry.refs > 0 && !entry.held {
                entry.held = true;
                self.out.hold(object);
            } else if entry.is_idle() && !entry.listed {
                entry.listed = true;
                self.idle.push(object);
            }
        }
    }

    /// The running task is about to end: the handles that stay get holds, which precede its completion.
    pub fn end_task_cover(&mut self) {
        let covered = std::mem::take(&mut self.task_covers);
        self.end_cover(covered);
    }

    // ---- reading ----

    /// Whether this process has a handle or a view.
    pub fn knows(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| !entry.is_idle())
    }

    /// Whether the object is known to exist, or to have failed.
    pub fn is_ready(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| entry.state.is_ready())
    }

    /// Whether reading needs no message.
    pub fn is_here(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| entry.state.is_here())
    }

    /// Whether the object exists and only has to be fetched.
    pub fn is_stored(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| entry.state == State::Stored)
    }

    /// Whether it is the result of an own task that has not ended.
    pub fn is_pending(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| entry.state == State::Pending)
    }

    /// One look for a wait: `None` without a handle; else whether it is ready (with `fetch`: here), and if it is not,
    /// it is asked for as by [`ClientCore::want`].
    pub fn poll(&mut self, object: ObjectId, fetch: bool) -> Option<bool> {
        let entry = self.objects.get(&object).filter(|entry| !entry.is_idle())?;
        let ready = if fetch { entry.state.is_here() } else { entry.state.is_ready() };
        if !ready && (fetch || entry.state == State::Unknown) {
            self.want(object, fetch);
        }
        Some(ready)
    }

    /// Whether any value in shared memory is being viewed.
    pub fn has_views(&self) -> bool {
        self.objects.values().any(|entry| entry.views > 0)
    }

    /// Reads a value that is here; counts a view if it lies in shared memory.
    pub fn read(&mut self, object: ObjectId) -> Option<Reading> {
        let entry = self.objects.get_mut(&object)?;
        match &entry.state {
            State::Inline(bytes) => Some(Reading::Inline(bytes.clone())),
            State::Own(location) | State::Located(location) => {
                entry.views += 1;
                Some(Reading::View(*location))
            }
            State::Failed(failure) => Some(Reading::Failed(failure.clone())),
            State::Unknown | State::Pending | State::Stored => None,
        }
    }

    /// Somebody waits for it: asks for what does not come by itself. With `fetch` for the value, else only whether
    /// there is one.
    pub fn want(&mut self, object: ObjectId, fetch: bool) {
        let Some(entry) = self.objects.get_mut(&object) else { return };
        match entry.state {
            State::Pending => entry.wanted |= fetch,
            State::Stored if !fetch => {}
            State::Unknown | State::Stored if !entry.asked => {
                entry.asked = true;
                self.out.get(object);
            }
            _ => {}
        }
    }

    /// As [`ClientCore::want`] with `fetch`; [`ClientCore::take_fired`] names the object once it is readable. True if
    /// it is now.
    pub fn hook(&mut self, object: ObjectId) -> bool {
        self.want(object, true);
        match self.objects.get_mut(&object) {
            Some(entry) if !entry.state.is_here() => {
                entry.hooked = true;
                false
            }
            _ => true,
        }
    }

    // ---- for the edge ----

    /// Appends a message that the table has nothing to do with.
    pub fn push(&mut self, message: ClientToNode) {
        self.out.push(message);
    }

    /// As [`ClientCore::push`], of what nothing else depends on.
    pub fn push_aside(&mut self, message: ClientToNode) {
        self.out.push_aside(message);
    }

    /// What waits to be sent, without the drops still to come.
    pub fn outbox(&self) -> &Outbox {
        &self.out
    }

    /// Whether messages wait, for the daemon or for an actor.
    pub fn has_messages(&self) -> bool {
        !self.out.is_empty() || !self.direct_out.is_empty()
    }

    /// Whether a batch taken now may hold anything.
    pub fn has_news(&self) -> bool {
        self.has_messages() || !self.idle.is_empty()
    }

    /// The batch to send now. What became idle and stayed so is dropped at its end, after every hold and every use
    /// (rule R1); what was used again meanwhile costs no message.
    pub fn take_batch(&mut self) -> Vec<ClientToNode> {
        let mut drops = Vec::new();
        while let Some(object) = self.idle.pop() {
            let Some(entry) = self.objects.get_mut(&object) else { continue };
            entry.listed = false;
            if !entry.is_idle() {
                continue;
            }
            if entry.covered && !entry.held {
                // Stays in its container's list, empty, so that coming out of it again costs nothing.
                self.out.release(object, std::mem::take(&mut entry.told));
                entry.state = State::Unknown;
                entry.wanted = false;
                continue;
            }
            let Some(entry) = self.objects.remove(&object) else { continue };
            if !self.routes.is_empty() {
                self.forget_route(object);
            }
            self.uncover(object, &entry);
            self.out.release(object, entry.told);
            if entry.held {
                drops.push(object);
            }
            for inner in self.take_contained(object, &entry) {
                self.drop_handle(inner);
            }
        }
        for object in drops {
            self.out.drop(object);
        }
        self.out.take()
    }

    /// Own ranges that are free again since the last call.
    pub fn take_freed(&mut self) -> Vec<Location> {
        std::mem::take(&mut self.freed)
    }

    /// Hooked objects that became readable since the last call.
    pub fn take_fired(&mut self) -> Vec<ObjectId> {
        std::mem::take(&mut self.fired)
    }

    /// Grows each time that an object becomes ready or readable: `n` waits cannot be over before it grew by `n`.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether there will be no value.
    pub fn has_failed(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|entry| matches!(entry.state, State::Failed(_)))
    }

    /// How many objects failed so far.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Those that failed since there were so many, or `None` where too many did.
    pub fn failed_since(&self, seen: u64) -> Option<impl Iterator<Item = ObjectId> + '_> {
        let new = usize::try_from(self.failures - seen.min(self.failures)).ok()?;
        (new <= self.failed.len()).then(|| self.failed.iter().rev().take(new).copied())
    }

    /// Own tasks that have not ended.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Objects in the table.
    pub fn known(&self) -> usize {
        self.objects.len()
    }
}
