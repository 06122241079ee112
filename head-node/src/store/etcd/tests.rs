//! The store on a real etcd of three members.

use std::time::Duration;

use rustix::process::Signal;

use super::testing::Etcd;
use super::*;

const T: Table = Table("t");

async fn open(url: &EtcdUrl, address: &str) -> Session {
    Session::open(url, address).await.unwrap()
}

/// The chance to lead, once there is one.
async fn chance(session: &Session) -> i64 {
    let mut position = session.position();
    let seen = tokio::time::timeout(Duration::from_secs(20), position.wait_for(|at| at.chance.is_some()));
    seen.await.expect("nobody leads, and this head does not notice").unwrap().chance.unwrap()
}

/// A store that leads.
async fn lead(session: &Session) -> EtcdStore {
    loop {
        let mut store = session.candidate(chance(session).await);
        match store.commit(&[]) {
            Ok(()) => return store,
            Err(StoreError::Deposed(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What each test wants of an etcd that takes seconds to start, on the one.
#[tokio::test]
async fn on_a_healthy_etcd() {
    let etcd = Etcd::start();
    conforms(&etcd).await;
    many_changes_are_one_transaction(&etcd.url()).await;
    who_leads_first_leads_alone(&etcd.url()).await;
    who_leaves_lets_another_lead_at_once(&etcd.url()).await;
    what_was_read_before_leading_is_still_true(&etcd.url()).await;
    two_clusters_in_one_etcd_do_not_meet(&etcd).await;
}

async fn conforms(etcd: &Etcd) {
    let mut sessions = Vec::new();
    for _ in 0..16 {
        let session = open(&etcd.url(), "h:1").await;
        let store = lead(&session).await;
        sessions.push((session, store));
    }
    let stores = std::cell::RefCell::new(sessions);
    let kept = std::cell::RefCell::new(Vec::new());
    crate::store::conformance::suite(|| {
        let (session, store) = stores.borrow_mut().pop().expect("a store for each part of the suite");
        kept.borrow_mut().push(session);
        store
    });
}

async fn many_changes_are_one_transaction(url: &EtcdUrl) {
    let session = open(url, "h:1").await;
    let mut store = lead(&session).await;
    let put = |n: u32| Write::Put { table: T, key: n.to_be_bytes().to_vec(), value: b"v".to_vec() };
    store.commit(&(0..1_000).map(put).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.list(T).unwrap().len(), 1_000);
    let delete = |n: u32| Write::Delete { table: T, key: n.to_be_bytes().to_vec() };
    store.commit(&(1..1_000).map(delete).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.list(T).unwrap().len(), 1);
    let error = store.commit(&(0..10_000).map(put).collect::<Vec<_>>()).unwrap_err();
    assert!(error.to_string().contains("more than it takes"), "{error}");
}

async fn who_leads_first_leads_alone(url: &EtcdUrl) {
    let (one, other) = (open(url, "one:1").await, open(url, "other:1").await);
    let (mut first, mut second) = (one.candidate(chance(&one).await), other.candidate(chance(&other).await));
    first.put(T, b"k", b"first").unwrap();
    assert!(one.tenure().holds());
    let error = second.put(T, b"k", b"second").unwrap_err();
    assert!(matches!(error, StoreError::Deposed(_)), "{error}");
    assert!(!other.tenure().holds());
    assert_eq!(second.get(T, b"k").unwrap().unwrap(), b"first");
    // While one leads, the other sees no chance, for longer than a silent leader would be believed in.
    let mut position = other.position();
    let led = |at: &Position| at.heads.leader == "one:1" && at.heads.all == ["one:1", "other:1"];
    tokio::time::timeout(Duration::from_secs(5), position.wait_for(led)).await.unwrap().unwrap();
    let wrong =
        tokio::time::timeout(Duration::from_secs(5), position.wait_for(|at| at.chance.is_some())).await;
    assert!(wrong.is_err(), "a leader that renews is not replaced");
    assert!(one.tenure().holds());
}

async fn who_leaves_lets_another_lead_at_once(url: &EtcdUrl) {
    let (one, other) = (open(url, "one:1").await, open(url, "other:1").await);
    let mut store = lead(&one).await;
    store.put(T, b"k", b"v").unwrap();
    let left = std::time::Instant::now();
    one.leave();
    assert!(!one.tenure().holds());
    let next = lead(&other).await;
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
    assert_eq!(next.get(T, b"k").unwrap().unwrap(), b"v");
    let error = store.put(T, b"k", b"late").unwrap_err();
    assert!(matches!(error, StoreError::Deposed(_)), "{error}");
}

async fn what_was_read_before_leading_is_still_true(url: &EtcdUrl) {
    let (one, other) = (open(url, "one:1").await, open(url, "other:1").await);
    let mut slow = other.candidate(chance(&other).await);
    assert_eq!(slow.get(T, b"k").unwrap(), None);
    let mut fast = lead(&one).await;
    fast.put(T, b"k", b"v").unwrap();
    one.leave();
    // Nobody leads, as when it looked; but not everything is as it was.
    assert!(matches!(slow.put(T, b"k", b"old"), Err(StoreError::Deposed(_))));
    assert_eq!(slow.get(T, b"k").unwrap().unwrap(), b"v");
}

async fn two_clusters_in_one_etcd_do_not_meet(etcd: &Etcd) {
    let (one, other) = (open(&etcd.url(), "one:1").await, open(&etcd.url(), "other:1").await);
    let (mut first, second) = (lead(&one).await, lead(&other).await);
    first.put(T, b"k", b"v").unwrap();
    assert_eq!(second.get(T, b"k").unwrap(), None);
    assert!(one.tenure().holds() && other.tenure().holds());
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_before_another_leads() {
    let etcd = Etcd::start();
    let session = open(&etcd.url(), "one:1").await;
    let mut store = lead(&session).await;
    store.put(T, b"k", b"v").unwrap();
    // One member fewer changes nothing.
    etcd.members[0].signal(Signal::STOP);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        assert!(session.tenure().holds(), "lost with two of three members, after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.put(T, b"k", b"w").unwrap();
    // Two fewer do.
    etcd.members[1].signal(Signal::STOP);
    let begun = std::time::Instant::now();
    while session.tenure().holds() {
        assert!(begun.elapsed() < Duration::from_millis(3_400), "leads without a quorum");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = store.put(T, b"k", b"x").unwrap_err();
    assert!(matches!(error, StoreError::Deposed(_)), "{error}");
    etcd.members[1].signal(Signal::CONT);
    let store = lead(&session).await;
    assert_eq!(store.get(T, b"k").unwrap().unwrap(), b"w");
}

#[tokio::test]
async fn without_a_quorum_that_is_what_is_said() {
    let etcd = Etcd::start();
    let url = etcd.url();
    drop(open(&url, "one:1").await);
    etcd.members[0].signal(Signal::KILL);
    etcd.members[1].signal(Signal::KILL);
    let error = Session::open(&url, "one:1").await.err().unwrap().to_string();
    assert!(error.contains("has no quorum"), "{error}");
    etcd.members[2].signal(Signal::KILL);
    let error = Session::open(&url, "one:1").await.err().unwrap().to_string();
    assert!(error.contains("no etcd answers") && error.contains(&etcd.members[2].address), "{error}");
}
