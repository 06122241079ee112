//! Submitted jobs: where each runs, and what is kept of it.
//!
//! A job's record is written down before anybody is told of it (rule H4), so a head that is started again knows all jobs;
//! nodes that live on say which they run. Numbers of attempts count over all terms: what a node says of another attempt
//! changes nothing (TASK-2).

use std::collections::{BTreeMap, VecDeque};

use cluster_types::job::{
    JobAttempt, JobFromNode, JobOrder, JobSpec, JobStage, JobState, JobToNode, JobView,
};
use cluster_types::query::QueryReply;
use cluster_types::{HeadToNode, JobId, Lease, Resources};

use crate::event::{Effect, Record};
use crate::head::Head;
use crate::slab::NodeIx;

/// Ended jobs that are remembered; the oldest are forgotten first.
const ENDED_KEPT: usize = 10_000;

/// All submitted jobs.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    all: BTreeMap<String, JobView>,
    /// What each has of a node, from its order to its end.
    places: BTreeMap<String, Place>,
    /// Those that wait for a node, in the order they came.
    pending: VecDeque<String>,
    /// Of the term before: their nodes have not said that they run them.
    unsure: Vec<String>,
    /// Something changed since a place was looked for.
    look: bool,
}

#[derive(Debug)]
struct Place {
    node: NodeIx,
    request: Resources,
    lease: Lease,
    /// The ledger had room for it: always, except after a head was started again while nodes were too full.
    booked: bool,
}

impl Jobs {
    /// With what the term before wrote down.
    pub fn of(kept: &[JobView]) -> Self {
        let mut jobs = Jobs { look: true, ..Jobs::default() };
        let mut live: Vec<&JobView> = kept.iter().filter(|view| !view.state.has_ended()).collect();
        live.sort_by_key(|view| (view.spec.submitted_ms, view.job.clone()));
        for view in live {
            match view.state {
                JobState::Pending => jobs.pending.push_back(view.job.clone()),
                _ => jobs.unsure.push(view.job.clone()),
            }
        }
        jobs.all = kept.iter().map(|view| (view.job.clone(), view.clone())).collect();
        jobs
    }

    pub fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("submitted jobs", self.all.len()),
            ("places of jobs", self.places.len()),
            ("pending jobs", self.pending.len()),
            ("jobs that no node has spoken of", self.unsure.len()),
        ]
    }

    /// What jobs have of this node, for its ledger's audit.
    pub fn leases_on(&self, node: NodeIx) -> impl Iterator<Item = (&Resources, &Lease, bool)> {
        self.places
            .values()
            .filter(move |place| place.node == node && place.booked)
            .map(|place| (&place.request, &place.lease, false))
    }

    /// Where a job runs at this moment.
    pub fn node_of(&self, job: &str) -> Option<NodeIx> {
        self.places.get(job).map(|place| place.node)
    }

    pub fn get(&self, job: &str) -> Option<&JobView> {
        self.all.get(job)
    }

    /// How many jobs run there.
    pub fn running_on(&self, node: NodeIx) -> usize {
        self.places.values().filter(|place| place.node == node).count()
    }

    /// By id, the beginning of it, or name; of several with one name the last submitted.
    pub fn find(&self, text: &str) -> Result<&JobView, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err(
                "name a job: its id, the beginning of that, or its name (see `cluster jobs`)".to_owned()
            );
        }
        if let Some(view) = self.all.get(text) {
            return Ok(view);
        }
        let named = self.all.values().filter(|view| view.spec.name == text);
        if let Some(view) = named.max_by_key(|view| (!view.state.has_ended(), view.spec.submitted_ms)) {
            return Ok(view);
        }
        let mut found = self.all.values().filter(|view| view.job.starts_with(text));
        match (found.next(), found.count()) {
            (Some(view), 0) => Ok(view),
            (Some(_), more) => Err(format!("{} jobs begin with {text}: give more of the id", more + 1)),
            (None, _) => Err(format!("no job {text} (see `cluster jobs`)")),
        }
    }
}

impl Head {
    pub(crate) fn submit_job(&mut self, job: &str, spec: &JobSpec) -> Result<QueryReply, String> {
        if job.len() != 8 || job.parse::<JobId>().is_err() {
            return Err(format!("{job} is no id of a job: those have eight hexadecimal digits"));
        }
        // Asked again by who did not hear the answer.
        if let Some(known) = self.submitted.all.get(job) {
            return match known.spec.entrypoint == spec.entrypoint && known.spec.name == spec.name {
                true => Ok(QueryReply::Jobs(vec![known.clone()])),
                false => Err(format!("there is another job {job} already: submit again")),
            };
        }
        spec.check()?;
        let taken = self
            .submitted
            .all
            .values()
            .find(|view| !spec.name.is_empty() && view.spec.name == spec.name && !view.state.has_ended());
        if let Some(other) = taken {
            return Err(format!(
                "a job called {} is {} already ({}): choose another name, or stop that one (`cluster stop {}`)",
                spec.name,
                other.state.as_str(),
                other.job,
                other.job
            ));
        }
        let view = JobView { job: job.to_owned(), spec: spec.clone(), ..JobView::default() };
        self.submitted.all.insert(job.to_owned(), view);
        self.submitted.pending.push_back(job.to_owned());
        self.forget_old_jobs();
        self.keep_job(job);
        self.place_job(job);
        Ok(QueryReply::Jobs(self.submitted.all.get(job).cloned().into_iter().collect()))
    }

    pub(crate) fn job_views(&self, limit: usize) -> Vec<JobView> {
        let mut all: Vec<&JobView> = self.submitted.all.values().collect();
        all.sort_by_key(|view| std::cmp::Reverse(view.spec.submitted_ms));
        all.into_iter().take(limit).cloned().collect()
    }

    pub(crate) fn stop_job(&mut self, text: &str) -> Result<QueryReply, String> {
        let job = self.submitted.find(text)?.job.clone();
        let node = self.submitted.node_of(&job);
        let Some(view) = self.submitted.all.get_mut(&job) else { return Err(format!("no job {job}")) };
        if !view.state.has_ended() && !view.stop_asked {
            view.stop_asked = true;
            let attempt = view.attempts.last().map_or(0, |attempt| attempt.number);
            match node {
                Some(node) => {
                    view.state = JobState::Stopping;
                    self.keep_job(&job);
                    self.send(node, HeadToNode::Jobs(JobToNode::Stop { job: job.clone(), attempt }));
                }
                None if view.state == JobState::Pending => {
                    self.submitted.pending.retain(|pending| *pending != job);
                    self.finish_job(&job, JobState::Stopped, "it was stopped before it was started");
                }
                // Its node has not come back to this head yet; it is told when it does.
                None => {
                    view.state = JobState::Stopping;
                    self.keep_job(&job);
                }
            }
        }
        Ok(QueryReply::Jobs(self.submitted.all.get(&job).cloned().into_iter().collect()))
    }

    pub(crate) fn delete_job(&mut self, text: &str) -> Result<QueryReply, String> {
        let view = self.submitted.find(text)?;
        if !view.state.has_ended() {
            return Err(format!(
                "job {} is {}: stop it first (`cluster stop {}`)",
                view.job,
                view.state.as_str(),
                view.job
            ));
        }
        let view = view.clone();
        self.forget_job(&view);
        Ok(QueryReply::Jobs(vec![view]))
    }

    fn forget_job(&mut self, view: &JobView) {
        self.submitted.all.remove(&view.job);
        self.out.push(Effect::Persist(Record::JobGone(view.job.clone())));
        // Of those whose node is gone some other deletes what is in durable storage.
        let mut nodes: Vec<NodeIx> = view
            .attempts
            .iter()
            .filter_map(|attempt| self.nodes.find(attempt.node.parse().ok()?))
            .chain(self.nodes.alive().first().copied())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        if !view.attempts.is_empty() {
            for node in nodes {
                self.send(node, HeadToNode::Jobs(JobToNode::DeleteLogs { job: view.job.clone() }));
            }
        }
    }

    fn forget_old_jobs(&mut self) {
        if self.submitted.all.len() <= ENDED_KEPT {
            return;
        }
        let ended = self.submitted.all.values().filter(|view| view.state.has_ended());
        if let Some(oldest) = ended.min_by_key(|view| view.spec.submitted_ms).cloned() {
            self.forget_job(&oldest);
        }
    }

    /// Rule H4: what depends on this leaves after it is written.
    fn keep_job(&mut self, job: &str) {
        if let Some(view) = self.submitted.all.get(job) {
            self.out.push(Effect::Persist(Record::JobKept(Box::new(view.clone()))));
        }
    }

    /// Resources may have come free.
    pub(crate) fn place_jobs(&mut self) {
        if !self.submitted.unsure.is_empty() {
            self.lose_unsure_jobs();
        }
        let look = std::mem::take(&mut self.submitted.look) || !self.nodes.dirty.is_empty();
        if self.submitted.pending.is_empty() || !look {
            return;
        }
        for job in self.submitted.pending.clone() {
            self.place_job(&job);
        }
    }

    /// Starts a pending job on a node with room, if there is one: that with the fewest jobs, and of those the one with
    /// the most free cores.
    fn place_job(&mut self, job: &str) {
        if self.is_recovering() {
            return;
        }
        let Some(view) = self.submitted.all.get(job) else { return };
        let Ok(request) = view.spec.request() else { return };
        let open = self.nodes.iter().filter(|(_, node)| node.draining.is_none());
        let fits = open.filter(|(_, node)| node.ledger.fits(&request));
        let best = fits.min_by_key(|(ix, node)| {
            (self.submitted.running_on(*ix), std::cmp::Reverse(node.ledger.free_cpu()), *ix)
        });
        let Some((ix, _)) = best else {
            let could = self.nodes.iter().any(|(_, node)| node.ledger.could_ever_fit(&request));
            let message = match (self.nodes.alive().is_empty(), could) {
                (true, _) => "it waits for a node to join".to_owned(),
                (_, false) => format!("no node has {request}; it waits for one that does to join"),
                (_, true) => format!("it waits until {request} are free on a node"),
            };
            if let Some(view) = self.submitted.all.get_mut(job) {
                view.message = message;
            }
            return;
        };
        let Some(lease) = self.nodes.get_mut(ix).and_then(|node| node.ledger.take(&request)) else { return };
        self.submitted.pending.retain(|pending| pending != job);
        let (node, hostname) = self
            .nodes
            .get(ix)
            .map(|node| (node.id.to_string(), node.hostname.to_string()))
            .unwrap_or_default();
        let Some(view) = self.submitted.all.get_mut(job) else { return };
        let number = view.attempts.last().map_or(0, |last| last.number) + 1;
        view.attempts.push(JobAttempt { number, node, hostname, ..JobAttempt::default() });
        view.state = JobState::Preparing;
        view.message = String::new();
        let order = JobOrder {
            job: job.to_owned(),
            attempt: number,
            spec: view.spec.clone(),
            gpus: lease.gpus.iter().map(|share| (share.index, share.amount.0)).collect(),
        };
        self.submitted.places.insert(job.to_owned(), Place { node: ix, request, lease, booked: true });
        self.keep_job(job);
        self.send(ix, HeadToNode::Jobs(JobToNode::Start(Box::new(order))));
    }

    pub(crate) fn hear_of_job(&mut self, ix: NodeIx, said: JobFromNode) {
        match said {
            JobFromNode::Report { order, stage } => self.job_reported(ix, &order, stage),
            JobFromNode::LogRead { ask, reply } => self.log_read(ix, ask, reply),
        }
    }

    fn job_reported(&mut self, ix: NodeIx, order: &JobOrder, stage: JobStage) {
        let (job, attempt) = (order.job.as_str(), order.attempt);
        let known = self.submitted.all.get(job).filter(|view| {
            !view.state.has_ended() && view.attempts.last().is_some_and(|last| last.number == attempt)
        });
        // TASK-2: nobody waits for this attempt any more.
        let Some(view) = known else {
            let (job, ended) = (job.to_owned(), matches!(stage, JobStage::Ended { .. }));
            let message = match ended {
                true => JobToNode::Forget { job, attempt },
                false => JobToNode::Stop { job, attempt },
            };
            return self.send(ix, HeadToNode::Jobs(message));
        };
        if self.submitted.unsure.iter().any(|unsure| unsure == job) {
            self.submitted.unsure.retain(|unsure| unsure != job);
            let stop_asked = view.stop_asked;
            let (request, lease) = (order.spec.request().unwrap_or_default(), order.lease());
            let booked = self.nodes.get_mut(ix).is_some_and(|node| node.ledger.adopt(&request, &lease));
            self.submitted.places.insert(job.to_owned(), Place { node: ix, request, lease, booked });
            if stop_asked {
                self.send(ix, HeadToNode::Jobs(JobToNode::Stop { job: job.to_owned(), attempt }));
            }
        }
        if self.submitted.node_of(job) != Some(ix) {
            return;
        }
        let Some(view) = self.submitted.all.get_mut(job) else { return };
        let Some(last) = view.attempts.last_mut() else { return };
        match stage {
            JobStage::Preparing { what } => view.message = what,
            JobStage::Running { started_ms } => {
                last.started_ms = started_ms;
                view.message = String::new();
                if view.state != JobState::Running && !view.stop_asked {
                    view.state = JobState::Running;
                }
                self.keep_job(job);
            }
            JobStage::Ended { exit_code, started_ms, ended_ms, error, hopeless } => {
                last.exit_code = exit_code;
                last.started_ms = started_ms;
                last.ended_ms = ended_ms;
                last.error = error;
                let job = job.to_owned();
                self.attempt_ended(&job, !hopeless);
                self.send(ix, HeadToNode::Jobs(JobToNode::Forget { job, attempt }));
            }
        }
    }

    /// The last attempt is over, however it ended.
    fn attempt_ended(&mut self, job: &str, may_retry: bool) {
        if let Some(place) = self.submitted.places.remove(job) {
            if place.booked
                && let Some(node) = self.nodes.get_mut(place.node)
            {
                node.ledger.give(&place.request, &place.lease, false);
            }
            self.nodes.mark_dirty(place.node);
        }
        let Some(view) = self.submitted.all.get_mut(job) else { return };
        let Some(last) = view.attempts.last() else { return };
        let error = last.error.clone();
        if view.stop_asked {
            self.finish_job(job, JobState::Stopped, "it was stopped");
        } else if last.exit_code == Some(0) && error.is_empty() {
            self.finish_job(job, JobState::Succeeded, "");
        } else if may_retry && view.attempts.len() as u64 <= u64::from(view.spec.retries) {
            view.state = JobState::Pending;
            view.message = format!("attempt {} failed ({error}); it is tried again", last.number);
            self.submitted.pending.push_back(job.to_owned());
            self.submitted.look = true;
            self.keep_job(job);
        } else {
            self.finish_job(job, JobState::Failed, &error);
        }
    }

    fn finish_job(&mut self, job: &str, state: JobState, message: &str) {
        if let Some(view) = self.submitted.all.get_mut(job) {
            view.state = state;
            view.message = message.to_owned();
            self.keep_job(job);
        }
    }

    /// A node is lost, and every job it ran: each is tried again or has failed.
    pub(crate) fn jobs_lost(&mut self, ix: NodeIx, hostname: &str, why: &str) {
        let here = self.submitted.places.iter().filter(|(_, place)| place.node == ix);
        let lost: Vec<String> = here.map(|(job, _)| job.clone()).collect();
        for job in lost {
            self.job_lost(&job, &format!("node {hostname} is lost: {why}"));
        }
        self.fail_log_questions(ix);
    }

    fn job_lost(&mut self, job: &str, why: &str) {
        if let Some(last) = self.submitted.all.get_mut(job).and_then(|view| view.attempts.last_mut()) {
            last.error = why.to_owned();
        }
        self.attempt_ended(job, true);
    }

    /// Every node of the term before has spoken or is lost: what none of them runs is lost with its node.
    fn lose_unsure_jobs(&mut self) {
        for job in std::mem::take(&mut self.submitted.unsure) {
            let node = self.submitted.all.get(&job).and_then(|view| view.attempts.last());
            let hostname = node.map(|last| last.hostname.clone()).unwrap_or_default();
            let why = format!("node {hostname} did not come back to the head after that was started again");
            self.job_lost(&job, &why);
        }
    }

    /// Every job is where it should be, for tests and the simulation.
    pub(crate) fn audit_jobs(&self) -> Result<(), String> {
        let jobs = &self.submitted;
        for (id, view) in &jobs.all {
            let pending = jobs.pending.iter().filter(|job| *job == id).count();
            let placed = usize::from(jobs.places.contains_key(id));
            let unsure = jobs.unsure.iter().filter(|job| *job == id).count();
            let expected = usize::from(!view.state.has_ended());
            if pending + placed + unsure != expected || (pending == 1) != (view.state == JobState::Pending) {
                return Err(format!("job {id} is {} and in the wrong list", view.state.as_str()));
            }
        }
        for (job, place) in &jobs.places {
            if !self.nodes.is_alive(place.node) || !jobs.all.contains_key(job) {
                return Err(format!("job {job} is on a lost node"));
            }
        }
        Ok(())
    }
}
