//! Random numbers in place of a tensor that no file holds.

use bytemuck::{Pod, Zeroable};

use super::philox::philox4x32_10;
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, Spans};

/// `y[i] = mean + spread * u(seed, i)`, with `u` uniform in the open interval (-1, 1).
///
/// `u` has 16 bits: one half of a word of Philox 4x32-10, whose key is the seed and whose counter is `i / 8`. The
/// product and the sum are rounded to f32 one after the other and then once to the stored type, on the host as on a
/// device, so every element has the same bits on both, wherever `y` lies and whatever else is filled.
#[derive(Clone, Copy, Debug)]
pub struct RandomFill {
    /// `[any]`
    pub y: Buf<Act>,
    /// Key of the generator.
    pub seed: u64,
    /// Middle of the interval.
    pub mean: f32,
    /// Half its width; the standard deviation is `spread / sqrt(3)`.
    pub spread: f32,
}

/// Elements that one call of the generator gives: two of each word. A vector of the kernel.
const VECTOR: usize = 8;
/// Threads of a block of the kernel.
const THREADS: u32 = 256;
/// Blocks that a multiprocessor holds at a time; more only start later.
const BLOCKS_PER_SM: u32 = 8;

impl RandomFill {
    /// Both halves of the seed, the low one first.
    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// Elements `VECTOR * i ..`.
    fn vector(&self, i: usize) -> [f32; VECTOR] {
        let words = philox4x32_10([i as u32, (i as u64 >> 32) as u32, 0, 0], self.key());
        std::array::from_fn(|j| self.mean + self.spread * centred((words[j / 2] >> (16 * (j % 2))) as u16))
    }
}

/// A number in the open interval (-1, 1); exact, because 17 bits are enough for it.
fn centred(half: u16) -> f32 {
    (f32::from(half) + 0.5) * 2f32.powi(-15) - 1.0
}

impl Kernel for RandomFill {
    const NAME: &'static str = "random_fill";

    fn cost(&self) -> Cost {
        Cost { bytes: self.y.span().bytes(), flops: 2 * self.y.len() as u64 }
    }

    fn writes(&self) -> Spans {
        vec![self.y.span()]
    }

    fn reference(&self, m: &HostMem) {
        let n = self.y.len();
        let values: Vec<f32> = (0..n.div_ceil(VECTOR)).flat_map(|i| self.vector(i)).take(n).collect();
        m.store(self.y, &values);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RandomFillParams {
    y: u64,
    n: u64,
    key: [u32; 2],
    mean: f32,
    spread: f32,
}

impl Launch for RandomFill {
    type Params = RandomFillParams;

    fn params(&self, at: &Bases) -> RandomFillParams {
        RandomFillParams {
            y: at.at(self.y),
            n: self.y.len() as u64,
            key: self.key(),
            mean: self.mean,
            spread: self.spread,
        }
    }

    /// A thread a vector, and no more blocks than run at a time: each then goes on to its next vectors.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let blocks = self.y.len().div_ceil(VECTOR * THREADS as usize);
        Geometry {
            symbol: symbol!("random_fill", self.y.dtype()),
            grid: [blocks.clamp(1, (gpu.sms * BLOCKS_PER_SM) as usize) as u32, 1, 1],
            block: [THREADS, 1, 1],
            smem: 0,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{DType, Layout, Region};

    #[test]
    fn the_grid_is_as_large_as_the_tensor_until_the_device_is_full() {
        let gpu = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: true };
        let mut l = Layout::new(Region::Weights, DType::Bf16);
        for (len, blocks) in [(1, 1), (2048, 1), (2049, 2), (4096 * 4096, 1056)] {
            let g = RandomFill { y: l.take(len), seed: 0, mean: 0.0, spread: 1.0 }.geometry(&gpu);
            assert_eq!((g.symbol, g.grid, g.block, g.pdl), ("random_fill_bf16", [blocks, 1, 1], [256, 1, 1], true));
        }
    }

    #[test]
    fn every_half_word_lies_inside_the_interval() {
        assert_eq!((centred(0), centred(u16::MAX)), (-1.0 + 2f32.powi(-16), 1.0 - 2f32.powi(-16)));
        assert_eq!(centred(32768), 2f32.powi(-16));
    }
}
