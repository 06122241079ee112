//! Clients and their daemon.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::{
    ClientHello, ClientToNode, Completion, ExecutorFailure, ExecutorResult, NodeToClient, PutValue, RunTask,
    Welcome, YieldedItem,
};
use cluster_types::{Attempt, ClientId, JobId, Location, NodeId, ObjectId, PART, SegmentId, Value};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::Reading;
use super::common::*;
use super::query::{decode_query, decode_reply, encode_query, encode_reply};
use super::task::{
    finished, finished_to_wire, item, item_index, item_to_wire, spec, spec_to_wire, taken_to_wire,
};
use super::template::TemplateWriter;
use crate::error::{Required, check_protocol};
use crate::{WireError, v1};

pub(super) fn hello_to_wire(hello: &ClientHello) -> v1::ClientHello {
    v1::ClientHello {
        protocol: hello.protocol,
        token: hello.token.clone(),
        client: hello.client.0,
        pid: hello.pid,
        kind: Some((&hello.kind).into()),
        shares_memory: hello.shares_memory,
    }
}

pub(super) fn hello_from_wire(wire: v1::ClientHello) -> Result<ClientHello, WireError> {
    // First: whatever else another version's hello holds, this is the sentence its user needs.
    check_protocol("daemon", "client", wire.protocol)?;
    Ok(ClientHello {
        protocol: wire.protocol,
        token: wire.token,
        client: ClientId(wire.client),
        pid: wire.pid,
        kind: wire.kind.required("ClientHello.kind")?.try_into()?,
        shares_memory: wire.shares_memory,
    })
}

/// The same bytes as [`to_node`] and prost make of it, with one copy less.
pub(super) fn encode_write(segment: SegmentId, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
    const MESSAGES: u32 = 1;
    const WRITE: u32 = 42;
    const BYTES: u32 = 3;
    let of_len = |len: usize| len + encoded_len_varint(len as u64);
    let place = v1::Write { segment: segment.0, offset, bytes: Bytes::new() };
    let bytes_len = if bytes.is_empty() { 0 } else { key_len(BYTES) + of_len(bytes.len()) };
    let write_len = place.encoded_len() + bytes_len;
    let message_len = key_len(WRITE) + of_len(write_len);
    out.reserve(key_len(MESSAGES) + of_len(message_len));
    for (key, len) in [(MESSAGES, message_len), (WRITE, write_len)] {
        encode_key(key, WireType::LengthDelimited, out);
        encode_varint(len as u64, out);
    }
    place.encode_raw(out);
    if !bytes.is_empty() {
        encode_key(BYTES, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }
}

pub(super) fn to_node(message: &ClientToNode, templates: &mut TemplateWriter) -> v1::ClientToNode {
    use v1::client_to_node::Kind;
    let list = |ids: &[_]| v1::Objects { objects: objects_to_wire(ids) };
    let kind = match message {
        ClientToNode::Submit(spec) => Kind::Submit(spec_to_wire(spec, templates)),
        ClientToNode::Put { object, value, contains } => Kind::Put(v1::Put {
            object: Some((*object).into()),
            value: Some(put_value_to_wire(value)),
            contains: objects_to_wire(contains),
        }),
        ClientToNode::Escape(ids) => Kind::Escape(list(ids)),
        ClientToNode::Hold(ids) => Kind::Hold(list(ids)),
        ClientToNode::Drop(ids) => Kind::Drop(list(ids)),
        ClientToNode::Get(ids) => Kind::Get(list(ids)),
        ClientToNode::Release(ids) => Kind::Release(list(ids)),
        ClientToNode::RequestMemory { bytes } => Kind::RequestMemory(*bytes),
        ClientToNode::Write { segment, offset, bytes } => {
            Kind::Write(v1::Write { segment: segment.0, offset: *offset, bytes: bytes.clone() })
        }
        ClientToNode::ReturnMemory(segments) => {
            Kind::ReturnMemory(v1::Segments { segments: segments.iter().map(|segment| segment.0).collect() })
        }
        ClientToNode::Evicted { object, freed } => {
            Kind::Evicted(v1::Evicted { object: Some((*object).into()), freed: *freed })
        }
        ClientToNode::Blocked { tag, on } => {
            Kind::Blocked(v1::TaskBlocked { tag: *tag, on: objects_to_wire(on) })
        }
        ClientToNode::Unblocked { tag } => Kind::Unblocked(*tag),
        ClientToNode::Completed(completion) => Kind::Completed(completion_to_wire(completion)),
        ClientToNode::Yielded(yielded) => Kind::Yielded(v1::YieldedItem {
            tag: yielded.tag,
            index: yielded.index,
            item: Some(executor_result_to_wire(&yielded.item)),
        }),
        ClientToNode::Taken { task, items, closed } => Kind::Taken(taken_to_wire(*task, *items, *closed)),
        ClientToNode::Log(line) => Kind::Log(log_line_to_wire(line)),
        ClientToNode::Query { number, query } => {
            Kind::Query(v1::NumberedQuery { number: *number, query: Some(encode_query(query)) })
        }
        ClientToNode::Cancel(what) => Kind::Cancel(cancellation_to_wire(what)),
        ClientToNode::Kill { actor, restart } => {
            Kind::Kill(v1::KillActor { actor: Some((*actor).into()), restart: *restart })
        }
        ClientToNode::OpenCalls(actor) => Kind::OpenCalls((*actor).into()),
        ClientToNode::Expect(spec) => Kind::Expect(spec_to_wire(spec, templates)),
        ClientToNode::PutFailed { object, failure } => Kind::PutFailed(v1::PutFailed {
            object: Some((*object).into()),
            failure: Some(failure_to_wire(failure)),
        }),
        ClientToNode::SubmitAgain { spec, may_have_run } => Kind::SubmitAgain(v1::SubmitAgain {
            spec: Some(spec_to_wire(spec, templates)),
            may_have_run: may_have_run.is_some(),
            why: may_have_run.as_deref().unwrap_or_default().to_owned(),
        }),
        ClientToNode::CancelCall { actor, task, reason, recursive } => Kind::CancelCall(v1::CancelCall {
            actor: Some((*actor).into()),
            client: task.client.0,
            seq: task.seq,
            reason: reason.clone(),
            recursive: *recursive,
        }),
        ClientToNode::Answered { task, result } => Kind::Answered(v1::Answered {
            client: task.client.0,
            seq: task.seq,
            result: Some(match result {
                Ok(results) => v1::answered::Result::Ok(results_to_wire(results)),
                Err(failure) => v1::answered::Result::Failed(failure_to_wire(failure)),
            }),
        }),
        ClientToNode::CallFar(spec) => Kind::CallFar(spec_to_wire(spec, templates)),
        ClientToNode::AnswerFar { task, outcome } => Kind::AnswerFar(v1::Finished {
            client: task.client.0,
            seq: task.seq,
            outcome: Some(finished_to_wire(outcome)),
        }),
        ClientToNode::Called(calls) => Kind::Called(calls_to_wire(calls)),
        ClientToNode::Left { reason } => Kind::Left(reason.clone()),
        ClientToNode::Goodbye => Kind::Goodbye(v1::Nothing {}),
    };
    v1::ClientToNode { kind: Some(kind) }
}

pub(super) fn from_client(
    wire: v1::ClientToNode,
    reading: &mut Reading<'_>,
) -> Result<ClientToNode, WireError> {
    use v1::client_to_node::Kind;
    let list = |wire: v1::Objects| objects::<Vec<_>>("Objects.objects", &wire.objects);
    Ok(match wire.kind.required("ClientToNode.kind")? {
        Kind::Submit(wire) => ClientToNode::Submit(spec(reading, wire)?),
        Kind::Put(put) => ClientToNode::Put {
            object: put.object.required("Put.object")?.into(),
            value: put_value(reading, put.value.required("Put.value")?)?,
            contains: objects("Put.contains", &put.contains)?,
        },
        Kind::Escape(wire) => ClientToNode::Escape(list(wire)?),
        Kind::Hold(wire) => ClientToNode::Hold(list(wire)?),
        Kind::Drop(wire) => ClientToNode::Drop(list(wire)?),
        Kind::Get(wire) => ClientToNode::Get(list(wire)?),
        Kind::Release(wire) => ClientToNode::Release(list(wire)?),
        Kind::RequestMemory(bytes) => ClientToNode::RequestMemory { bytes },
        Kind::Write(wire) => ClientToNode::Write {
            segment: SegmentId(wire.segment),
            offset: wire.offset,
            bytes: part("Write.bytes", wire.bytes)?,
        },
        Kind::ReturnMemory(wire) => {
            ClientToNode::ReturnMemory(wire.segments.into_iter().map(SegmentId).collect())
        }
        Kind::Evicted(wire) => {
            let object = wire.object.required("Evicted.object")?.into();
            ClientToNode::Evicted { object, freed: wire.freed }
        }
        Kind::Blocked(wire) => {
            ClientToNode::Blocked { tag: wire.tag, on: objects("TaskBlocked.on", &wire.on)? }
        }
        Kind::Unblocked(tag) => ClientToNode::Unblocked { tag },
        Kind::Completed(wire) => ClientToNode::Completed(completion(reading, wire)?),
        Kind::Yielded(wire) => ClientToNode::Yielded(YieldedItem {
            tag: wire.tag,
            index: item_index("YieldedItem.index", wire.index)?,
            item: executor_result(reading, wire.item.required("YieldedItem.item")?)?,
        }),
        Kind::Taken(wire) => ClientToNode::Taken {
            task: task_id("Taken.seq", wire.client, wire.seq)?,
            items: wire.items,
            closed: wire.closed,
        },
        Kind::Log(wire) => ClientToNode::Log(log_line(wire)?),
        Kind::Query(wire) => ClientToNode::Query {
            number: wire.number,
            query: decode_query(&wire.query.required("NumberedQuery.query")?)?,
        },
        Kind::Cancel(wire) => ClientToNode::Cancel(cancellation(wire)?),
        Kind::Kill(wire) => ClientToNode::Kill {
            actor: wire.actor.required("KillActor.actor")?.into(),
            restart: wire.restart,
        },
        Kind::OpenCalls(actor) => ClientToNode::OpenCalls(actor.into()),
        Kind::Expect(wire) => ClientToNode::Expect(spec(reading, wire)?),
        Kind::PutFailed(wire) => ClientToNode::PutFailed {
            object: wire.object.required("PutFailed.object")?.into(),
            failure: failure(reading, wire.failure.required("PutFailed.failure")?)?,
        },
        Kind::SubmitAgain(wire) => ClientToNode::SubmitAgain {
            spec: spec(reading, wire.spec.required("SubmitAgain.spec")?)?,
            may_have_run: wire.may_have_run.then(|| wire.why.into()),
        },
        Kind::CancelCall(wire) => ClientToNode::CancelCall {
            actor: wire.actor.required("CancelCall.actor")?.into(),
            task: task_id("CancelCall.seq", wire.client, wire.seq)?,
            reason: wire.reason,
            recursive: wire.recursive,
        },
        Kind::Answered(wire) => ClientToNode::Answered {
            task: task_id("Answered.seq", wire.client, wire.seq)?,
            result: match wire.result.required("Answered.result")? {
                v1::answered::Result::Ok(ok) => Ok(results(reading, ok)?),
                v1::answered::Result::Failed(failed) => Err(failure(reading, failed)?),
            },
        },
        Kind::CallFar(wire) => ClientToNode::CallFar(spec(reading, wire)?),
        Kind::AnswerFar(wire) => ClientToNode::AnswerFar {
            task: task_id("Finished.seq", wire.client, wire.seq)?,
            outcome: finished(reading, wire.outcome.required("Finished.outcome")?)?,
        },
        Kind::Called(wire) => ClientToNode::Called(calls(wire)?),
        Kind::Left(reason) => ClientToNode::Left { reason },
        Kind::Goodbye(_) => ClientToNode::Goodbye,
    })
}

fn put_value_to_wire(value: &PutValue) -> v1::PutValue {
    use v1::put_value::Kind;
    let kind = match value {
        PutValue::Inline(bytes) => Kind::Inline(bytes.clone()),
        PutValue::Stored(location) => Kind::Stored((*location).into()),
    };
    v1::PutValue { kind: Some(kind) }
}

/// Not kept: it goes to where it belongs at once.
fn part(field: &'static str, bytes: Bytes) -> Result<Bytes, WireError> {
    if bytes.len() > PART {
        return Err(WireError::TooMany { field, count: bytes.len() as u64, limit: PART as u64 });
    }
    Ok(bytes)
}

fn put_value(reading: &Reading<'_>, wire: v1::PutValue) -> Result<PutValue, WireError> {
    use v1::put_value::Kind;
    Ok(match wire.kind.required("PutValue.kind")? {
        // Any length: a client without shared memory puts so.
        Kind::Inline(bytes) => PutValue::Inline(reading.kept(bytes)),
        Kind::Stored(location) => PutValue::Stored(location.try_into()?),
    })
}

fn executor_result_to_wire(result: &ExecutorResult) -> v1::ExecutorResult {
    v1::ExecutorResult {
        value: Some(put_value_to_wire(&result.value)),
        contains: objects_to_wire(&result.contains),
    }
}

fn executor_result(reading: &Reading<'_>, wire: v1::ExecutorResult) -> Result<ExecutorResult, WireError> {
    Ok(ExecutorResult {
        value: put_value(reading, wire.value.required("ExecutorResult.value")?)?,
        contains: objects("ExecutorResult.contains", &wire.contains)?,
    })
}

fn results_to_wire(results: &[ExecutorResult]) -> v1::ExecutorResults {
    v1::ExecutorResults { results: results.iter().map(executor_result_to_wire).collect() }
}

fn results(reading: &Reading<'_>, wire: v1::ExecutorResults) -> Result<Vec<ExecutorResult>, WireError> {
    wire.results.into_iter().map(|result| executor_result(reading, result)).collect()
}

fn completion_to_wire(completion: &Completion) -> v1::Completion {
    use v1::completion::Result as Wire;
    let result = match &completion.result {
        Ok(results) => Wire::Ok(results_to_wire(results)),
        Err(ExecutorFailure { failure, retryable }) => Wire::Failed(v1::ExecutorFailure {
            failure: Some(failure_to_wire(failure)),
            retryable: *retryable,
        }),
    };
    v1::Completion { tag: completion.tag, result: Some(result), micros: completion.micros }
}

fn completion(reading: &Reading<'_>, wire: v1::Completion) -> Result<Completion, WireError> {
    use v1::completion::Result as Wire;
    let result = match wire.result.required("Completion.result")? {
        Wire::Ok(ok) => Ok(results(reading, ok)?),
        Wire::Failed(failed) => Err(ExecutorFailure {
            failure: failure(reading, failed.failure.required("ExecutorFailure.failure")?)?,
            retryable: failed.retryable,
        }),
    };
    Ok(Completion { tag: wire.tag, result, micros: wire.micros })
}

pub(super) fn to_client(message: &NodeToClient, templates: &mut TemplateWriter) -> v1::NodeToClient {
    use v1::node_to_client::Kind;
    let kind = match message {
        NodeToClient::Welcome(welcome) => Kind::Welcome(v1::Welcome {
            node: welcome.node.0,
            job: welcome.job.0,
            info: Some(welcome.info.as_ref().into()),
            store_capacity: welcome.store_capacity,
            cores: welcome.cores,
        }),
        NodeToClient::Rejected { reason } => Kind::Rejected(reason.clone()),
        NodeToClient::Finished { task, outcome } => Kind::Finished(v1::Finished {
            client: task.client.0,
            seq: task.seq,
            outcome: Some(finished_to_wire(outcome)),
        }),
        NodeToClient::Item { task, index, value } => Kind::Item(item_to_wire(*task, *index, value)),
        NodeToClient::Taken { tag, items, closed } => {
            Kind::Taken(v1::TagTaken { tag: *tag, items: *items, closed: *closed })
        }
        NodeToClient::Ready { object, value } => Kind::Ready(ready_to_wire(*object, value)),
        NodeToClient::Part { object, offset, len, bytes } => Kind::Part(v1::Part {
            object: Some((*object).into()),
            offset: *offset,
            len: *len,
            bytes: bytes.clone(),
        }),
        NodeToClient::Segment { segment, len, writable } => {
            Kind::Segment(v1::Segment { segment: segment.0, len: *len, writable: *writable })
        }
        NodeToClient::NoMemory { bytes, failure } => {
            Kind::NoMemory(v1::NoMemory { bytes: *bytes, failure: Some(failure_to_wire(failure)) })
        }
        NodeToClient::RangesFreed(locations) => Kind::RangesFreed(v1::Locations {
            locations: locations.iter().copied().map(Into::into).collect(),
        }),
        NodeToClient::Evict { object } => Kind::Evict((*object).into()),
        NodeToClient::RecallMemory => Kind::RecallMemory(v1::Nothing {}),
        NodeToClient::Run(run) => Kind::Run(run_to_wire(run, templates)),
        NodeToClient::Cancel { tag, reason, recursive } => {
            Kind::Cancel(v1::CancelTag { tag: *tag, reason: reason.clone(), recursive: *recursive })
        }
        NodeToClient::Calls { actor, in_order } => {
            Kind::Calls(v1::Calls { actor: Some((*actor).into()), in_order: *in_order })
        }
        NodeToClient::NoCalls { actor } => Kind::NoCalls((*actor).into()),
        NodeToClient::CallsEnded { actor, why, lost } => {
            Kind::CallsEnded(v1::CallsEnded { actor: Some((*actor).into()), why: why.clone(), lost: *lost })
        }
        NodeToClient::FarCalls { actor, in_order, window } => Kind::FarCalls(v1::FarCalls {
            actor: Some((*actor).into()),
            in_order: *in_order,
            window: *window,
        }),
        NodeToClient::Called { in_order, spec } => {
            Kind::Called(v1::CalledFar { in_order: *in_order, spec: Some(spec_to_wire(spec, templates)) })
        }
        NodeToClient::FarAnswer { task, outcome } => Kind::FarAnswer(v1::Finished {
            client: task.client.0,
            seq: task.seq,
            outcome: Some(finished_to_wire(outcome)),
        }),
        NodeToClient::ForgetCalls(caller) => Kind::ForgetCalls(caller.0),
        NodeToClient::CancelOwn { task, reason, recursive } => {
            Kind::CancelOwn(cancel_own_to_wire(*task, reason, *recursive))
        }
        NodeToClient::Serve { caller, in_order } => {
            Kind::Serve(v1::Serve { caller: caller.0, in_order: *in_order })
        }
        NodeToClient::CallerGone(caller) => Kind::CallerGone(caller.0),
        NodeToClient::Exit => Kind::Exit(v1::Nothing {}),
        NodeToClient::Log(lines) => Kind::Log(v1::LogLines { lines: log_lines_to_wire(lines) }),
        NodeToClient::Notice { text } => Kind::Notice(text.clone()),
        NodeToClient::Reply { number, reply } => {
            Kind::Reply(v1::NumberedReply { number: *number, reply: Some(encode_reply(reply)) })
        }
    };
    v1::NodeToClient { kind: Some(kind) }
}

pub(super) fn from_node(
    wire: v1::NodeToClient,
    reading: &mut Reading<'_>,
) -> Result<NodeToClient, WireError> {
    use v1::node_to_client::Kind;
    Ok(match wire.kind.required("NodeToClient.kind")? {
        Kind::Welcome(wire) => NodeToClient::Welcome(Welcome {
            node: NodeId(wire.node),
            job: JobId(wire.job),
            info: job_info("Welcome.info", wire.info)?,
            store_capacity: wire.store_capacity,
            cores: wire.cores,
        }),
        Kind::Rejected(reason) => NodeToClient::Rejected { reason },
        Kind::Finished(wire) => NodeToClient::Finished {
            task: task_id("Finished.seq", wire.client, wire.seq)?,
            outcome: finished(reading, wire.outcome.required("Finished.outcome")?)?,
        },
        Kind::Item(wire) => {
            let (task, index, value) = item(reading, wire)?;
            NodeToClient::Item { task, index, value }
        }
        Kind::Taken(wire) => NodeToClient::Taken { tag: wire.tag, items: wire.items, closed: wire.closed },
        Kind::Ready(wire) => {
            let (object, value) = ready(reading, wire)?;
            NodeToClient::Ready { object, value }
        }
        Kind::Part(wire) => NodeToClient::Part {
            object: wire.object.required("Part.object")?.into(),
            offset: wire.offset,
            len: wire.len,
            bytes: part("Part.bytes", wire.bytes)?,
        },
        Kind::Segment(wire) => {
            NodeToClient::Segment { segment: SegmentId(wire.segment), len: wire.len, writable: wire.writable }
        }
        Kind::NoMemory(wire) => NodeToClient::NoMemory {
            bytes: wire.bytes,
            failure: failure(reading, wire.failure.required("NoMemory.failure")?)?,
        },
        Kind::RangesFreed(wire) => NodeToClient::RangesFreed(
            wire.locations.into_iter().map(Location::try_from).collect::<Result<_, _>>()?,
        ),
        Kind::Evict(object) => NodeToClient::Evict { object: object.into() },
        Kind::RecallMemory(_) => NodeToClient::RecallMemory,
        Kind::Run(wire) => NodeToClient::Run(Box::new(run(reading, wire)?)),
        Kind::Cancel(wire) => {
            NodeToClient::Cancel { tag: wire.tag, reason: wire.reason, recursive: wire.recursive }
        }
        Kind::Calls(wire) => {
            NodeToClient::Calls { actor: wire.actor.required("Calls.actor")?.into(), in_order: wire.in_order }
        }
        Kind::NoCalls(actor) => NodeToClient::NoCalls { actor: actor.into() },
        Kind::CallsEnded(wire) => NodeToClient::CallsEnded {
            actor: wire.actor.required("CallsEnded.actor")?.into(),
            why: wire.why,
            lost: wire.lost,
        },
        Kind::FarCalls(wire) => NodeToClient::FarCalls {
            actor: wire.actor.required("FarCalls.actor")?.into(),
            in_order: wire.in_order,
            window: wire.window,
        },
        Kind::Called(wire) => NodeToClient::Called {
            in_order: wire.in_order,
            spec: Box::new(spec(reading, wire.spec.required("CalledFar.spec")?)?),
        },
        Kind::FarAnswer(wire) => NodeToClient::FarAnswer {
            task: task_id("Finished.seq", wire.client, wire.seq)?,
            outcome: finished(reading, wire.outcome.required("Finished.outcome")?)?,
        },
        Kind::ForgetCalls(caller) => NodeToClient::ForgetCalls(ClientId(caller)),
        Kind::CancelOwn(wire) => {
            let (task, reason, recursive) = cancel_own(wire)?;
            NodeToClient::CancelOwn { task, reason, recursive }
        }
        Kind::Serve(wire) => NodeToClient::Serve { caller: ClientId(wire.caller), in_order: wire.in_order },
        Kind::CallerGone(caller) => NodeToClient::CallerGone(ClientId(caller)),
        Kind::Exit(_) => NodeToClient::Exit,
        Kind::Log(wire) => NodeToClient::Log(log_lines(wire.lines)?),
        Kind::Notice(text) => NodeToClient::Notice { text },
        Kind::Reply(wire) => NodeToClient::Reply {
            number: wire.number,
            reply: decode_reply(wire.reply.required("NumberedReply.reply")?)?,
        },
    })
}

fn ready_to_wire(object: ObjectId, value: &Value) -> v1::Ready {
    v1::Ready { object: Some(object.into()), value: Some(value_to_wire(value)) }
}

fn ready(reading: &Reading<'_>, wire: v1::Ready) -> Result<(ObjectId, Value), WireError> {
    let value = value(reading, wire.value.required("Ready.value")?)?;
    Ok((wire.object.required("Ready.object")?.into(), value))
}

fn run_to_wire(run: &RunTask, templates: &mut TemplateWriter) -> v1::RunTask {
    v1::RunTask {
        tag: run.tag,
        slot: run.slot.into(),
        term: run.attempt.term,
        n: run.attempt.n,
        spec: Some(spec_to_wire(&run.spec, templates)),
        values: run.values.iter().map(|(object, value)| ready_to_wire(*object, value)).collect(),
        gpus: gpus_to_wire(&run.gpus),
    }
}

fn run(reading: &mut Reading<'_>, wire: v1::RunTask) -> Result<RunTask, WireError> {
    let slot = wire.slot;
    Ok(RunTask {
        tag: wire.tag,
        slot: u16::try_from(slot)
            .map_err(|_| WireError::invalid("RunTask.slot", format!("is {slot}, which is no slot")))?,
        attempt: Attempt { term: wire.term, n: wire.n },
        spec: Arc::new(spec(reading, wire.spec.required("RunTask.spec")?)?),
        values: wire.values.into_iter().map(|wire| ready(reading, wire)).collect::<Result<_, _>>()?,
        gpus: gpus(&wire.gpus)?,
    })
}
