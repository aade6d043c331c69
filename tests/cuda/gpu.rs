//! What the tests that need a GPU share. They are part of every run: without a GPU each says why it does nothing.
//!
//! `OCELLI_REQUIRE_GPU=1` turns a skip into a failure. `OCELLI_SKIP_LOG=FILE` collects the skips of a whole run, one
//! line each, because test runners do not show what a passing test prints.

use std::io::Write;

use ocelli::backend::cuda::driver::{self, Device};
use ocelli::backend::cuda::image;

/// The first GPU, or `None` after saying that the test is skipped.
pub fn device() -> Option<Device> {
    let missing = if !driver::present() {
        Some("no CUDA driver")
    } else if driver::count().is_err() {
        Some("no CUDA device")
    } else if image::embedded().is_empty() {
        Some("no CUDA kernels in this build")
    } else {
        None
    };
    let Some(missing) = missing else {
        return Some(Device::open(0).expect("the GPU opens"));
    };
    assert!(std::env::var("OCELLI_REQUIRE_GPU").as_deref() != Ok("1"), "OCELLI_REQUIRE_GPU=1, but {missing}");
    skipped(missing);
    None
}

/// Say that a test does nothing, and why.
#[allow(clippy::print_stdout)]
pub fn skipped(missing: &str) {
    println!("skipped: {missing}");
    if let Some(file) = std::env::var_os("OCELLI_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(file);
        // One write, so that tests that run at the same time do not mix their lines.
        log.and_then(|mut log| log.write_all(format!("{missing}\n").as_bytes())).expect("the skip is logged");
    }
}
