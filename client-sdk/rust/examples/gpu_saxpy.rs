//! `a x + y` on a GPU: a kernel compiled where the task runs, on arrays from the store. Where the cluster has no GPU, it says so.
//!
//! `cargo run --release --example gpu_saxpy [elements]`
#![allow(unsafe_code, reason = "what a kernel does with memory is beyond the compiler")]

use concurrent_ml::{Error, Result, SharedArray, gpu, put, remote};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use cudarc::nvrtc::compile_ptx;
use ndarray::{Array1, Ix1};

type Vector = SharedArray<f32, Ix1>;

const KERNEL: &str = r#"
extern "C" __global__ void saxpy(float a, const float *x, float *y, unsigned long long n) {
    unsigned long long i = (unsigned long long) blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = a * x[i] + y[i];
    }
}
"#;

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// On the GPU that the task has leased.
#[remote(gpus = 1.0)]
fn saxpy(a: f32, x: Vector, y: Vector) -> Result<Vector, String> {
    let context = gpu::context().map_err(failed)?;
    let stream = context.default_stream();
    let module = context.load_module(compile_ptx(KERNEL).map_err(failed)?).map_err(failed)?;
    let kernel = module.load_function("saxpy").map_err(failed)?;
    let (x, y) = (x.view(), y.view());
    let (Some(x), Some(y)) = (x.as_slice(), y.as_slice()) else {
        return Err("the vectors have gaps".to_owned());
    };
    if x.len() != y.len() {
        return Err(format!("x has {} elements and y {}", x.len(), y.len()));
    }
    // From the shared memory to the device; nothing in between.
    let on_device = stream.clone_htod(x).map_err(failed)?;
    let mut sum = stream.clone_htod(y).map_err(failed)?;
    let (length, shape) = (x.len() as u64, LaunchConfig::for_num_elems(x.len() as u32));
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&a).arg(&on_device).arg(&mut sum).arg(&length);
    // SAFETY: the arguments are those that the kernel declares, and it touches no element past `length`, which both
    // buffers have.
    unsafe { launch.launch(shape) }.map_err(failed)?;
    Ok(Array1::from_vec(stream.clone_dtoh(&sum).map_err(failed)?).into())
}

fn main() -> Result<()> {
    let cluster = concurrent_ml::init()?;
    if cluster.resources()?.get("GPU").copied().unwrap_or(0.0) < 1.0 {
        println!("no GPU: this cluster has none, so there is nothing to run on");
        return Ok(());
    }
    let elements = std::env::args().nth(1).and_then(|number| number.parse().ok()).unwrap_or(1_000_000_usize);
    let x = put(&Vector::from(Array1::from_shape_fn(elements, |i| i as f32)))?;
    let y = put(&Vector::from(Array1::ones(elements)))?;
    match saxpy.remote(2.0, x, y).get() {
        Ok(sum) => {
            let wrong =
                sum.view().iter().enumerate().filter(|(i, value)| **value != 2.0 * *i as f32 + 1.0).count();
            println!("{elements} elements on the GPU, {wrong} wrong");
            assert_eq!(wrong, 0);
            Ok(())
        }
        Err(Error::Task(failure)) if failure.message.contains(gpu::NO_CUDA) => {
            println!("no GPU: {}", gpu::NO_CUDA);
            Ok(())
        }
        Err(error) => Err(error),
    }
}
