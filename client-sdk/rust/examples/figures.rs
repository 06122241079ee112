//! What calls and arrays cost, in figures: one JSON object on standard output, for `scripts/bench`.
//!
//! `cargo run --release --example figures [rounds]`

use std::time::Instant;

use concurrent_ml::{Result, SharedArray, get, put, remote};
use ndarray::{Array1, Ix1};

#[remote]
fn nothing() {}

struct Idle;

#[remote]
impl Idle {
    /// Nobody yet.
    pub fn new() -> Idle {
        Idle
    }

    /// Does nothing.
    pub fn nothing(&mut self) {}
}

/// So many calls at once, in calls a second.
fn at_once(calls: usize) -> Result<f64> {
    let begun = Instant::now();
    let refs: Vec<_> = (0..calls).map(|_| nothing.remote()).collect();
    get(&refs)?;
    Ok(calls as f64 / begun.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// One call after the other, in microseconds: the median.
fn one_by_one(calls: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let begun = Instant::now();
        call()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

fn main() -> Result<()> {
    let _cluster = concurrent_ml::init()?;
    let rounds = std::env::args().nth(1).and_then(|number| number.parse().ok()).unwrap_or(5);
    at_once(20_000)?;
    let many = (0..rounds).map(|_| at_once(100_000)).collect::<Result<Vec<_>>>()?;
    let sync =
        (0..rounds).map(|_| one_by_one(5_000, || nothing.remote().get())).collect::<Result<Vec<_>>>()?;
    let idle = Idle::remote();
    idle.nothing().get()?;
    let method = one_by_one(5_000, || idle.nothing().get())?;
    // 800 MB, or what the store holds.
    let elements = 100_000_000;
    let array = put(&SharedArray::from(Array1::<f64>::ones(elements)));
    let get_ms = match &array {
        Ok(array) => {
            let take = || -> Result<()> {
                let array: SharedArray<f64, Ix1> = array.get()?;
                assert!(array.is_shared() && array.view().len() == elements);
                Ok(())
            };
            let begun = Instant::now();
            take()?;
            let first = begun.elapsed().as_secs_f64() * 1e3;
            Some((first, one_by_one(100, take)? / 1e3))
        }
        Err(_) => None,
    };
    let (first, later) = get_ms.unzip();
    let figures = serde_json::json!({
        "rust_tasks_per_second": median(many).round(),
        "rust_sync_us": (median(sync) * 10.0).round() / 10.0,
        "rust_actor_sync_us": (method * 10.0).round() / 10.0,
        "rust_get_800_mb_first_ms": first,
        "rust_get_800_mb_ms": later,
    });
    println!("{figures}");
    Ok(())
}
