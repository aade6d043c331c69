//! GEMV on a GPU, against plain loops: every kernel that the device can run, from machine code and from PTX.
//!
//! Cases hold numbers whose products and sums are exact in f32 in any order, so the sum must be right to the last bit and an
//! output that is rounded once must match bit for bit. That goes for the normalisation, too: every other element of a row is
//! zero and the others are plus or minus a power of two, so the normalised ones are plus or minus sqrt(2), which f16 and
//! bf16 both round to 181/128 as long as the scale is right to 2^-12. (A row that was added up one element short is off by
//! 1 / 2k.) SwiGLU is allowed one unit in the last place of the output and what the device's fast exponential may be off
//! (2 + 1.17 |x| units of 2^-23: below 2^-16 of the result for |x| < 100).
//!
//! Rows near a normal distribution are held to what tests/cuda/gemm.rs derives: 8 sqrt(k) 2^-24 |a| |b| for the sum, and one
//! rounding of the output.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ocelli::backend::Cpu;
use ocelli::backend::cuda::driver::{Device, Memory, Module, Resources};
use ocelli::backend::cuda::image;
use ocelli::kernel::{GpuInfo, Launch};
use ocelli::mem::{Act, Bases, Buf, DType, Layout, Region};
use ocelli::ops::{Epilogue, Gemv, GemvParams, Norm};
use ocelli::plan::{Backend, Plan};

use crate::gpu;
use crate::parity::{decode, encode, normal, small, ulp};

const DTYPES: [DType; 2] = [DType::F16, DType::Bf16];
const EPILOGUES: [Epilogue; 3] = [Epilogue::Store, Epilogue::AddResidual, Epilogue::SwiGlu];

/// Rows to be normalised: every other element zero where a row has an even number, the others of one magnitude.
fn of_one_magnitude(rows: usize, k: usize) -> Vec<f32> {
    let signs = small(rows * k, 1.0, 7);
    let element = |(i, sign): (usize, f32)| {
        let (row, col) = (i / k, i % k);
        let magnitude: f32 = [1.0, 4.0, 0.5, 64.0][row % 4];
        if k.is_multiple_of(2) && (row + col).is_multiple_of(2) { 0.0 } else { magnitude.copysign(sign) }
    };
    signs.into_iter().enumerate().map(element).collect()
}

/// A case to be run: sizes, and where its operands start.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
    norm: bool,
    f32_out: bool,
    /// Elements that every operand lies off the alignment that a layout gives.
    shift: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize, epilogue: Epilogue) -> Case {
        Case { m, n, k, epilogue, norm: false, f32_out: false, shift: 0 }
    }
}

/// A product with its operands as bytes, all in one region.
struct Product {
    op: Gemv,
    bytes: usize,
    inputs: Vec<(Buf<Act>, Vec<u8>)>,
}

impl Product {
    /// Of numbers whose sums are exact, or near a normal distribution.
    fn new(case: &Case, dtype: DType, exact: bool) -> Product {
        let Case { m, n, k, epilogue, shift, .. } = *case;
        let mut layout = Layout::new(Region::Scratch, dtype);
        let mut take = |len: usize, f32: bool| -> Buf<Act> {
            let all = if f32 { layout.take::<f32>(len + shift).into() } else { layout.take::<Act>(len + shift) };
            all.slice(shift..len + shift)
        };
        let cols = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
        let (a, b, weight) = (take(m * k, false), take(n * k, false), take(k, false));
        let c = take(m * cols, case.f32_out);
        let norm = case.norm.then_some(Norm { weight, eps: 1e-5 });
        let op = Gemv { c, a, b, m, n, k, norm, epilogue };
        let [of_a, of_b] = match (exact, case.norm) {
            (true, true) => [of_one_magnitude(m, k), small(n * k, 1.0 / 32.0, 2)],
            (true, false) => [small(m * k, 1.0, 1), small(n * k, 1.0 / 32.0, 2)],
            (false, _) => [normal(m * k, 1), normal(n * k, 2)],
        };
        let mut inputs = vec![(a, encode(dtype, &of_a)), (b, encode(dtype, &of_b))];
        inputs.push((weight, encode(dtype, &small(k, 0.5, 3))));
        if epilogue == Epilogue::AddResidual {
            inputs.push((c, encode(c.dtype(), &small(c.len(), 0.25, 4))));
        }
        Product { op, bytes: layout.bytes(), inputs }
    }

    /// c, by the reference.
    fn expected(&self) -> Vec<f32> {
        let cpu = Cpu::new([0, 0, self.bytes, 0]).expect("host memory");
        for (buf, bytes) in &self.inputs {
            cpu.restore(buf.span(), bytes).expect("an operand");
        }
        let mut plan = Plan::new(self.op.a.dtype());
        plan.push(self.op);
        cpu.run(&mut cpu.link(&plan).expect("a linked plan"), None).expect("a run");
        decode(self.op.c.dtype(), &cpu.snapshot(self.op.c.span()).expect("c"))
    }

    /// Device memory with the operands; every other byte is 0xff, which makes NaNs.
    fn memory(&self, device: &Device) -> Memory {
        let memory = device.alloc(self.bytes, 0xff).expect("device memory");
        for (buf, bytes) in &self.inputs {
            device.write(&memory, buf.span().range().start, bytes).expect("an operand");
        }
        memory
    }

    /// c, by a kernel.
    fn found(&self, device: &Device, form: &Form) -> Vec<f32> {
        let memory = self.memory(device);
        form.launch(device, &self.op, &Bases::new([0, 0, memory.address(), 0]));
        let mut c = vec![0; self.op.c.span().bytes() as usize];
        device.read(&memory, self.op.c.span().range().start, &mut c).expect("c");
        decode(self.op.c.dtype(), &c)
    }
}

/// An image, and what kernels are chosen by.
struct Form {
    name: String,
    module: Arc<Module>,
    gpu: GpuInfo,
}

impl Form {
    fn launch(&self, device: &Device, op: &Gemv, at: &Bases) {
        let geometry = op.geometry(&self.gpu);
        let function = self.module.function(geometry.symbol, geometry.smem).expect("entry point");
        device.launch(&function, &geometry, bytemuck::bytes_of(&op.params(at))).expect("launch");
    }
}

/// Every image that the device can run, with the portable kernels; and machine code with those of this very device.
fn forms(device: &Device) -> Vec<Form> {
    let gpu = device.properties().gpu;
    let usable = image::embedded().iter().filter(|i| i.kernel == "gemv" && i.runs_on(gpu.compute_capability));
    let mut forms = Vec::new();
    for i in usable {
        let module = device.load_image(i, size_of::<GemvParams>()).expect(i.arch);
        let portable = GpuInfo { sm_90a: false, ..gpu };
        forms.push(Form { name: format!("{} portable", i.arch), module: module.clone(), gpu: portable });
        if i.arch == "sm_90a" {
            forms.push(Form { name: i.arch.to_owned(), module, gpu });
        }
    }
    forms
}

/// Compare all forms with the reference, and return the entry points that ran.
fn agree(device: &Device, forms: &[Form], case: &Case, dtype: DType, exact: bool) -> BTreeSet<&'static str> {
    let product = Product::new(case, dtype, exact);
    let (expected, out) = (product.expected(), product.op.c.dtype());
    let lengths = |i: usize| -> Vec<f32> {
        let (buf, bytes) = &product.inputs[i];
        let rows = decode(buf.dtype(), bytes);
        rows.chunks(case.k).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt() * 1.01).collect()
    };
    let lengths = if exact { [Vec::new(), Vec::new()] } else { [lengths(0), lengths(1)] };
    let bound = |i: usize, e: f32| match case.epilogue {
        _ if !exact => {
            let [a, b] = &lengths;
            let sum = 8.0 * (case.k as f32).sqrt() * 2f32.powi(-24) * a[i / case.n] * b[i % case.n];
            sum + ulp(out, e.abs() + sum)
        }
        Epilogue::SwiGlu => ulp(out, e) + 2f32.powi(-16) * e.abs() + 1e-37,
        // Not zero, which would make zeros of different sign differ.
        _ => 1e-37,
    };
    let mut symbols = BTreeSet::new();
    for form in forms {
        symbols.insert(product.op.geometry(&form.gpu).symbol);
        let (found, mut used) = (product.found(device, form), 0f32);
        for (i, (&e, &f)) in expected.iter().zip(&found).enumerate() {
            let share = if e.to_bits() == f.to_bits() { 0.0 } else { (e - f).abs() / bound(i, e) };
            assert!(share <= 1.0, "{}, {dtype} {case:?}: element {i} is {f}, the reference has {e}", form.name);
            used = used.max(share);
        }
        println!("{}, {dtype} {case:?}: {:.1} % of the bound used", form.name, 100.0 * used);
    }
    symbols
}

#[test]
fn every_kernel_agrees_with_the_reference_on_exact_sums() {
    let Some(device) = gpu::device() else { return };
    let (forms, mut symbols) = (forms(&device), BTreeSet::new());
    let mut run = |case: Case| {
        for dtype in DTYPES {
            symbols.extend(agree(&device, &forms, &case, dtype, true));
        }
    };
    // One of everything; less than a tile, a group, a warp's step; borders of the rings; no multiple of anything.
    let shapes = [
        (2, 1),
        (2, 8),
        (16, 32),
        (34, 64),
        (18, 96),
        (330, 587),
        (448, 588),
        (2200, 512),
        (1026, 1024),
        (274, 3072),
        (266, 4096),
        (100, 4128),
        (66, 5120),
        (50, 5792),
        (1074, 8192),
        (30, 8224),
        (34, 11_008),
        (18, 11_520),
        (18, 13_824),
    ];
    for (n, k) in shapes {
        for m in [1, 2, 5, 8] {
            for epilogue in EPILOGUES {
                for norm in [false, true] {
                    run(Case { norm, ..Case::new(m, n, k, epilogue) });
                }
            }
        }
    }
    // Rows so short that more of them fit the bytes in flight than the ring has slots, and such that fill its slots or its
    // bytes; and enough of them for every block to go round the ring more than once.
    for (n, k) in [(70_000, 32), (70_000, 96), (40_000, 288), (49_280, 576), (9728, 896), (8192, 1024)] {
        for m in [1, 7] {
            run(Case { norm: m == 7, ..Case::new(m, n, k, Epilogue::Store) });
        }
    }
    for m in 1..=8 {
        run(Case { norm: m % 2 == 0, f32_out: true, ..Case::new(m, 331, 512, Epilogue::Store) });
        run(Case { norm: true, shift: 3, ..Case::new(m, 334, 128, EPILOGUES[m % 3]) });
    }
    if device.properties().gpu.sm_90a {
        assert_eq!(symbols.len(), 8, "every kernel has run: {symbols:?}");
    }
}

#[test]
fn every_kernel_agrees_with_the_reference_on_the_layers_of_7b() {
    let Some(device) = gpu::device() else { return };
    let forms = forms(&device);
    for m in [1, 8] {
        agree(&device, &forms, &Case::new(m, 12_288, 4096, Epilogue::Store), DType::Bf16, false);
        agree(&device, &forms, &Case { norm: true, ..Case::new(m, 12_288, 4096, Epilogue::Store) }, DType::Bf16, true);
        agree(&device, &forms, &Case::new(m, 4096, 4096, Epilogue::AddResidual), DType::F16, true);
        agree(&device, &forms, &Case { norm: true, ..Case::new(m, 22_016, 4096, Epilogue::SwiGlu) }, DType::Bf16, true);
        agree(&device, &forms, &Case::new(m, 4096, 11_008, Epilogue::AddResidual), DType::Bf16, true);
        agree(
            &device,
            &forms,
            &Case { f32_out: true, ..Case::new(m, 4096, 11_008, Epilogue::Store) },
            DType::F16,
            false,
        );
    }
    agree(&device, &forms, &Case { f32_out: true, ..Case::new(3, 32_064, 4096, Epilogue::Store) }, DType::Bf16, false);
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_run() {
    let Some(device) = gpu::device() else { return };
    for form in forms(&device) {
        for (k, norm) in [(4096, true), (3072, true), (1096, true), (8192, false), (11_008, false)] {
            let run = |m| {
                let case = Case { norm, ..Case::new(m, 1000, k, Epilogue::Store) };
                bits(&Product::new(&case, DType::Bf16, false).found(&device, &form))
            };
            let all = run(8);
            for m in 1..8 {
                assert_eq!(run(m), all[..m * 1000], "{}: {m} rows of {k} and 8", form.name);
            }
            for i in 0..20 {
                assert_eq!(run(8), all, "{}: run {i}", form.name);
            }
        }
    }
}

#[test]
fn ptx_and_machine_code_give_the_same_bits() {
    let Some(device) = gpu::device() else { return };
    let forms = forms(&device);
    let portable: Vec<&Form> = forms.iter().filter(|f| !f.gpu.sm_90a).collect();
    for dtype in DTYPES {
        for (m, n, k) in [(1, 512, 1024), (5, 330, 587), (8, 1000, 4096)] {
            for epilogue in [Epilogue::Store, Epilogue::SwiGlu] {
                let product = Product::new(&Case { norm: true, ..Case::new(m, n, k, epilogue) }, dtype, false);
                let first = bits(&product.found(&device, portable[0]));
                assert!(first.iter().all(|b| !f32::from_bits(*b).is_nan()), "{m}x{n}x{k}");
                for form in &portable[1..] {
                    let found = bits(&product.found(&device, form));
                    assert_eq!(found, first, "{} and {} differ on {m}x{n}x{k} {dtype}", form.name, portable[0].name);
                }
            }
        }
    }
}

/// A layer's products, each reading what the one before wrote, the last one adding to what the first one read.
#[test]
fn dependent_launches_back_to_back_give_the_bits_of_launches_one_by_one() {
    let Some(device) = gpu::device() else { return };
    const ROUNDS: usize = 6;
    let (d, f) = (4096, 11_008);
    for form in forms(&device) {
        for m in [1, 8] {
            let mut layout = Layout::new(Region::Scratch, DType::Bf16);
            let (x, h, mlp) = (layout.take::<Act>(m * d), layout.take::<Act>(m * d), layout.take::<Act>(m * f));
            let weights = [layout.take::<Act>(d * d), layout.take(2 * f * d), layout.take(d * f)];
            let norm = Some(Norm { weight: layout.take(d), eps: 1e-5 });
            let ops = [
                Gemv { c: h, a: x, b: weights[0], m, n: d, k: d, norm, epilogue: Epilogue::Store },
                Gemv { c: mlp, a: h, b: weights[1], m, n: 2 * f, k: d, norm, epilogue: Epilogue::SwiGlu },
                Gemv { c: x, a: mlp, b: weights[2], m, n: d, k: f, norm: None, epilogue: Epilogue::AddResidual },
            ];
            let memory = device.alloc(layout.bytes(), 0xff).expect("device memory");
            let fill = |buf: Buf<Act>, scale: f32| {
                let values: Vec<f32> = normal(buf.len(), 9).iter().map(|v| v * scale).collect();
                let bytes = encode(DType::Bf16, &values);
                device.write(&memory, buf.span().range().start, &bytes).expect("an operand");
            };
            weights.iter().chain(norm.iter().map(|n| &n.weight)).for_each(|buf| fill(*buf, 0.02));
            let at = Bases::new([0, 0, memory.address(), 0]);
            let run = |one_by_one: bool| {
                fill(x, 1.0);
                for op in (0..ROUNDS).flat_map(|_| &ops) {
                    form.launch(&device, op, &at);
                    if one_by_one {
                        device.synchronize().expect("a launch");
                    }
                }
                let mut bytes = vec![0; x.span().bytes() as usize];
                device.read(&memory, x.span().range().start, &mut bytes).expect("x");
                bytes
            };
            let expected = run(true);
            assert!(decode(DType::Bf16, &expected).iter().all(|v| v.is_finite()));
            for i in 0..20 {
                assert!(run(false) == expected, "{}, {m} rows: run {i} differs", form.name);
            }
        }
    }
}

#[test]
fn no_kernel_spills() {
    let Some(device) = gpu::device() else { return };
    let gpu = device.properties().gpu;
    let module = device.load("gemv", size_of::<GemvParams>()).expect("module");
    let kernels: &[&str] = if gpu.sm_90a { &["stream", "ring4k", "ring8k", "ring11k"] } else { &["stream"] };
    for dtype in DTYPES {
        for kernel in kernels {
            let symbol = format!("gemv_{dtype}_{kernel}");
            let function = module.function(symbol.clone().leak(), 0).expect("entry point");
            let Resources { registers, spilled: spills, .. } = function.resources().expect("attributes");
            println!("gemv_{dtype}_{kernel}: {registers} registers, {spills} bytes of spills");
            assert_eq!(spills, 0, "{symbol}");
        }
    }
}

/// N and K of the layers of LLaVA-1.5-7B.
const LAYERS: [(&str, usize, usize, bool, Epilogue); 5] = [
    ("qkv", 12_288, 4096, true, Epilogue::Store),
    ("o", 4096, 4096, false, Epilogue::AddResidual),
    ("gate_up", 22_016, 4096, true, Epilogue::SwiGlu),
    ("down", 4096, 11_008, false, Epilogue::AddResidual),
    ("lm_head", 32_064, 4096, true, Epilogue::Store),
];

/// Printed, not asserted. Calls take turns with copies of `b` that together exceed the L2 cache by far, as layers do.
#[test]
fn time_of_the_layers_of_7b() {
    const B_BYTES: usize = 1 << 30;
    let Some(device) = gpu::device() else { return };
    for form in forms(&device).iter().filter(|f| !f.name.starts_with("compute")) {
        for (name, n, k, norm, epilogue) in LAYERS {
            for m in [1, 8] {
                let case = Case { norm, f32_out: name == "lm_head", ..Case::new(m, n, k, epilogue) };
                let product = Product::new(&Case { n: 2, ..case }, DType::Bf16, false);
                let cols = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
                let c = device.alloc(m * cols * 4, 0).expect("device memory");
                let others = product.memory(&device);
                let copies = B_BYTES.div_ceil(n * k * 2);
                let b = device.alloc(copies * n * k * 2, 0).expect("device memory");
                // Random numbers, because zeros take less power and so run faster.
                let chunk = encode(DType::Bf16, &normal(1 << 20, 5));
                for at in (0..b.bytes()).step_by(chunk.len()) {
                    device.write(&b, at, &chunk[..chunk.len().min(b.bytes() - at)]).expect("b");
                }
                // b and c are buffers of their own, at the start of a region each.
                let of_b = Layout::new(Region::Weights, DType::Bf16).take(n * k);
                let mut io = Layout::new(Region::Io, DType::Bf16);
                let of_c = if case.f32_out { io.take::<f32>(m * cols).into() } else { io.take::<Act>(m * cols) };
                let op = Gemv { b: of_b, c: of_c, n, ..product.op };
                let calls = |count: usize| {
                    let start = Instant::now();
                    for i in 0..count {
                        let b = b.address() + (i % copies * n * k * 2) as u64;
                        form.launch(&device, &op, &Bases::new([b, 0, others.address(), c.address()]));
                    }
                    device.synchronize().expect("the calls");
                    start.elapsed().as_secs_f64()
                };
                calls(copies);
                let (count, cost) = (200, ocelli::kernel::Kernel::cost(&op));
                let time = calls(count) / count as f64;
                let (symbol, tb) = (op.geometry(&form.gpu).symbol, cost.bytes as f64 / time / 1e12);
                println!("{name:<8} {m} x {n:>5} x {k:>5} {symbol:<20} {:>8.1} us  {tb:>5.2} TB/s", 1e6 * time);
            }
        }
    }
}
