//! GEMM on a GPU, against plain loops.
//!
//! Most cases hold small multiples of 1/32, whose products and sums are exact in f32 in any order: there the sum must be
//! right to the last bit, a product lost or doubled shows at any size, and an output without an activation, rounded
//! once, must match bit for bit. With an activation the bound is one unit in the last place of the output, plus what
//! the device's fast exponential may be off (2 + 1.17 |x| units of 2^-23: below 2^-16 of the result for |x| < 100) or,
//! for the exact GELU, what cancels in 1 + erf (1e-6).
//!
//! Others are near normal. The worst case of k roundings, k 2^-24 sum |a||b|, would hide a lost product at k = 4096; with
//! errors of either sign the sum stays below 8 sqrt(k) 2^-24 sum |a||b| but for one element in 10^13 (Higham and Mary 2019),
//! and sum |a||b| <= |a| |b|, the lengths of the two rows. One rounding of the output on either side is added.
//!
//! A device with `sm_90a` has two families of kernels for many rows, its own and the one of every device. All that is
//! said here holds for both, and both are run.

// Not every test writes integers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ocelli::backend::cuda::driver::{Device, Memory, Module, Resources};
use ocelli::backend::cuda::{image, tma};
use ocelli::kernel::{GpuInfo, Kernel, Launch, Launched};
use ocelli::mem::{Act, Bases, Buf, DType, Layout, Region};
use ocelli::ops::{Epilogue, Gemm, GemmParams};

use crate::gpu;
use crate::parity::{Stage, decode, encode, normal, small, ulp};

const DTYPES: [DType; 2] = [DType::F16, DType::Bf16];
const EPILOGUES: [Epilogue; 5] =
    [Epilogue::Store, Epilogue::AddResidual, Epilogue::QuickGelu, Epilogue::Gelu, Epilogue::SwiGlu];

/// The kernels of every image, and those of machine code for `sm_90a` besides.
const EVERYWHERE: [&str; 5] = ["stream16", "tile64x32", "tile64x64", "tile128x64", "tile128x128"];
const WGMMA: [&str; 11] = [
    "wgmma256x128",
    "wgmma216x128",
    "wgmma184x128",
    "wgmma168x128",
    "wgmma152x128",
    "wgmma128x128",
    "wgmma96x128",
    "wgmma64x128",
    "wgmma80x64",
    "wgmma64x64",
    "wgmma32x64",
];

/// The device as it is, and as it is to PTX.
fn forms(device: &Device) -> Vec<GpuInfo> {
    let gpu = device.properties().gpu;
    let portable = GpuInfo { sm_90a: false, ..gpu };
    if gpu.sm_90a { vec![gpu, portable] } else { vec![portable] }
}

/// `n` elements of the plan's type, or of f32.
fn take(layout: &mut Layout, n: usize, f32: bool) -> Buf<Act> {
    if f32 { layout.take::<f32>(n).into() } else { layout.take::<Act>(n) }
}

/// A case to be run: sizes, and where its operands start.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
    bias: bool,
    f32_out: bool,
    /// Elements that every operand lies off the alignment that a layout gives.
    shift: usize,
}

impl Case {
    fn new(m: usize, n: usize, k: usize, epilogue: Epilogue) -> Case {
        Case { m, n, k, epilogue, bias: false, f32_out: false, shift: 0 }
    }

    fn cols(&self) -> usize {
        if self.epilogue == Epilogue::SwiGlu { self.n / 2 } else { self.n }
    }

    /// Its buffers, by a function that hands out `n` elements of the plan's type or of f32.
    fn op(&self, mut take: impl FnMut(usize, bool) -> Buf<Act>) -> Gemm {
        let mut take = |n: usize, f32: bool| take(n + self.shift, f32).slice(self.shift..n + self.shift);
        Gemm {
            a: take(self.m * self.k, false),
            b: take(self.n * self.k, false),
            bias: self.bias.then(|| take(self.n, false)),
            c: take(self.m * self.cols(), self.f32_out),
            m: self.m,
            n: self.n,
            k: self.k,
            epilogue: self.epilogue,
        }
    }

    /// Its kernel.
    fn symbol(&self, dtype: DType, gpu: &GpuInfo) -> &'static str {
        let mut layout = Layout::new(Region::Scratch, dtype);
        self.op(|n, f32| take(&mut layout, n, f32)).geometry(gpu).symbol
    }

    /// Run on both sides with exact sums.
    fn exact(&self, dtype: DType, gpu: &GpuInfo) {
        let mut stage = Stage::new(dtype);
        let op = self.op(|n, f32| match f32 {
            true => stage.take::<f32>(Region::Scratch, n).into(),
            false => stage.take::<Act>(Region::Scratch, n),
        });
        let pair = stage.open();
        pair.floats(op.a, &small(op.a.len(), 1.0, 1));
        pair.floats(op.b, &small(op.b.len(), 1.0 / 32.0, 2));
        if let Some(bias) = op.bias {
            pair.floats(bias, &small(bias.len(), 0.5, 3));
        }
        if self.epilogue == Epilogue::AddResidual {
            pair.floats(op.c, &small(op.c.len(), 0.25, 4));
        }
        let out = op.c.dtype();
        let bound = |_: usize, e: f32| match self.epilogue {
            // Not zero, which would make zeros of different sign differ.
            Epilogue::Store | Epilogue::AddResidual => 1e-37,
            Epilogue::Gelu => ulp(out, e) + 1e-6,
            Epilogue::QuickGelu | Epilogue::SwiGlu => ulp(out, e) + 2f32.powi(-16) * e.abs() + 1e-37,
        };
        for written in pair.run_for(op, gpu) {
            written.within(&format!("{} {self:?}", self.symbol(dtype, gpu)), bound);
        }
    }

    /// Run on both sides with numbers near a normal distribution; for epilogues that are linear.
    fn normal(&self, dtype: DType, gpu: &GpuInfo) {
        let mut stage = Stage::new(dtype);
        let op = self.op(|n, f32| match f32 {
            true => stage.take::<f32>(Region::Scratch, n).into(),
            false => stage.take::<Act>(Region::Scratch, n),
        });
        let pair = stage.open();
        let (a, b) = (normal(op.a.len(), 1), normal(op.b.len(), 2));
        pair.floats(op.a, &a);
        pair.floats(op.b, &b);
        let lengths = |x: &[f32]| -> Vec<f32> {
            x.chunks(self.k).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt() * 1.01).collect()
        };
        let (a, b, out) = (lengths(&a), lengths(&b), op.c.dtype());
        let bound = |i: usize, e: f32| {
            let sum = 8.0 * (self.k as f32).sqrt() * 2f32.powi(-24) * a[i / self.n] * b[i % self.n];
            sum + ulp(out, e.abs() + sum)
        };
        for written in pair.run_for(op, gpu) {
            written.within(&format!("{} normal {self:?}", self.symbol(dtype, gpu)), bound);
        }
    }
}

#[test]
fn the_kernel_agrees_with_the_reference_on_exact_sums() {
    let Some(device) = gpu::device() else { return };
    let forms = forms(&device);
    let mut symbols = BTreeSet::new();
    // Each kernel that a case is for on some form, once.
    let mut run = |case: Case| {
        for dtype in DTYPES {
            let mut seen = BTreeSet::new();
            for gpu in &forms {
                let symbol = case.symbol(dtype, gpu);
                symbols.insert(symbol);
                if seen.insert(symbol) {
                    case.exact(dtype, gpu);
                }
            }
        }
    };
    // One of everything, fewer than a fragment, borders of blocks, and sizes that are no multiple of anything.
    for (n, k) in [(2, 1), (2, 8), (16, 64), (34, 32), (448, 192), (448, 588), (330, 587), (514, 256), (1026, 1000)] {
        for m in [1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 129] {
            for epilogue in EPILOGUES {
                run(Case { bias: m % 2 == 1, ..Case::new(m, n, k, epilogue) });
            }
        }
    }
    // An odd number of columns, f32 out, operands that vectors cannot read or write.
    for m in [1, 5, 20, 33, 130, 577] {
        for epilogue in EPILOGUES.into_iter().filter(|e| *e != Epilogue::SwiGlu) {
            run(Case { bias: true, ..Case::new(m, 331, 512, epilogue) });
            run(Case { bias: true, f32_out: true, ..Case::new(m, 331, 384, epilogue) });
        }
        for epilogue in EPILOGUES {
            run(Case { bias: true, shift: 3, ..Case::new(m, 334, 128, epilogue) });
            run(Case { f32_out: true, ..Case::new(m, 448, 512, epilogue) });
        }
    }
    // Between the sizes that the smallest tile and the larger ones are for; a ring that is filled more than once.
    for epilogue in EPILOGUES {
        run(Case { bias: true, ..Case::new(250, 4096, 520, epilogue) });
        run(Case { bias: true, ..Case::new(33, 448, 1096, epilogue) });
        for m in [170, 300, 368, 430, 512, 645] {
            run(Case { bias: true, ..Case::new(m, 8208, 72, epilogue) });
        }
    }
    for epilogue in [Epilogue::AddResidual, Epilogue::SwiGlu] {
        for m in [64, 170, 300, 368, 430, 512, 645] {
            run(Case::new(m, 8208, 776, epilogue));
        }
    }
    // CLIP ViT-L/14-336 of one picture and of four.
    for m in [577, 4 * 577] {
        run(Case { bias: true, ..Case::new(m, 3072, 1024, Epilogue::Store) });
        run(Case { bias: true, ..Case::new(m, 4096, 1024, Epilogue::QuickGelu) });
        run(Case { bias: true, ..Case::new(m, 1024, 4096, Epilogue::AddResidual) });
    }
    let of_sm_90a = if forms.len() == 2 { WGMMA.len() } else { 0 };
    assert_eq!(symbols.len(), DTYPES.len() * (EVERYWHERE.len() + of_sm_90a), "every kernel has run: {symbols:?}");
}

#[test]
fn the_kernel_agrees_with_the_reference_on_the_layers_of_7b() {
    let Some(device) = gpu::device() else { return };
    for gpu in &forms(&device) {
        for m in [1, 32, 645] {
            for dtype in DTYPES {
                Case { f32_out: true, ..Case::new(m, 4096, 4096, Epilogue::Store) }.normal(dtype, gpu);
            }
        }
        for m in [8, 645] {
            Case::new(m, 12288, 4096, Epilogue::Store).normal(DType::Bf16, gpu);
            Case::new(m, 4096, 11008, Epilogue::AddResidual).exact(DType::Bf16, gpu);
            Case::new(m, 22016, 4096, Epilogue::SwiGlu).exact(DType::Bf16, gpu);
        }
        Case { f32_out: true, ..Case::new(3, 32064, 4096, Epilogue::Store) }.normal(DType::Bf16, gpu);
    }
}

/// One case in device memory of its own, without the reference.
struct Raw {
    op: Gemm,
    memory: Memory,
}

impl Raw {
    fn new(device: &Device, case: &Case, dtype: DType) -> Raw {
        let mut layout = Layout::new(Region::Scratch, dtype);
        let op = case.op(|n, f32| take(&mut layout, n, f32));
        let memory = device.alloc(layout.bytes(), 0xff).expect("device memory");
        for (buf, seed) in [(op.a, 1), (op.b, 2)] {
            let bytes = encode(dtype, &normal(buf.len(), seed));
            device.write(&memory, buf.span().range().start, &bytes).expect("an operand");
        }
        Raw { op, memory }
    }

    fn run(&self, device: &Device, module: &Arc<Module>, gpu: &GpuInfo) -> Vec<f32> {
        let launched = Launched::new(&self.op, &Bases::new([0, 0, self.memory.address(), 0]), gpu);
        let geometry = launched.geometry;
        let function = module.function(geometry.symbol, geometry.smem).expect("entry point");
        let maps = tma::encode(&launched.maps).expect("tensor maps");
        device.launch_with(&function, &geometry, launched.params(), maps.as_deref()).expect("launch");
        let mut c = vec![0; self.op.c.span().bytes() as usize];
        device.read(&self.memory, self.op.c.span().range().start, &mut c).expect("c");
        decode(self.op.c.dtype(), &c)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_of_its_family() {
    let Some(device) = gpu::device() else { return };
    let module = device.load("gemm", size_of::<GemmParams>()).expect("module");
    // On each side of the border, and with every tile.
    for gpu in &forms(&device) {
        let mut symbols = BTreeSet::new();
        let mut run = |m, n| {
            let case = Case::new(m, n, 1096, Epilogue::Store);
            symbols.insert(case.symbol(DType::Bf16, gpu));
            bits(&Raw::new(&device, &case, DType::Bf16).run(&device, &module, gpu))
        };
        let mut same = |n, few, batches: &[usize]| {
            let alone = run(few, n);
            for &m in batches {
                assert_eq!(alone, run(m, n)[..few * n], "{few} rows of {n} alone and among {m}");
            }
        };
        same(4000, 1, &[3, 7, 8, 9, 16]);
        same(8208, 17, &[64, 80, 90, 150, 215, 300, 370, 577, 645, 1500, 2048]);
        same(12288, 17, &[184]);
        same(1024, 17, &[64, 300, 577]);
        let wgmma = symbols.iter().filter(|s| s.contains("wgmma")).count();
        assert_eq!(wgmma, if gpu.sm_90a { WGMMA.len() } else { 0 }, "every tile has run: {symbols:?}");
    }
}

#[test]
fn ptx_and_machine_code_give_the_same_bits() {
    let Some(device) = gpu::device() else { return };
    // What both have: the kernels of every device.
    let gpu = GpuInfo { sm_90a: false, ..device.properties().gpu };
    let capability = gpu.compute_capability;
    let usable = image::embedded().iter().filter(|i| i.kernel == "gemm" && i.runs_on(capability));
    let modules: Vec<_> = usable
        .map(|i| {
            let start = Instant::now();
            let module = device.load_image(i, size_of::<GemmParams>()).expect(i.arch);
            println!("{} loaded in {:.2?}", i.arch, start.elapsed());
            (i.arch, module)
        })
        .collect();
    for dtype in DTYPES {
        for (m, n, k) in
            [(1, 512, 1024), (13, 330, 587), (32, 512, 1024), (64, 512, 512), (300, 1000, 520), (645, 4096, 512)]
        {
            for epilogue in [Epilogue::Gelu, Epilogue::SwiGlu] {
                let raw = Raw::new(&device, &Case::new(m, n, k, epilogue), dtype);
                let results: Vec<_> =
                    modules.iter().map(|(arch, module)| (arch, bits(&raw.run(&device, module, &gpu)))).collect();
                for (arch, result) in &results {
                    assert_eq!(result, &results[0].1, "{arch} and {} differ on {m}x{n}x{k} {dtype}", results[0].0);
                    assert!(result.iter().all(|b| !f32::from_bits(*b).is_nan()), "{arch}: {m}x{n}x{k}");
                }
            }
        }
    }
}

#[test]
fn no_kernel_spills() {
    let Some(device) = gpu::device() else { return };
    let module = device.load("gemm", size_of::<GemmParams>()).expect("module");
    for dtype in DTYPES {
        let wgmma = if device.properties().gpu.sm_90a { &WGMMA[..] } else { &[] };
        for shape in EVERYWHERE.iter().chain(wgmma) {
            let symbol = format!("gemm_{dtype}_{shape}");
            let function = module.function(symbol.leak(), 0).expect("entry point");
            let Resources { registers, spilled: spills, .. } = function.resources().expect("attributes");
            println!("gemm_{dtype}_{shape}: {registers} registers, {spills} bytes of spills");
            assert_eq!(spills, 0);
        }
    }
}

#[test]
fn repetitions_give_the_same_bits() {
    let Some(device) = gpu::device() else { return };
    let module = device.load("gemm", size_of::<GemmParams>()).expect("module");
    for gpu in &forms(&device) {
        for (m, n, k, epilogue) in [(645, 4096, 4096, Epilogue::SwiGlu), (577, 1024, 4096, Epilogue::QuickGelu)] {
            let raw = Raw::new(&device, &Case::new(m, n, k, epilogue), DType::Bf16);
            let first = bits(&raw.run(&device, &module, gpu));
            for i in 1..20 {
                assert_eq!(first, bits(&raw.run(&device, &module, gpu)), "run {i} of {m}x{n}x{k}");
            }
        }
    }
}

/// Seconds of a call, enqueued back to back. The calls take turns with copies of `b` that together exceed the L2 cache
/// by far, as the layers of a model do.
fn seconds(device: &Device, module: &Arc<Module>, case: &Case, gpu: &GpuInfo) -> f64 {
    const B_BYTES: usize = 512 << 20;
    let dtype = DType::Bf16;
    let mut layouts = [Region::Weights, Region::Scratch].map(|region| Layout::new(region, dtype));
    // The second buffer that a case asks for is b.
    let mut buffers = 0;
    let op = case.op(|n, f32| {
        buffers += 1;
        take(&mut layouts[usize::from(buffers != 2)], n, f32)
    });
    let [b_bytes, other_bytes] = layouts.each_ref().map(Layout::bytes);
    let copies = B_BYTES.div_ceil(b_bytes);
    let b = device.alloc(copies * b_bytes, 0).expect("device memory");
    let others = device.alloc(other_bytes, 0).expect("device memory");
    // Random numbers, because zeros take less power and so run faster.
    let chunk = encode(dtype, &normal(1 << 20, 5));
    for at in (0..b.bytes()).step_by(chunk.len()) {
        device.write(&b, at, &chunk[..chunk.len().min(b.bytes() - at)]).expect("b");
    }
    let a = op.a.span().range();
    for at in a.clone().step_by(chunk.len()) {
        device.write(&others, at, &chunk[..chunk.len().min(a.end - at)]).expect("a");
    }
    let launches: Vec<_> = (0..copies)
        .map(|i| {
            let bases = Bases::new([b.address() + (i * b_bytes) as u64, 0, others.address(), 0]);
            let launched = Launched::new(&op, &bases, gpu);
            let maps = tma::encode(&launched.maps).expect("tensor maps");
            (launched, maps)
        })
        .collect();
    let geometry = launches[0].0.geometry;
    let function = module.function(geometry.symbol, geometry.smem).expect("entry point");
    let calls = |n: usize| {
        let start = Instant::now();
        for (launched, maps) in launches.iter().cycle().take(n) {
            device.launch_with(&function, &geometry, launched.params(), maps.as_deref()).expect("launch");
        }
        device.synchronize().expect("the calls");
        start.elapsed().as_secs_f64()
    };
    calls(copies);
    let n = ((0.02 / (calls(copies) / copies as f64)) as usize).clamp(5, 2000);
    calls(n) / n as f64
}

/// N and K of the layers of LLaVA-1.5-7B.
const LAYERS: [(&str, usize, usize, Epilogue); 9] = [
    ("qkv", 12288, 4096, Epilogue::Store),
    ("o", 4096, 4096, Epilogue::AddResidual),
    ("gate_up", 22016, 4096, Epilogue::SwiGlu),
    ("down", 4096, 11008, Epilogue::AddResidual),
    ("lm_head", 32064, 4096, Epilogue::Store),
    ("vit qkv", 3072, 1024, Epilogue::Store),
    ("vit fc1", 4096, 1024, Epilogue::QuickGelu),
    ("vit fc2", 1024, 4096, Epilogue::AddResidual),
    ("vit o", 1024, 1024, Epilogue::AddResidual),
];

#[test]
fn time_of_the_layers_of_7b() {
    let Some(device) = gpu::device() else { return };
    let module = device.load("gemm", size_of::<GemmParams>()).expect("module");
    for gpu in &forms(&device) {
        for (name, n, k, epilogue) in LAYERS {
            for m in [1, 8, 16, 32, 64, 128, 577, 645, 2048] {
                if name.starts_with("vit") != (m == 577) {
                    continue;
                }
                let case = Case { f32_out: name == "lm_head", ..Case::new(m, n, k, epilogue) };
                let time = seconds(&device, &module, &case, gpu);
                let mut layout = Layout::new(Region::Scratch, DType::Bf16);
                let cost = case.op(|n, f32| take(&mut layout, n, f32)).cost();
                println!(
                    "{name:<8} {m:>5} x {n:>5} x {k:>5} {:<24} {:>8.1} us  {:>5.2} TB/s  {:>5.0} TFLOP/s",
                    case.symbol(DType::Bf16, gpu),
                    1e6 * time,
                    cost.bytes as f64 / time / 1e12,
                    cost.flops as f64 / time / 1e12,
                );
            }
        }
    }
}
