//! Errors of the driver: in words, told apart by whether the device survives them, and kept behind one gate.
//!
//! After some errors (an address outside of every allocation, an uncorrectable memory error) the context answers every
//! call with the same error for ever, and what it says about anything else means nothing. So every call on a device goes
//! through its [`Gate`]: the first fatal error closes it, and from then on nothing reaches the driver any more, not even
//! to give memory back.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow};
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaStream};

use crate::error::DeviceLost;

/// The driver's name for an error.
pub(super) fn name(e: DriverError) -> String {
    e.error_name().map_or_else(|_| format!("CUDA error {}", e.0 as u32), |name| name.to_string_lossy().into_owned())
}

/// The driver's name for an error, and its explanation.
pub(super) fn explain(e: DriverError) -> String {
    let text = e.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({text})", name(e))
}

/// [`explain`] as an error.
pub(super) fn failed(e: DriverError) -> anyhow::Error {
    anyhow!(explain(e))
}

/// Whether the context is gone after this error. Everything else concerns the one call that returned it.
pub(super) fn is_fatal(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_UNKNOWN
    )
}

/// A device's context and stream, and whether they still answer.
pub(super) struct Gate {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    device: String,
    lost: OnceLock<DeviceLost>,
}

impl Gate {
    pub fn new(ordinal: usize, context: Arc<CudaContext>, stream: Arc<CudaStream>) -> Gate {
        Gate { context, stream, device: format!("cuda:{ordinal}"), lost: OnceLock::new() }
    }

    /// Before a call: refuse if the device is lost, and make its context this thread's.
    pub fn enter(&self) -> Result<()> {
        self.open()?;
        self.check(self.context.bind_to_thread())
    }

    fn open(&self) -> Result<()> {
        self.lost.get().map_or(Ok(()), |lost| Err(anyhow::Error::new(lost.clone())))
    }

    /// After a call: its result, with a fatal error closing the gate.
    pub fn check<T>(&self, result: Result<T, DriverError>) -> Result<T> {
        result.map_err(|e| self.fail(e))
    }

    /// The error, with a fatal one closing the gate.
    pub fn fail(&self, e: DriverError) -> anyhow::Error {
        if !is_fatal(e.0) {
            return failed(e);
        }
        let lost = DeviceLost { device: self.device.clone(), cause: explain(e) };
        anyhow::Error::new(self.lost.get_or_init(|| lost).clone())
    }

    /// Whether something that is being dropped may tell the driver, with the context bound if so.
    pub fn may_free(&self) -> bool {
        self.enter().is_ok()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.lost.get().is_some() {
            // Dropping the last handle of either would call the driver.
            std::mem::forget(self.stream.clone());
            std::mem::forget(self.context.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_call_leave_the_device_alive() {
        use CUresult::*;
        for code in [CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_FOUND, CUDA_ERROR_INVALID_IMAGE]
        {
            assert!(!is_fatal(code), "{code:?}");
        }
        // Too many registers or too much shared memory was asked for: that launch did not happen.
        assert!(!is_fatal(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
        for code in [CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_ECC_UNCORRECTABLE] {
            assert!(is_fatal(code), "{code:?}");
        }
    }
}
