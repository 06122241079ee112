//! How fast messages are written and read on one core: `cargo run --release -p cluster-proto --example codec_speed`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_types::client_node::{Completion, ExecutorResult, FinishedOutcome, PutValue, RunTask};
use cluster_types::node_head::Retry;
use cluster_types::{
    Attempt, ClientId, ClientToNode, HeadToNode, JobId, Lease, NodeToClient, NodeToHead, ObjectId, Outcome,
    Payload, Refs, Resources, ResultValue, TaskId, TaskResult, TaskSpec, TaskTemplate,
};

const BATCH: u64 = 64;
const CLIENT: ClientId = ClientId(0x1234_5678_9abc_def0);

fn main() {
    let mut codec = Codec::default();
    let template = Arc::new(TaskTemplate {
        name: "train.step".into(),
        function: ObjectId::put(CLIENT, 1),
        resources: Resources::cpus(1),
        num_returns: 1,
        max_retries: 3,
        retry_exceptions: Bytes::new(),
        env_vars: [("OMP_NUM_THREADS".to_owned(), "1".to_owned())].into(),
        strategy: Default::default(),
        kind: Default::default(),
        ..TaskTemplate::default()
    });
    let task = |seq| TaskId { client: CLIENT, seq };
    let spec = |seq| TaskSpec {
        id: task(seq),
        job: JobId(7),
        template: template.clone(),
        payload: Payload::Inline(vec![1; 48].into()),
        deps: Refs::new(),
        parent: None,
        borrowed: Refs::new(),
    };
    let attempt = Attempt { term: 1, n: 1 };
    let value = Bytes::from(vec![2; 32]);

    println!("{:<24} {:>12} {:>12} {:>8}", "message", "encoded/s", "decoded/s", "bytes");
    measure(
        "client Submit",
        &mut codec,
        |seq| ClientToNode::Submit(spec(seq)),
        Codec::encode_client_batch,
        Codec::decode_client_batch,
    );
    measure(
        "client Drop",
        &mut codec,
        |seq| ClientToNode::Drop(vec![task(seq).result(0)]),
        Codec::encode_client_batch,
        Codec::decode_client_batch,
    );
    measure(
        "client Completed",
        &mut codec,
        |tag| {
            let value = PutValue::Inline(value.clone());
            let result = Ok(vec![ExecutorResult { value, contains: Refs::new() }]);
            ClientToNode::Completed(Completion { tag, result, micros: 12 })
        },
        Codec::encode_client_batch,
        Codec::decode_client_batch,
    );
    measure(
        "node Run",
        &mut codec,
        |seq| {
            NodeToClient::Run(Box::new(RunTask {
                tag: seq,
                slot: 3,
                attempt,
                spec: Arc::new(spec(seq)),
                values: Vec::new(),
                gpus: Vec::new(),
            }))
        },
        Codec::encode_node_batch,
        Codec::decode_node_batch,
    );
    measure(
        "node Finished",
        &mut codec,
        |seq| NodeToClient::Finished {
            task: task(seq),
            outcome: FinishedOutcome::Ok(vec![ResultValue::Inline(value.clone())]),
        },
        Codec::encode_node_batch,
        Codec::decode_node_batch,
    );
    measure(
        "head Assign",
        &mut codec,
        |seq| HeadToNode::Assign {
            spec: Arc::new(spec(seq)),
            attempt,
            lease: Some(Lease::default()),
            located: Vec::new(),
        },
        Codec::encode_to_node_batch,
        Codec::decode_to_node_batch,
    );
    measure(
        "head Done",
        &mut codec,
        |seq| NodeToHead::Done {
            task: task(seq),
            attempt,
            executor: Some(CLIENT),
            outcome: Outcome::Ok(
                [TaskResult { value: ResultValue::Inline(value.clone()), contains: Refs::new() }].into(),
            ),
            retry: Retry::No,
            started: Some((task(seq + 1), attempt)),
            micros: 12,
        },
        Codec::encode_to_head_batch,
        Codec::decode_to_head_batch,
    );
}

fn measure<M>(
    name: &str,
    codec: &mut Codec,
    make: impl Fn(u64) -> M,
    encode: impl Fn(&mut Codec, &[M], &mut BytesMut),
    decode: impl Fn(&mut Codec, Bytes) -> Result<Vec<M>, cluster_proto::WireError>,
) {
    let messages: Vec<M> = (1_000_000..1_000_000 + BATCH).map(make).collect();
    let mut out = BytesMut::new();
    let encoded = per_second(|| {
        out.clear();
        encode(codec, &messages, &mut out);
        black_box(&out);
    });
    let bytes = Bytes::copy_from_slice(&out);
    let decoded = per_second(|| {
        black_box(decode(codec, bytes.clone()).expect("our own bytes"));
    });
    println!("{name:<24} {encoded:>12.0} {decoded:>12.0} {:>8}", bytes.len() as u64 / BATCH);
}

fn per_second(mut batch: impl FnMut()) -> f64 {
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_millis(500) {
        (0..50).for_each(|_| batch());
        count += 50 * BATCH;
    }
    count as f64 / start.elapsed().as_secs_f64()
}
