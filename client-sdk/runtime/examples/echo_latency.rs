//! What the client costs: a daemon in a thread answers at once, so everything else is this crate and the sockets.
//!
//! `cargo run --release -p client-runtime --example echo_latency`

#![allow(clippy::unwrap_used)]

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::time::{Duration, Instant};

use client_runtime::{HandleSource, Kind};
use fake::{Daemon, call, soon, template};

/// What this thread has run on a core: on a busy machine it says more than the clock.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let (_daemon, client) = Daemon::with_driver();
    let go = &mut || Ok(());
    let echo = template("echo");
    let report = |what: &str, count: u32, took: Duration| {
        println!(
            "{what:<46} {:>10.0} ns {:>12.0} /s",
            took.as_nanos() as f64 / f64::from(count),
            f64::from(count) / took.as_secs_f64()
        );
    };

    for round in 0..2 {
        let begun = Instant::now();
        for _ in 0..20_000 {
            let ids = client.submit(call(&echo, b"arguments"), go).unwrap();
            client.get(&ids, soon(), go).unwrap();
            client.drop_handles(&ids);
        }
        if round == 1 {
            report("submit and get, one after another", 20_000, begun.elapsed());
        }
    }

    let count = 200_000;
    let mut all = Vec::with_capacity(count as usize);
    let before = own_time();
    let begun = Instant::now();
    for _ in 0..count {
        all.extend(client.submit(call(&echo, b"arguments"), go).unwrap());
    }
    report("submit, not waiting (daemon on the other core)", count, begun.elapsed());
    report("the same, this thread's own time on its core", count, own_time() - before);
    client.get(&all, soon(), go).unwrap();
    report("the same until all results were read", count, begun.elapsed());

    let one = all[0];
    let begun = Instant::now();
    for _ in 0..count {
        client.try_get(one);
    }
    report("try_get of a small value", count, begun.elapsed());
    let begun = Instant::now();
    for _ in 0..count {
        client.add_handle(one, HandleSource::Elsewhere);
        client.drop_handle(one);
    }
    report("add_handle and drop_handle", count, begun.elapsed());
    let begun = Instant::now();
    for _ in 0..1000 {
        client.wait(&all[..1000], 1000, soon(), true, go).unwrap();
    }
    report("wait for 1,000, for each ref scanned", 1_000_000, begun.elapsed());
    client.drop_handles(&all);

    let begun = Instant::now();
    for _ in 0..count {
        let parcel = client.reserve(Kind::RAW, 9, &[], go).unwrap().write(b"arguments", &[], go).unwrap();
        let id = client.put(parcel, &[]).unwrap();
        client.drop_handle(id);
    }
    report("put of a small value, and its end", count, begun.elapsed());
    let bytes = vec![1u8; 100_000];
    let begun = Instant::now();
    for _ in 0..20_000 {
        let draft = client.reserve(Kind::RAW, 0, &[bytes.len()], go).unwrap();
        let id = client.put(draft.write(&[], &[&bytes], go).unwrap(), &[]).unwrap();
        client.drop_handle(id);
    }
    report("put of 100 kB, and its end", 20_000, begun.elapsed());
    let bytes = vec![1u8; 200 << 20];
    for _ in 0..3 {
        let begun = Instant::now();
        let draft = client.reserve(Kind::RAW, 0, &[bytes.len()], go).unwrap();
        let id = client.put(draft.write(&[], &[&bytes], go).unwrap(), &[]).unwrap();
        println!("put of 200 MB {:>42.1} GB/s", bytes.len() as f64 / begun.elapsed().as_secs_f64() / 1e9);
        client.drop_handle(id);
    }
}
