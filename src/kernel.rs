//! What an op must answer: its cost, what it writes, and a plain reference; and, once it has a device kernel, its
//! parameters and launch geometry.

use bytemuck::Pod;

use crate::host::HostMem;
use crate::mem::{Bases, Spans};

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
        Launched { kernel: K::NAME, geometry: op.geometry(gpu), params, len }
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
