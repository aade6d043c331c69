//! What an op takes on the GPU: for a reader of the output, not for an assertion.

use std::time::Instant;

use ocelli::backend::cuda::Cuda;
use ocelli::mem::DType;
use ocelli::ops::Op;
use ocelli::plan::{Backend, Plan};

const LAUNCHES: usize = 200;

/// Print microseconds per launch over many in a row, and the bandwidth that the op's cost makes of it. The inputs are
/// the same every time, so what fits the L2 cache comes from there; below about 3 us it is the launch.
pub fn print(cuda: &Cuda, dtype: DType, what: &str, op: impl Into<Op>) {
    let op = op.into();
    let mut plan = Plan::new(dtype);
    (0..LAUNCHES).for_each(|_| plan.push(op));
    let mut exec = cuda.link(&plan).unwrap();
    cuda.run(&mut exec, None).unwrap();
    cuda.device().synchronize().unwrap();
    let start = Instant::now();
    cuda.run(&mut exec, None).unwrap();
    cuda.device().synchronize().unwrap();
    let us = start.elapsed().as_secs_f64() * 1e6 / LAUNCHES as f64;
    let (gb, tera) = (op.cost().bytes as f64 / us / 1e3, op.cost().flops as f64 / us / 1e6);
    println!("{} {dtype} {what}: {us:.1} us, {gb:.0} GB/s, {tera:.1} TFLOP/s", op.name());
}
