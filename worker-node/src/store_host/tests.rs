//! Effects in, events out, with real memory, disk and data ports.

use std::time::Duration;

use super::*;

struct Fixture {
    host: StoreHost,
    notices: mpsc::UnboundedReceiver<StoreNotice>,
    _dir: Directory,
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn fixture(name: &str) -> Fixture {
    let dir = std::env::temp_dir().join(format!("cluster-store-host-{}-{name}", std::process::id()));
    let (host, notices) = StoreHost::new("secret".to_owned(), dir.clone());
    Fixture { host, notices, _dir: Directory(dir) }
}

impl Fixture {
    async fn next(&mut self) -> StoreNotice {
        let next = tokio::time::timeout(Duration::from_secs(10), self.notices.recv());
        next.await.expect("within 10 s").expect("the host lives")
    }

    async fn event(&mut self) -> Event {
        match self.next().await {
            StoreNotice::Event(event) => event,
            _ => panic!("not an event"),
        }
    }

    async fn stored(&mut self, n: u64, bytes: Bytes) -> Location {
        self.host.perform(Effect::StoreBytes { object: object(n), bytes });
        match self.event().await {
            Event::Stored { location, .. } => location,
            other => panic!("{other:?}"),
        }
    }

    fn bytes_at(&self, at: Location) -> Vec<u8> {
        let held = self.host.segments.get(at.segment).unwrap();
        held.read_mapping().unwrap().bytes(at.offset, at.len).unwrap().to_vec()
    }
}

fn object(n: u64) -> ObjectId {
    ObjectId::put(ClientId(7), n)
}

fn some_bytes(len: usize, seed: u8) -> Bytes {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn segments_are_made_described_and_dropped() {
    let mut it = fixture("segments");
    let segment = SegmentId(1);
    it.host.perform(Effect::CreateSegment { segment, len: 1 << 20, file_backed: false, for_daemon: false });
    assert!(matches!(it.event().await, Event::SegmentCreated { failure: None, .. }));
    let (len, _) = it.host.descriptor(segment, true).unwrap();
    assert_eq!(len, 1 << 20);
    it.host.perform(Effect::DropSegment { segment });
    it.host.perform(Effect::CreateSegment {
        segment: SegmentId(2),
        len: 1 << 60,
        file_backed: false,
        for_daemon: false,
    });
    let Event::SegmentCreated { failure: Some(failure), .. } = it.event().await else { panic!() };
    assert!(failure.message.contains("available"), "{}", failure.message);
}

#[tokio::test]
async fn an_object_is_spilled_restored_and_deleted() {
    let mut it = fixture("spill");
    let bytes = some_bytes(300_000, 1);
    let at = it.stored(1, bytes.clone()).await;
    assert_eq!(it.bytes_at(at), bytes);
    it.host.perform(Effect::Spill { objects: vec![(object(1), at)] });
    assert!(matches!(it.event().await, Event::Spilled { .. }));
    it.host.perform(Effect::FreeOwn(at));
    it.host.perform(Effect::Restore { object: object(1) });
    let Event::Restored { location, .. } = it.event().await else { panic!() };
    assert_eq!(it.bytes_at(location), bytes);
    it.host.perform(Effect::DeleteSpilled { object: object(1) });
    it.host.perform(Effect::Restore { object: object(1) });
    assert!(matches!(it.event().await, Event::StoreFailed { missing: true, .. }));
}

#[tokio::test]
async fn objects_travel_from_memory_and_from_disk() {
    let (mut from, mut to) = (fixture("from"), fixture("to"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = from.host.listen(listener).unwrap().to_string();
    let pull = |n: u64, size: u64| Effect::Pull {
        object: object(n),
        size,
        source: cluster_types::NodeId(1),
        address: address.clone(),
    };
    let bytes = some_bytes(2_000_000, 2);
    let size = bytes.len() as u64;
    let at = from.stored(1, bytes.clone()).await;

    to.host.perform(pull(1, size));
    assert!(matches!(to.event().await, Event::StoreFailed { missing: true, .. }), "it is not served yet");

    from.host.perform(Effect::Serve { object: object(1), source: ServeFrom::Memory(at) });
    to.host.perform(pull(1, size));
    let Event::Stored { location, .. } = to.event().await else { panic!() };
    assert_eq!(to.bytes_at(location), bytes);

    to.host.perform(pull(1, size - 1));
    assert!(matches!(to.event().await, Event::StoreFailed { missing: false, no_memory: true, .. }));

    from.host.perform(Effect::StopServing { object: object(1) });
    while from.host.serving.in_use(Range::Memory(at)) {
        assert!(matches!(from.next().await, StoreNotice::TransferEnded(_)));
    }
    from.host.perform(Effect::Spill { objects: vec![(object(1), at)] });
    loop {
        match from.next().await {
            StoreNotice::Event(Event::Spilled { .. }) => break,
            StoreNotice::TransferEnded(_) => {}
            _ => panic!("not spilled"),
        }
    }
    from.host.perform(Effect::Serve { object: object(1), source: ServeFrom::Disk });
    to.host.perform(pull(1, size));
    let Event::Stored { location, .. } = to.event().await else { panic!() };
    assert_eq!(to.bytes_at(location), bytes);
}

#[tokio::test]
async fn a_range_in_transfer_is_freed_when_the_transfer_ends() {
    let mut it = fixture("deferred");
    let at = it.stored(1, some_bytes(100_000, 3)).await;
    it.host.perform(Effect::Serve { object: object(1), source: ServeFrom::Memory(at) });
    let reading = {
        use cluster_store::transfer::{ObjectSource, Opened};
        match DataPort(it.host.serving.clone()).open(object(1).to_bytes()) {
            Opened::Found { guard, .. } => guard,
            _ => panic!("not found"),
        }
    };
    it.host.perform(Effect::StopServing { object: object(1) });
    assert_eq!(it.host.free_now(ClientId(9), vec![at]), []);
    assert!(!it.host.evict_now(ClientId(9), object(1)));
    drop(reading);
    let StoreNotice::TransferEnded(range) = it.next().await else { panic!() };
    let told = it.host.transfer_ended(range);
    let freed = (ClientId(9), NodeToClient::RangesFreed(vec![at]));
    assert_eq!(told, [freed, (ClientId(9), NodeToClient::Evict { object: object(1) })]);
    assert!(it.host.evict_now(ClientId(9), object(1)));
    assert_eq!(it.host.free_now(ClientId(9), vec![at]), [at]);
}

#[tokio::test]
async fn a_driver_without_shared_memory_gets_a_copy_or_a_reason() {
    let mut it = fixture("copies");
    let bytes = some_bytes(10_000, 4);
    let at = it.stored(1, bytes.clone()).await;
    it.host.perform(Effect::Serve { object: object(1), source: ServeFrom::Memory(at) });
    it.host.send_bytes(ClientId(1), object(1));
    let mut seen = Vec::new();
    while seen.is_empty() {
        if let StoreNotice::Ready { value, .. } = it.next().await {
            seen.push(value);
        }
    }
    assert_eq!(seen, [Value::Inline(bytes)]);
    it.host.send_bytes(ClientId(1), object(2));
    loop {
        if let StoreNotice::Ready { value: Value::Failed(failure), .. } = it.next().await {
            assert_eq!(failure.kind, FailureKind::ObjectLost);
            break;
        }
    }
}
