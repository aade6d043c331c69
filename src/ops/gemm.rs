//! Matrix product with what follows it.

mod tiles;

use bytemuck::{Pod, Zeroable};

use super::math::{gelu, matmul_nt, quick_gelu, silu};
use crate::host::HostMem;
use crate::kernel::{Cost, Geometry, GpuInfo, Kernel, Launch, TensorMap, TensorMaps};
use crate::mem::{Act, Bases, Buf, DType, Spans};
use tiles::{Choice, Family};

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
    pub(super) fn code(self) -> u32 {
        match self {
            Epilogue::Store => 0,
            Epilogue::AddResidual => 1,
            Epilogue::QuickGelu => 2,
            Epilogue::Gelu => 3,
            Epilogue::SwiGlu => 4,
        }
    }
}

impl Gemm {
    /// Columns of `c`.
    fn cols(&self) -> usize {
        if self.epilogue == Epilogue::SwiGlu { self.n / 2 } else { self.n }
    }

    /// Whether the copy engine can move the operands, and `c` unless it is f32: rows and starts at whole 16 bytes, and
    /// with SwiGLU whole groups of eight pairs.
    fn is_tiled_by_copy_engine(&self) -> bool {
        let aligned = |buf: Buf<Act>| buf.span().byte.is_multiple_of(16);
        let operands = self.k.is_multiple_of(8) && aligned(self.a) && aligned(self.b);
        operands
            && match self.c.dtype() {
                DType::F32 => self.epilogue == Epilogue::Store,
                _ => self.cols().is_multiple_of(8) && aligned(self.c),
            }
    }

    /// The kernel for this size on this device.
    fn choice(&self, gpu: &GpuInfo) -> Choice {
        let wgmma = gpu.sm_90a && self.is_tiled_by_copy_engine();
        let pairs = (self.epilogue == Epilogue::SwiGlu).then_some(self.n / 2);
        tiles::choose(self.m, self.n, self.k, pairs, gpu.sms, wgmma)
    }
}

impl Launch for Gemm {
    type Params = GemmParams;

    fn params(&self, at: &Bases) -> GemmParams {
        let [a, b, c] = [self.a, self.b, self.c].map(|buf| at.at(buf));
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
            c_vectors: u32::from(self.cols().is_multiple_of(8) && c.is_multiple_of(16)),
            pad: 0,
        }
    }

    /// Where the device has programmatic dependent launch, the kernels may start, and all but `tile` read `b`, which no
    /// kernel writes, before their predecessor has ended.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry {
        let Choice { shape, grid } = self.choice(gpu);
        Geometry {
            symbol: match self.a.dtype() {
                DType::F16 => shape.symbols[0],
                DType::Bf16 => shape.symbols[1],
                _ => "gemm_f32",
            },
            grid,
            block: [shape.threads, 1, 1],
            smem: shape.smem,
            cluster: 1,
            pdl: gpu.sm_90a,
        }
    }

    /// For the kernels of family `wgmma`: `a`, `b` and `c`, twin of `GemmMaps` in `cuda/gemm_sm90.cuh`.
    fn tensor_maps(&self, at: &Bases, gpu: &GpuInfo) -> TensorMaps {
        let Choice { shape, .. } = self.choice(gpu);
        if shape.family != Family::Wgmma {
            return TensorMaps::default();
        }
        let (rows, places) = (shape.rows as u32, shape.places as u32);
        let dtype = self.a.dtype();
        let matrix = |buf: Buf<Act>, size, tile| TensorMap::matrix(dtype, at.at(buf), size, tile);
        let b = matrix(self.b, [self.n, self.k], [places, 64]);
        let (b, c_columns) = if self.epilogue == Epilogue::SwiGlu { (self.pairs_of(b, places), 32) } else { (b, 64) };
        let c = matrix(self.c, [self.m, self.cols()], [rows, c_columns]);
        [Some(matrix(self.a, [self.m, self.k], [rows, 64])), Some(b), (self.c.dtype() == dtype).then_some(c)]
    }
}

impl Gemm {
    /// `b` as groups of eight gate rows and the eight up rows that belong to them, which a tile then holds in this order.
    fn pairs_of(&self, b: TensorMap, places: u32) -> TensorMap {
        let row = b.strides[0];
        TensorMap {
            dims: [self.k as u64, 8, 2, self.n as u64 / 16],
            strides: [row, self.n as u64 / 2 * row, 8 * row],
            tile: [64, 8, 2, places / 16],
            rank: 4,
            ..b
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Layout, Region};

    const H200: GpuInfo = GpuInfo { compute_capability: (9, 0), sms: 132, max_smem: 232_448, sm_90a: true };
    /// An H200 as PTX sees it.
    const PORTABLE: GpuInfo = GpuInfo { sm_90a: false, ..H200 };

    fn gemm(m: usize, n: usize, k: usize, epilogue: Epilogue) -> Gemm {
        let mut l = Layout::new(Region::Scratch, DType::Bf16);
        let cols = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
        Gemm { c: l.take(m * cols), a: l.take(m * k), b: l.take(n * k), m, n, k, bias: None, epilogue }
    }

    fn launch(gpu: &GpuInfo, m: usize, n: usize, k: usize, epilogue: Epilogue) -> (&'static str, [u32; 3]) {
        let geometry = gemm(m, n, k, epilogue).geometry(gpu);
        (geometry.symbol, geometry.grid)
    }

    #[test]
    fn few_rows_stream_and_many_are_tiled() {
        let portable = |m, n, k, epilogue| launch(&PORTABLE, m, n, k, epilogue);
        assert_eq!(portable(1, 4096, 4096, Epilogue::Store), ("gemm_bf16_stream16", [256, 1, 1]));
        assert_eq!(portable(9, 331, 512, Epilogue::Gelu), ("gemm_bf16_stream16", [21, 1, 1]));
        assert_eq!(portable(8, 22016, 4096, Epilogue::SwiGlu), ("gemm_bf16_stream16", [1376, 1, 1]));
        assert_eq!(portable(9, 22016, 4096, Epilogue::SwiGlu), ("gemm_bf16_tile64x64", [1, 344, 1]));
        assert_eq!(portable(17, 4096, 4096, Epilogue::Store), ("gemm_bf16_tile64x32", [1, 128, 1]));
        assert_eq!(portable(645, 22016, 4096, Epilogue::SwiGlu), ("gemm_bf16_tile128x128", [6, 172, 1]));
    }

    #[test]
    fn tiles_are_those_that_were_measured_fastest() {
        for (m, n, k, portable, sm_90a) in [
            (64, 12288, 4096, "gemm_bf16_tile64x32", "gemm_bf16_wgmma64x128"),
            (32, 4096, 4096, "gemm_bf16_tile64x32", "gemm_bf16_wgmma32x64"),
            (256, 4096, 4096, "gemm_bf16_tile64x64", "gemm_bf16_wgmma64x128"),
            (577, 4096, 1024, "gemm_bf16_tile128x64", "gemm_bf16_wgmma152x128"),
            (577, 1024, 4096, "gemm_bf16_tile64x32", "gemm_bf16_wgmma80x64"),
            (577, 12288, 4096, "gemm_bf16_tile128x128", "gemm_bf16_wgmma152x128"),
            (645, 12288, 4096, "gemm_bf16_tile128x64", "gemm_bf16_wgmma168x128"),
            (645, 4096, 11008, "gemm_bf16_tile128x64", "gemm_bf16_wgmma168x128"),
            (645, 22016, 4096, "gemm_bf16_tile128x128", "gemm_bf16_wgmma216x128"),
            (2048, 4096, 4096, "gemm_bf16_tile128x128", "gemm_bf16_wgmma256x128"),
        ] {
            let symbols = [&PORTABLE, &H200].map(|gpu| launch(gpu, m, n, k, Epilogue::Store).0);
            assert_eq!(symbols, [portable, sm_90a], "{m}x{n}x{k}");
        }
    }

    #[test]
    fn blocks_take_tile_after_tile_where_there_are_more_than_multiprocessors() {
        // 96 tiles of places, four of rows; 32 and four.
        assert_eq!(launch(&H200, 645, 12288, 4096, Epilogue::Store).1, [132, 1, 1]);
        assert_eq!(launch(&H200, 645, 4096, 4096, Epilogue::Store).1, [128, 1, 1]);
    }

    #[test]
    fn what_the_copy_engine_cannot_move_is_computed_by_any_tile() {
        let symbol = |op: Gemm| op.geometry(&H200).symbol;
        let is_wgmma = |op: Gemm| symbol(op).contains("wgmma");
        let op = gemm(64, 480, 64, Epilogue::Store);
        assert!(is_wgmma(op) && !op.geometry(&PORTABLE).symbol.contains("wgmma"));
        assert!(!is_wgmma(gemm(64, 480, 60, Epilogue::Store)), "rows of 120 bytes");
        assert!(!is_wgmma(gemm(64, 478, 64, Epilogue::Store)), "rows of c of 956 bytes");
        assert!(!is_wgmma(Gemm { a: op.a.slice(1..op.a.len()), ..op }), "a that starts at two bytes");
        assert!(is_wgmma(gemm(64, 480, 64, Epilogue::SwiGlu)));
        assert!(!is_wgmma(gemm(64, 472, 64, Epilogue::SwiGlu)), "236 pairs");
        let mut l = Layout::new(Region::Io, DType::Bf16);
        let logits = Gemm { c: l.take::<f32>(64 * 331).into(), ..gemm(64, 331, 64, Epilogue::Store) };
        assert!(is_wgmma(logits), "f32 of any length");
        assert!(!is_wgmma(Gemm { epilogue: Epilogue::Gelu, ..logits }));
    }

    #[test]
    fn tensor_maps_say_what_the_tiles_are() {
        let at = Bases::new([0, 0, 1 << 20, 0]);
        let op = gemm(645, 12288, 4096, Epilogue::Store);
        assert_eq!(op.tensor_maps(&at, &PORTABLE), TensorMaps::default());
        assert_eq!(gemm(1, 64, 64, Epilogue::Store).tensor_maps(&at, &H200), TensorMaps::default());
        let matrix = |buf, size, tile| Some(TensorMap::matrix(DType::Bf16, at.at::<Act>(buf), size, tile));
        let (a, b, c) = ([645, 4096], [12288, 4096], [645, 12288]);
        let expected = [matrix(op.a, a, [168, 64]), matrix(op.b, b, [128, 64]), matrix(op.c, c, [168, 64])];
        assert_eq!(op.tensor_maps(&at, &H200), expected);

        let op = gemm(645, 22016, 4096, Epilogue::SwiGlu);
        let [_, b, c] = op.tensor_maps(&at, &H200);
        assert_eq!(c, matrix(op.c, [645, 11008], [216, 32]));
        let b = b.expect("a map of b");
        assert_eq!((b.rank, b.dims, b.tile), (4, [4096, 8, 2, 1376], [64, 8, 2, 8]));
        // From a row to the next, to the row that belongs to it, and to the next group of eight.
        assert_eq!(b.strides, [8192, 11008 * 8192, 8 * 8192]);
    }

    #[test]
    fn kernels_that_cannot_wait_do_not_start_early() {
        let op = gemm(1, 64, 64, Epilogue::Store);
        assert!(op.geometry(&H200).pdl);
        // PTX for compute_80 has no instruction to wait with.
        assert!(!op.geometry(&PORTABLE).pdl);
    }

    #[test]
    fn every_pair_of_gate_and_up_has_a_place() {
        // Three pairs: a group of eight, of which five are nobody's.
        assert_eq!(launch(&PORTABLE, 1, 6, 8, Epilogue::SwiGlu).1, [1, 1, 1]);
        assert_eq!(launch(&PORTABLE, 1, 18, 8, Epilogue::SwiGlu).1, [2, 1, 1]);
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
