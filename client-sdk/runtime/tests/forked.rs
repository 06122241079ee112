//! In a forked child the client is dead (rule P6). One test in a process of its own: what it calls holds for all.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::Duration;

use client_runtime::{Client, ClientError, HandleSource, Kind, Parcel};
use cluster_types::ClientToNode;
use cluster_types::query::Query;
use fake::{Daemon, call, driver, soon, template};

#[test]
fn calls_say_so_and_drops_do_nothing() {
    let (daemon, client) = Daemon::with_driver();
    let go = &mut || Ok(());
    let ids = client.submit(call(&template("echo"), b""), go).unwrap();
    client.get(&ids, soon(), go).unwrap();
    let before = daemon.heard().len();
    // What the child's side of a fork calls first.
    Client::mark_forked();
    let forked = Some(ClientError::Forked { parent: std::process::id() });
    assert_eq!(client.submit(call(&template("echo"), b""), go).err(), forked);
    assert_eq!(client.put(Parcel::small(Kind::RAW, b"").unwrap(), &[]).err(), forked);
    assert_eq!(client.get(&ids, soon(), go).err(), forked);
    assert_eq!(client.wait(&ids, 1, soon(), true, go).err(), forked);
    assert_eq!(client.query(Query::Status, soon(), go).err(), forked);
    assert_eq!(client.next_notice(Duration::ZERO).err(), forked);
    assert_eq!(client.next_work(go).err(), forked);
    assert_eq!(client.reserve(Kind::RAW, 100_000, &[], go).err(), forked);
    assert_eq!(client.broken(), forked);
    assert!(client.try_get(ids[0]).is_none() && !client.is_ready(ids[0]));
    client.add_handle(ids[0], HandleSource::Elsewhere);
    client.drop_handles(&ids);
    client.drop_handle(ids[0]);
    client.disconnect();
    // A child that connects anew has a client that lives.
    let (_other, client) = Daemon::with(driver(), None);
    let ids = client.submit(call(&template("echo"), b""), go).unwrap();
    client.get(&ids, soon(), go).unwrap();
    let heard = daemon.heard();
    assert!(
        !heard[before..].iter().any(|m| matches!(m, ClientToNode::Drop(_) | ClientToNode::Goodbye)),
        "{heard:?}"
    );
}
