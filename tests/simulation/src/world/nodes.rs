//! The daemons: their steps, what their edges do, and their executors' processes.

use std::collections::BTreeMap;

use cluster_types::{ClientId, ClientKind, NodeId, NodeToClient, ObjectId};

use super::{Arrival, Stream, World};
use crate::client::{Doing, Process};
use crate::host::{Executor, Slot, no};

impl World {
    pub(crate) fn node_step(&mut self, node: NodeId, event: worker_core::Event) -> Result<(), String> {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
            let mut effects = Vec::new();
            host.core.step(self.now, event, &mut effects);
            host.core.check_invariants().map_err(|error| format!("node {node}: {error}"))?;
            for effect in effects {
                if let Some(word) = &self.plan.watch {
                    let line = format!("{:>9}   {node} -> {effect:?}", self.now.0);
                    if line.contains(word.as_str()) {
                        eprintln!("{}", line.chars().take(1200).collect::<String>());
                    }
                }
                if let Some(event) = self.node_effect(node, effect)? {
                    events.push_back(event);
                }
            }
        }
        Ok(())
    }

    /// Does what the node asks for; gives back what it is answered at once.
    pub(super) fn node_effect(
        &mut self,
        node: NodeId,
        effect: worker_core::Effect,
    ) -> Result<Option<worker_core::Event>, String> {
        use worker_core::{Effect, Event};
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(None) };
        match effect {
            Effect::ToHead(message) => {
                if let Some(incarnation) = host.incarnation {
                    self.say(Stream::ToHead(node), Arrival::AtHead { node, incarnation, message });
                }
            }
            Effect::ToClient { client, message } => {
                if let NodeToClient::Run(run) = &message {
                    let executor =
                        host.executors.values_mut().find(|executor| executor.client == Some(client));
                    let Some(executor) = executor else {
                        return Err(format!("{} is sent to nobody", run.spec.id));
                    };
                    if executor.slots.insert(run.tag, Slot::Ready).is_some() {
                        return Err(format!("tag {} was used twice", run.tag));
                    }
                }
                self.say(Stream::ToClient(client), Arrival::AtClient { client, message });
            }
            Effect::CloseClient { .. } | Effect::WakeAt(_) => {}
            Effect::StartExecutor { executor, job, .. } => {
                host.executors
                    .insert(executor, Executor { job, client: None, dead: false, slots: BTreeMap::new() });
                self.after(500, 5_000, Arrival::ExecutorBorn { node, executor });
            }
            Effect::EndExecutor { executor, .. } => {
                self.end_executor(node, executor, "killed by signal 9 (SIGKILL)")
            }
            Effect::Interrupt { .. } | Effect::MeasureMemory { .. } => {}
            Effect::End => self.end_host(node)?,
            Effect::JoinCalls { caller, executor, actor, in_order } => {
                self.join(caller, executor, actor, in_order);
            }
            Effect::ConnectPeer { node: peer, .. } => self.connect_peer(node, peer),
            Effect::ToPeer { node: peer, message } => self.tell_peer(node, peer, message),
            Effect::DropPeer { node: peer } => self.drop_peer(node, peer),
            Effect::Revoke { executor, tag, .. } => {
                let slot =
                    host.executors.get_mut(&executor).and_then(|executor| executor.slots.get_mut(&tag));
                let won = slot.is_some_and(|slot| {
                    let won = *slot == Slot::Ready;
                    if won {
                        *slot = Slot::Revoked;
                    }
                    won
                });
                return Ok(Some(Event::Revoked { executor, tag, won }));
            }
            Effect::CreateSegment { segment, .. } => {
                self.after(
                    10,
                    500,
                    Arrival::Done { node, event: Event::SegmentCreated { segment, failure: None } },
                );
            }
            Effect::DropSegment { segment } => host.memory.retain(|(of, _), _| *of != segment),
            Effect::PunchHole(location) => {
                host.memory.remove(&(location.segment, location.offset));
            }
            Effect::FreeOwn(location) => host.free_own(location)?,
            Effect::Pull { object, size, source, .. } => {
                self.after(50, 3_000, Arrival::Pulled { node, object, size, source })
            }
            Effect::StoreBytes { object, bytes } => {
                let location = host.store_own(object, bytes.len() as u64);
                return Ok(Some(Event::Stored { object, location }));
            }
            Effect::Serve { object, source } => {
                host.served.insert(object, source);
            }
            Effect::StopServing { object } => {
                host.served.remove(&object);
            }
            Effect::Spill { objects } => {
                for (object, location) in &objects {
                    if host.memory.get(&(location.segment, location.offset)) != Some(object) {
                        // Its maker dropped it meanwhile; the drop is on its way.
                        continue;
                    }
                    host.spilled.insert(*object, location.len);
                }
                let objects = objects.into_iter().map(|(object, _)| object).collect();
                self.after(100, 5_000, Arrival::Done { node, event: Event::Spilled { objects } });
            }
            Effect::Restore { object } => {
                let Some(size) = host.spilled.get(&object).copied() else {
                    return Err(format!("{object} is to be restored and is not on disk"));
                };
                let location = host.store_own(object, size);
                self.after(100, 3_000, Arrival::Done { node, event: Event::Restored { object, location } });
            }
            Effect::DeleteState { .. } => {}
            Effect::WriteDurable { object } => self.write_durable(node, object)?,
            Effect::FetchDurable { object, size, writer } => {
                self.after(100, 5_000, Arrival::DurableFetched { node, object, size, writer });
            }
            Effect::DeleteDurable { object, writer } => {
                self.storage.copies.remove(&(object, writer));
            }
            Effect::DeleteSpilled { object } => {
                host.spilled.remove(&object);
            }
            Effect::StartJob { order } => self.start_job(node, &order)?,
            Effect::StopJob { job, .. } => self.end_job(node, &job),
            Effect::SendBytes { .. }
            | Effect::DeleteJobLogs { .. }
            | Effect::ReadLog { .. }
            | Effect::KeepLine(_) => {}
        }
        Ok(None)
    }

    pub(super) fn pulled(
        &mut self,
        node: NodeId,
        object: ObjectId,
        size: u64,
        source: NodeId,
    ) -> Result<(), String> {
        let found = match self.hosts.get(&source) {
            Some(source) => source.serves(object),
            None => Err(no(cluster_types::FailureKind::NodeLost, "the source is gone")),
        };
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let event = match found {
            Ok(()) => worker_core::Event::Stored { object, location: host.store_own(object, size) },
            Err(failure) if failure.kind == cluster_types::FailureKind::Internal => {
                return Err(format!("{object}: {}", failure.message));
            }
            Err(failure) => worker_core::Event::StoreFailed {
                object,
                missing: failure.kind == cluster_types::FailureKind::ObjectLost,
                reason: failure.message.to_string(),
                no_memory: false,
            },
        };
        self.node_step(node, event)
    }

    pub(super) fn executor_born(&mut self, node: NodeId, executor: u32) -> Result<(), String> {
        let client = ClientId(self.fresh() << 8 | 0xe);
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let Some(known) = host.executors.get_mut(&executor).filter(|known| !known.dead) else {
            return Ok(());
        };
        known.client = Some(client);
        let job = known.job;
        let process = Process::new(client, job, node, Some(executor), self.plan.direct, Doing::Idle);
        self.processes.insert(client, process);
        let kind = ClientKind::Executor { executor };
        self.node_step(node, worker_core::Event::ClientAttached { client, pid: 2, kind, shares_memory: true })
    }

    /// The process is gone at once; its daemon notices after a while.
    pub(crate) fn end_executor(&mut self, node: NodeId, executor: u32, cause: &'static str) {
        let known = self.hosts.get_mut(&node).and_then(|host| host.executors.get_mut(&executor));
        let Some(known) = known else { return };
        known.dead = true;
        if let Some(client) = known.client {
            self.processes.remove(&client);
        }
        self.after(1, 3_000, Arrival::ExecutorGone { node, executor, cause });
    }

    /// The daemon reaps it: what it had not claimed by its end is revoked now.
    pub(super) fn executor_gone(&mut self, node: NodeId, executor: u32, cause: &str) -> Result<(), String> {
        let Some(known) = self.hosts.get(&node).and_then(|host| host.executors.get(&executor)) else {
            return Ok(());
        };
        let reaped = Arrival::ExecutorReaped { node, executor, cause: cause.to_owned() };
        match known.client {
            // What it said before it died is read first.
            Some(client) => self.say(Stream::FromClient(client), reaped),
            None => return self.executor_reaped(node, executor, cause),
        }
        Ok(())
    }

    pub(super) fn executor_reaped(&mut self, node: NodeId, executor: u32, cause: &str) -> Result<(), String> {
        let Some(known) = self.hosts.get_mut(&node).and_then(|host| host.executors.remove(&executor)) else {
            return Ok(());
        };
        let unstarted =
            known.slots.iter().filter(|(_, slot)| **slot == Slot::Ready).map(|(tag, _)| *tag).collect();
        let exited = worker_core::Event::ExecutorExited { executor, cause: cause.to_owned(), unstarted };
        self.node_step(node, exited)?;
        match known.client {
            Some(client) => self.node_step(node, worker_core::Event::ClientEnded { client }),
            None => Ok(()),
        }
    }
}
