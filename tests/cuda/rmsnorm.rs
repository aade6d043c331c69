//! RMSNorm on a GPU, against plain loops.
//!
//! The oracle takes the mean in f64. Let `s` be the exact `1 / sqrt(mean + eps)`; a correct implementation in f32 has
//! some `s (1 + d)` with `|d| <= delta`, so its first rounding gives a value between `round(x s (1 - delta))` and
//! `round(x s (1 + delta))`, and since rounding is monotone, its result lies between the two that follow from those.
//! For all but a few elements in a thousand both ends are the same number: those must match bit for bit.
//!
//! `delta` counts roundings, each at most `u = 2^-24`, in a sum of which no term goes through more than `n` additions:
//! `n + 1` for the sum of squares, one for the division, one for adding eps, all halved by the root; 4 for the reciprocal
//! root (2 units in the last place) and one for the product with x.

use std::sync::Arc;

use half::{bf16, f16};
use ocelli::backend::Cpu;
use ocelli::backend::cuda::driver::{Device, Module, Resources};
use ocelli::backend::cuda::image;
use ocelli::kernel::{Geometry, Launch};
use ocelli::mem::{Act, Bases, Buf, DType, Layout, Region};
use ocelli::ops::{RmsNorm, RmsNormParams};
use ocelli::plan::{Backend, Plan};

use crate::gpu;

const EPS: f32 = 1e-5;
const DTYPES: [DType; 2] = [DType::F16, DType::Bf16];
/// One column, a warp, the row lengths of 7B and 13B, a length that is no multiple of 8, more than a block's worth.
const COLS: [usize; 9] = [1, 7, 8, 64, 4096, 4097, 5120, 8200, 20_000];

fn decode(dtype: DType, bits: u16) -> f64 {
    if dtype == DType::F16 { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
}

/// To nearest. By way of f32, which changes nothing here: rounding in two steps is monotone too, the values that the
/// first rounding sees are f32 in the kernel, and the second rounding sees products of 2-byte floats, exact in f32.
fn encode(dtype: DType, v: f64) -> u16 {
    if dtype == DType::F16 { f16::from_f32(v as f32).to_bits() } else { bf16::from_f32(v as f32).to_bits() }
}

fn round(dtype: DType, v: f64) -> f64 {
    decode(dtype, encode(dtype, v))
}

/// Bits of a matrix with rows of very different magnitude, a row of zeros, and a weight around one.
struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    x: Vec<u16>,
    weight: Vec<u16>,
}

impl Case {
    fn new(dtype: DType, rows: usize, cols: usize) -> Case {
        let mut state = (rows * 131_071 + cols) as u64;
        // A linear congruential generator; the sum of four uniform values is near enough to normal.
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        let mut normal = || (0..4).map(|_| uniform()).sum::<f64>() * 1.7;
        let magnitude = [1.0, 1e-3, 300.0, 0.02, 0.0, 7.0];
        let x = (0..rows * cols).map(|i| encode(dtype, normal() * magnitude[i / cols % magnitude.len()])).collect();
        let weight = (0..cols).map(|_| encode(dtype, 1.0 + 0.1 * normal())).collect();
        Case { dtype, rows, cols, x, weight }
    }

    /// Compare `y` with the oracle, for an implementation that adds up a row with `n` additions on the longest way.
    fn check(&self, y: &[u16], n: usize, what: &str) {
        let delta = ((n as f64 + 3.0) / 2.0 + 5.0) * 2f64.powi(-24);
        let (mut open, mut moved, mut used) = (0usize, 0usize, 0f64);
        for (row, (x, y)) in self.x.chunks(self.cols).zip(y.chunks(self.cols)).enumerate() {
            let squares: f64 = x.iter().map(|&b| decode(self.dtype, b).powi(2)).sum();
            let scale = 1.0 / (squares / self.cols as f64 + f64::from(EPS)).sqrt();
            for (col, ((&x, &w), &y)) in x.iter().zip(&self.weight).zip(y).enumerate() {
                let (exact, w, y) = (decode(self.dtype, x) * scale, decode(self.dtype, w), decode(self.dtype, y));
                let ends = [1.0 - delta, 1.0 + delta].map(|f| round(self.dtype, exact * f));
                let [a, b] = ends.map(|n| round(self.dtype, n * w));
                assert!(
                    a.min(b) <= y && y <= a.max(b),
                    "{what} {}x{} {}: row {row} column {col} is {y}, not within {a} and {b}",
                    self.rows,
                    self.cols,
                    self.dtype
                );
                if a != b {
                    open += 1;
                    let nearest = round(self.dtype, round(self.dtype, exact) * w);
                    if y != nearest {
                        moved += 1;
                        // It crossed the middle between both ends, so its error is at least the way to there.
                        let middle = (ends[0] + ends[1]) / 2.0;
                        used = used.max(((middle - exact) / exact).abs() / delta);
                    }
                }
            }
        }
        println!(
            "{what} {:>4}x{:<5} {:<4} {:>5.1}% of the bound used: {moved} of {} elements off by one step, {open} may be",
            self.rows,
            self.cols,
            self.dtype.name(),
            100.0 * used,
            y.len()
        );
    }
}

/// x, weight and y in one region, `shift` elements off the alignment that a layout gives.
fn op(case: &Case, shift: usize) -> (RmsNorm, Layout) {
    let mut layout = Layout::new(Region::Scratch, case.dtype);
    let mut take = |n: usize| -> Buf<Act> { layout.take::<Act>(n + shift).slice(shift..n + shift) };
    let (x, weight, y) = (take(case.x.len()), take(case.cols), take(case.x.len()));
    (RmsNorm { y, x, weight, rows: case.rows, cols: case.cols, eps: EPS }, layout)
}

/// Additions that a term goes through: in its thread, in its warp, across the warps.
fn additions(op: &RmsNorm, geometry: &Geometry) -> usize {
    8 * op.cols.div_ceil(8 * geometry.block[0] as usize) + 5 + 5
}

/// Run the op on the device. Everything that is not an input is NaN before.
fn on_device(device: &Device, module: &Arc<Module>, case: &Case, op: RmsNorm, bytes: usize, pdl: bool) -> Vec<u16> {
    let memory = device.alloc(bytes, 0xff).expect("device memory");
    device.write(&memory, op.x.span().range().start, bytemuck::cast_slice(&case.x)).expect("x");
    device.write(&memory, op.weight.span().range().start, bytemuck::cast_slice(&case.weight)).expect("weight");
    let bases = Bases::new([0, 0, memory.address(), 0]);
    let geometry = Geometry { pdl, ..op.geometry(&device.properties().gpu) };
    let function = module.function(geometry.symbol, geometry.smem).expect("entry point");
    device.launch(&function, &geometry, bytemuck::bytes_of(&op.params(&bases))).expect("launch");
    let mut y = vec![0u16; op.y.len()];
    device.read(&memory, op.y.span().range().start, bytemuck::cast_slice_mut(&mut y)).expect("y");
    y
}

/// The images of the kernel that the device can run: machine code and PTX must both be right.
fn modules(device: &Device) -> Vec<(&'static str, Arc<Module>)> {
    let capability = device.properties().gpu.compute_capability;
    let usable = image::embedded().iter().filter(|i| i.kernel == "rmsnorm" && i.runs_on(capability));
    usable.map(|i| (i.arch, device.load_image(i, size_of::<RmsNormParams>()).expect(i.arch))).collect()
}

#[test]
fn the_reference_agrees_with_the_oracle() {
    for dtype in DTYPES {
        for (rows, cols) in [(1, 1), (6, 7), (13, 64), (6, 4097)] {
            let case = Case::new(dtype, rows, cols);
            let (op, layout) = op(&case, 0);
            let cpu = Cpu::new([0, 0, layout.bytes(), 0]).expect("host memory");
            let mut plan = Plan::new(dtype);
            plan.push(op);
            cpu.restore(op.x.span(), bytemuck::cast_slice(&case.x)).expect("x");
            cpu.restore(op.weight.span(), bytemuck::cast_slice(&case.weight)).expect("weight");
            let mut exec = cpu.link(&plan).expect("a linked plan");
            cpu.run(&mut exec, None).expect("a run");
            let y = cpu.snapshot(op.y.span()).expect("y");
            case.check(&bytemuck::pod_collect_to_vec(&y), cols, "reference");
        }
    }
}

#[test]
fn the_kernel_agrees_with_the_oracle() {
    let Some(device) = gpu::device() else { return };
    println!("{:?}", device.properties());
    for (arch, module) in modules(&device) {
        for dtype in DTYPES {
            for cols in COLS {
                for rows in [1, 3, 645] {
                    let case = Case::new(dtype, rows, cols);
                    let (op, layout) = op(&case, 0);
                    let y = on_device(&device, &module, &case, op, layout.bytes(), false);
                    case.check(&y, additions(&op, &op.geometry(&device.properties().gpu)), arch);
                }
            }
        }
    }
}

#[test]
fn alignment_place_launch_attributes_and_batch_do_not_change_a_bit() {
    let Some(device) = gpu::device() else { return };
    for (arch, module) in modules(&device) {
        for dtype in DTYPES {
            for cols in [64, 4096, 20_000] {
                let case = Case::new(dtype, 11, cols);
                let (plain, layout) = op(&case, 0);
                let run = |op, pdl| on_device(&device, &module, &case, op, layout.bytes(), pdl);
                let expected = run(plain, false);
                assert_eq!(run(RmsNorm { y: plain.x, ..plain }, false), expected, "{arch} {dtype} {cols}: in place");
                assert_eq!(run(plain, true), expected, "{arch} {dtype} {cols}: programmatic dependent launch");
                for row in [0, 10] {
                    let part = row * cols..(row + 1) * cols;
                    let alone =
                        RmsNorm { y: plain.y.slice(part.clone()), x: plain.x.slice(part.clone()), rows: 1, ..plain };
                    // The whole x is written to where the slice starts, so only its first row is in its place.
                    let one =
                        Case { rows: 1, cols, x: case.x[part.clone()].to_vec(), weight: case.weight.clone(), dtype };
                    let y = on_device(&device, &module, &one, alone, layout.bytes(), false);
                    assert_eq!(y, expected[part], "{arch} {dtype} {cols}: row {row} alone");
                }
                // Another path through the kernel, with another order of additions.
                let (shifted, layout) = op(&case, 3);
                let y = on_device(&device, &module, &case, shifted, layout.bytes(), false);
                case.check(&y, additions(&shifted, &shifted.geometry(&device.properties().gpu)), "unaligned");
            }
        }
    }
}

#[test]
fn a_row_with_nan_stays_in_its_row() {
    let Some(device) = gpu::device() else { return };
    let mut case = Case::new(DType::Bf16, 3, 4096);
    let (op, layout) = op(&case, 0);
    let module = device.load("rmsnorm", size_of::<RmsNormParams>()).expect("module");
    let clean = on_device(&device, &module, &case, op, layout.bytes(), false);
    case.x[4096 + 17] = bf16::NAN.to_bits();
    let y = on_device(&device, &module, &case, op, layout.bytes(), false);
    assert!(y[4096..8192].iter().all(|&b| bf16::from_bits(b).is_nan()));
    assert_eq!((&y[..4096], &y[8192..]), (&clean[..4096], &clean[8192..]));
}

#[test]
fn parameters_that_drifted_are_a_load_error() {
    let Some(device) = gpu::device() else { return };
    let e = device.load("rmsnorm", size_of::<RmsNormParams>() + 8).err().expect("a mismatch must be refused");
    assert_eq!(
        e.to_string(),
        "kernel `rmsnorm` was compiled with 40 bytes of parameters and this binary passes 48: make cuda/params.cuh and \
         src/ops/rmsnorm.rs agree and build again"
    );
}

#[test]
fn what_the_driver_refuses_is_an_error_that_names_it() {
    let Some(device) = gpu::device() else { return };
    let text = |e: anyhow::Error| format!("{e:#}");
    let module = device.load("rmsnorm", size_of::<RmsNormParams>()).expect("module");

    let e = module.function("rmsnorm_f32", 0).err().map(text).expect("no such entry point");
    assert!(e.starts_with("cuda/rmsnorm.cu has no kernel `rmsnorm_f32`: CUDA_ERROR_NOT_FOUND"), "{e}");

    let function = module.function("rmsnorm_bf16", 0).expect("entry point");
    let Resources { registers, spilled: spills, .. } = function.resources().expect("attributes");
    println!("rmsnorm_bf16: {registers} registers, {spills} bytes of spills");
    assert_eq!(spills, 0);
    let geometry =
        Geometry { symbol: "rmsnorm_bf16", grid: [1; 3], block: [2048, 1, 1], smem: 0, cluster: 1, pdl: false };
    let e = device.launch(&function, &geometry, &[0; 40]).err().map(text).expect("too many threads");
    assert!(e.contains("block: [2048, 1, 1]") && e.contains("CUDA_ERROR_INVALID_VALUE"), "{e}");
    let e = device.launch(&function, &geometry, &[0; 36]).err().map(text).expect("too few bytes");
    assert_eq!(e, "rmsnorm_bf16 takes 40 bytes of parameters, not 36");

    let e = device.alloc(1 << 50, 0).err().map(text).expect("a petabyte");
    assert!(e.starts_with("out of memory on cuda:0: 1048576.00 GiB are needed and "), "{e}");
    let memory = device.alloc(100, 7).expect("device memory");
    let e = device.write(&memory, 96, &[0; 5]).err().map(text).expect("one byte too many");
    assert_eq!(e, "5 bytes at 96 leave a device allocation of 100 bytes");
    let mut all = [0u8; 100];
    device.read(&memory, 0, &mut all).expect("a read");
    assert_eq!(all, [7; 100]);

    let garbage = image::Image { bytes: b".version 9.0\n.target sm_80\nnonsense", ..*ptx() };
    let e = device.load_image(&garbage, 40).err().map(text).expect("no PTX");
    assert!(e.starts_with("the driver cannot load kernel rmsnorm (compute_80): CUDA_ERROR_INVALID_PTX"), "{e}");
    assert!(e.contains("its log: ptxas"), "{e}");
}

fn ptx() -> &'static image::Image<'static> {
    image::embedded().iter().find(|i| i.kernel == "rmsnorm" && i.kind == image::Kind::Ptx).expect("a PTX image")
}
