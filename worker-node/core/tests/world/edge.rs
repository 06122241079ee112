//! The node's edge: what it does about each effect, and how it answers.

use super::*;

impl World {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::ToHead(message) => self.head_hears(message),
            Effect::ToClient { client, message } => self.client_hears(client, message),
            Effect::CloseClient { client } => self.answers.push_back(Event::ClientEnded { client }),
            Effect::StartExecutor { executor, job, .. } => {
                let new = ExecutorModel {
                    client: None,
                    job,
                    inbox: VecDeque::new(),
                    running: None,
                    blocked: false,
                    slots: [Slot::Empty; 64],
                    told_exit: false,
                };
                if self.executors.insert(executor, new).is_some() {
                    self.fail("an executor's number was used twice");
                }
            }
            Effect::EndExecutor { executor, .. } => {
                if let Some(known) = self.executors.get_mut(&executor) {
                    known.told_exit = true;
                }
            }
            Effect::Interrupt { .. }
            | Effect::JoinCalls { .. }
            | Effect::ConnectPeer { .. }
            | Effect::ToPeer { .. }
            | Effect::DropPeer { .. }
            | Effect::WakeAt(_) => {}
            Effect::Revoke { executor, slot, tag } => {
                let mut won = false;
                if let Some(known) = self.executors.get_mut(&executor) {
                    let slot = &mut known.slots[usize::from(slot)];
                    if *slot == Slot::Offered(tag) {
                        *slot = Slot::Revoked;
                        won = true;
                    }
                    self.answers.push_back(Event::Revoked { executor, tag, won });
                }
            }
            Effect::CreateSegment { segment, len, file_backed, .. } => {
                let fails = self.trouble && self.random.chance(10);
                let failure = fails.then(|| failure(FailureKind::OutOfDisk, "no memory"));
                if !fails {
                    self.segments.insert(segment, (len, file_backed));
                }
                self.answers.push_back(Event::SegmentCreated { segment, failure });
            }
            Effect::DropSegment { segment } => {
                // Also said of one that could not be made.
                self.segments.remove(&segment);
                // What a dead writer was the last to see, and nobody can reach, goes with it.
                let gone = &self.head.gone;
                self.sealed.retain(|range, (_, object)| range.segment != segment || !gone.contains(object));
                if self.sealed.keys().any(|range| range.segment == segment) {
                    self.fail("a segment with objects in it was dropped");
                }
            }
            Effect::PunchHole(range) => {
                let inside: Vec<_> =
                    self.sealed.keys().copied().filter(|other| overlap(range, *other)).collect();
                for other in inside {
                    self.nobody_sees(other, None);
                    // One that a dead writer was the last to see is among what it had not sealed.
                    if other != range && !self.head.gone.contains(&self.sealed[&other].1) {
                        self.fail("a hole was punched through an object");
                    }
                    self.sealed.remove(&other);
                }
            }
            Effect::FreeOwn(range) => {
                if self.own.remove(&range).is_none() {
                    self.fail("the daemon's own memory was freed twice");
                }
                self.nobody_sees(range, None);
            }
            Effect::Pull { object, size, .. } => self.fetch(object, size, false),
            Effect::StoreBytes { object, bytes } => self.fetch(object, bytes.len() as u64, false),
            Effect::Restore { object } => {
                if !self.spilled.contains(&object) {
                    self.fail("an object was to be restored that is not on disk");
                }
                let size = self.head.values.get(&object).and_then(|(value, _)| value.as_ref().err().copied());
                let private = self
                    .processes
                    .values()
                    .find_map(|process| (*process.private.get(&object)?).map(|at| at.len));
                match size.or(private) {
                    Some(size) => self.fetch(object, size, true),
                    None => {
                        let reason = "nobody knows it".into();
                        self.answers.push_back(Event::StoreFailed {
                            object,
                            missing: true,
                            reason,
                            no_memory: false,
                        });
                    }
                }
            }
            Effect::Serve { .. } | Effect::StopServing { .. } | Effect::End => {}
            Effect::StartJob { .. }
            | Effect::StopJob { .. }
            | Effect::DeleteJobLogs { .. }
            | Effect::ReadLog { .. }
            | Effect::KeepLine(_) => {}
            Effect::MeasureMemory { executors } => {
                let executors = executors.into_iter().map(|executor| (executor, 1 << 20)).collect();
                self.answers.push_back(Event::MemoryMeasured { executors });
            }
            Effect::Spill { objects } => {
                let ids: Vec<ObjectId> = objects.iter().map(|(object, _)| *object).collect();
                self.spills += 1;
                if self.trouble && self.random.chance(6) {
                    let failure = failure(FailureKind::OutOfDisk, "disk full");
                    self.answers.push_back(Event::SpillFailed { objects: ids, failure });
                } else {
                    self.spilled.extend(&ids);
                    self.answers.push_back(Event::Spilled { objects: ids });
                }
            }
            Effect::DeleteState { .. } | Effect::DeleteDurable { .. } => {}
            Effect::WriteDurable { object } => self.answers.push_back(Event::DurableWritten { object }),
            Effect::FetchDurable { object, .. } => self.answers.push_back(Event::StoreFailed {
                object,
                missing: true,
                reason: "this world has no storage".to_owned(),
                no_memory: false,
            }),
            Effect::DeleteSpilled { object } => {
                self.spilled.remove(&object);
            }
            Effect::SendBytes { client, object } => {
                if let Some(process) = self.processes.get_mut(&client) {
                    answered(&mut process.gets, object);
                }
            }
        }
    }

    pub(super) fn fetch(&mut self, object: ObjectId, len: u64, restored: bool) {
        if self.trouble && self.random.chance(8) {
            let (missing, no_memory) = (!restored && self.random.chance(2), self.random.chance(4));
            let reason = "it went wrong".to_owned();
            if restored && !no_memory {
                self.spilled.remove(&object);
            }
            return self.answers.push_back(Event::StoreFailed { object, missing, reason, no_memory });
        }
        let location = Location { segment: OWN, offset: self.own_next, len };
        self.own_next += len.next_multiple_of(64);
        self.own.insert(location, object);
        self.answers.push_back(match restored {
            true => Event::Restored { object, location },
            false => Event::Stored { object, location },
        });
    }

    /// P1.
    pub(super) fn nobody_sees(&self, range: Location, but: Option<ClientId>) {
        for (client, process) in &self.processes {
            if Some(*client) != but
                && let Some((object, _)) =
                    process.told.iter().find(|(_, (times, at))| *times > 0 && *at == range)
            {
                self.fail(&format!("P1: {range:?} was given up while {client} sees {object} there"));
            }
        }
    }
}
