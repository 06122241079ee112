//! Submitted jobs that run here, and questions about logs.
//!
//! The edge runs the program; here is what the head may ask about again (rule H2): each job from its order until the head
//! has written down its end.

use std::collections::BTreeMap;

use cluster_types::NodeToHead;
use cluster_types::job::{JobFromNode, JobOrder, JobStage, JobToNode, LogOf, LogQuery};

use crate::event::Effect;
use crate::node::Node;

/// A job of this node.
#[derive(Debug)]
pub(crate) struct JobHere {
    order: Box<JobOrder>,
    /// `None`: the edge has not said anything yet.
    stage: Option<JobStage>,
}

/// The jobs of this node, by id.
pub(crate) type JobsHere = BTreeMap<String, JobHere>;

impl JobHere {
    fn has_ended(&self) -> bool {
        matches!(self.stage, Some(JobStage::Ended { .. }))
    }

    fn report(&self) -> Effect {
        let stage = self.stage.clone().unwrap_or(JobStage::Preparing { what: String::new() });
        Effect::ToHead(NodeToHead::Jobs(JobFromNode::Report { order: self.order.clone(), stage }))
    }
}

impl Node {
    pub(crate) fn head_says_of_jobs(&mut self, message: JobToNode, effects: &mut Vec<Effect>) {
        match message {
            JobToNode::Start(order) => self.start_job(order, effects),
            JobToNode::Stop { job, attempt } => {
                // TASK-2: only the attempt that is here.
                let here = self.submitted.get(&job);
                if here.is_some_and(|here| here.order.attempt == attempt && !here.has_ended()) {
                    effects.push(Effect::StopJob { job, at_once: false });
                }
            }
            JobToNode::Forget { job, attempt } => {
                let here = self.submitted.get(&job);
                if here.is_some_and(|here| here.order.attempt == attempt && here.has_ended()) {
                    self.submitted.remove(&job);
                }
            }
            JobToNode::DeleteLogs { job } => effects.push(Effect::DeleteJobLogs { job }),
            JobToNode::ReadLog { ask, log } => self.read_log(ask, log, effects),
        }
    }

    fn start_job(&mut self, order: Box<JobOrder>, effects: &mut Vec<Effect>) {
        if let Some(here) = self.submitted.get(&order.job) {
            if here.order.attempt >= order.attempt {
                return effects.push(here.report());
            }
            if !here.has_ended() {
                effects.push(Effect::StopJob { job: order.job.clone(), at_once: true });
            }
        }
        effects.push(Effect::StartJob { order: order.clone() });
        self.submitted.insert(order.job.clone(), JobHere { order, stage: None });
    }

    pub(crate) fn job_said(&mut self, job: &str, attempt: u32, stage: JobStage, effects: &mut Vec<Effect>) {
        let Some(here) = self.submitted.get_mut(job) else { return };
        if here.order.attempt != attempt || here.has_ended() {
            return;
        }
        here.stage = Some(stage);
        if self.connected {
            effects.push(here.report());
        }
    }

    /// In a snapshot (rule H2).
    pub(crate) fn introduce_jobs(&self, effects: &mut Vec<Effect>) {
        effects.extend(self.submitted.values().map(JobHere::report));
    }

    /// To this head they are lost.
    pub(crate) fn end_all_jobs(&mut self, effects: &mut Vec<Effect>) {
        for (job, here) in std::mem::take(&mut self.submitted) {
            if !here.has_ended() {
                effects.push(Effect::StopJob { job, at_once: true });
            }
        }
    }

    fn read_log(&mut self, ask: u64, mut log: LogQuery, effects: &mut Vec<Effect>) {
        if let LogOf::Actor(id) = &log.of {
            let made = self.past_actors.iter().rev().find(|(handle, _)| handle.to_string() == *id);
            match made {
                Some((_, pid)) => log.of = LogOf::Executor(*pid),
                None => {
                    let reply = Err(format!(
                        "where the log of actor {id} lies is not known any more: look for it by the process's number \
                         (`cluster logs --executor PID`)"
                    ));
                    let said = JobFromNode::LogRead { ask, reply };
                    return effects.push(Effect::ToHead(NodeToHead::Jobs(said)));
                }
            }
        }
        let ended = match &log.of {
            LogOf::Job(job, attempt) => self.submitted.get(job).is_none_or(|here| {
                here.has_ended() || attempt.is_some_and(|tried| tried != here.order.attempt)
            }),
            LogOf::Executor(pid) => !self.executors.values().any(|executor| executor.pid == *pid),
            _ => false,
        };
        effects.push(Effect::ReadLog { ask, log, ended });
    }
}
