//! What the head says, and the streams on which it says it.

use cluster_types::{HeadToNode, JobId, NodeToClient, Set, TaskId};

use crate::event::Effect;
use crate::executors::Executor;
use crate::node::Node;
use crate::streams::Taken;

impl Node {
    pub(crate) fn head_says(&mut self, message: HeadToNode, effects: &mut Vec<Effect>) {
        match message {
            HeadToNode::Admitted { .. } => self.admitted(effects),
            HeadToNode::Resumed { .. } => self.resumed(effects),
            HeadToNode::Pulse { number, settled } => self.pulse(number, settled),
            HeadToNode::Job { job, info } => {
                self.jobs.insert(job, info);
            }
            HeadToNode::JobEnded(job) => self.job_ended(job, effects),
            HeadToNode::Assign { spec, attempt, lease, located } => {
                for (object, located) in located {
                    // The head frees functions on every node that was told of them, other small values at home only.
                    let keep = spec.function() == Some(object);
                    self.located(object, located, false, keep, effects);
                }
                let needed = spec.clone();
                self.assign(spec, attempt, lease, effects);
                // Nobody waits for them if the head repeated itself, or the attempt went back at once.
                let is_here = self.attempts.contains_key(&needed.id);
                for object in needed.needed() {
                    if !is_here {
                        self.forget_cached(object);
                    }
                    self.forget_if_empty(object);
                }
            }
            HeadToNode::Grant { task, attempt, lease } => self.grant(task, attempt, lease, effects),
            HeadToNode::CallBack(tasks) => {
                for (task, attempt) in tasks {
                    self.call_back(task, attempt, effects);
                }
            }
            HeadToNode::Cancel { task, attempt, reason, force } => {
                self.cancel(task, attempt, &reason, force, effects)
            }
            HeadToNode::EndActor { task, attempt, reason, force } => {
                self.end_actor(task, attempt, reason, force, effects)
            }
            HeadToNode::MoveActor { task, attempt } => self.move_actor(task, attempt, effects),
            HeadToNode::Finished { task, outcome } => {
                self.forget_finished(task, &outcome);
                if let Some(submitter) = self.clients.get_mut(&task.client) {
                    submitter.submitted.remove(&task);
                }
                self.tell_client(task.client, NodeToClient::Finished { task, outcome }, effects);
            }
            HeadToNode::Item { task, index, value } => {
                if self.is_new_item(task, index, effects) {
                    self.tell_client(task.client, NodeToClient::Item { task, index, value }, effects);
                }
            }
            HeadToNode::Taken { task, attempt, items, closed } => {
                self.taken(task, attempt, Taken { items, closed }, effects);
            }
            HeadToNode::Located { object, located } => self.located(object, located, true, false, effects),
            HeadToNode::Free(objects) => {
                for object in objects {
                    if self.states.remove(&object) {
                        effects.push(Effect::DeleteState { object });
                    }
                    self.freed(object, effects);
                }
            }
            HeadToNode::DeleteDurable { writer, objects } => {
                for object in objects {
                    self.delete_durable(object, writer, effects);
                }
            }
            HeadToNode::Copy { object, located, contains } => {
                self.move_in(object, located, contains, effects)
            }
            HeadToNode::Jobs(message) => self.head_says_of_jobs(message, effects),
            HeadToNode::Drained => effects.push(Effect::End),
            // The daemon's edge looks for heads.
            HeadToNode::Heads(_) => {}
            // What it put and never let escape was on its own node only, which knew of its end first (rule R2).
            HeadToNode::ClientGone(_) => {}
            HeadToNode::ActorAt { actor, place } => self.actor_at(actor, place, effects),
            HeadToNode::PeerLost { node, why } => self.peer_lost(node, &why, effects),
            HeadToNode::Confirmed(number) => self.confirmed(number, effects),
            HeadToNode::CancelOwn { task, reason, recursive } => {
                self.tell_client(task.client, NodeToClient::CancelOwn { task, reason, recursive }, effects);
            }
            HeadToNode::Log { client, lines } => self.tell_client(client, NodeToClient::Log(lines), effects),
            HeadToNode::Notice { client, text } => {
                self.tell_client(client, NodeToClient::Notice { text }, effects)
            }
            HeadToNode::RejectClient { client, failure } => {
                self.tell_client(
                    client,
                    NodeToClient::Rejected { reason: failure.message.to_string() },
                    effects,
                );
                effects.push(Effect::CloseClient { client });
            }
            HeadToNode::Reply { client, number, reply } => {
                self.forget_question(client, number);
                self.tell_client(client, NodeToClient::Reply { number, reply }, effects)
            }
        }
    }

    /// A stream to the head is open. On a new one after another, everything of the old is over (FENCE-1): the head is
    /// told anew what clients and objects there are, and sends its attempts anew.
    pub(crate) fn admitted(&mut self, effects: &mut Vec<Effect>) {
        self.connected = true;
        let first = !std::mem::replace(&mut self.was_connected, true);
        if !first {
            self.end_all_attempts(effects);
            self.end_all_jobs(effects);
            self.forget_unused_jobs();
            self.remembered.forget_ends();
            self.introduce_clients(false, effects);
            self.ask_anew(effects);
            self.close_far_routes(effects);
        }
        self.tell_held_back(effects);
        self.next_heartbeat = self.now;
        self.let_speak(effects);
        self.tick(effects);
    }

    pub(crate) fn end_all_attempts(&mut self, effects: &mut Vec<Effect>) {
        self.end_all_actors(effects);
        let mut executors: Vec<u32> =
            self.executors.iter().filter(|(_, known)| known.is_at_work()).map(|(id, _)| *id).collect();
        executors.sort_unstable();
        for executor in executors {
            if let Some(known) = self.executors.get_mut(&executor) {
                known.ending = true;
                known.sent.clear();
                known.ended = None;
            }
            effects.push(Effect::EndExecutor { executor, force: true });
        }
        let tasks: Vec<TaskId> = self.attempts.keys().copied().collect();
        for task in tasks {
            self.forget_attempt(task);
        }
        self.durable.forget_ends();
    }

    /// Of a job that nothing here is of, a head that is new to this node may not say that it ended, for it need not know
    /// it either; it tells of each job anew before it sends anything of it.
    pub(crate) fn forget_unused_jobs(&mut self) {
        let clients = self.clients.values().map(|client| client.job);
        let attempts = self.attempts.values().map(|known| known.spec.job);
        let actors = self.actors.values().map(|actor| actor.spec.job);
        let used: Set<JobId> = clients.chain(attempts).chain(actors).collect();
        self.jobs.retain(|job, _| used.contains(job));
    }

    pub(crate) fn job_ended(&mut self, job: JobId, effects: &mut Vec<Effect>) {
        self.jobs.remove(&job);
        let traits = &self.catalogue.traits;
        let of_job = |executor: &Executor| traits.get(&executor.pool).is_some_and(|traits| traits.job == job);
        let ending: Vec<u32> =
            self.executors.iter().filter(|(_, known)| of_job(known)).map(|(id, _)| *id).collect();
        for executor in ending {
            self.end_executor(executor, effects);
        }
    }
}
