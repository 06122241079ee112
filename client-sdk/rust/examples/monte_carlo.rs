//! π, by throwing darts on all cores of the cluster.
//!
//! `cargo run --release --example monte_carlo [tasks] [darts each]`

use concurrent_ml::{Result, remote};

/// How many of so many darts hit the quarter circle.
#[remote]
fn throw(seed: u64, darts: u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..darts).filter(|_| random().powi(2) + random().powi(2) <= 1.0).count() as u64
}

fn main() -> Result<()> {
    let _cluster = concurrent_ml::init()?;
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap_or(0));
    let tasks = arguments.next().unwrap_or(64).max(1);
    let darts = arguments.next().unwrap_or(1_000_000).max(1);
    let hits: Vec<_> = (0..tasks).map(|seed| throw.remote(seed + 1, darts)).collect();
    let inside: u64 = concurrent_ml::get(&hits)?.into_iter().sum();
    println!("pi is about {:.4}", 4.0 * inside as f64 / (tasks * darts) as f64);
    Ok(())
}
