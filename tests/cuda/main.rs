//! The CUDA backend: every kernel against an oracle over a table of shapes, launches that overlap, whole models.
//!
//! One executable for all, because each carries the library and its kernels. What breaks the device on purpose is
//! `tests/cuda_errors.rs`, a process of its own.

#![cfg(feature = "cuda")]
#![allow(
    clippy::print_stdout,
    reason = "tests report how much of a bound was used, what things took, and what is skipped"
)]

#[allow(dead_code, reason = "the CPU's tests use the rest of it")]
#[path = "../golden/mod.rs"]
mod golden;

#[path = "../inputs/mod.rs"]
mod inputs;

#[path = "../settled/mod.rs"]
mod settled;

mod attention;
mod dense_attention;
mod embed_splice;
mod engine;
mod gather;
mod gemm;
mod gemv;
mod goldens;
mod gpu;
mod image_inputs;
mod images;
mod kernel_dir;
mod layer_norm;
mod models;
mod paged_decode;
mod paged_prefill;
mod parity;
mod patch_embed;
mod pdl;
mod random_fill;
mod resize;
mod rmsnorm;
mod rope_kv;
mod sample;
mod timing;
mod transfer;
mod workbench;
