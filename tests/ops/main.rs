//! Every op's reference against the plain formula in f64, over a table of shapes and the three float types.
//!
//! An oracle here is written from the definition of the op and shares no code with it. It returns two numbers for an
//! element: the exact value of the stored inputs, and a bound on what f32 arithmetic in any order may add to it. The
//! notation of the bounds: `u = 2^-24` is the unit roundoff of f32, and a sum of `t` terms in any order is off by at
//! most `t u` times the sum of their magnitudes, roundings of the products included (Higham, "Accuracy and Stability
//! of Numerical Algorithms", 4.2). Terms in `u^2` are covered by [`bound::SLACK`].
//!
//! Every run also checks that the op changed nothing outside its `writes()`, in any of the four regions: that is what
//! bisection and tracing rely on. How much of the bounds was used is printed with `--nocapture`.

#![allow(clippy::print_stdout, reason = "tests report how much of a bound was used")]

mod attention;
mod bed;
mod bound;
mod cost;
mod dense_attention;
mod gemm;
mod gemv;
mod norm;
mod paged;
mod patch_embed;
mod random_fill;
mod resize;
mod rope_kv;
mod rows;
mod sample;
mod sample_lists;

use ocelli::mem::DType;

/// The types a plan may compute in.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
