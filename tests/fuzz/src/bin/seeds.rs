//! Writes the first inputs of the targets that talk to state machines: short lives of a task, so that the fuzzer need not
//! find out by itself what a message is.

use std::fs;

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_types::client_node::{Completion, ExecutorResult, FinishedOutcome, PutValue};
use cluster_types::kept::KeptActor;
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, ClientId, ClientKind, ClientToNode, HeadToNode, JobId, Lease, NodeToClient, NodeToHead, ObjectId,
    Outcome, Payload, Resources, ResultValue, TaskId, TaskResult, TaskSpec, TaskTemplate,
};
use fuzz::write_turn;

const DRIVER: ClientId = ClientId(0xd);
const JOB: JobId = JobId(1);

fn spec(seq: u64, deps: &[ObjectId]) -> TaskSpec {
    let template = TaskTemplate {
        name: "f".into(),
        function: ObjectId::put(DRIVER, 1),
        resources: Resources::cpus(1),
        num_returns: 1,
        max_retries: 3,
        ..TaskTemplate::default()
    };
    TaskSpec {
        id: TaskId { client: DRIVER, seq },
        job: JOB,
        template: template.into(),
        payload: Payload::Inline(Bytes::new()),
        parent: None,
        deps: deps.iter().copied().collect(),
        borrowed: Default::default(),
    }
}

fn main() -> std::io::Result<()> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let task = |seq| TaskId { client: DRIVER, seq };
    let function = ObjectId::put(DRIVER, 1);
    let value = || TaskResult { value: ResultValue::Inline(Bytes::from_static(b"1")), contains: Default::default() };
    let attached = NodeToHead::ClientAttached {
        client: DRIVER,
        kind: ClientKind::Driver { job: JOB, info: Default::default() },
        job: JOB,
        pid: 2,
    };
    let escaped = NodeToHead::Escaped {
        object: function,
        size: 1,
        inline: Some(Bytes::from_static(b"f")),
        contains: Default::default(),
    };
    let done = |seq| NodeToHead::Done {
        task: task(seq),
        attempt: Attempt { term: 1, n: 1 },
        executor: None,
        outcome: Outcome::Ok([value()].into_iter().collect()),
        retry: Retry::No,
        started: None,
        micros: 5,
    };
    let result = task(1).result(0);
    let to_head = [
        vec![attached, escaped, NodeToHead::Submit(spec(1, &[])), NodeToHead::Submit(spec(2, &[result]))],
        vec![done(1), NodeToHead::Locate(result), NodeToHead::CopyAdded(result)],
        vec![NodeToHead::Hold { client: DRIVER, objects: vec![function] }, done(2)],
        vec![NodeToHead::Drop { client: DRIVER, objects: vec![result, task(2).result(0)] }],
        vec![NodeToHead::Drain { deadline_ms: 100 }, NodeToHead::ClientGone { client: DRIVER }],
    ];
    let mut codec = Codec::default();
    let mut life = Vec::new();
    let mut all = BytesMut::new();
    for messages in &to_head {
        let mut batch = BytesMut::new();
        codec.encode_to_head_batch(messages, &mut batch);
        write_turn(&mut life, true, 1, &batch);
        all.extend_from_slice(&batch);
    }
    write(corpus, "head", &life)?;
    write(corpus, "node_to_head", &all)?;

    let assign = HeadToNode::Assign {
        spec: spec(1, &[]).into(),
        attempt: Attempt { term: 1, n: 1 },
        lease: Some(Lease::default()),
        located: Vec::new(),
    };
    let (mut head_says, mut client_says) = (Codec::default(), Codec::default());
    let mut life = Vec::new();
    let mut batch = BytesMut::new();
    let from_head = [HeadToNode::Job { job: JOB, info: Default::default() }, assign, HeadToNode::Free(vec![function])];
    head_says.encode_to_node_batch(&from_head, &mut batch);
    write(corpus, "head_to_node", &batch)?;
    write_turn(&mut life, true, 1, &batch);
    batch.clear();
    let from_client = [
        ClientToNode::Submit(spec(1, &[])),
        ClientToNode::Get(vec![result]),
        ClientToNode::Completed(Completion {
            tag: 1,
            result: Ok(vec![ExecutorResult { value: PutValue::Inline(Bytes::new()), contains: Default::default() }]),
            micros: 1,
        }),
    ];
    client_says.encode_client_batch(&from_client, &mut batch);
    write(corpus, "client_to_node", &batch)?;
    write_turn(&mut life, false, 1, &batch);
    write(corpus, "node", &life)?;

    batch.clear();
    let finished = FinishedOutcome::Ok(vec![ResultValue::Stored { size: 9 }]);
    let told = [NodeToClient::Finished { task: task(1), outcome: finished }, NodeToClient::Exit];
    Codec::default().encode_node_batch(&told, &mut batch);
    write(corpus, "node_to_client", &batch)?;
    write(corpus, "client", &batch)?;

    batch.clear();
    let kept = KeptActor {
        spec: spec(1, &[]).into(),
        info: Some(Default::default()),
        value: Some(value()),
        restarts: 1,
        ended: Some(Attempt { term: 1, n: 1 }),
        states: vec![result],
    };
    Codec::default().encode_kept_actor(&kept, &mut batch);
    write(corpus, "stored_records", &batch)
}

fn write(corpus: &str, target: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = format!("{corpus}/{target}");
    fs::create_dir_all(&folder)?;
    fs::write(format!("{folder}/a-life"), bytes)
}
