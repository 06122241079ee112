//! The product of two matrices, block by block. Blocks lie in shared memory: every task reads them there.
//!
//! `cargo run --release --example matrix_multiplication [size] [blocks a side]`

use concurrent_ml::{ObjectRef, Result, SharedArray, get, put, remote};
use ndarray::{Array2, Ix2, s};

type Block = SharedArray<f64, Ix2>;

/// One block of the product: of a row of blocks and a column of them.
#[remote]
fn block_of_product(row: Vec<ObjectRef<Block>>, column: Vec<ObjectRef<Block>>) -> Result<Block> {
    let (row, column) = (get(&row)?, get(&column)?);
    let mut sum = Array2::zeros((row[0].view().nrows(), column[0].view().ncols()));
    for (a, b) in row.iter().zip(&column) {
        sum += &a.view().dot(&b.view());
    }
    Ok(sum.into())
}

/// Puts the blocks of a matrix.
fn blocks(matrix: &Array2<f64>, side: usize, block: usize) -> Result<Vec<Vec<ObjectRef<Block>>>> {
    let one = |i: usize, j: usize| {
        let part = matrix.slice(s![i * block..(i + 1) * block, j * block..(j + 1) * block]);
        put(&Block::from(part.to_owned()))
    };
    (0..side).map(|i| (0..side).map(|j| one(i, j)).collect()).collect()
}

fn main() -> Result<()> {
    let _cluster = concurrent_ml::init()?;
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().unwrap_or(0));
    let size = arguments.next().unwrap_or(512).max(1);
    let side = arguments.next().unwrap_or(4).clamp(1, size);
    let block = size / side;
    let size = block * side;
    let a = Array2::from_shape_fn((size, size), |(i, j)| ((i * 7 + j * 3) % 11) as f64);
    let b = Array2::from_shape_fn((size, size), |(i, j)| ((i * 5 + j) % 13) as f64);
    let (rows, of_b) = (blocks(&a, side, block)?, blocks(&b, side, block)?);
    let mut product = Array2::zeros((size, size));
    let calls: Vec<Vec<ObjectRef<Block>>> = rows
        .iter()
        .map(|row| {
            let column = |j: usize| of_b.iter().map(|row| row[j].clone()).collect::<Vec<_>>();
            (0..side).map(|j| block_of_product.remote(row.clone(), column(j))).collect()
        })
        .collect();
    for (i, row) in calls.iter().enumerate() {
        for (j, made) in row.iter().enumerate() {
            let place = s![i * block..(i + 1) * block, j * block..(j + 1) * block];
            product.slice_mut(place).assign(&made.get()?.view());
        }
    }
    let error = (&product - &a.dot(&b)).iter().fold(0.0_f64, |most, difference| most.max(difference.abs()));
    println!("{size} x {size} in {} blocks, largest error {error:.1e}", side * side);
    assert!(error < 1e-6 * size as f64);
    Ok(())
}
