//! What a task is and how it ends.

use std::sync::Arc;

use bytes::Bytes;
use cluster_types::client_node::FinishedOutcome;
use cluster_types::ids::{MAX_ITEMS, MAX_RETURNS};
use cluster_types::{
    ActorTraits, JobId, Outcome, Payload, Refs, Resources, ResultValue, StreamLimits, TaskId, TaskKind,
    TaskResult, TaskSpec, TaskTemplate,
};

use super::common::{entries, failure, failure_to_wire, inline, limited, objects, objects_to_wire, task_id};
use super::template::TemplateWriter;
use super::{Reading, placement};
use crate::error::Required;
use crate::limits::MAX_ENTRIES;
use crate::{WireError, v1};

pub(super) fn template_to_wire(template: &TaskTemplate) -> v1::TaskTemplate {
    v1::TaskTemplate {
        name: template.name.to_string(),
        function: Some(template.function.into()),
        resources: Some((&template.resources).into()),
        num_returns: template.num_returns,
        max_retries: template.max_retries,
        retry_exceptions: template.retry_exceptions.clone(),
        env_vars: template.env_vars.clone(),
        strategy: Some(placement::strategy_to_wire(&template.strategy)),
        kind: Some(kind_to_wire(&template.kind)),
        stream: template
            .stream
            .map(|limits| v1::StreamLimits { max_items: limits.max_items, max_bytes: limits.max_bytes }),
        variants: template.variants.iter().map(v1::Resources::from).collect(),
        backoff: placement::backoff_to_wire(template.backoff),
        durable: template.durable,
    }
}

pub(super) fn template_from_wire(wire: v1::TaskTemplate) -> Result<TaskTemplate, WireError> {
    if wire.num_returns > MAX_RETURNS {
        let problem = format!("is {}; a task returns at most {MAX_RETURNS} values", wire.num_returns);
        return Err(WireError::Invalid { field: "TaskTemplate.num_returns", problem });
    }
    let resources: Resources = wire.resources.unwrap_or_default().try_into()?;
    resources
        .check_request()
        .map_err(|error| WireError::invalid("TaskTemplate.resources.gpu", error.to_string()))?;
    if wire.stream.is_some() && wire.num_returns != 1 {
        let problem = format!("is {}; a task that yields items has one result", wire.num_returns);
        return Err(WireError::Invalid { field: "TaskTemplate.num_returns", problem });
    }
    Ok(TaskTemplate {
        name: wire.name.into(),
        function: wire.function.required("TaskTemplate.function")?.into(),
        resources,
        num_returns: wire.num_returns,
        max_retries: wire.max_retries,
        retry_exceptions: wire.retry_exceptions,
        kind: kind_from_wire(wire.kind)?,
        stream: wire
            .stream
            .map(|limits| StreamLimits { max_items: limits.max_items, max_bytes: limits.max_bytes }),
        env_vars: entries("TaskTemplate.env_vars", wire.env_vars)?,
        strategy: placement::strategy(wire.strategy)?,
        variants: placement::several("TaskTemplate.variants", wire.variants)?,
        backoff: placement::backoff(wire.backoff),
        durable: wire.durable,
    })
}

fn kind_to_wire(kind: &TaskKind) -> v1::task_template::Kind {
    use v1::task_template::Kind;
    match kind {
        TaskKind::Function => Kind::Plain(v1::Nothing {}),
        TaskKind::Actor(traits) => Kind::Actor(v1::ActorTraits {
            name: traits.name.clone(),
            namespace: traits.namespace.clone(),
            detached: traits.detached,
            max_restarts: traits.max_restarts,
            max_concurrency: traits.max_concurrency,
            groups: traits.groups.clone(),
            is_async: traits.is_async,
            handle: traits.handle.clone(),
        }),
        TaskKind::Method { method, group, concurrent } => Kind::Method(v1::Method {
            method: method.to_string(),
            group: group.to_string(),
            concurrent: *concurrent,
        }),
        TaskKind::Group(traits) => Kind::Group(placement::group_to_wire(traits)),
    }
}

fn kind_from_wire(wire: Option<v1::task_template::Kind>) -> Result<TaskKind, WireError> {
    use v1::task_template::Kind;
    Ok(match wire.required("TaskTemplate.kind")? {
        Kind::Plain(_) => TaskKind::Function,
        Kind::Actor(traits) => {
            limited("ActorTraits.groups", traits.groups.len(), MAX_ENTRIES)?;
            TaskKind::Actor(Arc::new(ActorTraits {
                name: traits.name,
                namespace: traits.namespace,
                detached: traits.detached,
                max_restarts: traits.max_restarts,
                max_concurrency: traits.max_concurrency,
                groups: traits.groups,
                is_async: traits.is_async,
                handle: traits.handle,
            }))
        }
        Kind::Method(wire) => TaskKind::Method {
            method: wire.method.into(),
            group: wire.group.into(),
            concurrent: wire.concurrent,
        },
        Kind::Group(wire) => TaskKind::Group(Arc::new(placement::group(wire)?)),
    })
}

pub(super) fn spec_to_wire(spec: &TaskSpec, templates: &mut TemplateWriter) -> v1::TaskSpec {
    use v1::task_spec::Payload as Wire;
    v1::TaskSpec {
        client: spec.id.client.0,
        seq: spec.id.seq,
        job: spec.job.0,
        template: templates.write(&spec.template),
        payload: Some(match &spec.payload {
            Payload::Inline(bytes) => Wire::Inline(bytes.clone()),
            Payload::Stored(object) => Wire::Stored((*object).into()),
        }),
        deps: objects_to_wire(&spec.deps),
        borrowed: objects_to_wire(&spec.borrowed),
        parent: spec.parent.map(v1::TaskId::from),
    }
}

pub(super) fn spec(reading: &mut Reading<'_>, wire: v1::TaskSpec) -> Result<TaskSpec, WireError> {
    use v1::task_spec::Payload as Wire;
    Ok(TaskSpec {
        id: task_id("TaskSpec.seq", wire.client, wire.seq)?,
        job: JobId(wire.job),
        template: reading.templates.read(&wire.template)?,
        payload: match wire.payload.required("TaskSpec.payload")? {
            Wire::Inline(bytes) => Payload::Inline(inline(reading, "TaskSpec.inline", bytes)?),
            Wire::Stored(object) => Payload::Stored(object.into()),
        },
        deps: objects("TaskSpec.deps", &wire.deps)?,
        borrowed: objects("TaskSpec.borrowed", &wire.borrowed)?,
        parent: wire.parent.map(TaskId::try_from).transpose()?,
    })
}

fn result_to_wire(value: &ResultValue, contains: Bytes) -> v1::TaskResult {
    use v1::task_result::Value as Wire;
    let value = match value {
        ResultValue::Inline(bytes) => Wire::Inline(bytes.clone()),
        ResultValue::Stored { size } => Wire::Stored(*size),
    };
    v1::TaskResult { value: Some(value), contains }
}

fn result_value(
    reading: &Reading<'_>,
    wire: Option<v1::task_result::Value>,
) -> Result<ResultValue, WireError> {
    use v1::task_result::Value as Wire;
    Ok(match wire.required("TaskResult.value")? {
        Wire::Inline(bytes) => ResultValue::Inline(inline(reading, "TaskResult.inline", bytes)?),
        Wire::Stored(size) => ResultValue::Stored { size },
    })
}

pub(super) fn result_with_refs_to_wire(result: &TaskResult) -> v1::TaskResult {
    result_to_wire(&result.value, objects_to_wire(&result.contains))
}

pub(super) fn item_to_wire(task: TaskId, index: u32, value: &ResultValue) -> v1::Item {
    let value = Some(result_to_wire(value, Bytes::new()));
    v1::Item { client: task.client.0, seq: task.seq, index, value }
}

pub(super) fn item(reading: &Reading<'_>, wire: v1::Item) -> Result<(TaskId, u32, ResultValue), WireError> {
    let task = task_id("Item.seq", wire.client, wire.seq)?;
    let value = result_value(reading, wire.value.required("Item.value")?.value)?;
    Ok((task, item_index("Item.index", wire.index)?, value))
}

pub(super) fn item_index(field: &'static str, index: u32) -> Result<u32, WireError> {
    if index >= MAX_ITEMS {
        let problem = format!("is {index}; a task yields at most {MAX_ITEMS} items");
        return Err(WireError::Invalid { field, problem });
    }
    Ok(index)
}

pub(super) fn taken_to_wire(task: TaskId, items: u32, closed: bool) -> v1::Taken {
    v1::Taken { client: task.client.0, seq: task.seq, items, closed }
}

pub(super) fn result(reading: &Reading<'_>, wire: v1::TaskResult) -> Result<TaskResult, WireError> {
    let contains: Refs = objects("TaskResult.contains", &wire.contains)?;
    Ok(TaskResult { value: result_value(reading, wire.value)?, contains })
}

pub(super) fn outcome_to_wire(outcome: &Outcome) -> v1::Outcome {
    use v1::outcome::Kind;
    let kind = match outcome {
        Outcome::Ok(results) => Kind::Ok(v1::TaskResults {
            results: results
                .iter()
                .map(|result| result_to_wire(&result.value, objects_to_wire(&result.contains)))
                .collect(),
        }),
        Outcome::Failed(failure) => Kind::Failed(failure_to_wire(failure)),
    };
    v1::Outcome { kind: Some(kind) }
}

pub(super) fn outcome(reading: &Reading<'_>, wire: v1::Outcome) -> Result<Outcome, WireError> {
    use v1::outcome::Kind;
    Ok(match wire.kind.required("Outcome.kind")? {
        Kind::Ok(ok) => {
            Outcome::Ok(ok.results.into_iter().map(|wire| result(reading, wire)).collect::<Result<_, _>>()?)
        }
        Kind::Failed(wire) => Outcome::Failed(failure(reading, wire)?),
    })
}

pub(super) fn finished_to_wire(outcome: &FinishedOutcome) -> v1::Outcome {
    use v1::outcome::Kind;
    let kind = match outcome {
        FinishedOutcome::Ok(values) => Kind::Ok(v1::TaskResults {
            results: values.iter().map(|value| result_to_wire(value, Bytes::new())).collect(),
        }),
        FinishedOutcome::Failed(failure) => Kind::Failed(failure_to_wire(failure)),
    };
    v1::Outcome { kind: Some(kind) }
}

pub(super) fn finished(reading: &Reading<'_>, wire: v1::Outcome) -> Result<FinishedOutcome, WireError> {
    use v1::outcome::Kind;
    Ok(match wire.kind.required("Outcome.kind")? {
        Kind::Ok(ok) => FinishedOutcome::Ok(
            ok.results.into_iter().map(|wire| result_value(reading, wire.value)).collect::<Result<_, _>>()?,
        ),
        Kind::Failed(wire) => FinishedOutcome::Failed(failure(reading, wire)?),
    })
}
