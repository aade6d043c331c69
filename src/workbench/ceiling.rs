//! How fast this GPU reads: the ceiling of every kernel that is bound by memory, measured beside them.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::driver::{Device, Function, Memory};
use crate::kernel::Geometry;

/// Bytes that a pass reads: many times any L2 cache. A smaller GPU gives what it can spare.
const BYTES: usize = 8 << 30;

/// What the array holds. Zeros would be read as fast, and tell a broken kernel nothing.
const FILL: u8 = 0x5a;

/// Threads of a block, and bytes that each reads: `kInFlight` vectors of the kernel.
const THREADS: usize = 256;
const BYTES_PER_THREAD: usize = 4 * 16;

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CeilingParams {
    data: u64,
    sink: u64,
}

/// An array that is read once a pass, with a kernel that does nothing else.
pub struct Ceiling {
    data: Memory,
    sink: Memory,
    function: Function,
    geometry: Geometry,
    /// What a pass reads.
    pub bytes: usize,
}

impl Ceiling {
    /// Take the memory and load the kernel.
    ///
    /// # Errors
    /// Out of memory, or the kernel does not load.
    pub fn new(device: &Device) -> Result<Ceiling> {
        let properties = device.properties();
        let bytes = BYTES.min(properties.memory / 4) / (THREADS * BYTES_PER_THREAD) * (THREADS * BYTES_PER_THREAD);
        let data = device.alloc(bytes, FILL).context("allocating what the ceiling is measured on")?;
        let module = device.load("ceiling", size_of::<CeilingParams>())?;
        let geometry = geometry(bytes);
        let function = Arc::clone(&module).function(geometry.symbol, geometry.smem)?;
        Ok(Ceiling { data, sink: device.alloc(4, 0)?, function, geometry, bytes })
    }

    /// Enqueue one pass. Whatever the L2 cache held before is gone after it.
    ///
    /// # Errors
    /// The driver refuses the launch.
    pub fn pass(&self, device: &Device) -> Result<()> {
        let params = CeilingParams { data: self.data.address(), sink: self.sink.address() };
        device.launch(&self.function, &self.geometry, bytemuck::bytes_of(&params))
    }
}

fn geometry(bytes: usize) -> Geometry {
    Geometry {
        symbol: "ceiling_u8",
        grid: [(bytes / (THREADS * BYTES_PER_THREAD)) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        smem: 0,
        cluster: 1,
        pdl: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_covers_the_array() {
        let g = geometry(BYTES);
        assert_eq!((g.symbol, g.grid, g.block), ("ceiling_u8", [524_288, 1, 1], [256, 1, 1]));
        assert_eq!(size_of::<CeilingParams>(), 16);
    }
}
