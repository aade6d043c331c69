//! One op on the CPU and on the GPU from the same bytes: what the reference writes is what the kernel must write.

use half::{bf16, f16};
use ocelli::backend::Cpu;
use ocelli::backend::cuda::Cuda;
use ocelli::kernel::GpuInfo;
use ocelli::mem::{Act, Buf, DType, Element, Layout, Region, Span};
use ocelli::ops::Op;
use ocelli::plan::{Backend, Plan};

/// Buffers of a test, before anything is allocated.
pub struct Stage {
    dtype: DType,
    layouts: [Layout; 4],
}

impl Stage {
    pub fn new(dtype: DType) -> Stage {
        Stage { dtype, layouts: Region::ALL.map(|region| Layout::new(region, dtype)) }
    }

    pub fn take<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        self.layouts[region as usize].take(len)
    }

    /// Allocate on both sides. The device's memory starts as NaNs (every byte 0xff), the host's as zeros, so whatever
    /// a kernel reads without it having been written shows.
    pub fn open(self) -> Pair {
        let bytes = Region::ALL.map(|region| self.layouts[region as usize].bytes());
        Pair { dtype: self.dtype, cpu: Cpu::new(bytes).unwrap(), cuda: Cuda::new(0, bytes, 0xff).unwrap() }
    }
}

/// The same regions on the CPU and on the GPU.
pub struct Pair {
    dtype: DType,
    pub cpu: Cpu,
    pub cuda: Cuda,
}

/// What an op wrote to one of its spans on either side.
pub struct Written {
    pub span: Span,
    pub expected: Vec<f32>,
    pub found: Vec<f32>,
}

impl Pair {
    /// Write the same elements on both sides.
    pub fn write<T: bytemuck::Pod>(&self, dst: Buf<T>, values: &[T]) {
        self.cpu.write(dst, values).unwrap();
        self.cuda.write(dst, values).unwrap();
    }

    /// Write floats, rounded to the type of the plan.
    pub fn floats(&self, dst: Buf<Act>, values: &[f32]) {
        assert_eq!(dst.len(), values.len());
        let bytes = encode(dst.dtype(), values);
        self.cpu.restore(dst.span(), &bytes).unwrap();
        self.cuda.restore(dst.span(), &bytes).unwrap();
    }

    /// Run `op` on both sides and return what it wrote.
    pub fn run(&self, op: impl Into<Op>) -> Vec<Written> {
        self.run_for(op, &self.cuda.device().properties().gpu)
    }

    /// The same with the kernel for a device that is described otherwise.
    pub fn run_for(&self, op: impl Into<Op>, gpu: &GpuInfo) -> Vec<Written> {
        let op = op.into();
        let mut plan = Plan::new(self.dtype);
        plan.push(op);
        self.cpu.run(&mut self.cpu.link(&plan).unwrap(), None).unwrap();
        self.cuda.run(&mut self.cuda.link_for(&plan, gpu).unwrap(), None).unwrap();
        let read = |span: Span| Written {
            span,
            expected: decode(span.dtype, &self.cpu.snapshot(span).unwrap()),
            found: decode(span.dtype, &self.cuda.snapshot(span).unwrap()),
        };
        op.writes().into_iter().map(read).collect()
    }
}

impl Written {
    /// Assert that every element is within `bound` of the reference's, given the index and the reference; print the
    /// largest part of the bound that was used.
    pub fn within(&self, what: &str, bound: impl Fn(usize, f32) -> f32) {
        let mut used = 0.0f32;
        for (i, (&e, &f)) in self.expected.iter().zip(&self.found).enumerate() {
            if e.to_bits() == f.to_bits() || (e.is_nan() && f.is_nan()) {
                continue;
            }
            let share = (e - f).abs() / bound(i, e);
            assert!(share <= 1.0, "{what}: element {i} of {:?} is {f}, the reference has {e}", self.span);
            used = used.max(share);
        }
        println!("{what}: {:.1} % of the bound used", 100.0 * used);
    }
}

/// One unit in the last place of `dtype` at `x`: the distance to the next larger magnitude.
pub fn ulp(dtype: DType, x: f32) -> f32 {
    let (digits, smallest) = match dtype {
        DType::F16 => (10, -24),
        DType::Bf16 => (7, -133),
        _ => (23, -149),
    };
    let exponent = if x == 0.0 { smallest } else { (x.abs().log2().floor() as i32 - digits).max(smallest) };
    2f32.powi(exponent)
}

pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes).iter().map(|v| v.to_f32()).collect(),
        DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).collect(),
        DType::I32 => bytemuck::pod_collect_to_vec::<u8, i32>(bytes).iter().map(|v| *v as f32).collect(),
        DType::F32 => bytemuck::pod_collect_to_vec(bytes),
        DType::U8 => bytes.iter().map(|v| f32::from(*v)).collect(),
    }
}

/// Multiples of `unit` from -2 to 2 units, the same every time.
pub fn small(n: usize, unit: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 5) as f32 - 2.0
    };
    (0..n).map(|_| next() * unit).collect()
}

/// Numbers near a normal distribution, the same every time.
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 1.7 * (uniform() + uniform() + uniform() + uniform())).collect()
}
