//! Matrix product with what follows it.

use bytemuck::{Pod, Zeroable};

use super::math::{gelu, matmul_nt, quick_gelu, silu};
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch};
use crate::mem::{Act, Bases, Buf, DType, Spans};

/// `c = epilogue(a * b^T)`: a linear layer over the rows of `a`, with `b` as checkpoints store it.
///
/// Products are summed in f32, the epilogue is in f32, and the result is rounded once, to the type of `c`.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// `[m, n]`, or `[m, n / 2]` with [`Epilogue::SwiGlu`]; f32 for logits.
    pub c: Buf<Act>,
    /// `[m, k]`
    pub a: Buf<Act>,
    /// `[n, k]`
    pub b: Buf<Act>,
    /// Rows of `a`.
    pub m: usize,
    /// Rows of `b`.
    pub n: usize,
    /// Length of a row of either.
    pub k: usize,
    /// `[n]`, added to every row of the product.
    pub bias: Option<Buf<Act>>,
    /// What happens to the sum.
    pub epilogue: Epilogue,
}

/// What happens to `p = a * b^T + bias` before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `p`
    Store,
    /// `c + p`: the residual connection; `c` is read and written.
    AddResidual,
    /// `quick_gelu(p)`, CLIP's activation.
    QuickGelu,
    /// `gelu(p)`, the exact one.
    Gelu,
    /// `silu(gate) * up`, where the first `n / 2` columns of `p` are gate and the others up.
    SwiGlu,
}

impl Kernel for Gemm {
    const NAME: &'static str = "gemm";

    fn cost(&self) -> Cost {
        let Gemm { m, n, k, .. } = *self;
        let inputs = m * k + n * k + self.bias.map_or(0, |_| n);
        let touched = if self.epilogue == Epilogue::AddResidual { 2 * self.c.len() } else { self.c.len() };
        Cost {
            bytes: (inputs * self.a.dtype().size() + touched * self.c.dtype().size()) as u64,
            flops: 2 * (m * n * k) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.c.span()]
    }

    fn reference(&self, m: &HostMem) {
        let a = m.load(self.a);
        let mut p = m.with_floats(self.b, |b| matmul_nt(&a, b, self.m, self.n, self.k));
        if let Some(bias) = self.bias {
            let bias = m.load(bias);
            for row in p.chunks_exact_mut(self.n) {
                row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b);
            }
        }
        match self.epilogue {
            Epilogue::Store => {}
            Epilogue::AddResidual => {
                p.iter_mut().zip(m.load(self.c)).for_each(|(v, c)| *v += c);
            }
            Epilogue::QuickGelu => p.iter_mut().for_each(|v| *v = quick_gelu(*v)),
            Epilogue::Gelu => p.iter_mut().for_each(|v| *v = gelu(*v)),
            Epilogue::SwiGlu => {
                let half = self.n / 2;
                p = p.chunks_exact(self.n).flat_map(|row| (0..half).map(|j| silu(row[j]) * row[half + j])).collect();
            }
        }
        m.store(self.c, &p);
    }
}

/// The kernel's parameter; twin of the struct of this name in `cuda/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemmParams {
    c: u64,
    a: u64,
    b: u64,
    bias: u64,
    m: u32,
    n: u32,
    k: u32,
    epilogue: u32,
    c_is_f32: u32,
    vectors: u32,
    c_vectors: u32,
    pad: u32,
}

impl Epilogue {
    /// The number of `GemmEpilogue` in `cuda/params.cuh`.
    fn code(self) -> u32 {
        match self {
            Epilogue::Store => 0,
            Epilogue::AddResidual => 1,
            Epilogue::QuickGelu => 2,
            Epilogue::Gelu => 3,
            Epilogue::SwiGlu => 4,
        }
    }
}

/// One kernel of `cuda/gemm.cu`: what a block computes, and how it is launched.
struct Shape {
    /// Rows of `a`.
    rows: usize,
    /// Rows of `b`.
    places: usize,
    threads: u32,
    smem: u32,
    /// For f16 and bf16.
    symbols: [&'static str; 2],
}

/// For few rows: bound by reading `b` once, so the smallest that takes all rows of `a` is the best.
const STREAMS: [Shape; 3] = [
    Shape { rows: 8, places: 16, threads: 256, smem: 0, symbols: ["gemm_f16_stream8", "gemm_bf16_stream8"] },
    Shape { rows: 16, places: 16, threads: 256, smem: 0, symbols: ["gemm_f16_stream16", "gemm_bf16_stream16"] },
    Shape { rows: 32, places: 16, threads: 256, smem: 0, symbols: ["gemm_f16_stream32", "gemm_bf16_stream32"] },
];

/// For many rows, with the part of the largest tile's rate that each reaches on a full device, in percent.
const TILES: [(Shape, usize); 4] = [
    (tile(128, 128, 3, ["gemm_f16_tile128x128", "gemm_bf16_tile128x128"]), 100),
    (tile(64, 128, 4, ["gemm_f16_tile64x128", "gemm_bf16_tile64x128"]), 85),
    (tile(64, 64, 4, ["gemm_f16_tile64x64", "gemm_bf16_tile64x64"]), 70),
    (tile(64, 32, 6, ["gemm_f16_tile64x32", "gemm_bf16_tile64x32"]), 50),
];

/// Shared memory holds `stages` slices of 64 two-byte elements of every row.
const fn tile(rows: usize, places: usize, stages: usize, symbols: [&'static str; 2]) -> Shape {
    Shape { rows, places, threads: 128, smem: (stages * (rows + places) * 64 * 2) as u32, symbols }
}

impl Gemm {
    /// Places that a product is computed over: rows of `b`, and with SwiGLU groups of eight pairs of gate and up.
    fn places(&self) -> usize {
        if self.epilogue == Epilogue::SwiGlu { (self.n / 2).div_ceil(8) * 16 } else { self.n }
    }

    /// The kernel for this size. Bits depend on whether it is one of [`STREAMS`] or of [`TILES`], which `m` alone
    /// decides, and not on which one of those.
    fn shape(&self, sms: u32) -> &'static Shape {
        if let Some(stream) = STREAMS.iter().find(|s| self.m <= s.rows) {
            return stream;
        }
        // A multiprocessor's time: tiles one after another, each as long as its area at its rate.
        let time = |(s, rate): &(Shape, usize)| {
            let tiles = self.m.div_ceil(s.rows) * self.places().div_ceil(s.places);
            tiles.div_ceil(sms.max(1) as usize) * s.rows * s.places * 100 / rate
        };
        let [first, others @ ..] = &TILES;
        let best = others.iter().fold(first, |best, tile| if time(tile) < time(best) { tile } else { best });
        &best.0
    }
}

impl Launch for Gemm {
    type Params = GemmParams;

    fn params(&self, at: &Bases) -> GemmParams {
        let [a, b, c] = [self.a, self.b, self.c].map(|buf| at.at(buf));
        let cols = if self.epilogue == Epilogue::SwiGlu { self.n / 2 } else { self.n };
        GemmParams {
            c,
            a,
            b,
            bias: self.bias.map_or(0, |bias| at.at(bias)),
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            epilogue: self.epilogue.code(),
            c_is_f32: u32::from(self.c.dtype() == DType::F32),
            vectors: u32::from(self.k.is_multiple_of(8) && a.is_multiple_of(16) && b.is_multiple_of(16)),
            c_vectors: u32::from(cols.is_multiple_of(8) && c.is_multiple_of(16)),
            pad: 0,
        }
    }

    /// Rows of `a` along x, so that blocks which run together share rows of `b`, the larger operand.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let shape = self.shape(gpu.sms);
        let (rows, places) = (self.m.div_ceil(shape.rows) as u32, self.places().div_ceil(shape.places) as u32);
        let streams = self.m <= STREAMS[STREAMS.len() - 1].rows;
        Geometry {
            symbol: match self.a.dtype() {
                DType::F16 => shape.symbols[0],
                DType::Bf16 => shape.symbols[1],
                _ => "gemm_f32",
            },
            // The second dimension of a grid ends at 65535.
            grid: if streams { [places, 1, 1] } else { [rows, places, 1] },
            block: [shape.threads, 1, 1],
            smem: shape.smem,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    const H200: GpuInfo = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: false };

    fn gemm(m: usize, n: usize, k: usize, epilogue: Epilogue) -> Gemm {
        let mut l = Layout::new(Region::Scratch, DType::Bf16);
        let cols = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
        Gemm { c: l.take(m * cols), a: l.take(m * k), b: l.take(n * k), m, n, k, bias: None, epilogue }
    }

    fn launch(m: usize, n: usize, k: usize, epilogue: Epilogue) -> (&'static str, [u32; 3]) {
        let geometry = gemm(m, n, k, epilogue).geometry(&H200);
        (geometry.symbol, geometry.grid)
    }

    #[test]
    fn few_rows_stream_and_many_are_tiled() {
        assert_eq!(launch(1, 4096, 4096, Epilogue::Store), ("gemm_bf16_stream8", [256, 1, 1]));
        assert_eq!(launch(9, 331, 512, Epilogue::Gelu), ("gemm_bf16_stream16", [21, 1, 1]));
        assert_eq!(launch(32, 22016, 4096, Epilogue::SwiGlu), ("gemm_bf16_stream32", [1376, 1, 1]));
        let (symbol, grid) = launch(645, 22016, 4096, Epilogue::SwiGlu);
        assert_eq!((symbol, grid), ("gemm_bf16_tile128x128", [6, 172, 1]));
        // A grid of few tiles is cut finer, so that no multiprocessor idles.
        assert_ne!(launch(577, 1024, 1024, Epilogue::Store).0, "gemm_bf16_tile128x128");
    }

    #[test]
    fn every_pair_of_gate_and_up_has_a_place() {
        // Three pairs: a group of eight, of which five are nobody's.
        assert_eq!(launch(1, 6, 8, Epilogue::SwiGlu).1, [1, 1, 1]);
        assert_eq!(launch(1, 18, 8, Epilogue::SwiGlu).1, [2, 1, 1]);
    }

    #[test]
    fn vectors_need_whole_ones_in_every_row_and_aligned_starts() {
        let at = Bases::new([0, 0, 1 << 20, 0]);
        let flags = |op: Gemm| {
            let p = op.params(&at);
            (p.vectors, p.c_vectors)
        };
        let op = gemm(4, 48, 64, Epilogue::Store);
        assert_eq!(flags(op), (1, 1));
        assert_eq!(flags(gemm(4, 48, 588, Epilogue::Store)), (0, 1));
        assert_eq!(flags(gemm(4, 331, 64, Epilogue::Store)), (1, 0));
        assert_eq!(flags(gemm(4, 40, 64, Epilogue::SwiGlu)), (1, 0));
        let a = op.a.slice(1..op.a.len());
        assert_eq!(flags(Gemm { a, ..op }), (0, 1));
    }
}
