//! Bisection finds the planted fault: the step by its label, the element, and both values, and nothing else.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytemuck::Pod;
use half::{bf16, f16};
use ocelli::backend::Cpu;
use ocelli::mem::{Act, Buf, DType, Element, Layout, Region, Span};
use ocelli::ops::{
    EmbedSplice, Epilogue, Gather, Gemm, KV_BLOCK, LayerNorm, MAX_TOP_LOGPROBS, PagedKv, PagedPrefill, RmsNorm, RopeKv,
    Sample, SamplingRow,
};
use ocelli::plan::{Backend, Difference, Fill, Plan, Step, bisect};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const TOLERANCE: f64 = 0.01;

/// A CPU backend that does something wrong after some step.
struct Faulty<F> {
    cpu: Cpu,
    fault: F,
}

impl<F: Fn(&Step, &Cpu)> Backend for Faulty<F> {
    type Exec = Vec<Step>;
    type Pending = Vec<u8>;
    type Mark = Instant;

    fn link(&self, plan: &Plan) -> Result<Vec<Step>> {
        self.cpu.link(plan)
    }

    fn capture(&self, exec: &mut Vec<Step>) -> Result<()> {
        self.cpu.capture(exec)
    }

    fn run(&self, exec: &mut Vec<Step>, _: Option<&mut Vec<Instant>>) -> Result<()> {
        for step in exec {
            self.cpu.run(&mut vec![step.clone()], None)?;
            (self.fault)(step, &self.cpu);
        }
        Ok(())
    }

    fn mark(&self) -> Result<Instant> {
        self.cpu.mark()
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> Result<Option<Duration>> {
        self.cpu.elapsed(from, to)
    }

    fn profile(&self, on: bool) -> Result<()> {
        self.cpu.profile(on)
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        self.cpu.write(dst, src)
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        self.cpu.read(src, dst)
    }

    fn enqueue_read(&self, src: Buf<u8>) -> Result<Vec<u8>> {
        self.cpu.enqueue_read(src)
    }

    fn wait(&self, pending: Vec<u8>) -> Result<Vec<u8>> {
        self.cpu.wait(pending)
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        self.cpu.snapshot(span)
    }

    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()> {
        self.cpu.restore(span, bytes)
    }

    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.cpu.upload(fills, progress)
    }
}

fn encode(dtype: DType, x: f64) -> Vec<u8> {
    match dtype {
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        DType::U8 => vec![x as u8],
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::I32 => f64::from(i32::from_le_bytes(bytes.try_into().unwrap())),
        DType::U8 => f64::from(bytes[0]),
    }
}

fn element(span: Span, i: usize) -> Span {
    Span { byte: span.byte + (i * span.dtype.size()) as u64, len: 1, ..span }
}

fn peek(cpu: &Cpu, span: Span, i: usize) -> f64 {
    decode(span.dtype, &cpu.snapshot(element(span, i)).unwrap())
}

fn poke(cpu: &Cpu, span: Span, i: usize, x: f64) {
    cpu.restore(element(span, i), &encode(span.dtype, x)).unwrap();
}

/// A plan, and what memory holds before it runs.
struct Rig {
    plan: Plan,
    layouts: [Layout; 4],
    contents: Vec<(Span, Vec<u8>)>,
    noise: u32,
}

impl Rig {
    fn new(dtype: DType) -> Rig {
        let layouts = Region::ALL.map(|region| Layout::new(region, dtype));
        Rig { plan: Plan::new(dtype), layouts, contents: Vec::new(), noise: 1 }
    }

    fn put<T: Element>(&mut self, region: Region, values: &[f64]) -> Buf<T> {
        let buf = self.layouts[region as usize].take::<T>(values.len());
        self.contents.push((buf.span(), values.iter().flat_map(|&v| encode(buf.dtype(), v)).collect()));
        buf
    }

    fn zeros<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        self.put(region, &vec![0.0; len])
    }

    fn random<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        let values: Vec<f64> = (0..len)
            .map(|_| {
                self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(self.noise >> 8) / f64::from(1 << 23) - 1.0
            })
            .collect();
        self.put(region, &values)
    }

    fn cpu(&self) -> Cpu {
        let cpu = Cpu::new(std::array::from_fn(|i| self.layouts[i].bytes())).unwrap();
        self.contents.iter().for_each(|(span, bytes)| cpu.restore(*span, bytes).unwrap());
        cpu
    }

    fn bisect(&self, fault: impl Fn(&Step, &Cpu)) -> Option<Difference> {
        bisect(&self.plan, &self.cpu(), &Faulty { cpu: self.cpu(), fault }, TOLERANCE).unwrap()
    }
}

/// A decoder of one layer over a prompt of five tokens: every kind of write there is.
fn decoder(dtype: DType) -> Rig {
    let (tokens, hidden, heads, kv_heads, head_dim, inner, vocab) = (5, 16, 2, 1, 8, 24, 30);
    let qkv_width = (heads + 2 * kv_heads) * head_dim;
    let mut r = Rig::new(dtype);
    let ids = r.put(Region::Io, &[3.0, -1.0, -2.0, 29.0, 0.0]);
    let positions = r.put(Region::Io, &[0.0, 1.0, 2.0, 3.0, 4.0]);
    let slot_mapping = r.put(Region::Io, &[16.0, 17.0, 18.0, 19.0, 20.0]);
    let (block_table, seq_lens) = (r.put(Region::Io, &[1.0]), r.put(Region::Io, &[5.0]));
    let (query_start, last) = (r.put(Region::Io, &[0.0, 5.0]), r.put(Region::Io, &[4.0]));
    let cache = 2 * kv_heads * KV_BLOCK * head_dim;
    let kv = PagedKv { k: r.random(Region::Kv, cache), v: r.random(Region::Kv, cache), kv_heads, head_dim };
    let rope = r.random(Region::Weights, 5 * head_dim);
    let weight = r.random(Region::Weights, hidden);
    let [qkv, o, gate_up, down, head] =
        [(qkv_width, hidden), (hidden, heads * head_dim), (2 * inner, hidden), (hidden, inner), (vocab, hidden)]
            .map(|(n, k)| (r.random::<Act>(Region::Weights, n * k), n, k));
    let (embedding, pictures) = (r.random(Region::Weights, vocab * hidden), r.random(Region::Scratch, 2 * hidden));
    let [x, h, projected, attended, activated] = [hidden, hidden, qkv_width, heads * head_dim, inner]
        .map(|width| r.zeros::<Act>(Region::Scratch, tokens * width));
    let picked = r.zeros::<Act>(Region::Scratch, hidden);
    let logits = r.zeros::<f32>(Region::Scratch, vocab);
    let params = SamplingRow { seed: [1, 2], state: 0, top_logprobs: MAX_TOP_LOGPROBS as u32, ..SamplingRow::GREEDY };
    let params: Vec<f64> = bytemuck::bytes_of(&params).iter().map(|&b| f64::from(b)).collect();
    let sample = Sample {
        token: r.zeros(Region::Io, 1),
        logprobs: r.zeros(Region::Io, 1 + MAX_TOP_LOGPROBS),
        top: r.zeros(Region::Io, MAX_TOP_LOGPROBS),
        hash: r.zeros(Region::Io, 8),
        logits,
        params: r.put(Region::Io, &params),
        biases: r.zeros(Region::Io, 0),
        counts: r.zeros(Region::Io, vocab),
        rows: 1,
        vocab,
    };

    let gemm = |c, a, (b, n, k), m, epilogue| Gemm { c, a, b, m, n, k, bias: None, epilogue };
    let norm = |y, x, rows| RmsNorm { y, x, weight, rows, cols: hidden, eps: 1e-5 };
    let (seqs, max_blocks, context) = (1, 1, tokens);
    let p = &mut r.plan;
    p.push(EmbedSplice { y: x, table: embedding, image_rows: pictures, ids, sampled: ids, rows: tokens, cols: hidden });
    p.scope("llm/0", |p| {
        p.scope("attn", |p| {
            p.push(norm(h, x, tokens));
            p.scope("qkv", |p| p.push(gemm(projected, h, qkv, tokens, Epilogue::Store)));
            p.push(RopeKv { qkv: projected, kv, table: rope, positions, slot_mapping, tokens, heads });
            p.push(PagedPrefill {
                o: attended,
                qkv: projected,
                kv,
                block_table,
                seq_lens,
                query_start,
                seqs,
                heads,
                tokens,
                max_blocks,
                context,
            });
            p.scope("o", |p| p.push(gemm(x, attended, o, tokens, Epilogue::AddResidual)));
        });
        p.scope("mlp", |p| {
            p.push(norm(h, x, tokens));
            p.scope("gate_up", |p| p.push(gemm(activated, h, gate_up, tokens, Epilogue::SwiGlu)));
            p.scope("down", |p| p.push(gemm(x, activated, down, tokens, Epilogue::AddResidual)));
        });
    });
    let (cols, y_cols, first_col) = (hidden, hidden, 0);
    p.push(Gather { y: picked, x, index: last, rows: 1, cols, y_cols, first_col });
    p.push(norm(picked, picked, 1));
    p.scope("head", |p| p.push(gemm(logits.into(), picked, head, 1, Epilogue::Store)));
    p.push(sample);
    r
}

#[test]
fn equal_backends_have_no_difference() {
    for dtype in FLOATS {
        assert_eq!(decoder(dtype).bisect(|_, _| {}), None);
    }
}

/// One element wrong by half of itself, in every span that every step writes.
#[test]
fn a_wrong_element_is_found_in_whatever_step_wrote_it() {
    for dtype in FLOATS {
        let rig = decoder(dtype);
        for step in rig.plan.steps() {
            for span in step.op.writes() {
                for i in [0, span.len as usize / 2, span.len as usize - 1] {
                    let wrong = |x: f64| if span.dtype == DType::I32 { x + 1.0 } else { x + 0.5 * x.abs().max(1.0) };
                    let found = rig.bisect(|s, cpu| {
                        if s.label == step.label {
                            poke(cpu, span, i, wrong(peek(cpu, span, i)));
                        }
                    });
                    let found = found.unwrap_or_else(|| panic!("{dtype} {}: {span:?}[{i}] was not found", step.label));
                    assert_eq!((&found.label, found.span, found.element), (&step.label, span, i), "{dtype}");
                    let stored = decode(span.dtype, &encode(span.dtype, wrong(found.expected)));
                    assert_eq!(found.found, stored, "{dtype} {}", step.label);
                    assert_ne!(found.found, found.expected);
                }
            }
        }
    }
}

/// The values in the report are those of the reference and of the tested backend after the step, not of the end.
#[test]
fn the_report_names_label_element_and_both_values() {
    let rig = decoder(DType::F32);
    let qkv = rig.plan.steps().iter().find(|s| s.label.as_str() == "llm/0/attn/qkv/gemm").unwrap();
    let reference = rig.cpu();
    let mut start = rig.plan.steps().iter().take_while(|s| s.label != qkv.label).cloned().collect::<Vec<_>>();
    let step = start.len();
    start.push(qkv.clone());
    reference.run(&mut start, None).unwrap();
    let span = qkv.op.writes()[0];
    let expected = peek(&reference, span, 33);
    let found = rig.bisect(|s, cpu| {
        if s.label == qkv.label {
            poke(cpu, span, 33, 7.5);
        }
    });
    let found = found.unwrap();
    assert_eq!(found, Difference { step, label: qkv.label.clone(), span, element: 33, expected, found: 7.5 });
    let line = format!("step {step}, llm/0/attn/qkv/gemm: element 33 of {span:?} is 7.5, the reference has {expected}");
    assert_eq!(found.to_string(), line);
}

#[test]
fn two_rows_in_each_other_s_places_are_found() {
    for dtype in FLOATS {
        let rig = decoder(dtype);
        for (label, width) in [("llm/0/attn/qkv/gemm", 32), ("llm/0/attn/paged_prefill", 16), ("llm/0/mlp/rmsnorm", 16)]
        {
            let found = rig.bisect(|s, cpu| {
                if s.label.as_str() == label {
                    let row = |i: usize| Span { len: width, ..element(s.op.writes()[0], i * width as usize) };
                    let (a, b) = (cpu.snapshot(row(1)).unwrap(), cpu.snapshot(row(3)).unwrap());
                    cpu.restore(row(1), &b).unwrap();
                    cpu.restore(row(3), &a).unwrap();
                }
            });
            let found = found.unwrap();
            assert_eq!(found.label.as_str(), label);
            // The first elements of two random rows differ.
            assert_eq!(found.element, width as usize, "{dtype} {label}");
        }
    }
}

#[test]
fn nan_and_infinity_are_differences() {
    for dtype in FLOATS {
        let rig = decoder(dtype);
        for planted in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let found = rig.bisect(|s, cpu| {
                if s.label.as_str() == "llm/0/mlp/down/gemm" {
                    poke(cpu, s.op.writes()[0], 20, planted);
                }
            });
            let found = found.unwrap();
            assert_eq!((found.label.as_str(), found.element), ("llm/0/mlp/down/gemm", 20));
            assert!(found.expected.is_finite() && found.found.total_cmp(&planted).is_eq(), "{dtype}: {found}");
        }
    }
}

/// The reverse: the reference overflows, as f16 does, and the tested backend does not.
#[test]
fn a_finite_value_where_the_reference_is_infinite_is_a_difference() {
    for dtype in FLOATS {
        for (planted, other) in [(f64::INFINITY, 1.0), (f64::INFINITY, f64::NEG_INFINITY), (f64::NAN, 1.0)] {
            let rig = decoder(dtype);
            let plant = |value: f64| {
                move |s: &Step, cpu: &Cpu| {
                    if s.label.as_str() == "head/gemm" {
                        poke(cpu, s.op.writes()[0], 4, value);
                    }
                }
            };
            let reference = Faulty { cpu: rig.cpu(), fault: plant(planted) };
            let tested = Faulty { cpu: rig.cpu(), fault: plant(other) };
            let found = bisect(&rig.plan, &reference, &tested, TOLERANCE).unwrap();
            assert_eq!(
                found.map(|f| (f.label.to_string(), f.element)),
                Some(("head/gemm".to_string(), 4)),
                "{planted}"
            );
        }
    }
}

/// Backends may write NaNs with different signs and payloads; that both found no number is agreement.
#[test]
fn any_nan_agrees_with_any_other() {
    let rig = decoder(DType::F32);
    let plant = |bits: u32| {
        move |s: &Step, cpu: &Cpu| {
            if s.label.as_str() == "llm/0/mlp/down/gemm" {
                cpu.restore(element(s.op.writes()[0], 3), &bits.to_le_bytes()).unwrap();
            }
        }
    };
    let reference = Faulty { cpu: rig.cpu(), fault: plant(0xffc0_0000) };
    let tested = Faulty { cpu: rig.cpu(), fault: plant(0x7fff_ffff) };
    assert_eq!(bisect(&rig.plan, &reference, &tested, TOLERANCE).unwrap(), None);
}

/// A token is right or wrong; 1000 is not nearly 1001.
#[test]
fn integers_have_no_tolerance() {
    let vocab = 2000;
    let mut rig = Rig::new(DType::F32);
    let mut logits = vec![0.0; vocab];
    logits[1000] = 5.0;
    let row = SamplingRow { state: -1, top_p: 1.0, repetition_penalty: 1.0, ..bytemuck::Zeroable::zeroed() };
    let row: Vec<f64> = bytemuck::bytes_of(&row).iter().map(|&b| f64::from(b)).collect();
    let sample = Sample {
        token: rig.zeros(Region::Io, 1),
        logprobs: rig.zeros(Region::Io, 1 + MAX_TOP_LOGPROBS),
        top: rig.zeros(Region::Io, MAX_TOP_LOGPROBS),
        hash: rig.zeros(Region::Io, 8),
        logits: rig.put(Region::Scratch, &logits),
        params: rig.put(Region::Io, &row),
        biases: rig.zeros(Region::Io, 0),
        counts: rig.zeros(Region::Io, 0),
        rows: 1,
        vocab,
    };
    rig.plan.push(sample);
    let found = rig.bisect(|_, cpu| poke(cpu, sample.token.span(), 0, 1001.0)).unwrap();
    assert_eq!((found.span, found.expected, found.found), (sample.token.span(), 1000.0, 1001.0));
}

/// Three products in a row, of which the second multiplies by 1000, and a norm that hides all of it.
fn amplifier() -> Rig {
    let (rows, n) = (3, 8);
    let mut r = Rig::new(DType::F32);
    let identity = |by: f64| (0..n * n).map(|i| if i % (n + 1) == 0 { by } else { 0.0 }).collect::<Vec<_>>();
    let [a, b, c, d, y] = std::array::from_fn(|_| r.random::<Act>(Region::Scratch, rows * n));
    let weights = [1.0, 1000.0, 1.0].map(|by| r.put::<Act>(Region::Weights, &identity(by)));
    let (weight, bias) = (r.random(Region::Weights, n), r.random(Region::Weights, n));
    for (name, c, a, b) in [("first", b, a, weights[0]), ("second", c, b, weights[1]), ("third", d, c, weights[2])] {
        r.plan.scope(name, |p| p.push(Gemm { c, a, b, m: rows, n, k: n, bias: None, epilogue: Epilogue::Store }));
    }
    r.plan.push(LayerNorm { y, x: d, weight, bias, rows, cols: n, eps: 1e-5 });
    r
}

/// A fault is named where it is made, though the next step makes a thousand times more of it.
#[test]
fn a_fault_that_grows_later_is_named_where_it_starts() {
    let rig = amplifier();
    let found = rig.bisect(|s, cpu| {
        if s.label.as_str() == "first/gemm" {
            let span = s.op.writes()[0];
            poke(cpu, span, 11, peek(cpu, span, 11) + 1.5 * TOLERANCE);
        }
    });
    let found = found.unwrap();
    assert_eq!((found.label.as_str(), found.element), ("first/gemm", 11));
    assert!((found.found - found.expected - 1.5 * TOLERANCE).abs() < 1e-6);
}

/// What is within the tolerance at every step is no fault, though it would add up to one.
#[test]
fn rounding_within_the_tolerance_passes_and_does_not_pile_up() {
    let rig = amplifier();
    let nudge = |s: &Step, cpu: &Cpu| {
        for span in s.op.writes() {
            for i in 0..span.len as usize {
                let x = peek(cpu, span, i);
                poke(cpu, span, i, x + 0.9 * TOLERANCE * x.abs().max(1.0));
            }
        }
    };
    assert_eq!(rig.bisect(nudge), None);

    let (reference, tested) = (rig.cpu(), Faulty { cpu: rig.cpu(), fault: nudge });
    reference.run(&mut reference.link(&rig.plan).unwrap(), None).unwrap();
    tested.run(&mut tested.link(&rig.plan).unwrap(), None).unwrap();
    let third = rig.plan.steps()[2].op.writes()[0];
    let far = (0..third.len as usize).any(|i| {
        let (e, f) = (peek(&reference, third, i), peek(&tested.cpu, third, i));
        (e - f).abs() > 2.0 * TOLERANCE * e.abs().max(1.0)
    });
    assert!(far, "the nudges would not have added up, so this test shows nothing");
}

/// Both sides of the tolerance: it is relative above 1 and absolute below.
#[test]
fn the_tolerance_is_relative_to_large_values_and_absolute_for_small_ones() {
    let rig = amplifier();
    for label in ["first/gemm", "second/gemm"] {
        for (share, is_found) in [(0.98, false), (1.02, true)] {
            let found = rig.bisect(|s, cpu| {
                if s.label.as_str() == label {
                    let span = s.op.writes()[0];
                    let x = peek(cpu, span, 5);
                    poke(cpu, span, 5, x - share * TOLERANCE * x.abs().max(1.0));
                }
            });
            assert_eq!(found.is_some(), is_found, "{label} {share}");
        }
    }
}
