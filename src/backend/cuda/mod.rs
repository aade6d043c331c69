//! NVIDIA GPUs: the compiled kernels that the binary carries, and the driver calls that load and launch them.
//!
//! [`image`] picks the code that a device can run and needs no GPU to do it; [`driver`] is the only place that talks
//! to the CUDA driver, and loads it when it is first used, so a binary with this module starts on any machine.

pub mod driver;
pub mod image;
