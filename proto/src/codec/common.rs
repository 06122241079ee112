//! The words that all conversations share: ids, places, resources, values. Tasks are in `task`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use cluster_types::client_node::{CallReport, Cancellation, LogLine};
use cluster_types::ids::MAX_SEQ;
use cluster_types::{
    Amount, Attempt, ClientId, ClientKind, Failure, FailureKind, GpuShare, INLINE_MAX, JobId, JobInfo, Lease,
    Located, Location, NodeId, ObjectId, Resources, SegmentId, TaskId, Value,
};
use smallvec::SmallVec;

use super::Reading;
use crate::error::Required;
use crate::limits::{MAX_ENTRIES, MAX_FAILURE_PAYLOAD};
use crate::{WireError, v1};

const ID_BYTES: usize = 16;

pub(super) fn limited(field: &'static str, count: usize, limit: usize) -> Result<(), WireError> {
    if count <= limit {
        return Ok(());
    }
    Err(WireError::TooMany { field, count: count as u64, limit: limit as u64 })
}

pub(super) fn entries(
    field: &'static str,
    map: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, WireError> {
    limited(field, map.len(), MAX_ENTRIES)?;
    Ok(map)
}

// ---- ids

impl From<ObjectId> for v1::ObjectId {
    fn from(id: ObjectId) -> Self {
        v1::ObjectId { client: id.client.0, local: id.local }
    }
}

impl From<v1::ObjectId> for ObjectId {
    fn from(id: v1::ObjectId) -> Self {
        ObjectId { client: ClientId(id.client), local: id.local }
    }
}

pub(super) fn task_id(field: &'static str, client: u64, seq: u64) -> Result<TaskId, WireError> {
    if seq > MAX_SEQ {
        return Err(WireError::invalid(field, format!("is {seq}; a client counts to {MAX_SEQ} at most")));
    }
    Ok(TaskId { client: ClientId(client), seq })
}

impl From<TaskId> for v1::TaskId {
    fn from(id: TaskId) -> Self {
        v1::TaskId { client: id.client.0, seq: id.seq }
    }
}

impl TryFrom<v1::TaskId> for TaskId {
    type Error = WireError;
    fn try_from(id: v1::TaskId) -> Result<Self, WireError> {
        task_id("TaskId.seq", id.client, id.seq)
    }
}

pub(super) fn task_attempt_to_wire(task: TaskId, attempt: Attempt) -> v1::TaskAttempt {
    v1::TaskAttempt { client: task.client.0, seq: task.seq, term: attempt.term, n: attempt.n }
}

pub(super) fn task_attempt(wire: v1::TaskAttempt) -> Result<(TaskId, Attempt), WireError> {
    let task = task_id("TaskAttempt.seq", wire.client, wire.seq)?;
    Ok((task, Attempt { term: wire.term, n: wire.n }))
}

/// Sixteen bytes for each id.
pub(super) fn objects_to_wire(objects: &[ObjectId]) -> Bytes {
    if objects.is_empty() {
        return Bytes::new();
    }
    let mut bytes = BytesMut::with_capacity(objects.len() * ID_BYTES);
    for object in objects {
        bytes.put_slice(&object.to_bytes());
    }
    bytes.freeze()
}

pub(super) fn objects<C: FromIterator<ObjectId>>(field: &'static str, bytes: &Bytes) -> Result<C, WireError> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        let problem = format!("has {} bytes; object ids take {ID_BYTES} each", bytes.len());
        return Err(WireError::Invalid { field, problem });
    }
    Ok(ids.iter().copied().map(ObjectId::from_bytes).collect())
}

pub(super) fn calls_to_wire(calls: &[CallReport]) -> v1::CallReports {
    let call = |call: &CallReport| v1::CallReport {
        client: call.task.client.0,
        seq: call.task.seq,
        name: call.name.to_string(),
        micros: call.micros,
        error: call.error.as_deref().map(str::to_owned),
    };
    v1::CallReports { calls: calls.iter().map(call).collect() }
}

pub(super) fn calls(wire: v1::CallReports) -> Result<Vec<CallReport>, WireError> {
    let call = |wire: v1::CallReport| {
        Ok(CallReport {
            task: task_id("CallReport.seq", wire.client, wire.seq)?,
            name: wire.name.into(),
            micros: wire.micros,
            error: wire.error.map(Into::into),
        })
    };
    wire.calls.into_iter().map(call).collect()
}

pub(super) fn cancel_own_to_wire(task: TaskId, reason: &str, recursive: bool) -> v1::CancelOwn {
    v1::CancelOwn { client: task.client.0, seq: task.seq, reason: reason.to_owned(), recursive }
}

pub(super) fn cancel_own(wire: v1::CancelOwn) -> Result<(TaskId, String, bool), WireError> {
    Ok((task_id("CancelOwn.seq", wire.client, wire.seq)?, wire.reason, wire.recursive))
}

// ---- places and resources

impl From<Location> for v1::Location {
    fn from(location: Location) -> Self {
        v1::Location { segment: location.segment.0, offset: location.offset, len: location.len }
    }
}

impl TryFrom<v1::Location> for Location {
    type Error = WireError;
    fn try_from(wire: v1::Location) -> Result<Self, WireError> {
        let v1::Location { segment, offset, len } = wire;
        if !offset.is_multiple_of(64) || offset.checked_add(len).is_none() {
            let problem = format!("is {offset} with length {len}, which is no range of a segment");
            return Err(WireError::Invalid { field: "Location.offset", problem });
        }
        Ok(Location { segment: SegmentId(segment), offset, len })
    }
}

fn amount(field: &'static str, wire: u64) -> Result<Amount, WireError> {
    i64::try_from(wire)
        .map(Amount)
        .map_err(|_| WireError::invalid(field, format!("is {wire}; that is more than can be counted")))
}

/// Amounts on the wire are never negative; a negative one (our own broken invariant) travels as nothing.
fn amount_to_wire(amount: Amount) -> u64 {
    u64::try_from(amount.0).unwrap_or(0)
}

impl From<&Resources> for v1::Resources {
    fn from(resources: &Resources) -> Self {
        let named = |(name, amount): &(Arc<str>, Amount)| v1::NamedAmount {
            name: name.to_string(),
            amount: amount_to_wire(*amount),
        };
        v1::Resources {
            cpu: amount_to_wire(resources.cpu),
            gpu: amount_to_wire(resources.gpu),
            memory: amount_to_wire(resources.memory),
            custom: resources.custom.iter().map(named).collect(),
        }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = WireError;
    fn try_from(wire: v1::Resources) -> Result<Self, WireError> {
        limited("Resources.custom", wire.custom.len(), MAX_ENTRIES)?;
        let mut resources = Resources {
            cpu: amount("Resources.cpu", wire.cpu)?,
            gpu: amount("Resources.gpu", wire.gpu)?,
            memory: amount("Resources.memory", wire.memory)?,
            custom: SmallVec::new(),
        };
        for named in wire.custom {
            // Sorts, and drops repeats and zeros, so that equal bags are equal values.
            resources.set_custom(&named.name, amount("Resources.custom", named.amount)?);
        }
        Ok(resources)
    }
}

pub(super) fn gpus_to_wire(gpus: &[GpuShare]) -> Vec<v1::GpuShare> {
    gpus.iter()
        .map(|gpu| v1::GpuShare { index: gpu.index.into(), amount: amount_to_wire(gpu.amount) })
        .collect()
}

pub(super) fn gpus<C: FromIterator<GpuShare>>(wire: &[v1::GpuShare]) -> Result<C, WireError> {
    limited("Lease.gpus", wire.len(), MAX_ENTRIES)?;
    wire.iter().map(gpu).collect()
}

fn gpu(wire: &v1::GpuShare) -> Result<GpuShare, WireError> {
    let amount = amount("GpuShare.amount", wire.amount)?;
    if amount > Amount::ONE {
        return Err(WireError::invalid("GpuShare.amount", format!("is {amount}, more than one device")));
    }
    let index = u16::try_from(wire.index).map_err(|_| {
        WireError::invalid("GpuShare.index", format!("is {}, which is no device", wire.index))
    })?;
    Ok(GpuShare { index, amount })
}

impl From<&Lease> for v1::Lease {
    fn from(lease: &Lease) -> Self {
        v1::Lease { gpus: gpus_to_wire(&lease.gpus) }
    }
}

impl TryFrom<v1::Lease> for Lease {
    type Error = WireError;
    fn try_from(wire: v1::Lease) -> Result<Self, WireError> {
        Ok(Lease { gpus: gpus(&wire.gpus)? })
    }
}

// ---- values

/// A small value: what rides inside messages, at most [`INLINE_MAX`] bytes.
pub(super) fn inline(reading: &Reading<'_>, field: &'static str, bytes: Bytes) -> Result<Bytes, WireError> {
    limited(field, bytes.len(), INLINE_MAX)?;
    Ok(reading.kept(bytes))
}

pub(super) fn failure_to_wire(failure: &Failure) -> v1::Failure {
    use v1::FailureKind as Wire;
    let kind = match failure.kind {
        FailureKind::Exception => Wire::Exception,
        FailureKind::ExecutorDied => Wire::ExecutorDied,
        FailureKind::NodeLost => Wire::NodeLost,
        FailureKind::Cancelled => Wire::Cancelled,
        FailureKind::Unschedulable => Wire::Unschedulable,
        FailureKind::ObjectLost => Wire::ObjectLost,
        FailureKind::ObjectFreed => Wire::ObjectFreed,
        FailureKind::ObjectTooLarge => Wire::ObjectTooLarge,
        FailureKind::OutOfDisk => Wire::OutOfDisk,
        FailureKind::Internal => Wire::Internal,
        FailureKind::ActorDied => Wire::ActorDied,
        FailureKind::GroupRemoved => Wire::GroupRemoved,
        FailureKind::OutOfMemory => Wire::OutOfMemory,
        FailureKind::ActorUnavailable => Wire::ActorUnavailable,
    };
    v1::Failure {
        kind: kind.into(),
        message: failure.message.to_string(),
        payload: failure.payload.clone(),
        task: failure.task.map(Into::into),
    }
}

pub(super) fn failure(reading: &Reading<'_>, wire: v1::Failure) -> Result<Failure, WireError> {
    use v1::FailureKind as Wire;
    let kind = match wire.kind() {
        Wire::Exception => FailureKind::Exception,
        Wire::ExecutorDied => FailureKind::ExecutorDied,
        Wire::NodeLost => FailureKind::NodeLost,
        Wire::Cancelled => FailureKind::Cancelled,
        Wire::Unschedulable => FailureKind::Unschedulable,
        Wire::ObjectLost => FailureKind::ObjectLost,
        Wire::ObjectFreed => FailureKind::ObjectFreed,
        Wire::ObjectTooLarge => FailureKind::ObjectTooLarge,
        Wire::OutOfDisk => FailureKind::OutOfDisk,
        Wire::Internal => FailureKind::Internal,
        Wire::ActorDied => FailureKind::ActorDied,
        Wire::GroupRemoved => FailureKind::GroupRemoved,
        Wire::OutOfMemory => FailureKind::OutOfMemory,
        Wire::ActorUnavailable => FailureKind::ActorUnavailable,
        Wire::Unspecified => {
            return Err(WireError::invalid("Failure.kind", format!("is {}, which is unknown", wire.kind)));
        }
    };
    limited("Failure.payload", wire.payload.len(), MAX_FAILURE_PAYLOAD)?;
    Ok(Failure {
        kind,
        message: wire.message.into(),
        payload: reading.kept(wire.payload),
        task: wire.task.map(TaskId::try_from).transpose()?,
    })
}

pub(super) fn value_to_wire(value: &Value) -> v1::Value {
    use v1::value::Kind;
    let kind = match value {
        Value::Inline(bytes) => Kind::Inline(bytes.clone()),
        Value::Local(location) => Kind::Local((*location).into()),
        Value::Failed(failure) => Kind::Failed(failure_to_wire(failure)),
    };
    v1::Value { kind: Some(kind) }
}

pub(super) fn value(reading: &Reading<'_>, wire: v1::Value) -> Result<Value, WireError> {
    use v1::value::Kind;
    Ok(match wire.kind.required("Value.kind")? {
        // Any length: a client without shared memory gets large values so.
        Kind::Inline(bytes) => Value::Inline(reading.kept(bytes)),
        Kind::Local(location) => Value::Local(location.try_into()?),
        Kind::Failed(wire) => Value::Failed(failure(reading, wire)?),
    })
}

pub(super) fn located_to_wire(located: &Located) -> v1::Located {
    use v1::located::Kind;
    let kind = match located {
        Located::Inline(bytes) => Kind::Inline(bytes.clone()),
        Located::Stored { size, copies } => Kind::Stored(v1::StoredCopies {
            size: *size,
            copies: copies
                .iter()
                .map(|(node, address)| v1::Copy { node: node.0, address: address.clone() })
                .collect(),
        }),
        Located::Durable { size, writer } => Kind::Durable(v1::DurableCopy { size: *size, writer: writer.0 }),
        Located::Failed(failure) => Kind::Failed(failure_to_wire(failure)),
    };
    v1::Located { kind: Some(kind) }
}

pub(super) fn located(reading: &Reading<'_>, wire: v1::Located) -> Result<Located, WireError> {
    use v1::located::Kind;
    Ok(match wire.kind.required("Located.kind")? {
        Kind::Inline(bytes) => Located::Inline(inline(reading, "Located.inline", bytes)?),
        Kind::Stored(stored) => {
            if stored.copies.is_empty() {
                return Err(WireError::Missing { field: "StoredCopies.copies" });
            }
            let copies = stored.copies.into_iter().map(|copy| (NodeId(copy.node), copy.address)).collect();
            Located::Stored { size: stored.size, copies }
        }
        Kind::Durable(copy) => Located::Durable { size: copy.size, writer: NodeId(copy.writer) },
        Kind::Failed(wire) => Located::Failed(failure(reading, wire)?),
    })
}

// ---- clients and jobs

impl From<&JobInfo> for v1::JobInfo {
    fn from(info: &JobInfo) -> Self {
        v1::JobInfo {
            name: info.name.clone(),
            python_version: info.python_version.clone(),
            python: info.python.clone(),
            sys_path: info.sys_path.clone(),
            working_dir: info.working_dir.clone(),
            env_vars: info.env_vars.clone(),
            log_to_driver: info.log_to_driver,
            namespace: info.namespace.clone(),
        }
    }
}

impl TryFrom<v1::JobInfo> for JobInfo {
    type Error = WireError;
    fn try_from(wire: v1::JobInfo) -> Result<Self, WireError> {
        limited("JobInfo.sys_path", wire.sys_path.len(), MAX_ENTRIES)?;
        Ok(JobInfo {
            name: wire.name,
            python_version: wire.python_version,
            python: wire.python,
            sys_path: wire.sys_path,
            working_dir: wire.working_dir,
            env_vars: entries("JobInfo.env_vars", wire.env_vars)?,
            log_to_driver: wire.log_to_driver,
            namespace: wire.namespace,
        })
    }
}

pub(super) fn job_info(field: &'static str, wire: Option<v1::JobInfo>) -> Result<Arc<JobInfo>, WireError> {
    Ok(Arc::new(wire.required(field)?.try_into()?))
}

impl From<&ClientKind> for v1::ClientKind {
    fn from(kind: &ClientKind) -> Self {
        use v1::client_kind::Kind;
        let kind = match kind {
            ClientKind::Driver { job, info } => {
                Kind::Driver(v1::Driver { job: job.0, info: Some(info.as_ref().into()) })
            }
            ClientKind::Executor { executor } => Kind::Executor(*executor),
            ClientKind::Observer => Kind::Observer(v1::Nothing {}),
        };
        v1::ClientKind { kind: Some(kind) }
    }
}

impl TryFrom<v1::ClientKind> for ClientKind {
    type Error = WireError;
    fn try_from(wire: v1::ClientKind) -> Result<Self, WireError> {
        use v1::client_kind::Kind;
        Ok(match wire.kind.required("ClientKind.kind")? {
            Kind::Driver(driver) => {
                ClientKind::Driver { job: JobId(driver.job), info: job_info("Driver.info", driver.info)? }
            }
            Kind::Executor(executor) => ClientKind::Executor { executor },
            Kind::Observer(_) => ClientKind::Observer,
        })
    }
}

/// Whether a line has a task is said by the task id; its name alone would not do.
pub(super) fn log_line_to_wire(line: &LogLine) -> v1::LogLine {
    v1::LogLine {
        job: line.job.0,
        task: line.task.as_ref().map(|(task, _)| (*task).into()),
        task_name: line.task.as_ref().map(|(_, name)| name.to_string()).unwrap_or_default(),
        pid: line.pid,
        node: line.node.0,
        stderr: line.stderr,
        text: line.text.clone(),
    }
}

pub(super) fn log_line(wire: v1::LogLine) -> Result<LogLine, WireError> {
    let task = wire.task.map(TaskId::try_from).transpose()?;
    Ok(LogLine {
        job: JobId(wire.job),
        task: task.map(|task| (task, wire.task_name.into())),
        pid: wire.pid,
        node: NodeId(wire.node),
        stderr: wire.stderr,
        text: wire.text,
    })
}

pub(super) fn log_lines_to_wire(lines: &[LogLine]) -> Vec<v1::LogLine> {
    lines.iter().map(log_line_to_wire).collect()
}

pub(super) fn log_lines(wire: Vec<v1::LogLine>) -> Result<Vec<LogLine>, WireError> {
    wire.into_iter().map(log_line).collect()
}

// ---- cancellations

pub(super) fn cancellation_to_wire(what: &Cancellation) -> v1::Cancellation {
    v1::Cancellation {
        object: Some(what.object.into()),
        force: what.force,
        recursive: what.recursive,
        reason: what.reason.clone(),
    }
}

pub(super) fn cancellation(wire: v1::Cancellation) -> Result<Cancellation, WireError> {
    Ok(Cancellation {
        object: wire.object.required("Cancellation.object")?.into(),
        force: wire.force,
        recursive: wire.recursive,
        reason: wire.reason,
    })
}
