//! Executors as the daemon sees them: their pages, their clients, their ends.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_store::slots::{DaemonPage, SLOTS, Tag};
use cluster_types::client_node::{LogLine, NO_SLOT};
use cluster_types::job::{RUNTIME_ENV, RuntimeEnv};
use cluster_types::{ClientId, JobId, JobInfo, Location, Map, NodeToHead};
use worker_core::Event;
use worker_core::event::PROGRAM;

use crate::devices::show_devices;
use crate::event_loop::{Daemon, Handle};
use crate::jobs::Work;
use crate::programs::Program;
use crate::supervisor::{ExecutorEvent, ExecutorOrder, Tail};

/// An executor that has not attached by then never will.
const ATTACH_WITHIN: Duration = Duration::from_secs(60);
/// What an ended executor had written to its socket is read at once; this is for one that left the socket to a child.
const DRAIN_WITHIN: Duration = Duration::from_millis(200);

/// The executors whose processes exist, or are about to.
#[derive(Default)]
pub(crate) struct Executors {
    known: Map<u32, Executor>,
}

struct Executor {
    page: DaemonPage,
    /// What was last offered in each slot.
    offered: [u64; SLOTS],
    job: JobId,
    client: Option<ClientId>,
    /// What it wrote to its stderr, through Python and past it, in the order in which it came here.
    stderr: Tail,
}

impl Executors {
    /// Puts a task into its slot of the executor's page, before the executor is told of it (rule S3).
    pub(crate) fn offer(&mut self, executor: u32, slot: u16, tag: u64) {
        if slot == NO_SLOT {
            return;
        }
        let Some(known) = self.known.get_mut(&executor) else { return };
        let (slot, Some(name)) = (usize::from(slot), Tag::new(tag)) else { return };
        if !known.page.offer(slot, name) {
            // Ours is the only offer, so an executor that has completed what was there left a slot in disorder.
            tracing::error!(executor, slot, tag, "an executor's slot was not free; emptying it");
            known.page.reset(slot);
            known.page.offer(slot, name);
        }
        if let Some(offered) = known.offered.get_mut(slot) {
            *offered = tag;
        }
    }

    /// Takes a task back; true if the executor had not claimed it and never will.
    pub(crate) fn revoke(&self, executor: u32, slot: u16, tag: u64) -> bool {
        match (self.known.get(&executor), Tag::new(tag)) {
            (Some(known), Some(tag)) => known.page.revoke(usize::from(slot), tag),
            // It has ended: what it had not claimed was told with that.
            _ => false,
        }
    }

    pub(crate) fn request_cancel(&self, executor: u32, tag: u64) {
        if let (Some(known), Some(tag)) = (self.known.get(&executor), Tag::new(tag)) {
            known.page.request_cancel(tag);
        }
    }

    /// Whether its code runs on as if nobody had asked.
    pub(crate) fn cancel_is_open(&self, executor: u32, tag: u64) -> bool {
        match (self.known.get(&executor), Tag::new(tag)) {
            (Some(known), Some(tag)) => known.page.cancel_is_open(tag),
            _ => false,
        }
    }

    /// Binds the client to its process.
    pub(crate) fn attach(&mut self, executor: u32, client: ClientId) -> Result<(), String> {
        match self.known.get_mut(&executor) {
            None => Err(format!("this daemon has started no executor {executor}, or it has ended")),
            Some(known) if known.client.is_some() => Err(format!("executor {executor} has attached before")),
            Some(known) => {
                known.client = Some(client);
                Ok(())
            }
        }
    }

    /// A line of its stderr, should it have to explain its end.
    pub(crate) fn wrote(&mut self, executor: u32, line: &str) {
        if let Some(known) = self.known.get_mut(&executor) {
            known.stderr.push(line);
        }
    }

    /// How it ended, with what it wrote last; `told` has only what came past Python.
    fn explain(&self, executor: u32, what: String, told: String) -> String {
        match self.known.get(&executor).filter(|known| !known.stderr.is_empty()) {
            Some(known) => known.stderr.explain(what),
            None => told,
        }
    }

    fn client(&self, executor: u32) -> Option<(ClientId, JobId)> {
        let known = self.known.get(&executor)?;
        Some((known.client?, known.job))
    }

    /// Forgets an ended executor; which tasks it had not claimed.
    fn end(&mut self, executor: u32) -> Vec<u64> {
        let Some(known) = self.known.remove(&executor) else { return Vec::new() };
        let unclaimed = |(slot, tag): (usize, u64)| known.page.revoke(slot, Tag::new(tag)?).then_some(tag);
        known.offered.into_iter().enumerate().filter_map(unclaimed).collect()
    }
}

impl Daemon {
    pub(crate) fn start_executor(
        &mut self,
        executor: u32,
        job: JobId,
        info: &JobInfo,
        env_vars: &BTreeMap<String, String>,
        gpus: &[u16],
        program: Option<Location>,
    ) {
        let page = match DaemonPage::create().and_then(|page| Ok((page.fd().try_clone_to_owned()?, page))) {
            Ok((fd, page)) => {
                let known =
                    Executor { page, offered: [0; SLOTS], job, client: None, stderr: Tail::default() };
                self.executors.known.insert(executor, known);
                fd
            }
            Err(error) => {
                let cause = format!("could not start: no page to share with it: {error}");
                self.push(Event::ExecutorExited { executor, cause, unstarted: Vec::new() });
                return;
            }
        };
        let mut env = info.env_vars.clone();
        env.extend(env_vars.iter().map(|(name, value)| (name.clone(), value.clone())));
        show_devices(&mut env, gpus, &self.machine.gpu_names);
        let named = env.get(PROGRAM).cloned();
        let order = ExecutorOrder {
            executor,
            python: info.python.clone(),
            python_version: info.python_version.clone(),
            env,
            cwd: info.working_dir.clone(),
            sys_path: info.sys_path.clone(),
            page,
            preload: Vec::new(),
            program: None,
        };
        let around = order.env.get(RUNTIME_ENV).cloned();
        match (named, around) {
            (Some(named), _) => self.start_program(&named, program, order),
            (None, None) => self.supervisor.start(order),
            (None, Some(around)) => self.start_in_environment(&around, order),
        }
    }

    /// Starts an executor in an environment of its own, at once if nothing is to be fetched or built for it.
    fn start_in_environment(&mut self, around: &str, mut order: ExecutorOrder) {
        let env: RuntimeEnv = match serde_json::from_str(around) {
            Ok(env) => env,
            Err(error) => {
                let cause = format!("its runtime environment makes no sense: {error}");
                return self.supervisor.refuse(order.executor, cause);
            }
        };
        order.preload.clone_from(&env.preload);
        if !env.is_prepared() && env.executable.is_none() {
            return self.supervisor.start(order);
        }
        match self.jobs.environments.get(&env).filter(|known| known.is_there()) {
            Some(known) => {
                known.adopt(&mut order);
                self.supervisor.start(order);
            }
            None => self.jobs.later(Work::Prepare { env, order: Box::new(order) }),
        }
    }

    /// To the driver of an executor that is not there yet.
    pub(crate) fn say_of_executor(&mut self, executor: u32, text: &str) {
        let Some(known) = self.executors.known.get(&executor) else { return };
        let (job, node, text) = (known.job, self.node_id, format!("runtime environment: {text}"));
        let line = LogLine { job, task: None, pid: 0, node, stderr: true, text };
        self.tell_head(NodeToHead::Log(vec![line]));
    }

    /// Starts a user's own program, once its file is here.
    fn start_program(&mut self, named: &str, program: Option<Location>, order: ExecutorOrder) {
        let bytes = program.and_then(|at| Some((at, self.store.descriptor(at.segment, false)?.1)));
        let directory = self.supervisor.directory().join("programs");
        let (named, supervisor) = (named.to_owned(), self.supervisor.clone());
        tokio::task::spawn_local(async move {
            match Program::parse(&named) {
                Ok(program) => match program.file(directory, bytes).await {
                    Ok(path) => supervisor.start(ExecutorOrder { program: Some(path), ..order }),
                    Err(cause) => supervisor.refuse(order.executor, cause),
                },
                Err(cause) => supervisor.refuse(order.executor, cause),
            }
        });
    }
}

/// What the supervisor reports.
pub(crate) fn on_event(handle: &Handle, event: ExecutorEvent) {
    match event {
        ExecutorEvent::Started { executor, .. } => {
            let handle = handle.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(ATTACH_WITHIN).await;
                let daemon = handle.borrow();
                if daemon.executors.known.get(&executor).is_some_and(|known| known.client.is_none()) {
                    tracing::error!(executor, "an executor did not attach in time; ending it");
                    daemon.supervisor.end(executor, true);
                }
            });
        }
        ExecutorEvent::Printed { executor, pid, stderr, text } => {
            let mut daemon = handle.borrow();
            if stderr {
                daemon.executors.wrote(executor, &text);
            }
            if let Some((client, job)) = daemon.executors.client(executor) {
                daemon.printed(client, job, pid, stderr, text);
                daemon.pump();
            } else {
                tracing::info!(executor, pid, text, "an executor printed before it attached");
            }
        }
        ExecutorEvent::Exited { executor, what, cause } => {
            tokio::task::spawn_local(end(handle.clone(), executor, what, cause));
        }
    }
}

/// Reads what the executor had still said, then tells the core of its end.
async fn end(handle: Handle, executor: u32, what: String, cause: String) {
    let client = handle.borrow().executors.client(executor).map(|(client, _)| client);
    let drained = client.and_then(|client| Some(handle.borrow().clients.get(&client)?.drained.clone()));
    if let Some(mut drained) = drained {
        let _ = tokio::time::timeout(DRAIN_WITHIN, drained.wait_for(|drained| *drained)).await;
    }
    let mut daemon = handle.borrow();
    let cause = daemon.executors.explain(executor, what, cause);
    let unstarted = daemon.executors.end(executor);
    daemon.push(Event::ExecutorExited { executor, cause, unstarted });
    if let Some(client) = client {
        daemon.end_client(client);
    }
    daemon.pump();
}
