//! Matrix product of a few rows, with the normalisation before it.

use bytemuck::{Pod, Zeroable};

use super::Epilogue;
use super::math::{matmul_nt, silu};
use super::rmsnorm::normalise;
use crate::host::{HostMem, round_to};
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// `c = epilogue(norm(a) * b^T)` for at most [`Gemv::MAX_ROWS`] rows of `a`: a linear layer of a decode step, with the
/// normalisation before it.
///
/// Computes what [`RmsNorm`](super::RmsNorm) and then [`Gemm`](super::Gemm) would, with the same roundings.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    /// `[m, n]`, or `[m, n / 2]` with [`Epilogue::SwiGlu`]; f32 for logits.
    pub c: Buf<Act>,
    /// `[m, k]`
    pub a: Buf<Act>,
    /// `[n, k]`
    pub b: Buf<Act>,
    /// Rows of `a`: 1 to [`Gemv::MAX_ROWS`].
    pub m: usize,
    /// Rows of `b`.
    pub n: usize,
    /// Length of a row of either.
    pub k: usize,
    /// What happens to the rows of `a` before the product.
    pub norm: Option<Norm>,
    /// What happens to the sum: [`Epilogue::Store`], [`Epilogue::AddResidual`] or [`Epilogue::SwiGlu`].
    pub epilogue: Epilogue,
}

/// A root-mean-square normalisation, as [`RmsNorm`](super::RmsNorm) does it.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[k]`
    pub weight: Buf<Act>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Gemv {
    /// The most rows of `a`: a decode step of more takes [`Gemm`](super::Gemm).
    pub const MAX_ROWS: usize = 8;
}

impl Kernel for Gemv {
    const NAME: &'static str = "gemv";

    fn cost(&self) -> Cost {
        let Gemv { m, n, k, .. } = *self;
        let inputs = m * k + n * k + self.norm.map_or(0, |_| k);
        let touched = if self.epilogue == Epilogue::AddResidual { 2 * self.c.len() } else { self.c.len() };
        let norm = self.norm.map_or(0, |_| 4 * m * k);
        Cost {
            bytes: (inputs * self.a.dtype().size() + touched * self.c.dtype().size()) as u64,
            flops: (2 * m * n * k + norm) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.c.span()]
    }

    fn reference(&self, m: &HostMem) {
        let mut a = m.load(self.a);
        if let Some(norm) = self.norm {
            normalise(&mut a, &m.load(norm.weight), norm.eps, self.a.dtype());
            a.iter_mut().for_each(|v| *v = round_to(self.a.dtype(), *v));
        }
        let mut p = m.with_floats(self.b, |b| matmul_nt(&a, b, self.m, self.n, self.k));
        match self.epilogue {
            Epilogue::AddResidual => p.iter_mut().zip(m.load(self.c)).for_each(|(v, c)| *v += c),
            Epilogue::SwiGlu => {
                let half = self.n / 2;
                p = p.chunks_exact(self.n).flat_map(|row| (0..half).map(|j| silu(row[j]) * row[half + j])).collect();
            }
            other => debug_assert_eq!(other, Epilogue::Store, "Gemv has no such epilogue"),
        }
        m.store(self.c, &p);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemvParams {
    c: u64,
    a: u64,
    b: u64,
    norm: u64,
    m: u32,
    n: u32,
    k: u32,
    epilogue: u32,
    eps: f32,
    c_is_f32: u32,
    vectors: u32,
    pad: u32,
}

/// A form of the ring kernel in `cuda/gemv_ring.cuh`.
struct Ring {
    /// Longest row of `b`.
    max_k: usize,
    normalises: bool,
    /// Rows of `b` in a tile.
    tile: usize,
    threads: u32,
    smem: u32,
    /// For f16 and bf16.
    symbols: [&'static str; 2],
}

/// The first that takes a product is the best.
const RINGS: [Ring; 3] = [
    Ring {
        max_k: 4096,
        normalises: true,
        tile: 8,
        threads: 544,
        smem: 231_424,
        symbols: ["gemv_f16_ring4k", "gemv_bf16_ring4k"],
    },
    Ring {
        max_k: 8192,
        normalises: false,
        tile: 4,
        threads: 544,
        smem: 230_912,
        symbols: ["gemv_f16_ring8k", "gemv_bf16_ring8k"],
    },
    Ring {
        max_k: 11_520,
        normalises: false,
        tile: 4,
        threads: 512,
        smem: 230_368,
        symbols: ["gemv_f16_ring11k", "gemv_bf16_ring11k"],
    },
];

const STREAM: [&str; 2] = ["gemv_f16_stream", "gemv_bf16_stream"];

impl Gemv {
    /// Whether every row of the inputs starts at a multiple of 16 bytes; regions do.
    fn vectors(&self) -> bool {
        let norm = self.norm.map_or(0, |norm| norm.weight.span().byte);
        let starts = self.a.span().byte | self.b.span().byte | norm;
        self.k.is_multiple_of(8) && starts.is_multiple_of(16)
    }

    /// The ring kernel that takes this product, where the device has one.
    fn ring(&self, gpu: &GpuInfo) -> Option<&'static Ring> {
        let fits = |ring: &&Ring| {
            self.k <= ring.max_k && (ring.normalises || self.norm.is_none()) && ring.smem <= gpu.max_smem
        };
        if gpu.sm_90a && self.vectors() && self.k.is_multiple_of(32) { RINGS.iter().find(fits) } else { None }
    }
}

impl Launch for Gemv {
    type Params = GemvParams;

    fn params(&self, at: &Bases) -> GemvParams {
        debug_assert!((1..=Gemv::MAX_ROWS).contains(&self.m), "{} rows are not 1 to {}", self.m, Gemv::MAX_ROWS);
        GemvParams {
            c: at.at(self.c),
            a: at.at(self.a),
            b: at.at(self.b),
            norm: self.norm.map_or(0, |norm| at.at(norm.weight)),
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            epilogue: self.epilogue.code(),
            eps: self.norm.map_or(0.0, |norm| norm.eps),
            c_is_f32: u32::from(self.c.dtype() == DType::F32),
            vectors: u32::from(self.vectors()),
            pad: 0,
        }
    }

    /// A ring takes a multiprocessor each, and the rows of `b` in tiles; a block of the portable kernel takes 16.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let of_type = |symbols: [&'static str; 2]| match self.a.dtype() {
            DType::F16 => symbols[0],
            DType::Bf16 => symbols[1],
            _ => "gemv_f32",
        };
        // With SwiGLU, half of a tile is gate rows and half the up rows that belong to them.
        let tiles = |rows: usize| match self.epilogue {
            Epilogue::SwiGlu => (self.n / 2).div_ceil(rows / 2) as u32,
            _ => self.n.div_ceil(rows) as u32,
        };
        let (symbol, blocks, threads, smem) = match self.ring(gpu) {
            Some(ring) => (of_type(ring.symbols), tiles(ring.tile).min(gpu.sms), ring.threads, ring.smem),
            None => (of_type(STREAM), tiles(16), 256, 0),
        };
        Geometry { symbol, grid: [blocks, 1, 1], block: [threads, 1, 1], smem, cluster: 1, pdl: gpu.sm_90a }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    const H200: GpuInfo = GpuInfo { compute_capability: (9, 0), sm_90a: true, sms: 132, max_smem: 232_448 };

    fn gemv(n: usize, k: usize, epilogue: Epilogue) -> Gemv {
        let mut l = Layout::new(Region::Scratch, DType::Bf16);
        Gemv { c: l.take(n), a: l.take(k), b: l.take(n * k), m: 1, n, k, norm: None, epilogue }
    }

    fn normed(op: Gemv) -> Gemv {
        let weight = Layout::new(Region::Weights, DType::Bf16).take(op.k);
        Gemv { norm: Some(Norm { weight, eps: 1e-5 }), ..op }
    }

    #[test]
    fn hopper_takes_a_ring_that_every_multiprocessor_shares() {
        let launch = |op: Gemv| {
            let g = op.geometry(&H200);
            (g.symbol, g.grid[0], g.block[0], g.smem, g.pdl)
        };
        assert_eq!(launch(normed(gemv(12288, 4096, Epilogue::Store))), ("gemv_bf16_ring4k", 132, 544, 231_424, true));
        assert_eq!(launch(gemv(3072, 8192, Epilogue::AddResidual)), ("gemv_bf16_ring8k", 132, 544, 230_912, true));
        assert_eq!(launch(gemv(4096, 11008, Epilogue::AddResidual)), ("gemv_bf16_ring11k", 132, 512, 230_368, true));
        // No block without a row, or a pair, of its own.
        assert_eq!(launch(gemv(17, 64, Epilogue::Store)).1, 3);
        assert_eq!(launch(gemv(18, 64, Epilogue::SwiGlu)).1, 3);
        assert_eq!(launch(gemv(2, 64, Epilogue::SwiGlu)).1, 1);
        assert_eq!(launch(gemv(17, 8192, Epilogue::Store)).1, 5);
        assert_eq!(launch(gemv(18, 8192, Epilogue::SwiGlu)).1, 5);
    }

    #[test]
    fn what_a_ring_cannot_take_is_streamed() {
        let symbol = |op: Gemv, gpu: &GpuInfo| op.geometry(gpu).symbol;
        let op = gemv(4096, 4096, Epilogue::Store);
        assert_eq!(symbol(op, &GpuInfo { sm_90a: false, ..H200 }), "gemv_bf16_stream");
        assert_eq!(symbol(op, &GpuInfo { max_smem: 166_912, ..H200 }), "gemv_bf16_stream");
        assert_eq!(symbol(gemv(64, 588, Epilogue::Store), &H200), "gemv_bf16_stream");
        assert_eq!(symbol(gemv(64, 13_824, Epilogue::Store), &H200), "gemv_bf16_stream");
        assert_eq!(symbol(normed(gemv(64, 5120, Epilogue::Store)), &H200), "gemv_bf16_stream");
        assert_eq!(symbol(gemv(64, 5120, Epilogue::Store), &H200), "gemv_bf16_ring8k");
        assert_eq!(symbol(gemv(64, 8224, Epilogue::Store), &H200), "gemv_bf16_ring11k");
        let a = Layout::new(Region::Scratch, DType::Bf16).take::<Act>(4097).slice(1..4097);
        assert_eq!(symbol(Gemv { a, ..op }, &H200), "gemv_bf16_stream");
        let ampere = GpuInfo { compute_capability: (8, 0), sm_90a: false, sms: 108, max_smem: 166_912 };
        let g = gemv(22016, 4096, Epilogue::SwiGlu).geometry(&ampere);
        assert_eq!((g.symbol, g.grid, g.pdl), ("gemv_bf16_stream", [1376, 1, 1], false));
    }
}
