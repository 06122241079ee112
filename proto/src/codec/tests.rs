use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cluster_types::client_node::*;
use cluster_types::ids::{MAX_ITEMS, MAX_SEQ};
use cluster_types::job::{JobFromNode, JobOrder, JobStage, JobToNode, LogPiece};
use cluster_types::node_head::{ActorPlace, NodeHello, Retry};
use cluster_types::query::{
    ActorView, NamedActor, NodeView, Query, QueryReply, StatusView, StoreUsage, TaskView,
};
use cluster_types::task::{
    Backoff, GroupStrategy, GroupTraits, InGroup, LabelMatch, LabelRule, LabelSelector, Strategy as Placement,
};
use cluster_types::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::Codec;
use crate::frame::FrameReader;
use crate::limits::{MAX_BATCH_MESSAGES, MAX_ENTRIES};
use crate::{WireError, v1};

// ---- strategies

fn client() -> impl Strategy<Value = ClientId> {
    any::<u64>().prop_map(ClientId)
}
fn node_id() -> impl Strategy<Value = NodeId> {
    any::<u64>().prop_map(NodeId)
}
fn job() -> impl Strategy<Value = JobId> {
    any::<u32>().prop_map(JobId)
}
fn task() -> impl Strategy<Value = TaskId> {
    (client(), 0..=MAX_SEQ).prop_map(|(client, seq)| TaskId { client, seq })
}
fn attempt() -> impl Strategy<Value = Attempt> {
    any::<(u32, u32)>().prop_map(|(term, n)| Attempt { term, n })
}
fn object() -> impl Strategy<Value = ObjectId> {
    (client(), any::<u64>()).prop_map(|(client, local)| ObjectId { client, local })
}
fn list() -> impl Strategy<Value = Vec<ObjectId>> {
    vec(object(), 0..5)
}
fn refs() -> impl Strategy<Value = Refs> {
    list().prop_map(Refs::from_vec)
}
fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}
fn text() -> impl Strategy<Value = String> {
    "[a-zé]{0,8}"
}
fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(text(), text(), 0..3)
}
fn location() -> impl Strategy<Value = Location> {
    (any::<u32>(), 0..1u64 << 40, any::<u32>()).prop_map(|(segment, unit, len)| Location {
        segment: SegmentId(segment),
        offset: unit * 64,
        len: len.into(),
    })
}
fn resources() -> impl Strategy<Value = Resources> {
    let amount = || (0..1i64 << 50).prop_map(Amount);
    (amount(), 0..20i64, amount(), vec((text(), amount()), 0..3)).prop_map(|(cpu, gpus, memory, custom)| {
        let mut resources = Resources { cpu, gpu: Amount::units(gpus), memory, ..Resources::default() };
        for (name, amount) in custom {
            resources.set_custom(&name, amount);
        }
        resources
    })
}
fn lease() -> impl Strategy<Value = Lease> {
    gpus().prop_map(|gpus| Lease { gpus: gpus.into() })
}
fn gpus() -> impl Strategy<Value = Vec<GpuShare>> {
    let share = (any::<u16>(), 0..=Amount::PER_UNIT)
        .prop_map(|(index, amount)| GpuShare { index, amount: Amount(amount) });
    vec(share, 0..3)
}
fn failure() -> impl Strategy<Value = Failure> {
    use FailureKind::*;
    let kinds = [
        Exception,
        ExecutorDied,
        NodeLost,
        Cancelled,
        Unschedulable,
        ObjectLost,
        ObjectFreed,
        ObjectTooLarge,
        OutOfDisk,
        Internal,
        ActorDied,
        GroupRemoved,
    ];
    (prop::sample::select(kinds.to_vec()), text(), bytes(50), option::of(task()))
        .prop_map(|(kind, message, payload, task)| Failure { kind, message: message.into(), payload, task })
}
fn kind() -> impl Strategy<Value = TaskKind> {
    let traits =
        (text(), text(), any::<(bool, i32, u32, bool)>(), bytes(30), btree_map(text(), any::<u32>(), 0..3))
            .prop_map(
                |(name, namespace, (detached, max_restarts, max_concurrency, is_async), handle, groups)| {
                    ActorTraits {
                        name,
                        namespace,
                        detached,
                        max_restarts,
                        max_concurrency,
                        groups,
                        is_async,
                        handle,
                    }
                },
            );
    prop_oneof![
        Just(TaskKind::Function),
        traits.prop_map(|traits| TaskKind::Actor(Arc::new(traits))),
        (text(), text(), any::<bool>()).prop_map(|(method, group, concurrent)| TaskKind::Method {
            method: method.into(),
            group: group.into(),
            concurrent
        }),
        group().prop_map(|traits| TaskKind::Group(Arc::new(traits))),
    ]
}
fn group() -> impl Strategy<Value = GroupTraits> {
    use GroupStrategy::{Pack, Spread, StrictPack, StrictSpread};
    let strategy = prop::sample::select(vec![Pack, Spread, StrictPack, StrictSpread]);
    (text(), text(), any::<bool>(), strategy, vec(resources(), 0..3)).prop_map(
        |(name, namespace, detached, strategy, bundles)| GroupTraits {
            name,
            namespace,
            detached,
            strategy,
            bundles,
        },
    )
}
fn rules() -> impl Strategy<Value = Vec<LabelRule>> {
    let rule = prop_oneof![
        vec(text(), 0..3).prop_map(LabelMatch::In),
        vec(text(), 0..3).prop_map(LabelMatch::NotIn),
        Just(LabelMatch::Exists),
        Just(LabelMatch::DoesNotExist),
    ];
    vec((text(), rule).prop_map(|(key, rule)| LabelRule { key, rule }), 0..3)
}
fn template() -> impl Strategy<Value = TaskTemplate> {
    let strategy = prop_oneof![
        Just(Placement::Default),
        Just(Placement::Spread),
        (node_id(), any::<bool>()).prop_map(|(id, soft)| Placement::Node { id, soft }),
        (rules(), rules()).prop_map(|(hard, soft)| Placement::Labels(Arc::new(LabelSelector { hard, soft }))),
        (object(), option::of(any::<u32>()), any::<bool>())
            .prop_map(|(group, bundle, capture)| Placement::Group(InGroup { group, bundle, capture })),
    ];
    let stream = option::of(
        any::<(u32, u64)>().prop_map(|(max_items, max_bytes)| StreamLimits { max_items, max_bytes }),
    );
    let backoff = any::<(u32, u32, u32)>().prop_map(|(first_ms, growth, most_ms)| Backoff {
        first_ms,
        growth,
        most_ms,
    });
    let others = (strategy, kind(), vec(resources(), 0..3), backoff, stream, any::<bool>());
    (text(), object(), resources(), 0..100u32, any::<i32>(), bytes(20), map(), others).prop_map(
        |(
            name,
            function,
            resources,
            num_returns,
            max_retries,
            retry_exceptions,
            env_vars,
            (strategy, kind, variants, backoff, stream, durable),
        )| {
            TaskTemplate {
                name: name.into(),
                function,
                resources,
                num_returns: if stream.is_some() { 1 } else { num_returns },
                max_retries,
                retry_exceptions,
                env_vars,
                strategy,
                kind,
                stream,
                variants,
                backoff,
                durable,
            }
        },
    )
}
fn spec() -> impl Strategy<Value = TaskSpec> {
    let payload = prop_oneof![bytes(200).prop_map(Payload::Inline), object().prop_map(Payload::Stored)];
    (task(), job(), template(), payload, option::of(task()), refs(), refs()).prop_map(
        |(id, job, template, payload, parent, deps, borrowed)| TaskSpec {
            id,
            job,
            template: Arc::new(template),
            payload,
            parent,
            deps,
            borrowed,
        },
    )
}
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        bytes(9000).prop_map(Value::Inline),
        location().prop_map(Value::Local),
        failure().prop_map(Value::Failed)
    ]
}
fn located() -> impl Strategy<Value = Located> {
    prop_oneof![
        bytes(100).prop_map(Located::Inline),
        (any::<u64>(), vec((node_id(), text()), 1..3))
            .prop_map(|(size, copies)| Located::Stored { size, copies }),
        (any::<u64>(), node_id()).prop_map(|(size, writer)| Located::Durable { size, writer }),
        failure().prop_map(Located::Failed)
    ]
}
fn put_value() -> impl Strategy<Value = PutValue> {
    prop_oneof![bytes(9000).prop_map(PutValue::Inline), location().prop_map(PutValue::Stored)]
}
fn result_value() -> impl Strategy<Value = ResultValue> {
    prop_oneof![
        bytes(INLINE_MAX).prop_map(ResultValue::Inline),
        any::<u64>().prop_map(|size| ResultValue::Stored { size })
    ]
}
fn outcome() -> impl Strategy<Value = Outcome> {
    let result = (result_value(), refs()).prop_map(|(value, contains)| TaskResult { value, contains });
    prop_oneof![
        vec(result, 0..3).prop_map(|results| Outcome::Ok(results.into())),
        failure().prop_map(Outcome::Failed)
    ]
}
fn finished() -> impl Strategy<Value = FinishedOutcome> {
    prop_oneof![
        vec(result_value(), 0..3).prop_map(FinishedOutcome::Ok),
        failure().prop_map(FinishedOutcome::Failed)
    ]
}
fn job_info() -> impl Strategy<Value = Arc<JobInfo>> {
    (text(), text(), text(), vec(text(), 0..3), text(), map(), any::<bool>(), text()).prop_map(
        |(name, python_version, python, sys_path, working_dir, env_vars, log_to_driver, namespace)| {
            Arc::new(JobInfo {
                name,
                python_version,
                python,
                sys_path,
                working_dir,
                env_vars,
                log_to_driver,
                namespace,
            })
        },
    )
}
fn client_kind() -> impl Strategy<Value = ClientKind> {
    prop_oneof![
        (job(), job_info()).prop_map(|(job, info)| ClientKind::Driver { job, info }),
        any::<u32>().prop_map(|executor| ClientKind::Executor { executor }),
        Just(ClientKind::Observer)
    ]
}
fn log_line() -> impl Strategy<Value = LogLine> {
    let task = option::of((task(), text().prop_map(Arc::<str>::from)));
    (job(), task, any::<u32>(), node_id(), any::<bool>(), text())
        .prop_map(|(job, task, pid, node, stderr, text)| LogLine { job, task, pid, node, stderr, text })
}
fn query() -> impl Strategy<Value = Query> {
    prop_oneof![
        Just(Query::Status),
        Just(Query::Nodes),
        any::<u32>().prop_map(|limit| Query::Tasks { limit }),
        any::<u32>().prop_map(|limit| Query::Objects { limit }),
        any::<u32>().prop_map(|limit| Query::Actors { limit }),
        (text(), text()).prop_map(|(namespace, name)| Query::NamedActor { namespace, name }),
        (text(), (any::<u32>(), any::<u32>()), text())
            .prop_map(|(actor, attempt, object)| Query::KeepState { actor, attempt, object }),
        text().prop_map(|actor| Query::KeptStates { actor }),
        (text(), any::<u32>()).prop_map(|(node, ms)| Query::Drain { node, deadline_ms: ms.into() }),
        text().prop_map(|object| Query::MakeDurable { object }),
        text().prop_map(|task| Query::Why { task })
    ]
}
fn reply() -> impl Strategy<Value = Result<QueryReply, String>> {
    let task = |name| TaskView { name, ..TaskView::default() };
    prop_oneof![
        text().prop_map(Err),
        any::<u32>().prop_map(|nodes| Ok(QueryReply::Status(StatusView { nodes, ..Default::default() }))),
        Just(Ok(QueryReply::Nodes(vec![NodeView::default()]))),
        Just(Ok(QueryReply::Objects(Vec::new()))),
        Just(Ok(QueryReply::Actors(vec![ActorView::default()]))),
        option::of(
            (text(), vec(any::<u8>(), 0..20)).prop_map(|(actor, handle)| NamedActor { actor, handle })
        )
        .prop_map(|found| Ok(QueryReply::NamedActor(found))),
        vec(text(), 0..3).prop_map(|states| Ok(QueryReply::States(states))),
        vec(text().prop_map(task), 0..2).prop_map(|tasks| Ok(QueryReply::Tasks(tasks)))
    ]
}

fn cancellation() -> impl Strategy<Value = Cancellation> {
    (object(), any::<(bool, bool)>(), text()).prop_map(|(object, (force, recursive), reason)| Cancellation {
        object,
        force,
        recursive,
        reason,
    })
}

fn calls() -> impl Strategy<Value = Vec<CallReport>> {
    let call = (task(), text(), any::<u64>(), option::of(text().prop_map(Arc::<str>::from)))
        .prop_map(|(task, name, micros, error)| CallReport { task, name: name.into(), micros, error });
    vec(call, 0..3)
}

fn client_to_node() -> impl Strategy<Value = ClientToNode> {
    use ClientToNode as M;
    let results =
        || vec((put_value(), refs()).prop_map(|(value, contains)| ExecutorResult { value, contains }), 0..3);
    let completion_failed =
        (failure(), any::<bool>()).prop_map(|(failure, retryable)| ExecutorFailure { failure, retryable });
    let result = prop_oneof![results().prop_map(Ok), completion_failed.prop_map(Err)];
    let answer = prop_oneof![results().prop_map(Ok), failure().prop_map(Err)];
    let of_calls = prop_oneof![
        object().prop_map(M::OpenCalls),
        spec().prop_map(M::Expect),
        (object(), failure()).prop_map(|(object, failure)| M::PutFailed { object, failure }),
        (spec(), prop::option::of(text()))
            .prop_map(|(spec, why)| M::SubmitAgain { spec, may_have_run: why.map(Into::into) }),
        (object(), task(), text(), any::<bool>()).prop_map(|(actor, task, reason, recursive)| {
            M::CancelCall { actor, task, reason, recursive }
        }),
        (task(), answer).prop_map(|(task, result)| M::Answered { task, result }),
        calls().prop_map(M::Called),
        spec().prop_map(M::CallFar),
        (task(), finished()).prop_map(|(task, outcome)| M::AnswerFar { task, outcome }),
        text().prop_map(|reason| M::Left { reason }),
    ];
    prop_oneof![
        of_calls,
        spec().prop_map(M::Submit),
        (object(), put_value(), refs()).prop_map(|(object, value, contains)| M::Put {
            object,
            value,
            contains
        }),
        list().prop_map(M::Escape),
        list().prop_map(M::Hold),
        list().prop_map(M::Drop),
        list().prop_map(M::Get),
        list().prop_map(M::Release),
        any::<u64>().prop_map(|bytes| M::RequestMemory { bytes }),
        (any::<u32>(), any::<u64>(), bytes(9000)).prop_map(|(segment, offset, bytes)| M::Write {
            segment: SegmentId(segment),
            offset,
            bytes
        }),
        vec(any::<u32>().prop_map(SegmentId), 0..4).prop_map(M::ReturnMemory),
        (object(), any::<bool>()).prop_map(|(object, freed)| M::Evicted { object, freed }),
        (any::<u64>(), list()).prop_map(|(tag, on)| M::Blocked { tag, on }),
        any::<u64>().prop_map(|tag| M::Unblocked { tag }),
        (any::<u64>(), result, any::<u64>()).prop_map(|(tag, result, micros)| M::Completed(Completion {
            tag,
            result,
            micros
        })),
        (any::<u64>(), 0..MAX_ITEMS, put_value(), refs()).prop_map(|(tag, index, value, contains)| {
            M::Yielded(YieldedItem { tag, index, item: ExecutorResult { value, contains } })
        }),
        (task(), any::<u32>(), any::<bool>()).prop_map(|(task, items, closed)| M::Taken {
            task,
            items,
            closed
        }),
        log_line().prop_map(M::Log),
        (any::<u64>(), query()).prop_map(|(number, query)| M::Query { number, query }),
        cancellation().prop_map(M::Cancel),
        (object(), any::<bool>()).prop_map(|(actor, restart)| M::Kill { actor, restart }),
        Just(M::Goodbye)
    ]
}

fn node_to_client() -> impl Strategy<Value = NodeToClient> {
    use NodeToClient as M;
    let welcome = (node_id(), job(), job_info(), any::<u64>(), any::<u32>()).prop_map(
        |(node, job, info, store_capacity, cores)| Welcome { node, job, info, store_capacity, cores },
    );
    let run = (any::<u64>(), any::<u16>(), attempt(), spec(), vec((object(), value()), 0..2), gpus())
        .prop_map(|(tag, slot, attempt, spec, values, gpus)| {
            M::Run(Box::new(RunTask { tag, slot, attempt, spec: Arc::new(spec), values, gpus }))
        });
    let far = prop_oneof![
        (object(), any::<(bool, u32)>()).prop_map(|(actor, (in_order, window))| M::FarCalls {
            actor,
            in_order,
            window
        }),
        (any::<bool>(), spec()).prop_map(|(in_order, spec)| M::Called { in_order, spec: Box::new(spec) }),
        client().prop_map(M::ForgetCalls),
        (task(), finished()).prop_map(|(task, outcome)| M::FarAnswer { task, outcome }),
        (task(), text(), any::<bool>()).prop_map(|(task, reason, recursive)| M::CancelOwn {
            task,
            reason,
            recursive
        }),
    ];
    prop_oneof![
        welcome.prop_map(M::Welcome),
        text().prop_map(|reason| M::Rejected { reason }),
        (task(), finished()).prop_map(|(task, outcome)| M::Finished { task, outcome }),
        (object(), value()).prop_map(|(object, value)| M::Ready { object, value }),
        (task(), 0..MAX_ITEMS, result_value()).prop_map(|(task, index, value)| M::Item {
            task,
            index,
            value
        }),
        any::<(u64, u32, bool)>().prop_map(|(tag, items, closed)| M::Taken { tag, items, closed }),
        (object(), any::<u64>(), any::<u64>(), bytes(9000))
            .prop_map(|(object, offset, len, bytes)| M::Part { object, offset, len, bytes }),
        (any::<u32>(), any::<u64>(), any::<bool>()).prop_map(|(segment, len, writable)| M::Segment {
            segment: SegmentId(segment),
            len,
            writable
        }),
        (any::<u64>(), failure()).prop_map(|(bytes, failure)| M::NoMemory { bytes, failure }),
        vec(location(), 0..4).prop_map(M::RangesFreed),
        object().prop_map(|object| M::Evict { object }),
        Just(M::RecallMemory),
        run,
        (any::<u64>(), text(), any::<bool>()).prop_map(|(tag, reason, recursive)| M::Cancel {
            tag,
            reason,
            recursive
        }),
        (object(), any::<bool>()).prop_map(|(actor, in_order)| M::Calls { actor, in_order }),
        object().prop_map(|actor| M::NoCalls { actor }),
        (object(), text(), any::<bool>()).prop_map(|(actor, why, lost)| M::CallsEnded { actor, why, lost }),
        far,
        (client(), any::<bool>()).prop_map(|(caller, in_order)| M::Serve { caller, in_order }),
        client().prop_map(M::CallerGone),
        Just(M::Exit),
        vec(log_line(), 0..3).prop_map(M::Log),
        text().prop_map(|text| M::Notice { text }),
        (any::<u64>(), reply()).prop_map(|(number, reply)| M::Reply { number, reply })
    ]
}

fn node_to_head() -> impl Strategy<Value = NodeToHead> {
    use NodeToHead as M;
    let usage = any::<(u64, u64, u64, u64)>().prop_map(|(capacity, reserved, live, spilled)| StoreUsage {
        capacity,
        reserved,
        live,
        spilled,
    });
    let retry = prop::sample::select(vec![Retry::No, Retry::Infrastructure, Retry::Exception, Retry::NoRoom]);
    let started = option::of((task(), attempt()));
    let done = (task(), attempt(), option::of(client()), outcome(), retry.clone(), started, any::<u64>())
        .prop_map(|(task, attempt, executor, outcome, retry, started, micros)| M::Done {
            task,
            attempt,
            executor,
            outcome,
            retry,
            started,
            micros,
        });
    let snapshot = prop_oneof![
        (object(), any::<u64>(), option::of(bytes(100)), refs())
            .prop_map(|(object, size, inline, contains)| M::Kept { object, size, inline, contains }),
        (spec(), attempt(), option::of(lease()), any::<u32>()).prop_map(|(spec, attempt, lease, yielded)| {
            M::Running { spec: Arc::new(spec), attempt, lease, yielded }
        }),
        (spec(), attempt(), lease(), result_value(), refs(), job_info()).prop_map(
            |(spec, attempt, lease, value, contains, info)| M::Lives {
                spec: Arc::new(spec),
                attempt,
                lease,
                handle: TaskResult { value, contains },
                info
            }
        ),
        (spec(), attempt(), outcome(), retry.clone(), any::<u64>(), any::<bool>()).prop_map(
            |(spec, attempt, outcome, retry, micros, lived)| M::Ended {
                spec: Arc::new(spec),
                attempt,
                outcome,
                retry,
                micros,
                lived
            }
        ),
        spec().prop_map(|spec| M::Made(Arc::new(spec))),
        (text(), any::<u32>(), text()).prop_map(|(job, attempt, what)| {
            let order = Box::new(JobOrder { job, attempt, ..JobOrder::default() });
            M::Jobs(JobFromNode::Report { order, stage: JobStage::Preparing { what } })
        }),
        (any::<u64>(), text()).prop_map(|(ask, text)| {
            let piece = LogPiece { text, next: 7, ended: true, missing: 0 };
            M::Jobs(JobFromNode::LogRead { ask, reply: Ok(piece) })
        }),
        (task(), any::<u32>()).prop_map(|(task, items)| M::Told { task, items }),
        any::<(u64, u64)>().prop_map(|(number, heard)| M::Mark { number, heard }),
        Just(M::SnapshotEnd)
    ];
    prop_oneof![
        snapshot,
        (usage, any::<u32>()).prop_map(|(store, executors)| M::Heartbeat { store, executors }),
        (client(), client_kind(), job(), any::<u32>())
            .prop_map(|(client, kind, job, pid)| M::ClientAttached { client, kind, job, pid }),
        client().prop_map(|client| M::ClientGone { client }),
        spec().prop_map(M::Submit),
        spec().prop_map(M::Expect),
        (object(), failure()).prop_map(|(object, failure)| M::PutFailed { object, failure }),
        (spec(), prop::option::of(text()))
            .prop_map(|(spec, why)| M::SubmitAgain { spec, may_have_run: why.map(Into::into) }),
        calls().prop_map(M::Called),
        object().prop_map(M::FindActor),
        any::<u64>().prop_map(M::Confirm),
        list().prop_map(M::Promote),
        (object(), any::<u64>(), option::of(bytes(100)), refs())
            .prop_map(|(object, size, inline, contains)| M::Escaped { object, size, inline, contains }),
        (client(), list()).prop_map(|(client, objects)| M::Hold { client, objects }),
        (client(), list()).prop_map(|(client, objects)| M::Drop { client, objects }),
        (client(), list()).prop_map(|(client, objects)| M::Unanswered { client, objects }),
        done,
        (task(), attempt(), 0..MAX_ITEMS, result_value(), refs()).prop_map(
            |(task, attempt, index, value, contains)| {
                M::Yielded { task, attempt, index, item: TaskResult { value, contains } }
            }
        ),
        (task(), any::<u32>(), any::<bool>()).prop_map(|(task, items, closed)| M::Taken {
            task,
            items,
            closed
        }),
        vec((task(), attempt()), 0..3).prop_map(M::Returned),
        (task(), attempt(), list()).prop_map(|(task, attempt, on)| M::Blocked { task, attempt, on }),
        (task(), attempt()).prop_map(|(task, attempt)| M::Unblocked { task, attempt }),
        (client(), cancellation()).prop_map(|(client, what)| M::Cancel { client, what }),
        (client(), object(), any::<bool>()).prop_map(|(client, actor, restart)| M::Kill {
            client,
            actor,
            restart
        }),
        object().prop_map(M::Locate),
        (object(), node_id()).prop_map(|(object, source)| M::SourceFailed { object, source }),
        object().prop_map(M::CopyAdded),
        object().prop_map(M::CopyRemoved),
        (object(), node_id()).prop_map(|(object, writer)| M::Durable { object, writer }),
        (object(), node_id(), text()).prop_map(|(object, writer, reason)| M::DurableLost {
            object,
            writer,
            reason
        }),
        vec(log_line(), 0..3).prop_map(M::Log),
        (client(), any::<u64>(), query()).prop_map(|(client, number, query)| M::Query {
            client,
            number,
            query
        })
    ]
}

fn head_to_node() -> impl Strategy<Value = HeadToNode> {
    use HeadToNode as M;
    let place = (node_id(), text(), attempt(), any::<(bool, u32)>()).prop_map(
        |(node, address, attempt, (in_order, concurrency))| ActorPlace {
            node,
            address,
            attempt,
            in_order,
            concurrency,
        },
    );
    let far = prop_oneof![
        (object(), option::of(place)).prop_map(|(actor, place)| M::ActorAt { actor, place }),
        (node_id(), text()).prop_map(|(node, why)| M::PeerLost { node, why }),
        any::<u64>().prop_map(M::Confirmed),
        (task(), text(), any::<bool>()).prop_map(|(task, reason, recursive)| M::CancelOwn {
            task,
            reason,
            recursive
        }),
    ];
    prop_oneof![
        far,
        (text(), vec(text(), 0..3)).prop_map(|(leader, all)| M::Heads(Heads { leader, all })),
        any::<(u64, u64)>().prop_map(|(number, settled)| M::Pulse { number, settled }),
        any::<(u32, u32, u32)>().prop_map(|(term, incarnation, loss_timeout_ms)| M::Resumed {
            term: Term(term),
            incarnation: Incarnation(incarnation),
            loss_timeout_ms
        }),
        any::<(u32, u32, u32)>().prop_map(|(term, incarnation, loss_timeout_ms)| M::Admitted {
            term: Term(term),
            incarnation: Incarnation(incarnation),
            loss_timeout_ms
        }),
        (job(), job_info()).prop_map(|(job, info)| M::Job { job, info }),
        job().prop_map(M::JobEnded),
        (spec(), attempt(), option::of(lease()), vec((object(), located()), 0..3)).prop_map(
            |(spec, attempt, lease, located)| M::Assign { spec: Arc::new(spec), attempt, lease, located }
        ),
        (task(), attempt(), lease()).prop_map(|(task, attempt, lease)| M::Grant { task, attempt, lease }),
        vec((task(), attempt()), 0..3).prop_map(M::CallBack),
        (task(), attempt(), text(), any::<bool>()).prop_map(|(task, attempt, reason, force)| M::Cancel {
            task,
            attempt,
            reason,
            force
        }),
        (task(), attempt()).prop_map(|(task, attempt)| M::MoveActor { task, attempt }),
        (task(), attempt(), text(), any::<bool>()).prop_map(|(task, attempt, reason, force)| M::EndActor {
            task,
            attempt,
            reason,
            force
        }),
        (task(), 0..MAX_ITEMS, result_value()).prop_map(|(task, index, value)| M::Item {
            task,
            index,
            value
        }),
        (task(), attempt(), any::<u32>(), any::<bool>())
            .prop_map(|(task, attempt, items, closed)| { M::Taken { task, attempt, items, closed } }),
        (task(), finished()).prop_map(|(task, outcome)| M::Finished { task, outcome }),
        (object(), located()).prop_map(|(object, located)| M::Located { object, located }),
        list().prop_map(M::Free),
        (text(), any::<u32>()).prop_map(|(job, attempt)| M::Jobs(JobToNode::Stop { job, attempt })),
        (node_id(), list()).prop_map(|(writer, objects)| M::DeleteDurable { writer, objects }),
        (object(), located(), refs()).prop_map(|(object, located, contains)| M::Copy {
            object,
            located,
            contains
        }),
        client().prop_map(M::ClientGone),
        (client(), vec(log_line(), 0..2)).prop_map(|(client, lines)| M::Log { client, lines }),
        (client(), text()).prop_map(|(client, text)| M::Notice { client, text }),
        (client(), failure()).prop_map(|(client, failure)| M::RejectClient { client, failure }),
        (client(), any::<u64>(), reply()).prop_map(|(client, number, reply)| M::Reply {
            client,
            number,
            reply
        })
    ]
}

fn node_to_node() -> impl Strategy<Value = NodeToNode> {
    use NodeToNode as M;
    prop_oneof![
        (client(), object(), attempt()).prop_map(|(caller, actor, attempt)| M::Open {
            caller,
            actor,
            attempt
        }),
        (client(), object()).prop_map(|(caller, actor)| M::Opened { caller, actor }),
        spec().prop_map(M::Call),
        (task(), finished(), any::<bool>()).prop_map(|(task, outcome, known)| M::Answer {
            task,
            outcome,
            known
        }),
        (object(), task(), text(), any::<bool>())
            .prop_map(|(actor, task, reason, recursive)| { M::Cancel { actor, task, reason, recursive } }),
        (client(), object(), any::<bool>()).prop_map(|(caller, actor, forget)| M::Close {
            caller,
            actor,
            forget
        }),
        (client(), object(), text(), any::<bool>()).prop_map(|(caller, actor, why, lost)| M::Ended {
            caller,
            actor,
            why,
            lost
        }),
    ]
}

// ---- properties

macro_rules! round_trip {
    ($($name:ident: $messages:ident, $encode:ident, $frame:ident, $decode:ident;)*) => {$(
        mod $name {
            use super::*;
            proptest! {
                #[test]
                fn messages_survive_the_wire(messages in vec($messages(), 0..6)) {
                    let (mut here, mut there) = (Codec::default(), Codec::default());
                    let mut out = BytesMut::new();
                    here.$encode(&messages, &mut out);
                    let once = out.split().freeze();
                    prop_assert_eq!(there.$decode(once.clone()), Ok(messages.clone()));
                    // The second time both sides know the templates.
                    here.$encode(&messages, &mut out);
                    prop_assert_eq!(&once, &out.split().freeze());
                    prop_assert_eq!(there.$decode(once), Ok(messages.clone()));

                    here.$frame(&messages, &mut out);
                    let mut frames = FrameReader::default();
                    frames.push(&out);
                    let mut seen = Vec::new();
                    while let Some(frame) = frames.next_frame().unwrap() {
                        seen.extend(there.$decode(frame).unwrap());
                    }
                    prop_assert_eq!(seen, messages);
                }

                /// Bytes near a real batch reach further into the decoder than noise does.
                #[test]
                fn damaged_bytes_never_panic(
                    messages in vec($messages(), 1..4),
                    damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
                    cut in any::<prop::sample::Index>(),
                ) {
                    let mut out = BytesMut::new();
                    Codec::default().$encode(&messages, &mut out);
                    for (at, byte) in damage {
                        let at = at.index(out.len());
                        out[at] = byte;
                    }
                    let bytes = out.freeze();
                    let _ = Codec::default().$decode(bytes.slice(..cut.index(bytes.len() + 1)));
                    let _ = Codec::default().$decode(bytes);
                }

                #[test]
                fn noise_never_panics(bytes in vec(any::<u8>(), 0..300)) {
                    let _ = Codec::default().$decode(bytes.into());
                }
            }
        }
    )*};
}

round_trip! {
    from_client: client_to_node, encode_client_batch, frame_client_messages, decode_client_batch;
    to_client: node_to_client, encode_node_batch, frame_node_messages, decode_node_batch;
    to_head: node_to_head, encode_to_head_batch, frame_to_head_messages, decode_to_head_batch;
    to_node: head_to_node, encode_to_node_batch, frame_to_node_messages, decode_to_node_batch;
    to_peer: node_to_node, encode_to_peer_batch, frame_to_peer_messages, decode_to_peer_batch;
}

proptest! {
    #[test]
    fn hellos_survive_the_wire(
        who in (client(), client_kind(), text(), any::<u32>(), any::<bool>()),
        node in (node_id(), resources(), map(), text(), option::of(any::<(u32, u32)>())),
    ) {
        let (id, kind, token, pid, shares_memory) = who;
        let hello = ClientHello { protocol: PROTOCOL_VERSION, token, client: id, pid, kind, shares_memory };
        let mut out = BytesMut::new();
        Codec::encode_hello(&hello, &mut out);
        prop_assert_eq!(Codec::decode_hello(out.split().freeze()), Ok(hello));

        let (id, resources, labels, address, previous) = node;
        let hello = NodeHello {
            protocol: PROTOCOL_VERSION,
            node: id,
            hostname: address.clone(),
            data_address: address.clone(),
            gateway_address: address,
            resources,
            labels,
            store_capacity: 1,
            previous: previous.map(|(term, incarnation)| (Term(term), Incarnation(incarnation))),
        };
        Codec::encode_node_hello(&hello, &mut out);
        prop_assert_eq!(Codec::decode_node_hello(out.split().freeze()), Ok(hello));
    }

    #[test]
    fn hellos_of_tunnels_survive_the_wire(
        (from, to) in (node_id(), node_id()),
        (conversation, received, reason) in (any::<u64>(), any::<u64>(), text()),
    ) {
        let hello = TunnelHello { protocol: PROTOCOL_VERSION, from, to, conversation, received, first: received == 0 };
        let mut out = BytesMut::new();
        Codec::encode_tunnel_hello(&hello, &mut out);
        prop_assert_eq!(Codec::decode_tunnel_hello(out.split().freeze()), Ok(hello));
        for welcome in [TunnelWelcome::Here { received }, TunnelWelcome::Refused(reason)] {
            Codec::encode_tunnel_welcome(&welcome, &mut out);
            prop_assert_eq!(Codec::decode_tunnel_welcome(out.split().freeze()), Ok(welcome));
        }
    }

    #[test]
    fn noise_is_no_hello_and_no_query(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = Codec::decode_hello(bytes.clone());
        let _ = Codec::decode_node_hello(bytes.clone());
        let _ = crate::decode_query(&v1::Query { json: bytes });
    }
}

// ---- single cases

fn encode(wire: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::new();
    super::put_message(wire, &mut out);
    out.freeze()
}

#[test]
fn equal_templates_are_one_in_memory() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let made = spec().new_tree(&mut runner).unwrap().current();
    let mut out = BytesMut::new();
    let mut codec = Codec::default();
    codec.encode_client_batch(&[ClientToNode::Submit(made.clone()), ClientToNode::Submit(made)], &mut out);
    let read = codec.decode_client_batch(out.freeze()).unwrap();
    let [ClientToNode::Submit(one), ClientToNode::Submit(two)] = read.as_slice() else { panic!("{read:?}") };
    assert!(Arc::ptr_eq(&one.template, &two.template));
}

#[test]
fn another_protocol_version_is_one_clear_sentence_even_if_nothing_else_can_be_read() {
    let hello = v1::ClientHello { protocol: 7, ..Default::default() };
    let mut out = BytesMut::new();
    super::put(&hello, &mut out);
    let error = Codec::decode_hello(out.freeze()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this daemon speaks protocol 1, the client speaks protocol 7: install the same version of concurrent-ml \
         on both and start them again"
    );
}

#[test]
fn errors_name_the_field() {
    let cases: Vec<(v1::client_to_node::Kind, &str)> = vec![
        (v1::client_to_node::Kind::Put(v1::Put::default()), "Put.object"),
        (
            v1::client_to_node::Kind::Escape(v1::Objects { objects: Bytes::from_static(b"short") }),
            "Objects.objects",
        ),
        (
            v1::client_to_node::Kind::Submit(v1::TaskSpec { seq: u64::MAX, ..Default::default() }),
            "TaskSpec.seq",
        ),
        (v1::client_to_node::Kind::Completed(v1::Completion::default()), "Completion.result"),
        (
            v1::client_to_node::Kind::Put(v1::Put {
                object: Some(Default::default()),
                value: Some(v1::PutValue {
                    kind: Some(v1::put_value::Kind::Stored(v1::Location { segment: 1, offset: 7, len: 1 })),
                }),
                ..Default::default()
            }),
            "Location.offset",
        ),
    ];
    for (kind, field) in cases {
        let bytes = encode(&v1::ClientToNode { kind: Some(kind) });
        let error = Codec::default().decode_client_batch(bytes).unwrap_err();
        assert!(error.to_string().contains(field), "{error} does not name {field}");
    }
    let error = Codec::default().decode_client_batch(encode(&v1::ClientToNode { kind: None })).unwrap_err();
    assert_eq!(error, WireError::Missing { field: "ClientToNode.kind" });
}

#[test]
fn values_too_large_to_be_inline_are_refused_where_they_would_be_kept() {
    let inline = Some(Bytes::from(vec![0; INLINE_MAX + 1]));
    let escaped = v1::Escaped { object: Some(Default::default()), inline, ..Default::default() };
    let bytes = encode(&v1::NodeToHead { kind: Some(v1::node_to_head::Kind::Escaped(escaped)) });
    let error = Codec::default().decode_to_head_batch(bytes).unwrap_err();
    let limit = INLINE_MAX as u64;
    assert_eq!(error, WireError::TooMany { field: "Escaped.inline", count: limit + 1, limit });
}

#[test]
fn counts_are_limited() {
    let tiny = encode(&v1::ClientToNode { kind: Some(v1::client_to_node::Kind::Goodbye(v1::Nothing {})) });
    let batch = |count: usize| Bytes::from(tiny.repeat(count));
    assert!(Codec::default().decode_client_batch(batch(MAX_BATCH_MESSAGES)).is_ok());
    let error = Codec::default().decode_client_batch(batch(MAX_BATCH_MESSAGES + 1)).unwrap_err();
    assert!(matches!(error, WireError::TooMany { field: "batch.messages", .. }), "{error}");

    let gpus = vec![v1::GpuShare::default(); MAX_ENTRIES + 1];
    assert!(Lease::try_from(v1::Lease { gpus }).is_err());
}

/// A sender may hand over any number of messages; frames stay within what a receiver accepts.
#[test]
fn a_flood_is_cut_into_frames_that_are_accepted() {
    let messages = vec![ClientToNode::Goodbye; MAX_BATCH_MESSAGES * 2 + 5];
    let mut out = BytesMut::new();
    let mut codec = Codec::default();
    codec.frame_client_messages(&messages, &mut out);
    let mut reader = FrameReader::default();
    reader.push(&out);
    let mut count = 0;
    while let Some(frame) = reader.next_frame().unwrap() {
        count += codec.decode_client_batch(frame).unwrap().len();
    }
    assert_eq!(count, messages.len());
}

/// One small value that is kept must not keep the large frame it came in.
#[test]
fn a_small_value_does_not_keep_its_frame() {
    let put = |len| ClientToNode::Put {
        object: ObjectId::put(ClientId(1), 1),
        value: PutValue::Inline(vec![1; len].into()),
        contains: Refs::new(),
    };
    let mut out = BytesMut::new();
    let mut codec = Codec::default();
    codec.encode_client_batch(&[put(100), put(1 << 20)], &mut out);
    let frame = out.freeze();
    let range = frame.as_ptr_range();
    let messages = codec.decode_client_batch(frame.clone()).unwrap();
    let shares = |message: &ClientToNode| match message {
        ClientToNode::Put { value: PutValue::Inline(bytes), .. } => range.contains(&bytes.as_ptr()),
        _ => false,
    };
    assert_eq!(messages.iter().map(shares).collect::<Vec<_>>(), [false, true]);
}

proptest! {
    #[test]
    fn a_write_encoded_where_its_bytes_lie_is_the_same(segment in any::<u32>(), offset in any::<u64>(), len in 0usize..70_000) {
        let (segment, bytes) = (SegmentId(segment), Bytes::from(vec![7; len]));
        let mut encoded = Vec::new();
        Codec::encode_write(segment, offset, &bytes, &mut encoded);
        let mut out = BytesMut::new();
        Codec::default().encode_client_batch(&[ClientToNode::Write { segment, offset, bytes }], &mut out);
        prop_assert_eq!(encoded, out);
    }
}
