//! Submitted jobs: who submits them, and the programs.

use std::collections::BTreeMap;

use cluster_types::job::{JobOrder, JobSpec, JobStage};
use cluster_types::query::Query;
use cluster_types::{NodeId, Time};
use worker_core::Event;

use crate::world::{Arrival, World};

impl World {
    pub(crate) fn plan_jobs(&mut self) {
        for number in 0..self.plan.jobs {
            let at = Time(self.random.between(1_000, 300_000));
            let (job, retries) = (format!("{:08x}", number + 1), self.random.between(0, 2) as u32);
            if self.random.one_in(4) {
                let later = Time(at.0 + self.random.between(0, 100_000));
                self.at(later, Arrival::StopJob(job.clone()));
            }
            self.at(at, Arrival::SubmitJob { job, retries });
        }
    }

    pub(crate) fn submit_job(&mut self, job: String, retries: u32) -> Result<(), String> {
        if !self.disk.is_up || self.random.one_in(8) {
            // Whoever submits it asks again: nobody was there, or the answer was lost.
            self.after(1_000, 50_000, Arrival::SubmitJob { job: job.clone(), retries });
        }
        let cpus = if self.random.one_in(2) { 1.0 } else { 0.0 };
        let resources = BTreeMap::from([("CPU".to_owned(), cpus)]);
        let spec =
            Box::new(JobSpec { entrypoint: vec!["true".into()], resources, retries, ..JobSpec::default() });
        self.head_step(head_core::Event::Query { number: 0, query: Query::SubmitJob { job, spec } })
    }

    pub(crate) fn stop_job(&mut self, job: String) -> Result<(), String> {
        self.head_step(head_core::Event::Query { number: 0, query: Query::StopJob { job } })
    }

    pub(crate) fn start_job(&mut self, node: NodeId, order: &JobOrder) -> Result<(), String> {
        let (job, attempt) = (order.job.clone(), order.attempt);
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        if host.jobs.insert(job.clone(), attempt).is_some_and(|before| before >= attempt) {
            return Err(format!("TASK-2: node {node} starts job {job}, attempt {attempt}, a second time"));
        }
        let stage = JobStage::Running { started_ms: self.ms() };
        self.after(
            10,
            3_000,
            Arrival::Done { node, event: Event::JobSaid { job: job.clone(), attempt, stage } },
        );
        self.after(4_000, 200_000, Arrival::JobGoesOn { node, job, attempt });
        Ok(())
    }

    /// Its program ends, one way or the other.
    pub(crate) fn job_goes_on(&mut self, node: NodeId, job: String, attempt: u32) -> Result<(), String> {
        let code = i32::from(self.random.one_in(3));
        self.program_ended(node, job, attempt, code)
    }

    fn program_ended(&mut self, node: NodeId, job: String, attempt: u32, code: i32) -> Result<(), String> {
        let ended_ms = self.ms();
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        if host.jobs.get(&job) != Some(&attempt) {
            return Ok(());
        }
        host.jobs.remove(&job);
        let error = if code == 0 { String::new() } else { format!("it ended with exit code {code}") };
        let stage =
            JobStage::Ended { exit_code: Some(code), started_ms: ended_ms, ended_ms, error, hopeless: false };
        self.node_step(node, Event::JobSaid { job, attempt, stage })
    }

    /// A program that is asked to end does, after a while.
    pub(crate) fn end_job(&mut self, node: NodeId, job: &str) {
        let running = self.hosts.get(&node).and_then(|host| host.jobs.get(job)).copied();
        if let Some(attempt) = running {
            self.after(10, 20_000, Arrival::JobGoesOn { node, job: job.to_owned(), attempt });
        }
    }

    fn ms(&self) -> u64 {
        1 + self.now.0 / 1_000
    }

    /// Every job that was submitted has ended, and nothing of one runs on.
    pub(crate) fn check_jobs(&mut self) -> Result<(), String> {
        if self.disk.jobs.len() != self.plan.jobs as usize {
            return Err(format!("of {} jobs {} are known", self.plan.jobs, self.disk.jobs.len()));
        }
        for (node, host) in &self.hosts {
            if !host.jobs.is_empty() {
                return Err(format!("TASK-2: on node {node} there still run {:?}", host.jobs));
            }
        }
        for view in self.disk.jobs.values() {
            let tries = view.attempts.len() as u64;
            if tries > u64::from(view.spec.retries) + 1 {
                return Err(format!("TASK-2: job {} was tried {tries} times", view.job));
            }
        }
        self.report.jobs += self.disk.jobs.len() as u64;
        Ok(())
    }
}
