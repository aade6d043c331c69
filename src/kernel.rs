//! What an op must answer: its cost, what it writes, and a plain reference; and, once it has a device kernel, its
//! parameters and launch geometry.

use bytemuck::Pod;

use crate::host::HostMem;
use crate::mem::{Bases, DType, Spans};

/// Bytes that must move through memory and floating-point operations that must be done: the floor of an op's time.
///
/// Each input is counted once and each output once, however often an implementation reads it. A multiply and an add
/// are two operations; `exp` and its kin count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read plus bytes written.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.bytes += other.bytes;
        self.flops += other.flops;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |mut total, c| {
            total += c;
            total
        })
    }
}

/// One op of a plan: plain data that says what to compute and where.
pub trait Kernel: Copy + 'static {
    /// Symbol stem, trace label and bench id.
    const NAME: &'static str;

    /// Bytes that must move and operations that must be done.
    fn cost(&self) -> Cost;

    /// Everything the op changes: what bisection compares and a trace names.
    fn writes(&self) -> Spans;

    /// The op as plain loops in f32 over host memory. The oracle of every device kernel, and the CPU backend.
    fn reference(&self, m: &HostMem);
}

/// A [`Kernel`] that has a device implementation in `cuda/`.
pub trait Launch: Kernel {
    /// The struct passed by value as the kernel's one parameter; its twin stands in `cuda/params.cuh`.
    type Params: Pod;

    /// Addresses and sizes, resolved.
    fn params(&self, at: &Bases) -> Self::Params;

    /// Grid, block and attributes: a pure function, so that it is tested without a device.
    fn geometry(&self, gpu: &GpuInfo) -> Geometry;

    /// What the kernel moves with the copy engine of compute capability 9.0, in the order of the struct that is its
    /// second parameter. None of it where the kernel takes one parameter.
    fn tensor_maps(&self, _at: &Bases, _gpu: &GpuInfo) -> TensorMaps {
        TensorMaps::default()
    }
}

/// Tensor maps that a kernel takes at most.
pub const MAX_TENSOR_MAPS: usize = 3;

/// The tensor maps of a launch.
pub type TensorMaps = [Option<TensorMap>; MAX_TENSOR_MAPS];

/// An array in device memory, and the tiles that the copy engine moves of it. Rows of a tile have 64 or 128 bytes, whose
/// 16-byte chunks lie permuted in shared memory, by what the hardware calls the swizzle of that size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Type of an element: f16 or bf16.
    pub dtype: DType,
    /// Where the first element lies: a multiple of 16.
    pub address: u64,
    /// Elements along each dimension, innermost first.
    pub dims: [u64; 4],
    /// Bytes from one index to the next of each dimension but the innermost: multiples of 16.
    pub strides: [u64; 3],
    /// Elements of a tile along each dimension, 256 at most.
    pub tile: [u32; 4],
    /// Dimensions in use: the first so many.
    pub rank: usize,
}

impl TensorMap {
    /// A dense row-major matrix of `rows` by `cols`, in tiles of `tile[0]` rows by `tile[1]` columns.
    pub fn matrix(dtype: DType, address: u64, [rows, cols]: [usize; 2], tile: [u32; 2]) -> TensorMap {
        TensorMap {
            dtype,
            address,
            dims: [cols as u64, rows as u64, 1, 1],
            strides: [(cols * dtype.size()) as u64, 0, 0],
            tile: [tile[1], tile[0], 1, 1],
            rank: 2,
        }
    }
}

/// Bytes of the largest parameter struct.
pub const MAX_PARAMS: usize = 256;

/// A launch with everything resolved: what a backend that runs kernels keeps of an op.
#[derive(Clone, Copy, Debug)]
pub struct Launched {
    /// Base name of the file in `cuda/`.
    pub kernel: &'static str,
    /// How it is launched.
    pub geometry: Geometry,
    /// What its kernel takes as second parameter, if anything.
    pub maps: TensorMaps,
    params: [u8; MAX_PARAMS],
    len: usize,
}

impl Launched {
    /// Resolve `op` against the addresses of the regions.
    pub fn new<K: Launch>(op: &K, at: &Bases, gpu: &GpuInfo) -> Launched {
        const { assert!(size_of::<K::Params>() <= MAX_PARAMS, "a parameter struct is larger than MAX_PARAMS") };
        let mut params = [0; MAX_PARAMS];
        let len = size_of::<K::Params>();
        params[..len].copy_from_slice(bytemuck::bytes_of(&op.params(at)));
        Launched { kernel: K::NAME, geometry: op.geometry(gpu), maps: op.tensor_maps(at, gpu), params, len }
    }

    /// The parameter struct.
    pub fn params(&self) -> &[u8] {
        &self.params[..self.len]
    }
}

/// What a launch geometry may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Largest dynamic shared memory of a block, in bytes, after opting in.
    pub max_smem: u32,
    /// Whether the images of this binary hold machine code of this very architecture, and it is 9.0: then they have the
    /// kernels that use instructions of no other.
    pub sm_90a: bool,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The `extern "C"` entry point.
    pub symbol: &'static str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub smem: u32,
    /// Blocks of a cluster along x; 1 launches without clusters.
    pub cluster: u32,
    /// Programmatic dependent launch: the kernel may start while its predecessor drains. Only where
    /// [`GpuInfo::sm_90a`] says that its code is there that waits; what is compiled for older architectures does not.
    pub pdl: bool,
}

impl Geometry {
    /// One block a row and one thread for eight columns, in whole warps. The block depends on `cols` alone, so that a row is
    /// added up in the same order in any batch.
    pub fn row_a_block(symbol: &'static str, rows: usize, cols: usize, gpu: &GpuInfo) -> Geometry {
        let threads = cols.div_ceil(8).next_multiple_of(32).min(1024) as u32;
        Geometry { symbol, grid: [rows as u32, 1, 1], block: [threads, 1, 1], smem: 0, cluster: 1, pdl: gpu.sm_90a }
    }
}
