//! Answers to questions about the cluster's state.

use std::collections::BTreeMap;

use cluster_types::query::{NodeView, ObjectView, Query, QueryReply, StatusView, TaskView, WhyView};
use cluster_types::{FailureKind, ObjectId, Resources, Set, Span, TaskId};

use crate::head::Head;
use crate::nodes::Node;
use crate::objects::{Object, ObjectValue};
use crate::slab::{NodeIx, TaskIx};
use crate::starving::takes_from_group;
use crate::tasks::{Ended, Task, TaskState};

impl Head {
    /// A question, or a wish.
    pub(crate) fn ask(&mut self, query: &Query) -> Result<QueryReply, String> {
        match query {
            Query::Drain { node, deadline_ms } => {
                let ix = self.node_named(node)?;
                self.drain(ix, Span::millis(*deadline_ms), "somebody asked for it");
                let view = self.nodes.get(ix).map(|node| self.node_view(ix, node));
                Ok(QueryReply::Nodes(view.into_iter().collect()))
            }
            Query::SubmitJob { job, spec } => self.submit_job(job, spec),
            Query::StopJob { job } => self.stop_job(job),
            Query::DeleteJob { job } => self.delete_job(job),
            query => self.answer(query),
        }
    }

    pub(crate) fn answer(&self, query: &Query) -> Result<QueryReply, String> {
        match query {
            Query::Status => Ok(QueryReply::Status(self.status())),
            Query::Nodes => {
                Ok(QueryReply::Nodes(self.nodes.iter().map(|(ix, node)| self.node_view(ix, node)).collect()))
            }
            Query::Tasks { limit } => Ok(QueryReply::Tasks(self.task_views(*limit as usize))),
            Query::Objects { limit } => Ok(QueryReply::Objects(self.object_views(*limit as usize))),
            Query::Actors { limit } => Ok(QueryReply::Actors(self.actor_views(*limit as usize))),
            Query::NamedActor { namespace, name } => {
                Ok(QueryReply::NamedActor(self.named_actor(namespace, name)))
            }
            Query::Groups { limit } => Ok(QueryReply::Groups(self.group_views(*limit as usize))),
            Query::Group { group } => {
                let object: ObjectId = group.trim().parse().map_err(|error| format!("{error}"))?;
                Ok(QueryReply::Group(self.groups.get(object).map(|group| self.group_view(group))))
            }
            Query::NamedGroup { namespace, name } => {
                let found = self.groups.named(namespace, name);
                Ok(QueryReply::Group(found.map(|(_, group)| self.group_view(group))))
            }
            Query::Why { task } => self.why(task).map(QueryReply::Why),
            Query::KeptStates { actor } => self.states_of(actor).map(QueryReply::States),
            Query::Jobs { limit } => Ok(QueryReply::Jobs(self.job_views(*limit as usize))),
            Query::Job { job } => Ok(QueryReply::Jobs(vec![self.submitted.find(job)?.clone()])),
            Query::Drain { .. }
            | Query::KeepState { .. }
            | Query::MoveActor { .. }
            | Query::MakeDurable { .. }
            | Query::SubmitJob { .. }
            | Query::StopJob { .. }
            | Query::DeleteJob { .. }
            | Query::Log(_) => Err("nothing is changed by looking".to_owned()),
        }
    }

    fn status(&self) -> StatusView {
        let mut status = StatusView {
            term: self.config.term.0,
            nodes: self.nodes.alive().len() as u32,
            drivers: self.clients.values().filter(|client| client.is_driver).count() as u32,
            objects: self.objects.len() as u64,
            ..StatusView::default()
        };
        let names = ["waiting", "queued", "prefetched", "running"];
        status.tasks.extend(names.map(|name| (name.to_owned(), 0)));
        for (_, task) in self.tasks.iter() {
            *status.tasks.entry(state_name(task).to_owned()).or_default() += 1;
        }
        status.tasks.insert("finished".to_owned(), self.tasks.finished);
        status.tasks.insert("failed".to_owned(), self.tasks.failed);
        for (_, node) in self.nodes.iter() {
            add(&mut status.total, node.ledger.total());
            add(&mut status.available, &node.ledger.available());
            status.store.capacity += node.store.capacity;
            status.store.reserved += node.store.reserved;
            status.store.live += node.store.live;
            status.store.spilled += node.store.spilled;
        }
        for name in status.total.keys() {
            status.available.entry(name.clone()).or_insert(0.0);
        }
        status
    }

    /// Newest first.
    fn task_views(&self, limit: usize) -> Vec<TaskView> {
        let mut live: Vec<&Task> = self.tasks.iter().map(|(_, task)| task).collect();
        let key = |task: &&Task| std::cmp::Reverse((task.submitted, task.stamp));
        if live.len() > limit && limit > 0 {
            live.select_nth_unstable_by_key(limit - 1, key);
            live.truncate(limit);
        }
        live.sort_unstable_by_key(key);
        let mut views: Vec<_> = live.into_iter().map(|task| (task.submitted, self.task_view(task))).collect();
        // What was resubmitted to the next head may be in both, and twice in the history.
        let mut seen: Set<TaskId> = Set::default();
        let ended = self.tasks.history().iter().rev();
        let ended =
            ended.filter(|ended| seen.insert(ended.id) && self.tasks.find(ended.id).is_none()).take(limit);
        views.extend(ended.map(|ended| (ended.submitted, self.ended_view(ended))));
        views.sort_by_key(|(submitted, _)| std::cmp::Reverse(*submitted));
        views.truncate(limit);
        views.into_iter().map(|(_, view)| view).collect()
    }

    fn task_view(&self, task: &Task) -> TaskView {
        TaskView {
            task: task.spec.id.to_string(),
            name: task.spec.template.name.to_string(),
            job: task.spec.job.to_string(),
            state: state_name(task).to_owned(),
            attempt: task.attempt,
            node: task.node().map(|node| self.nodes.name(node).to_string()).unwrap_or_default(),
            age_ms: self.now.since(task.submitted).0 / 1000,
            ran_ms: 0.0,
            error: String::new(),
        }
    }

    fn ended_view(&self, ended: &Ended) -> TaskView {
        TaskView {
            task: ended.id.to_string(),
            name: ended.name.to_string(),
            job: ended.job.to_string(),
            state: if ended.error.is_some() { "failed" } else { "finished" }.to_owned(),
            attempt: ended.attempt,
            node: ended.node.as_deref().unwrap_or_default().to_owned(),
            age_ms: self.now.since(ended.submitted).0 / 1000,
            ran_ms: ended.micros as f64 / 1000.0,
            error: ended.error.as_deref().unwrap_or_default().to_owned(),
        }
    }

    /// Largest first.
    /// Functions are left out: they are objects too (rule R6), but nobody made them as such.
    fn object_views(&self, limit: usize) -> Vec<ObjectView> {
        let mut all: Vec<&Object> =
            self.objects.iter().map(|(_, object)| object).filter(|object| !object.function).collect();
        let key = |object: &&Object| (std::cmp::Reverse(size_of(object)), object.id);
        if all.len() > limit && limit > 0 {
            all.select_nth_unstable_by_key(limit - 1, key);
        }
        all.truncate(limit);
        all.sort_unstable_by_key(key);
        all.into_iter().map(|object| self.object_view(object)).collect()
    }

    fn object_view(&self, object: &Object) -> ObjectView {
        let nodes: Vec<String> = object
            .copies()
            .filter(|node| self.nodes.is_alive(*node))
            .map(|node| self.nodes.name(node).to_string())
            .collect();
        let foreign = object.more().map_or(0, |more| more.holders.len());
        ObjectView {
            object: object.id.to_string(),
            size: size_of(object),
            state: self.object_state(object).to_owned(),
            nodes,
            clients: (usize::from(object.own) + foreign) as u32,
            tasks: object.tasks,
            containers: object.containers,
        }
    }

    fn object_state(&self, object: &Object) -> &'static str {
        match &object.value {
            ObjectValue::Unknown | ObjectValue::Pending(_) => "pending",
            ObjectValue::Available { inline: Some(_), .. } => "inline",
            ObjectValue::Available { .. } if object.copies().any(|node| self.nodes.is_alive(node)) => {
                "stored"
            }
            ObjectValue::Available { .. } => "lost",
            ObjectValue::Failed(failure) if failure.kind == FailureKind::ObjectLost => "lost",
            ObjectValue::Failed(_) => "failed",
        }
    }

    fn why(&self, text: &str) -> Result<WhyView, String> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return Err("name a task: its id, or the end of one (see `cluster list tasks`)".to_owned());
        }
        let exact = text.parse::<TaskId>().ok();
        if let Some(ix) = exact.and_then(|id| self.tasks.find(id)) {
            return self.why_live(ix).ok_or_else(|| format!("no task {text}"));
        }
        let mut live = Vec::new();
        let mut ended = Vec::new();
        for (ix, task) in self.tasks.iter() {
            if Some(task.spec.id) == exact || exact.is_none() && task.spec.id.to_string().ends_with(&text) {
                live.push(ix);
            }
        }
        for task in self.tasks.history() {
            if Some(task.id) == exact || exact.is_none() && task.id.to_string().ends_with(&text) {
                ended.push(task);
            }
        }
        match (live.as_slice(), ended.as_slice()) {
            ([one], []) => self.why_live(*one).ok_or_else(|| format!("no task {text}")),
            ([], [one]) => Ok(self.why_ended(one)),
            ([], []) if !may_be_task_id(&text) => Err(format!(
                "{text} is no task id, nor the end of one: those are like 1f0c9a63d2b84e75.42 (see `cluster list tasks`)"
            )),
            ([], []) => Err(format!(
                "no task {text}: it was never submitted here, or it ended long ago (see `cluster list tasks`)"
            )),
            (live, ended) => {
                Err(format!("{} tasks end with {text}: give more of the id", live.len() + ended.len()))
            }
        }
    }

    fn why_ended(&self, ended: &Ended) -> WhyView {
        let reason = match &ended.error {
            Some(error) => format!("it failed at attempt {}: {error}", ended.attempt),
            None => format!(
                "it finished on node {} after {:.1} ms",
                ended.node.as_deref().unwrap_or_default(),
                ended.micros as f64 / 1000.0
            ),
        };
        WhyView { task: self.ended_view(ended), reason, nodes: Vec::new() }
    }

    fn why_live(&self, ix: TaskIx) -> Option<WhyView> {
        let task = self.tasks.get(ix)?;
        let mut nodes = Vec::new();
        let reason = match &task.state {
            TaskState::Waiting { .. } => self.why_waiting(task),
            TaskState::Leased { .. } | TaskState::HandedOut { .. } if self.why_ahead(task).is_some() => {
                self.why_ahead(task)?
            }
            TaskState::Queued { .. } => {
                let resources = &task.spec.template.resources;
                nodes = self.nodes.iter().map(|(_, node)| self.what_node_lacks(node, task)).collect();
                let shape = self.shapes.get(task.shape)?;
                if let Some(place) = shape.strategy.group() {
                    nodes.clear();
                    self.why_in_group(place, task.shape)
                } else if self.nodes.alive().is_empty() {
                    "no node has joined the cluster yet".to_owned()
                } else if !self.is_feasible(task) {
                    format!("it needs {}; it waits for a node to join", self.lacking_for(task))
                } else {
                    let before = shape.queued().saturating_sub(1);
                    format!(
                        "it waits until {resources} are free on a node; {before} others of its kind are queued"
                    )
                }
            }
            TaskState::Prefetched { node, called_back, .. } => {
                let name = self.nodes.name(*node);
                if *called_back {
                    format!("node {name} was asked to give it back, and has not answered yet")
                } else {
                    format!("it was sent ahead to node {name} and starts there when one of its kind ends")
                }
            }
            TaskState::Leased { node, blocked: true, .. } => {
                format!(
                    "it runs on node {}, and waits there in get() for other tasks",
                    self.nodes.name(*node)
                )
            }
            TaskState::Delayed { until } => format!(
                "it raised, and is tried again in {:.1} s: retry {} of {}",
                until.since(self.now).0 as f64 / 1e6,
                task.retries,
                task.spec.template.max_retries
            ),
            TaskState::Reserving => match self.groups.get(task.spec.id.result(0)) {
                Some(group) => self.why_group_waits(group),
                None => "it waits for resources".to_owned(),
            },
            TaskState::AtActor => {
                "it waits until its actor is there and has ended the calls before it".to_owned()
            }
            TaskState::Direct => {
                "it went straight to its actor on the node of its caller, and has not been answered"
                    .to_owned()
            }
            TaskState::Alive { node, since, .. } => format!(
                "the actor it made lives on node {} since {:.1} s",
                self.nodes.name(*node),
                self.now.since(*since).0 as f64 / 1e6
            ),
            TaskState::Leased { node, since, .. } | TaskState::HandedOut { node, since } => format!(
                "it was given to node {} {:.1} s ago and has not ended",
                self.nodes.name(*node),
                self.now.since(*since).0 as f64 / 1e6
            ),
        };
        Some(WhyView { task: self.task_view(task), reason, nodes })
    }

    fn why_waiting(&self, task: &Task) -> String {
        let group = task.spec.template.strategy.group().map(|place| place.group);
        if let Some(waits) = group.and_then(|group| self.groups.get(group)).filter(|group| !group.is_whole())
        {
            return format!("it waits for {}: {}", waits.title(), self.why_group_waits(waits));
        }
        let mut missing = task.spec.needed().chain(group).filter_map(|id| self.why_argument_is_missing(id));
        let Some(first) = missing.next() else { return "its arguments are just becoming ready".to_owned() };
        match missing.count() {
            0 => format!("it waits for its argument {first}"),
            more => format!("it waits for its argument {first}, and {more} more"),
        }
    }

    fn why_argument_is_missing(&self, id: ObjectId) -> Option<String> {
        match &self.objects.by_id(id)?.value {
            ObjectValue::Unknown => Some(format!("{id}, of which its maker {} has not told yet", id.client)),
            ObjectValue::Pending(maker) => {
                let maker = self.tasks.get(*maker)?;
                let node = maker.node().map(|node| format!(" on node {}", self.nodes.name(node)));
                Some(format!(
                    "{id}, the result of task {}, which is {}{}",
                    maker.spec.template.name,
                    state_name(maker),
                    node.unwrap_or_default()
                ))
            }
            _ => None,
        }
    }

    fn what_node_lacks(&self, node: &Node, task: &Task) -> String {
        let resources = &task.spec.template.resources;
        let name = &node.hostname;
        if self.shapes.get(task.shape).is_some_and(|shape| !shape.labels_match(node)) {
            return format!("{name}: its labels do not match");
        }
        let never = resources.missing_from(node.ledger.total());
        if !never.is_empty() {
            let lacks: Vec<_> = never
                .iter()
                .map(|(what, asked, has)| format!("{asked} {what} asked, {has} in all"))
                .collect();
            return format!("{name}: {}", lacks.join(", "));
        }
        let now = resources.missing_from(&node.ledger.available());
        if !now.is_empty() {
            let lacks: Vec<_> =
                now.iter().map(|(what, asked, has)| format!("{asked} {what} asked, {has} free")).collect();
            return format!("{name}: {}", lacks.join(", "));
        }
        if !node.ledger.over().is_zero() {
            return format!("{name}: {} CPU booked twice while tasks resume", node.ledger.over());
        }
        let resources = &task.spec.template.resources;
        if let Some((group, _)) = &node.kept_for
            && takes_from_group(node, resources, None)
        {
            return format!("{name}: kept free for placement group {group}, which waited long");
        }
        match node
            .reserved
            .filter(|reserved| *reserved != task.shape)
            .and_then(|shape| self.shapes.get(shape))
        {
            Some(shape) => format!("{name}: kept free for tasks that need {}", shape.resources),
            None if node.blocked > 0 => format!("{name}: enough executors wait in get() there already"),
            None => format!("{name}: has room"),
        }
    }
}

fn state_name(task: &Task) -> &'static str {
    match task.state {
        TaskState::Waiting { .. } => "waiting",
        TaskState::Queued { .. } | TaskState::Delayed { .. } => "queued",
        TaskState::Prefetched { .. } => "prefetched",
        TaskState::Leased { .. } | TaskState::HandedOut { .. } | TaskState::Direct => "running",
        TaskState::AtActor | TaskState::Reserving => "queued",
        TaskState::Alive { .. } => "alive",
    }
}

fn size_of(object: &Object) -> u64 {
    match &object.value {
        ObjectValue::Available { size, .. } => *size,
        _ => 0,
    }
}

fn add(sums: &mut BTreeMap<String, f64>, resources: &Resources) {
    for (name, amount) in resources.iter() {
        // Memory is told in bytes, as it was given.
        *sums.entry(name.to_owned()).or_default() += amount.as_f64();
    }
}

pub(crate) fn by_name(resources: &Resources) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    add(&mut sums, resources);
    sums
}

impl Head {
    fn node_view(&self, ix: NodeIx, node: &Node) -> NodeView {
        let total = by_name(node.ledger.total());
        let mut available = by_name(&node.ledger.available());
        for name in total.keys() {
            available.entry(name.clone()).or_insert(0.0);
        }
        NodeView {
            node: node.id.to_string(),
            hostname: node.hostname.to_string(),
            address: node.data_address.clone(),
            alive: true,
            total,
            available,
            labels: node.labels.clone(),
            running: node.running,
            prefetched: node.prefetched,
            executors: node.executors,
            store: node.store,
            draining: node.draining.as_ref().map(|draining| self.drain_view(ix, draining)),
        }
    }
}

/// Whether a task's id could end so.
fn may_be_task_id(text: &str) -> bool {
    let (client, seq) = text.rsplit_once('.').unwrap_or(("", text));
    let is_hex = |c: char| c.is_ascii_hexdigit();
    client.len() <= 16
        && client.chars().all(is_hex)
        && !seq.is_empty()
        && seq.chars().all(|c| c.is_ascii_digit())
}
