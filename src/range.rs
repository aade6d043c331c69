//! What a thread is at, for NVIDIA's profilers: with the feature `nvtx` they show it beside the work of the device. Without it
//! a range is nothing.

/// A stretch of this thread's time, until it is dropped. Ranges lie within each other.
pub(crate) struct Open;

/// Begin a range.
#[inline(always)]
pub(crate) fn open(name: &str) -> Open {
    #[cfg(feature = "nvtx")]
    nvtx::range_push!("{}", name);
    #[cfg(not(feature = "nvtx"))]
    let _ = name;
    Open
}

impl Drop for Open {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
    }
}
