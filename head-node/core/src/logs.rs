//! Questions about logs: a node has each file, and the head says which.

use cluster_types::job::{JobToNode, JobView, LogOf, LogPiece, LogQuery};
use cluster_types::query::QueryReply;
use cluster_types::{ClientId, HeadToNode, Map, ObjectId, TaskId};

use crate::event::Effect;
use crate::head::Head;
use crate::slab::NodeIx;

/// Who asked for a piece of a log.
#[derive(Debug)]
pub(crate) enum Asker {
    /// The `cluster` command: the edge's number.
    Head(u64),
    /// A client of this node, with its number.
    Client(NodeIx, ClientId, u64),
}

/// Questions about logs that nodes have not answered.
#[derive(Debug, Default)]
pub(crate) struct LogQuestions {
    next: u64,
    open: Map<u64, (NodeIx, Asker)>,
}

impl LogQuestions {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn ask(&mut self, term: u32, node: NodeIx, asker: Asker) -> u64 {
        self.next += 1;
        let ask = (u64::from(term) << 32) | self.next;
        self.open.insert(ask, (node, asker));
        ask
    }

    pub fn take(&mut self, ask: u64, node: NodeIx) -> Option<Asker> {
        if self.open.get(&ask).is_none_or(|(asked, _)| *asked != node) {
            return None;
        }
        self.open.remove(&ask).map(|(_, asker)| asker)
    }

    pub fn of_node(&mut self, node: NodeIx) -> Vec<Asker> {
        let mut asks: Vec<u64> =
            self.open.iter().filter(|(_, (asked, _))| *asked == node).map(|(ask, _)| *ask).collect();
        asks.sort_unstable();
        asks.into_iter().filter_map(|ask| self.open.remove(&ask).map(|(_, asker)| asker)).collect()
    }
}

impl Head {
    /// Answered when the node that has the file has answered.
    pub(crate) fn read_log(&mut self, asker: Asker, mut log: LogQuery) {
        let node = match self.node_with(&mut log) {
            Ok(Some(node)) => node,
            // A job that no node has begun: nothing is printed yet, or ever.
            Ok(None) => {
                let ended = match &log.of {
                    LogOf::Job(job, _) => self.submitted.get(job).is_none_or(|view| view.state.has_ended()),
                    _ => false,
                };
                return self.answer_log(asker, Ok(LogPiece { ended, ..LogPiece::default() }));
            }
            Err(reason) => return self.answer_log(asker, Err(reason)),
        };
        let ask = self.log_questions.ask(self.config.term.0, node, asker);
        self.send(node, HeadToNode::Jobs(JobToNode::ReadLog { ask, log }));
    }

    /// Which node has it; ids are written out for it.
    fn node_with(&self, log: &mut LogQuery) -> Result<Option<NodeIx>, String> {
        match &mut log.of {
            LogOf::Job(text, attempt) => {
                let view = self.submitted.find(text)?;
                *text = view.job.clone();
                let (node, lost) = self.node_with_job(view, attempt)?;
                log.lost = lost;
                Ok(node)
            }
            LogOf::Node(text) => self.node_named(text).map(Some),
            LogOf::Task(text) => {
                let (id, node) = self.task_place(text)?;
                *text = id.to_string();
                Ok(Some(node))
            }
            LogOf::Actor(text) => {
                let (id, node) = self.actor_place_named(text)?;
                *text = id;
                Ok(Some(node))
            }
            LogOf::Executor(pid) => {
                let at = self.nodes.alive();
                match at {
                    [one] => Ok(Some(*one)),
                    _ => Err(format!(
                        "there are {} nodes, each with processes of its own: name the task or the actor instead of \
                         process {pid}",
                        at.len()
                    )),
                }
            }
        }
    }

    /// And whether that one is to look into durable storage.
    fn node_with_job(
        &self,
        view: &JobView,
        attempt: &mut Option<u32>,
    ) -> Result<(Option<NodeIx>, bool), String> {
        let tried = match attempt {
            None => view.attempts.last(),
            Some(wanted) => {
                let found = view.attempts.iter().find(|tried| tried.number == *wanted);
                Some(found.ok_or_else(|| {
                    format!("job {} has no attempt {wanted}: there were {}", view.job, view.attempts.len())
                })?)
            }
        };
        let Some(tried) = tried else { return Ok((None, false)) };
        *attempt = Some(tried.number);
        if let Some(node) = tried.node.parse().ok().and_then(|id| self.nodes.find(id)) {
            return Ok((Some(node), false));
        }
        let other = self.nodes.alive().first().copied();
        other.map(|other| (Some(other), true)).ok_or_else(|| {
            format!(
                "the log of job {}, attempt {}, was on node {}, which is not part of the cluster any more",
                view.job, tried.number, tried.hostname
            )
        })
    }

    /// Where a task ran last.
    fn task_place(&self, text: &str) -> Result<(TaskId, NodeIx), String> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return Err("name a task: its id, or the end of one (see `cluster list tasks`)".to_owned());
        }
        let ends = |id: &TaskId| id.to_string() == text || id.to_string().ends_with(&text);
        let live = self.tasks.iter().filter(|(_, task)| ends(&task.spec.id));
        let mut found: Vec<(TaskId, Option<NodeIx>)> =
            live.map(|(_, task)| (task.spec.id, task.node())).collect();
        for ended in self.tasks.history().iter().filter(|ended| ends(&ended.id)) {
            let name = ended.node.as_deref().unwrap_or_default();
            let node = self.nodes.iter().find(|(_, node)| *node.hostname == *name).map(|(ix, _)| ix);
            found.push((ended.id, node));
        }
        match found.as_slice() {
            [] => Err(format!("no task {text}: it was never submitted here, or it ended long ago")),
            [(id, Some(node))] => Ok((*id, *node)),
            [(id, None)] => Err(format!("task {id} has not run on a node that is alive")),
            more => Err(format!("{} tasks end with {text}: give more of the id", more.len())),
        }
    }

    /// Where an actor lives, or lived. Of several of one name that ended, the last is meant.
    fn actor_place_named(&self, text: &str) -> Result<(String, NodeIx), String> {
        let wanted = text.trim();
        if wanted.is_empty() {
            return Err("name an actor, or give the end of its id (see `cluster list actors`)".to_owned());
        }
        let is_meant = |handle: ObjectId, name: &str| name == wanted || handle.to_string().ends_with(wanted);
        let living = self.actors.iter().filter(|(_, actor)| actor.death.is_none());
        let living = living.filter(|(handle, actor)| is_meant(**handle, &actor.traits().name));
        let mut found: Vec<(ObjectId, Option<&str>)> =
            living.map(|(handle, actor)| (*handle, actor.node.as_deref())).collect();
        if found.is_empty() {
            let mut past = self.actors.past().filter(|past| is_meant(past.handle, &past.name));
            let last = past.next().map(|past| (past.handle, past.name == wanted, past.node.as_deref()));
            if let Some((handle, by_name, node)) = last {
                found.push((handle, node));
                let others = past.filter(|other| !by_name && other.handle != handle);
                found.extend(others.map(|other| (other.handle, other.node.as_deref())));
            }
        }
        let (handle, node) = match found.as_slice() {
            [] => return Err(format!("no actor {wanted} (see `cluster list actors`)")),
            [one] => *one,
            more => {
                return Err(format!("{} actors are meant by {wanted}: give its whole id", more.len()));
            }
        };
        let name = node.ok_or_else(|| format!("actor {handle} has not run on a node yet"))?;
        let node = self.nodes.iter().find(|(_, node)| *node.hostname == *name).map(|(ix, _)| ix);
        let node = node.ok_or_else(|| {
            format!("actor {handle} lived on node {name}, which is not part of the cluster any more")
        })?;
        Ok((handle.to_string(), node))
    }

    pub(crate) fn log_read(&mut self, node: NodeIx, ask: u64, reply: Result<LogPiece, String>) {
        if let Some(asker) = self.log_questions.take(ask, node) {
            self.answer_log(asker, reply);
        }
    }

    pub(crate) fn fail_log_questions(&mut self, node: NodeIx) {
        for asker in self.log_questions.of_node(node) {
            self.answer_log(asker, Err("the node that has this log is lost".to_owned()));
        }
    }

    fn answer_log(&mut self, asker: Asker, reply: Result<LogPiece, String>) {
        let reply = reply.map(QueryReply::Log);
        match asker {
            Asker::Head(number) => self.out.push(Effect::Reply { number, reply }),
            Asker::Client(node, client, number) => {
                self.send(node, HeadToNode::Reply { client, number, reply });
            }
        }
    }
}
