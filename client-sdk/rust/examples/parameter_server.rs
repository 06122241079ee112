//! A linear model trained by workers that send gradients to an actor, which keeps the weights.
//!
//! `cargo run --release --example parameter_server [workers] [steps]`

use concurrent_ml::{Result, SharedArray, get, remote};
use ndarray::{Array1, Array2, Ix1};

/// What is to be found: y = 2 x0 - 3 x1 + 0.5 x2.
const TRUTH: [f64; 3] = [2.0, -3.0, 0.5];

type Weights = SharedArray<f64, Ix1>;

struct Server {
    weights: Array1<f64>,
    rate: f64,
    steps: u64,
}

#[remote]
impl Server {
    /// Weights of zero.
    pub fn new(length: usize, rate: f64) -> Server {
        Server { weights: Array1::zeros(length), rate, steps: 0 }
    }

    /// What they are now.
    pub fn weights(&self) -> Weights {
        self.weights.clone().into()
    }

    /// Goes a step against a gradient; the weights after it.
    pub fn step(&mut self, gradient: Weights) -> Weights {
        self.weights.scaled_add(-self.rate, &gradient.view());
        self.steps += 1;
        self.weights.clone().into()
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

/// A worker: draws data of its own, and steps with their gradients.
#[remote]
fn work(server: ServerActor, seed: u64, steps: u64) -> Result<()> {
    let mut state = seed | 1;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
    };
    let x = Array2::from_shape_fn((64, TRUTH.len()), |_| random());
    let y = x.dot(&Array1::from_iter(TRUTH));
    let mut weights = server.weights().get()?;
    for _ in 0..steps {
        let missed = x.dot(&weights.view()) - &y;
        let gradient = x.t().dot(&missed) * (2.0 / x.nrows() as f64);
        weights = server.step(gradient).get()?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let _cluster = concurrent_ml::init()?;
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap_or(0));
    let workers = arguments.next().unwrap_or(4).max(1);
    let steps = arguments.next().unwrap_or(200).max(1);
    let server = Server::remote(TRUTH.len(), 0.1);
    let working: Vec<_> = (0..workers).map(|seed| work.remote(server.clone(), seed + 1, steps)).collect();
    get(&working)?;
    let found = server.weights().get()?;
    println!("after {} steps: {:.3}", server.steps().get()?, found.view());
    let error =
        found.view().iter().zip(TRUTH).fold(0.0_f64, |most, (found, truth)| most.max((found - truth).abs()));
    assert!(error < 0.01, "the largest error is {error}");
    Ok(())
}
