//! What a thread is at, for NVIDIA's profilers: with the feature `nvtx` they show it beside the work of the device. Without it
//! a range is nothing.

/// A stretch of this thread's time, until it is dropped. Ranges lie within each other.
pub(crate) struct Range;

impl Range {
    #[cfg(feature = "nvtx")]
    pub fn new(name: &str) -> Range {
        nvtx::range_push!("{}", name);
        Range
    }

    #[cfg(not(feature = "nvtx"))]
    #[inline(always)]
    pub fn new(_name: &str) -> Range {
        Range
    }
}

impl Drop for Range {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
    }
}
