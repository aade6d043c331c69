//! What a figure must name: the device, and the best that it does.

use anyhow::Result;

use crate::engine::Device;
use crate::mem::DType;
use crate::trace::Ceilings;

/// What runs the plans.
pub(super) struct Machine {
    /// `cpu` or `cuda`.
    pub backend: &'static str,
    /// Name of the GPU, or `host`.
    pub gpu: String,
    /// Its driver and the CUDA version that it supports.
    pub driver: Option<String>,
    /// The best that it did when it was asked.
    pub ceilings: Option<Ceilings>,
}

impl Machine {
    /// The machine behind `device`, which is not `auto`. `ceilings` has them measured, in `dtype` where it matters: that
    /// takes two seconds and a quarter of a GPU's memory, so it must happen before an engine takes it.
    ///
    /// # Errors
    /// No such device, or a launch that fails.
    pub fn of(device: Device, dtype: DType, ceilings: bool) -> Result<Machine> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => on_gpu(ordinal, dtype, ceilings),
            _ => {
                let _ = (dtype, ceilings);
                Ok(Machine { backend: "cpu", gpu: "host".into(), driver: None, ceilings: None })
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(ordinal: usize, dtype: DType, ceilings: bool) -> Result<Machine> {
    use crate::backend::cuda::driver;
    use crate::workbench::bench::Bench;

    let (properties, ceilings) = if ceilings {
        let bench = Bench::new(ordinal, dtype, false)?;
        let best = Ceilings { read: bench.ceilings.read, matrix: bench.ceilings.best_matrix() };
        (bench.properties().clone(), Some(best))
    } else {
        (driver::Device::open(ordinal)?.properties().clone(), None)
    };
    Ok(Machine { backend: "cuda", driver: Some(driver_name(&properties)), gpu: properties.name, ceilings })
}

/// For example `580.159.04 (CUDA 13.0)`.
#[cfg(feature = "cuda")]
pub(super) fn driver_name(properties: &crate::backend::cuda::driver::Properties) -> String {
    let (major, minor) = properties.driver;
    // The kernel module's own number; a container may hide it.
    let number = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    format!("{} (CUDA {major}.{minor})", number.trim()).trim_start().to_owned()
}
