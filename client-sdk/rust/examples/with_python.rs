//! Rust and Python call each other by name. Python calls what is here so:
//!
//! ```python
//! from concurrent_ml import rust
//! scaled = rust.Program("target/release/examples/with_python").function("scale")
//! ```
//!
//! and this program calls functions of Python's modules, and an actor whose name is given.
//!
//! `cargo run --release --example with_python [actor]`

use std::collections::BTreeMap;

use concurrent_ml::{ObjectRef, Result, SharedArray, put, python, remote};
use ndarray::{Array1, Ix1};
use serde::{Deserialize, Serialize};

/// Every element times a factor.
#[remote]
fn scale(array: SharedArray<f64, Ix1>, factor: f64) -> SharedArray<f64, Ix1> {
    (&array.view() * factor).into()
}

/// A dict for Python.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    text: String,
    places: Vec<usize>,
}

/// Where each word of a text is.
#[remote]
fn words(text: String) -> Result<Vec<Word>, String> {
    if text.is_empty() {
        return Err("there are no words in nothing".to_owned());
    }
    let mut found = BTreeMap::<&str, Vec<usize>>::new();
    for (place, word) in text.split_whitespace().enumerate() {
        found.entry(word).or_default().push(place);
    }
    Ok(found.into_iter().map(|(text, places)| Word { text: text.to_owned(), places }).collect())
}

/// Two results.
#[remote(num_returns = 2)]
fn divide(a: i64, b: i64) -> (i64, i64) {
    (a / b, a % b)
}

/// Items, one after the other.
#[remote]
fn count(to: u32) -> impl Iterator<Item = u32> {
    0..to
}

/// The sum of what refs in a list lead to.
#[remote]
fn total(parts: Vec<ObjectRef<i64>>) -> Result<i64> {
    Ok(concurrent_ml::get(&parts)?.into_iter().sum())
}

struct Tally {
    count: i64,
}

#[remote]
impl Tally {
    /// From where it counts.
    pub fn new(start: i64) -> Tally {
        Tally { count: start }
    }

    /// More.
    pub fn add(&mut self, n: i64) -> i64 {
        self.count += n;
        self.count
    }
}

fn main() -> Result<()> {
    let _cluster = concurrent_ml::init()?;
    let length = python::function("math:hypot")?.arg(&3.0).arg(&4.0).remote::<f64>();
    println!("hypot: {}", length.get()?);
    let array = put(&SharedArray::from(Array1::from_iter((1..=10_000).map(f64::from))))?;
    let sums = python::function("numpy:cumsum")?.arg_ref(&array).remote::<SharedArray<f64, Ix1>>().get()?;
    println!("cumsum: {}", sums.view()[9_999]);
    let lengths =
        python::function("builtins:dict")?.arg(&vec![("a", 1), ("b", 2)]).remote::<BTreeMap<String, i64>>();
    println!("dict: {:?}", lengths.get()?);
    if let Err(error) = python::function("math:sqrt")?.arg(&-1.0).remote::<f64>().get() {
        println!("sqrt: {error}");
    }
    if let Some(name) = std::env::args().nth(1) {
        let added = python::actor(&name)?.method("add").arg(&2).remote::<i64>();
        println!("actor: {}", added.get()?);
    }
    Ok(())
}
