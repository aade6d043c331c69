//! NVIDIA GPUs: the compiled kernels that the binary carries.

pub mod image;
