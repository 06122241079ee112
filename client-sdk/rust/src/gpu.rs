//! GPUs that tasks have leased, by cudarc.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::CudaContext;

use crate::{Error, Result, current};

/// What is said where CUDA is not installed.
pub const NO_CUDA: &str = "CUDA's driver library (libcuda) is not installed on this node";

/// The context of the first GPU that the running task has leased (`#[remote(gpus = 1.0)]`). Of a fraction too, whose memory
/// is for the task to keep to.
///
/// # Errors
/// If the task has leased none, CUDA is not installed, or the device cannot be used.
pub fn context() -> Result<Arc<CudaContext>> {
    context_of(0)
}

/// As [`context`], of that one among several.
///
/// # Errors
/// As [`context`], or if it has leased fewer.
pub fn context_of(index: usize) -> Result<Arc<CudaContext>> {
    let leased = current::gpus();
    if index >= leased.len() {
        return Err(Error::Misuse(format!(
            "GPU {index} of the running task was asked for, and it has leased {}: declare #[remote(gpus = {}.0)]",
            leased.len(),
            index + 1
        )));
    }
    // The process sees leased devices only, so they count from 0. cudarc panics where it finds no library.
    match catch_unwind(AssertUnwindSafe(|| CudaContext::new(index))) {
        Ok(Ok(context)) => Ok(context),
        Ok(Err(error)) => Err(Error::Misuse(format!("GPU {} cannot be used: {error}", leased[index]))),
        Err(_) => Err(Error::Misuse(NO_CUDA.to_owned())),
    }
}
