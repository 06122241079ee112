//! Worker daemons and the head.

use std::sync::Arc;

use cluster_types::node_head::{ActorPlace, HeadToNode, NodeHello, NodeToHead, Retry};
use cluster_types::query::StoreUsage;
use cluster_types::{Attempt, ClientId, Incarnation, JobId, Located, NodeId, ObjectId, TaskId, Term};

use serde_json::from_slice;

use super::Reading;
use super::common::*;
use super::query::{decode_query, decode_reply, encode_query, encode_reply, json, not_json};
use super::task::{
    finished, finished_to_wire, item, item_index, item_to_wire, outcome, outcome_to_wire, result,
    result_with_refs_to_wire, spec, spec_to_wire, taken_to_wire,
};
use super::template::TemplateWriter;
use crate::error::{Required, check_protocol};
use crate::{WireError, v1};

pub(super) fn hello_to_wire(hello: &NodeHello) -> v1::NodeHello {
    v1::NodeHello {
        protocol: hello.protocol,
        node: hello.node.0,
        hostname: hello.hostname.clone(),
        data_address: hello.data_address.clone(),
        gateway_address: hello.gateway_address.clone(),
        resources: Some((&hello.resources).into()),
        labels: hello.labels.clone(),
        store_capacity: hello.store_capacity,
        previous: hello
            .previous
            .map(|(term, incarnation)| v1::PreviousStream { term: term.0, incarnation: incarnation.0 }),
    }
}

pub(super) fn hello_from_wire(wire: v1::NodeHello) -> Result<NodeHello, WireError> {
    check_protocol("head", "worker daemon", wire.protocol)?;
    Ok(NodeHello {
        protocol: wire.protocol,
        node: NodeId(wire.node),
        hostname: wire.hostname,
        data_address: wire.data_address,
        gateway_address: wire.gateway_address,
        resources: wire.resources.required("NodeHello.resources")?.try_into()?,
        labels: entries("NodeHello.labels", wire.labels)?,
        store_capacity: wire.store_capacity,
        previous: wire.previous.map(|previous| (Term(previous.term), Incarnation(previous.incarnation))),
    })
}

pub(super) fn to_head(message: &NodeToHead, templates: &mut TemplateWriter) -> v1::NodeToHead {
    use v1::node_to_head::Kind;
    let kind = match message {
        NodeToHead::Heartbeat { store, executors } => Kind::Heartbeat(v1::Heartbeat {
            capacity: store.capacity,
            reserved: store.reserved,
            live: store.live,
            spilled: store.spilled,
            executors: *executors,
        }),
        NodeToHead::ClientAttached { client, kind, job, pid } => Kind::ClientAttached(v1::ClientAttached {
            client: client.0,
            kind: Some(kind.into()),
            job: job.0,
            pid: *pid,
        }),
        NodeToHead::ClientGone { client } => Kind::ClientGone(client.0),
        NodeToHead::Submit(spec) => Kind::Submit(spec_to_wire(spec, templates)),
        NodeToHead::Expect(spec) => Kind::Expect(spec_to_wire(spec, templates)),
        NodeToHead::PutFailed { object, failure } => Kind::PutFailed(v1::PutFailed {
            object: Some((*object).into()),
            failure: Some(failure_to_wire(failure)),
        }),
        NodeToHead::SubmitAgain { spec, may_have_run } => Kind::SubmitAgain(v1::SubmitAgain {
            spec: Some(spec_to_wire(spec, templates)),
            may_have_run: may_have_run.is_some(),
            why: may_have_run.as_deref().unwrap_or_default().to_owned(),
        }),
        NodeToHead::Called(calls) => Kind::Called(calls_to_wire(calls)),
        NodeToHead::FindActor(actor) => Kind::FindActor((*actor).into()),
        NodeToHead::Confirm(number) => Kind::Confirm(*number),
        NodeToHead::Promote(on) => Kind::Promote(objects_to_wire(on)),
        NodeToHead::Escaped { object, size, inline, contains } => Kind::Escaped(v1::Escaped {
            object: Some((*object).into()),
            size: *size,
            inline: inline.clone(),
            contains: objects_to_wire(contains),
        }),
        NodeToHead::Hold { client, objects } => Kind::Hold(client_objects_to_wire(*client, objects)),
        NodeToHead::Unanswered { client, objects } => {
            Kind::Unanswered(client_objects_to_wire(*client, objects))
        }
        NodeToHead::Drop { client, objects } => Kind::Drop(client_objects_to_wire(*client, objects)),
        NodeToHead::Done { task, attempt, executor, outcome, retry, started, micros } => {
            Kind::Done(v1::Done {
                client: task.client.0,
                seq: task.seq,
                term: attempt.term,
                n: attempt.n,
                executor: executor.map(|client| client.0),
                outcome: Some(outcome_to_wire(outcome)),
                retry: retry_to_wire(*retry).into(),
                started: started.map(|(task, attempt)| task_attempt_to_wire(task, attempt)),
                micros: *micros,
            })
        }
        NodeToHead::Yielded { task, attempt, index, item } => Kind::Yielded(v1::Yielded {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            index: *index,
            item: Some(result_with_refs_to_wire(item)),
        }),
        NodeToHead::Taken { task, items, closed } => Kind::Taken(taken_to_wire(*task, *items, *closed)),
        NodeToHead::Returned(attempts) => Kind::Returned(attempts_to_wire(attempts)),
        NodeToHead::Blocked { task, attempt, on } => Kind::Blocked(v1::AttemptBlocked {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            on: objects_to_wire(on),
        }),
        NodeToHead::Unblocked { task, attempt } => Kind::Unblocked(task_attempt_to_wire(*task, *attempt)),
        NodeToHead::Cancel { client, what } => {
            Kind::Cancel(v1::ClientCancellation { client: client.0, what: Some(cancellation_to_wire(what)) })
        }
        NodeToHead::Kill { client, actor, restart } => {
            Kind::Kill(v1::ClientKill { client: client.0, actor: Some((*actor).into()), restart: *restart })
        }
        NodeToHead::Locate(object) => Kind::Locate((*object).into()),
        NodeToHead::SourceFailed { object, source } => {
            Kind::SourceFailed(v1::SourceFailed { object: Some((*object).into()), source: source.0 })
        }
        NodeToHead::CopyAdded(object) => Kind::CopyAdded((*object).into()),
        NodeToHead::CopyRemoved(object) => Kind::CopyRemoved((*object).into()),
        NodeToHead::Durable { object, writer } => Kind::Durable(v1::DurableObject {
            object: Some((*object).into()),
            writer: writer.0,
            reason: String::new(),
        }),
        NodeToHead::DurableLost { object, writer, reason } => Kind::DurableLost(v1::DurableObject {
            object: Some((*object).into()),
            writer: writer.0,
            reason: reason.clone(),
        }),
        NodeToHead::Drain { deadline_ms } => Kind::DrainMs(*deadline_ms),
        NodeToHead::Log(lines) => Kind::Log(v1::LogLines { lines: log_lines_to_wire(lines) }),
        NodeToHead::Kept { object, size, inline, contains } => Kind::Kept(v1::Escaped {
            object: Some((*object).into()),
            size: *size,
            inline: inline.clone(),
            contains: objects_to_wire(contains),
        }),
        NodeToHead::Running { spec, attempt, lease, yielded } => Kind::Running(v1::RunningHere {
            spec: Some(spec_to_wire(spec, templates)),
            term: attempt.term,
            n: attempt.n,
            lease: lease.as_ref().map(Into::into),
            yielded: *yielded,
        }),
        NodeToHead::Lives { spec, attempt, lease, handle, info } => Kind::Lives(v1::LivesHere {
            spec: Some(spec_to_wire(spec, templates)),
            term: attempt.term,
            n: attempt.n,
            lease: Some(lease.into()),
            handle: Some(result_with_refs_to_wire(handle)),
            info: Some(info.as_ref().into()),
        }),
        NodeToHead::Ended { spec, attempt, outcome, retry, micros, lived } => Kind::Ended(v1::EndedHere {
            spec: Some(spec_to_wire(spec, templates)),
            term: attempt.term,
            n: attempt.n,
            outcome: Some(outcome_to_wire(outcome)),
            retry: retry_to_wire(*retry).into(),
            micros: *micros,
            lived: *lived,
        }),
        NodeToHead::SnapshotEnd => Kind::SnapshotEnd(v1::SnapshotEnd {}),
        NodeToHead::Made(spec) => Kind::Made(spec_to_wire(spec, templates)),
        NodeToHead::Jobs(what) => Kind::Jobs(json(what)),
        NodeToHead::Told { task, items } => {
            Kind::Told(v1::Told { task: Some((*task).into()), items: *items })
        }
        NodeToHead::Mark { number, heard } => Kind::Mark(v1::Mark { number: *number, heard: *heard }),
        NodeToHead::Query { client, number, query } => Kind::Query(v1::ClientQuery {
            client: client.0,
            number: *number,
            query: Some(encode_query(query)),
        }),
    };
    v1::NodeToHead { kind: Some(kind) }
}

pub(super) fn from_node(wire: v1::NodeToHead, reading: &mut Reading<'_>) -> Result<NodeToHead, WireError> {
    use v1::node_to_head::Kind;
    Ok(match wire.kind.required("NodeToHead.kind")? {
        Kind::Heartbeat(v1::Heartbeat { capacity, reserved, live, spilled, executors }) => {
            NodeToHead::Heartbeat { store: StoreUsage { capacity, reserved, live, spilled }, executors }
        }
        Kind::ClientAttached(wire) => NodeToHead::ClientAttached {
            client: ClientId(wire.client),
            kind: wire.kind.required("ClientAttached.kind")?.try_into()?,
            job: JobId(wire.job),
            pid: wire.pid,
        },
        Kind::ClientGone(client) => NodeToHead::ClientGone { client: ClientId(client) },
        Kind::Submit(wire) => NodeToHead::Submit(spec(reading, wire)?),
        Kind::Expect(wire) => NodeToHead::Expect(spec(reading, wire)?),
        Kind::PutFailed(wire) => NodeToHead::PutFailed {
            object: wire.object.required("PutFailed.object")?.into(),
            failure: failure(reading, wire.failure.required("PutFailed.failure")?)?,
        },
        Kind::SubmitAgain(wire) => NodeToHead::SubmitAgain {
            spec: spec(reading, wire.spec.required("SubmitAgain.spec")?)?,
            may_have_run: wire.may_have_run.then(|| wire.why.into()),
        },
        Kind::Called(wire) => NodeToHead::Called(calls(wire)?),
        Kind::FindActor(actor) => NodeToHead::FindActor(actor.into()),
        Kind::Confirm(number) => NodeToHead::Confirm(number),
        Kind::Promote(on) => NodeToHead::Promote(objects("NodeToHead.promote", &on)?),
        Kind::Escaped(wire) => NodeToHead::Escaped {
            object: wire.object.required("Escaped.object")?.into(),
            size: wire.size,
            inline: wire.inline.map(|bytes| inline(reading, "Escaped.inline", bytes)).transpose()?,
            contains: objects("Escaped.contains", &wire.contains)?,
        },
        Kind::Hold(wire) => {
            let (client, objects) = client_objects(&wire)?;
            NodeToHead::Hold { client, objects }
        }
        Kind::Unanswered(wire) => {
            let (client, objects) = client_objects(&wire)?;
            NodeToHead::Unanswered { client, objects }
        }
        Kind::Drop(wire) => {
            let (client, objects) = client_objects(&wire)?;
            NodeToHead::Drop { client, objects }
        }
        Kind::Done(wire) => done(reading, wire)?,
        Kind::Yielded(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("Yielded.attempt")?)?;
            NodeToHead::Yielded {
                task,
                attempt,
                index: item_index("Yielded.index", wire.index)?,
                item: result(reading, wire.item.required("Yielded.item")?)?,
            }
        }
        Kind::Taken(wire) => NodeToHead::Taken {
            task: task_id("Taken.seq", wire.client, wire.seq)?,
            items: wire.items,
            closed: wire.closed,
        },
        Kind::Kept(wire) => NodeToHead::Kept {
            object: wire.object.required("Kept.object")?.into(),
            size: wire.size,
            inline: wire.inline.map(|bytes| inline(reading, "Kept.inline", bytes)).transpose()?,
            contains: objects("Kept.contains", &wire.contains)?,
        },
        Kind::Running(wire) => NodeToHead::Running {
            spec: Arc::new(spec(reading, wire.spec.required("Running.spec")?)?),
            attempt: Attempt { term: wire.term, n: wire.n },
            lease: wire.lease.map(TryInto::try_into).transpose()?,
            yielded: wire.yielded,
        },
        Kind::Lives(wire) => NodeToHead::Lives {
            spec: Arc::new(spec(reading, wire.spec.required("Lives.spec")?)?),
            attempt: Attempt { term: wire.term, n: wire.n },
            lease: wire.lease.required("Lives.lease")?.try_into()?,
            handle: result(reading, wire.handle.required("Lives.handle")?)?,
            info: job_info("Lives.info", wire.info)?,
        },
        Kind::Ended(wire) => NodeToHead::Ended {
            retry: retry(wire.retry)?,
            spec: Arc::new(spec(reading, wire.spec.required("Ended.spec")?)?),
            attempt: Attempt { term: wire.term, n: wire.n },
            outcome: outcome(reading, wire.outcome.required("Ended.outcome")?)?,
            micros: wire.micros,
            lived: wire.lived,
        },
        Kind::SnapshotEnd(_) => NodeToHead::SnapshotEnd,
        Kind::Made(wire) => NodeToHead::Made(Arc::new(spec(reading, wire)?)),
        Kind::Jobs(json) => {
            NodeToHead::Jobs(from_slice(&json).map_err(|error| not_json("NodeToHead.jobs", &error))?)
        }
        Kind::Told(wire) => {
            NodeToHead::Told { task: wire.task.required("Told.task")?.try_into()?, items: wire.items }
        }
        Kind::Mark(wire) => NodeToHead::Mark { number: wire.number, heard: wire.heard },
        Kind::Returned(wire) => NodeToHead::Returned(attempts(wire)?),
        Kind::Blocked(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("AttemptBlocked.attempt")?)?;
            NodeToHead::Blocked { task, attempt, on: objects("AttemptBlocked.on", &wire.on)? }
        }
        Kind::Unblocked(wire) => {
            let (task, attempt) = task_attempt(wire)?;
            NodeToHead::Unblocked { task, attempt }
        }
        Kind::Cancel(wire) => NodeToHead::Cancel {
            client: ClientId(wire.client),
            what: cancellation(wire.what.required("ClientCancellation.what")?)?,
        },
        Kind::Kill(wire) => NodeToHead::Kill {
            client: ClientId(wire.client),
            actor: wire.actor.required("ClientKill.actor")?.into(),
            restart: wire.restart,
        },
        Kind::Locate(object) => NodeToHead::Locate(object.into()),
        Kind::SourceFailed(wire) => NodeToHead::SourceFailed {
            object: wire.object.required("SourceFailed.object")?.into(),
            source: NodeId(wire.source),
        },
        Kind::CopyAdded(object) => NodeToHead::CopyAdded(object.into()),
        Kind::CopyRemoved(object) => NodeToHead::CopyRemoved(object.into()),
        Kind::Durable(wire) => NodeToHead::Durable {
            object: wire.object.required("DurableObject.object")?.into(),
            writer: NodeId(wire.writer),
        },
        Kind::DurableLost(wire) => NodeToHead::DurableLost {
            object: wire.object.required("DurableObject.object")?.into(),
            writer: NodeId(wire.writer),
            reason: wire.reason,
        },
        Kind::DrainMs(deadline_ms) => NodeToHead::Drain { deadline_ms },
        Kind::Log(wire) => NodeToHead::Log(log_lines(wire.lines)?),
        Kind::Query(wire) => NodeToHead::Query {
            client: ClientId(wire.client),
            number: wire.number,
            query: decode_query(&wire.query.required("ClientQuery.query")?)?,
        },
    })
}

fn done(reading: &Reading<'_>, wire: v1::Done) -> Result<NodeToHead, WireError> {
    Ok(NodeToHead::Done {
        task: task_id("Done.seq", wire.client, wire.seq)?,
        attempt: Attempt { term: wire.term, n: wire.n },
        executor: wire.executor.map(ClientId),
        retry: retry(wire.retry)?,
        outcome: outcome(reading, wire.outcome.required("Done.outcome")?)?,
        started: wire.started.map(task_attempt).transpose()?,
        micros: wire.micros,
    })
}

fn retry_to_wire(retry: Retry) -> v1::Retry {
    match retry {
        Retry::No => v1::Retry::No,
        Retry::Infrastructure => v1::Retry::Infrastructure,
        Retry::Exception => v1::Retry::Exception,
        Retry::NoRoom => v1::Retry::NoRoom,
    }
}

fn retry(wire: i32) -> Result<Retry, WireError> {
    match v1::Retry::try_from(wire) {
        Ok(v1::Retry::No) => Ok(Retry::No),
        Ok(v1::Retry::Infrastructure) => Ok(Retry::Infrastructure),
        Ok(v1::Retry::Exception) => Ok(Retry::Exception),
        Ok(v1::Retry::NoRoom) => Ok(Retry::NoRoom),
        Err(_) => Err(WireError::invalid("Done.retry", format!("is {wire}, which is unknown"))),
    }
}

fn client_objects_to_wire(client: ClientId, objects: &[ObjectId]) -> v1::ClientObjects {
    v1::ClientObjects { client: client.0, objects: objects_to_wire(objects) }
}

fn client_objects(wire: &v1::ClientObjects) -> Result<(ClientId, Vec<ObjectId>), WireError> {
    Ok((ClientId(wire.client), objects("ClientObjects.objects", &wire.objects)?))
}

fn attempts_to_wire(attempts: &[(TaskId, Attempt)]) -> v1::TaskAttempts {
    let attempts = attempts.iter().map(|(task, attempt)| task_attempt_to_wire(*task, *attempt)).collect();
    v1::TaskAttempts { attempts }
}

fn attempts(wire: v1::TaskAttempts) -> Result<Vec<(TaskId, Attempt)>, WireError> {
    wire.attempts.into_iter().map(task_attempt).collect()
}

pub(super) fn to_node(message: &HeadToNode, templates: &mut TemplateWriter) -> v1::HeadToNode {
    use v1::head_to_node::Kind;
    let kind = match message {
        HeadToNode::Admitted { term, incarnation, loss_timeout_ms } => Kind::Admitted(v1::Admitted {
            term: term.0,
            incarnation: incarnation.0,
            loss_timeout_ms: *loss_timeout_ms,
        }),
        HeadToNode::Resumed { term, incarnation, loss_timeout_ms } => Kind::Resumed(v1::Admitted {
            term: term.0,
            incarnation: incarnation.0,
            loss_timeout_ms: *loss_timeout_ms,
        }),
        HeadToNode::Pulse { number, settled } => {
            Kind::Pulse(v1::Pulse { number: *number, settled: *settled })
        }
        HeadToNode::Job { job, info } => {
            Kind::Job(v1::JobDescription { job: job.0, info: Some(info.as_ref().into()) })
        }
        HeadToNode::JobEnded(job) => Kind::JobEnded(job.0),
        HeadToNode::Assign { spec, attempt, lease, located } => Kind::Assign(v1::Assign {
            spec: Some(spec_to_wire(spec, templates)),
            term: attempt.term,
            n: attempt.n,
            lease: lease.as_ref().map(Into::into),
            located: located.iter().map(|(object, at)| object_located_to_wire(*object, at)).collect(),
        }),
        HeadToNode::Grant { task, attempt, lease } => Kind::Grant(v1::Grant {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            lease: Some(lease.into()),
        }),
        HeadToNode::CallBack(attempts) => Kind::CallBack(attempts_to_wire(attempts)),
        HeadToNode::Cancel { task, attempt, reason, force } => Kind::Cancel(v1::CancelAttempt {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            reason: reason.clone(),
            force: *force,
        }),
        HeadToNode::EndActor { task, attempt, reason, force } => Kind::EndActor(v1::CancelAttempt {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            reason: reason.clone(),
            force: *force,
        }),
        HeadToNode::MoveActor { task, attempt } => Kind::MoveActor(task_attempt_to_wire(*task, *attempt)),
        HeadToNode::Finished { task, outcome } => Kind::Finished(v1::TaskFinished {
            client: task.client.0,
            seq: task.seq,
            outcome: Some(finished_to_wire(outcome)),
        }),
        HeadToNode::Item { task, index, value } => Kind::Item(item_to_wire(*task, *index, value)),
        HeadToNode::Taken { task, attempt, items, closed } => Kind::Taken(v1::AttemptTaken {
            attempt: Some(task_attempt_to_wire(*task, *attempt)),
            items: *items,
            closed: *closed,
        }),
        HeadToNode::Located { object, located } => Kind::Located(object_located_to_wire(*object, located)),
        HeadToNode::Free(objects) => Kind::Free(v1::Objects { objects: objects_to_wire(objects) }),
        HeadToNode::DeleteDurable { writer, objects } => {
            Kind::DeleteDurable(v1::DeleteDurable { writer: writer.0, objects: objects_to_wire(objects) })
        }
        HeadToNode::Copy { object, located, contains } => Kind::Copy(v1::CopyHere {
            what: Some(object_located_to_wire(*object, located)),
            contains: objects_to_wire(contains),
        }),
        HeadToNode::Jobs(what) => Kind::Jobs(json(what)),
        HeadToNode::Drained => Kind::Drained(v1::Drained {}),
        HeadToNode::Heads(heads) => Kind::Heads(heads.into()),
        HeadToNode::ClientGone(client) => Kind::ClientGone(client.0),
        HeadToNode::ActorAt { actor, place } => Kind::ActorAt(v1::ActorAt {
            actor: Some((*actor).into()),
            place: place.as_ref().map(|place| v1::ActorPlace {
                node: place.node.0,
                address: place.address.clone(),
                term: place.attempt.term,
                n: place.attempt.n,
                in_order: place.in_order,
                concurrency: place.concurrency,
            }),
        }),
        HeadToNode::PeerLost { node, why } => Kind::PeerLost(v1::PeerLost { node: node.0, why: why.clone() }),
        HeadToNode::Confirmed(number) => Kind::Confirmed(*number),
        HeadToNode::CancelOwn { task, reason, recursive } => {
            Kind::CancelOwn(cancel_own_to_wire(*task, reason, *recursive))
        }
        HeadToNode::Log { client, lines } => {
            Kind::Log(v1::ClientLog { client: client.0, lines: log_lines_to_wire(lines) })
        }
        HeadToNode::Notice { client, text } => {
            Kind::Notice(v1::ClientNotice { client: client.0, text: text.clone() })
        }
        HeadToNode::RejectClient { client, failure } => {
            let failure = Some(failure_to_wire(failure));
            Kind::RejectClient(v1::RejectClient { client: client.0, failure })
        }
        HeadToNode::Reply { client, number, reply } => Kind::Reply(v1::ClientReply {
            client: client.0,
            number: *number,
            reply: Some(encode_reply(reply)),
        }),
    };
    v1::HeadToNode { kind: Some(kind) }
}

pub(super) fn from_head(wire: v1::HeadToNode, reading: &mut Reading<'_>) -> Result<HeadToNode, WireError> {
    use v1::head_to_node::Kind;
    Ok(match wire.kind.required("HeadToNode.kind")? {
        Kind::Admitted(wire) => HeadToNode::Admitted {
            term: Term(wire.term),
            incarnation: Incarnation(wire.incarnation),
            loss_timeout_ms: wire.loss_timeout_ms,
        },
        Kind::Resumed(wire) => HeadToNode::Resumed {
            term: Term(wire.term),
            incarnation: Incarnation(wire.incarnation),
            loss_timeout_ms: wire.loss_timeout_ms,
        },
        Kind::Pulse(wire) => HeadToNode::Pulse { number: wire.number, settled: wire.settled },
        Kind::Job(wire) => {
            HeadToNode::Job { job: JobId(wire.job), info: job_info("JobDescription.info", wire.info)? }
        }
        Kind::JobEnded(job) => HeadToNode::JobEnded(JobId(job)),
        Kind::Assign(wire) => HeadToNode::Assign {
            spec: Arc::new(spec(reading, wire.spec.required("Assign.spec")?)?),
            attempt: Attempt { term: wire.term, n: wire.n },
            lease: wire.lease.map(TryInto::try_into).transpose()?,
            located: wire
                .located
                .into_iter()
                .map(|wire| object_located(reading, wire))
                .collect::<Result<_, _>>()?,
        },
        Kind::Grant(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("Grant.attempt")?)?;
            HeadToNode::Grant { task, attempt, lease: wire.lease.required("Grant.lease")?.try_into()? }
        }
        Kind::CallBack(wire) => HeadToNode::CallBack(attempts(wire)?),
        Kind::Cancel(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("CancelAttempt.attempt")?)?;
            HeadToNode::Cancel { task, attempt, reason: wire.reason, force: wire.force }
        }
        Kind::EndActor(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("CancelAttempt.attempt")?)?;
            HeadToNode::EndActor { task, attempt, reason: wire.reason, force: wire.force }
        }
        Kind::MoveActor(wire) => {
            let (task, attempt) = task_attempt(wire)?;
            HeadToNode::MoveActor { task, attempt }
        }
        Kind::Finished(wire) => HeadToNode::Finished {
            task: task_id("TaskFinished.seq", wire.client, wire.seq)?,
            outcome: finished(reading, wire.outcome.required("TaskFinished.outcome")?)?,
        },
        Kind::Item(wire) => {
            let (task, index, value) = item(reading, wire)?;
            HeadToNode::Item { task, index, value }
        }
        Kind::Taken(wire) => {
            let (task, attempt) = task_attempt(wire.attempt.required("AttemptTaken.attempt")?)?;
            HeadToNode::Taken { task, attempt, items: wire.items, closed: wire.closed }
        }
        Kind::Located(wire) => {
            let (object, located) = object_located(reading, wire)?;
            HeadToNode::Located { object, located }
        }
        Kind::Free(wire) => HeadToNode::Free(objects("Objects.objects", &wire.objects)?),
        Kind::Copy(wire) => {
            let (object, located) = object_located(reading, wire.what.required("Copy.what")?)?;
            HeadToNode::Copy { object, located, contains: objects("Copy.contains", &wire.contains)? }
        }
        Kind::DeleteDurable(wire) => HeadToNode::DeleteDurable {
            writer: NodeId(wire.writer),
            objects: objects("DeleteDurable.objects", &wire.objects)?,
        },
        Kind::Jobs(json) => {
            HeadToNode::Jobs(from_slice(&json).map_err(|error| not_json("HeadToNode.jobs", &error))?)
        }
        Kind::Drained(v1::Drained {}) => HeadToNode::Drained,
        Kind::Heads(wire) => HeadToNode::Heads(wire.into()),
        Kind::ClientGone(client) => HeadToNode::ClientGone(ClientId(client)),
        Kind::ActorAt(wire) => HeadToNode::ActorAt {
            actor: wire.actor.required("ActorAt.actor")?.into(),
            place: wire.place.map(|place| ActorPlace {
                node: NodeId(place.node),
                address: place.address,
                attempt: Attempt { term: place.term, n: place.n },
                in_order: place.in_order,
                concurrency: place.concurrency,
            }),
        },
        Kind::PeerLost(wire) => HeadToNode::PeerLost { node: NodeId(wire.node), why: wire.why },
        Kind::Confirmed(number) => HeadToNode::Confirmed(number),
        Kind::CancelOwn(wire) => {
            let (task, reason, recursive) = cancel_own(wire)?;
            HeadToNode::CancelOwn { task, reason, recursive }
        }
        Kind::Log(wire) => HeadToNode::Log { client: ClientId(wire.client), lines: log_lines(wire.lines)? },
        Kind::Notice(wire) => HeadToNode::Notice { client: ClientId(wire.client), text: wire.text },
        Kind::RejectClient(wire) => HeadToNode::RejectClient {
            client: ClientId(wire.client),
            failure: failure(reading, wire.failure.required("RejectClient.failure")?)?,
        },
        Kind::Reply(wire) => HeadToNode::Reply {
            client: ClientId(wire.client),
            number: wire.number,
            reply: decode_reply(wire.reply.required("ClientReply.reply")?)?,
        },
    })
}

fn object_located_to_wire(object: ObjectId, located: &Located) -> v1::ObjectLocated {
    v1::ObjectLocated { object: Some(object.into()), located: Some(located_to_wire(located)) }
}

fn object_located(reading: &Reading<'_>, wire: v1::ObjectLocated) -> Result<(ObjectId, Located), WireError> {
    let located = located(reading, wire.located.required("ObjectLocated.located")?)?;
    Ok((wire.object.required("ObjectLocated.object")?.into(), located))
}
