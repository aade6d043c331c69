//! Programmatic dependent launch on a GPU: kernels of a plan that may start while the one before still runs must give the
//! bits of kernels that are waited for one by one. Every op stands in a chain in which it reads what the one before
//! wrote, over and over and with other numbers each time, so that whoever reads or writes too early changes the result.

use ocelli::backend::cuda::Cuda;
use ocelli::mem::{Act, Bases, Buf, DType, Element, Layout, Region, Span};
use ocelli::ops::{
    DenseAttention, EmbedSplice, Epilogue, Gather, Gemm, Gemv, LayerNorm, MAX_TOP_LOGPROBS, Norm, Op, PagedDecode,
    PagedKv, PagedPrefill, PatchEmbed, RmsNorm, RopeKv, Sample, SamplingRow, rope_table,
};
use ocelli::plan::{Backend, Plan, Step};

use crate::gpu;
use crate::parity::{encode, normal};

const DTYPE: DType = DType::Bf16;
/// Times that the ops of a layer follow each other in a plan, and that a plan is run.
const LAYERS: usize = 24;
const RUNS: usize = 20;

/// Buffers and their contents.
struct Bed {
    layouts: [Layout; 4],
    contents: Vec<(Span, Vec<u8>)>,
}

impl Bed {
    fn new() -> Bed {
        Bed { layouts: Region::ALL.map(|region| Layout::new(region, DTYPE)), contents: Vec::new() }
    }

    fn take<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        self.layouts[region as usize].take(len)
    }

    /// Numbers near a normal distribution with this deviation.
    fn floats(&mut self, region: Region, len: usize, scale: f32) -> Buf<Act> {
        let buf: Buf<Act> = self.take(region, len);
        let values: Vec<f32> = normal(len, self.contents.len() as u64 + 1).iter().map(|x| x * scale).collect();
        self.contents.push((buf.span(), encode(DTYPE, &values)));
        buf
    }

    fn put<T: Element + bytemuck::Pod>(&mut self, region: Region, values: &[T]) -> Buf<T> {
        let buf: Buf<T> = self.take(region, values.len());
        self.contents.push((buf.span(), bytemuck::cast_slice(values).to_vec()));
        buf
    }

    fn open(&self) -> Cuda {
        let cuda = Cuda::new(0, Region::ALL.map(|r| self.layouts[r as usize].bytes()), 0xff).expect("device memory");
        for (span, bytes) in &self.contents {
            cuda.restore(*span, bytes).expect("contents");
        }
        cuda
    }
}

/// Run two plans in turns, with marks between the launches once, then as it comes, then recorded, and compare what they
/// leave.
fn compare(what: &str, bed: &Bed, plans: [Plan; 2]) {
    let cuda = bed.open();
    let gpu = cuda.device().properties().gpu;
    let early = |step: &Step| step.op.launched(&Bases::new([0; 4]), &gpu).geometry.pdl;
    assert!(plans.iter().flat_map(Plan::steps).all(|step| early(step) == gpu.sm_90a), "{what}: every op takes part");
    let written = |plan: &Plan| -> Vec<Vec<u8>> {
        let mut spans: Vec<Span> = Vec::new();
        for span in plan.steps().iter().flat_map(|step| step.op.writes()) {
            if !spans.contains(&span) {
                spans.push(span);
            }
        }
        spans.into_iter().map(|span| cuda.snapshot(span).expect("what it wrote")).collect()
    };
    let mut execs = [0, 1].map(|i| cuda.link(&plans[i]).expect("a linked plan"));
    let expected = [0, 1].map(|i| {
        cuda.run(&mut execs[i], Some(&mut Vec::new())).expect("one by one");
        written(&plans[i])
    });
    assert!(expected[0] != expected[1], "{what}: the inputs make no difference");
    for run in 0..2 * RUNS {
        for i in [0, 1] {
            if run >= RUNS {
                cuda.capture(&mut execs[i]).expect("a recorded plan");
            }
            cuda.run(&mut execs[i], None).expect("at once");
            assert!(written(&plans[i]) == expected[i], "{what}: run {run} of plan {i} has other bits");
        }
    }
}

fn plan(ops: impl IntoIterator<Item = Op>) -> Plan {
    let mut plan = Plan::new(DTYPE);
    ops.into_iter().for_each(|op| plan.push(op));
    plan
}

/// The language model's ops, for rows that decode or for a prompt.
fn llama(tokens: usize, decode: bool) {
    let (d, f, heads, kv_heads, head_dim, vocab, context) = (512, 1408, 8, 4, 64, 2000, 300);
    let (q, width) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
    let seqs = if decode { tokens } else { 1 };
    let (max_blocks, eps) = ((context + tokens).div_ceil(16), 1e-5);
    let mut bed = Bed::new();
    let deviation = |inputs: usize| (inputs as f32).powf(-0.5);
    let [embed, w_qkv, w_o, w_up, w_down, head] = [(vocab, d), (width, d), (d, q), (2 * f, d), (d, f), (vocab, d)]
        .map(|(n, k)| bed.floats(Region::Weights, n * k, if k == d && n == vocab { 1.0 } else { deviation(k) }));
    let norm = bed.floats(Region::Weights, d, 1.0);
    let table = bed.put(Region::Weights, &rope_table(1e4, head_dim, context + tokens));
    let kv: Vec<PagedKv> = (0..LAYERS)
        .map(|_| {
            let [k, v] = [(); 2].map(|()| bed.floats(Region::Kv, seqs * max_blocks * 16 * kv_heads * head_dim, 1.0));
            PagedKv { k, v, kv_heads, head_dim }
        })
        .collect();
    let [x, h, qkv, o, a, last] = [tokens * d, tokens * d, tokens * width, tokens * q, tokens * f, seqs * d]
        .map(|n| bed.take(Region::Scratch, n));
    let block_table = bed.put(Region::Io, &(0..(seqs * max_blocks) as i32).collect::<Vec<_>>());
    let new: Vec<(usize, usize)> = // sequence and position of a row
        (0..tokens).map(|i| if decode { (i, context - 7 * i % 100) } else { (0, context + i) }).collect();
    let positions = bed.put(Region::Io, &new.iter().map(|n| n.1 as i32).collect::<Vec<_>>());
    let slots: Vec<i32> = new.iter().map(|(s, p)| (s * max_blocks * 16 + p) as i32).collect();
    let slot_mapping = bed.put(Region::Io, &slots);
    let ends: Vec<usize> = if decode { (0..tokens).collect() } else { vec![tokens - 1] };
    let seq_lens = bed.put(Region::Io, &ends.iter().map(|&row| new[row].1 as i32 + 1).collect::<Vec<_>>());
    let query_start = bed.put(Region::Io, &[0, tokens as i32]);
    let index = bed.put(Region::Io, &ends.iter().map(|&row| row as i32).collect::<Vec<_>>());
    let params = bed.put(Region::Io, bytemuck::cast_slice::<SamplingRow, u8>(&vec![SamplingRow::GREEDY; seqs]));
    let (counts, biases) = (bed.put(Region::Io, &vec![0i32; vocab]), bed.take(Region::Io, 0));
    let logits: Buf<f32> = bed.take(Region::Io, seqs * vocab);
    let (token, logprobs, top, hash) = (
        bed.take(Region::Io, seqs),
        bed.take(Region::Io, seqs * (1 + MAX_TOP_LOGPROBS)),
        bed.take(Region::Io, seqs * MAX_TOP_LOGPROBS),
        bed.take(Region::Io, seqs * 8),
    );
    let ids = [7, 11]
        .map(|step| bed.put(Region::Io, &(0..tokens).map(|i| ((i + 1) * step % vocab) as i32).collect::<Vec<_>>()));

    let rms = |y, x, rows| -> Op { RmsNorm { y, x, weight: norm, rows, cols: d, eps }.into() };
    let gemm = |c, a, b, m, n, k, epilogue| -> Op { Gemm { c, a, b, m, n, k, bias: None, epilogue }.into() };
    // Few rows are normalised by the product that they go into.
    let project = |c, a, b, m, n, k, norms: bool, epilogue| -> Vec<Op> {
        if m <= Gemv::MAX_ROWS {
            let norm = norms.then_some(Norm { weight: norm, eps });
            return vec![Gemv { c, a, b, m, n, k, norm, epilogue }.into()];
        }
        let from = if norms { h } else { a };
        let product = gemm(c, from, b, m, n, k, epilogue);
        if norms { vec![rms(h, a, m), product] } else { vec![product] }
    };
    let layer = |kv: PagedKv| {
        let mut ops = project(qkv, x, w_qkv, tokens, width, d, true, Epilogue::Store);
        if decode {
            ops.push(
                PagedDecode {
                    o,
                    qkv,
                    kv,
                    table,
                    positions,
                    slot_mapping,
                    block_table,
                    seq_lens,
                    seqs,
                    heads,
                    max_blocks,
                    context,
                }
                .into(),
            );
        } else {
            ops.push(RopeKv { qkv, kv, table, positions, slot_mapping, tokens, heads }.into());
            ops.push(
                PagedPrefill {
                    o,
                    qkv,
                    kv,
                    block_table,
                    seq_lens,
                    query_start,
                    seqs,
                    heads,
                    tokens,
                    max_blocks,
                    context,
                }
                .into(),
            );
        }
        ops.extend(project(x, o, w_o, tokens, d, q, false, Epilogue::AddResidual));
        ops.extend(project(a, x, w_up, tokens, 2 * f, d, true, Epilogue::SwiGlu));
        ops.extend(project(x, a, w_down, tokens, d, f, false, Epilogue::AddResidual));
        ops
    };
    let step = |ids| {
        let splice: Op =
            EmbedSplice { y: x, table: embed, image_rows: embed, ids, sampled: token, rows: tokens, cols: d }.into();
        let mut end: Vec<Op> = vec![Gather { y: last, x, index, rows: seqs, cols: d, y_cols: d, first_col: 0 }.into()];
        end.extend(project(logits.into(), last, head, seqs, vocab, d, true, Epilogue::Store));
        end.push(Sample { token, logprobs, top, hash, logits, params, biases, counts, rows: seqs, vocab }.into());
        plan([splice].into_iter().chain(kv.iter().flat_map(|&kv| layer(kv))).chain(end))
    };
    let what = format!("{tokens} rows that {}", if decode { "decode" } else { "are a prompt" });
    compare(&what, &bed, ids.map(step));
}

#[test]
fn decode_steps_have_the_bits_of_steps_one_by_one() {
    let Some(_device) = gpu::device() else { return };
    for rows in [1, 3, 8, 33] {
        llama(rows, true);
    }
}

#[test]
fn prompts_have_the_bits_of_steps_one_by_one() {
    let Some(_device) = gpu::device() else { return };
    for rows in [2, 70, 300] {
        llama(rows, false);
    }
}

/// The vision tower's ops.
#[test]
fn pictures_have_the_bits_of_steps_one_by_one() {
    let Some(_device) = gpu::device() else { return };
    let (d, f, heads, image_size, patch_size, eps) = (256, 1024, 4, 112, 14, 1e-5);
    let (grid, patch_len) = (image_size / patch_size, 3 * patch_size * patch_size);
    let tokens = 1 + grid * grid;
    for tiles in [1, 3] {
        let rows = tiles * tokens;
        let mut bed = Bed::new();
        let [weight, w_qkv, w_o, w_up, w_down] = [(d, patch_len), (3 * d, d), (d, d), (f, d), (d, f)]
            .map(|(n, k)| bed.floats(Region::Weights, n * k, (k as f32).powf(-0.5)));
        let [class, norm_weight, norm_bias, b_d, b_f, b_qkv] =
            [d, d, d, d, f, 3 * d].map(|n| bed.floats(Region::Weights, n, 0.5));
        let position = bed.floats(Region::Weights, tokens * d, 0.5);
        let table = bed.put(Region::Weights, &(0..768).map(|i| (i % 256) as f32 / 64.0 - 2.0).collect::<Vec<f32>>());
        let [x, h, qkv, o, a] =
            [rows * d, rows * d, rows * 3 * d, rows * d, rows * f].map(|n| bed.take(Region::Scratch, n));
        let (values, source) = (bed.take(Region::Io, 0), (0..tiles as i32).collect::<Vec<_>>());
        let source = bed.put(Region::Io, &source);
        let pictures = [31usize, 77].map(|step| {
            let bytes: Vec<u8> = (0..tiles * image_size * image_size * 3).map(|i| (i * step / 7 % 251) as u8).collect();
            bed.put(Region::Io, &bytes)
        });
        let norm = |y, x| -> Op { LayerNorm { y, x, weight: norm_weight, bias: norm_bias, rows, cols: d, eps }.into() };
        let gemm = |c, a, b, bias, n, k, epilogue| -> Op {
            Gemm { c, a, b, m: rows, n, k, bias: Some(bias), epilogue }.into()
        };
        let layer = || {
            [
                norm(h, x),
                gemm(qkv, h, w_qkv, b_qkv, 3 * d, d, Epilogue::Store),
                DenseAttention { o, qkv, tiles, tokens, heads, head_dim: d / heads }.into(),
                gemm(x, o, w_o, b_d, d, d, Epilogue::AddResidual),
                norm(h, x),
                gemm(a, h, w_up, b_f, f, d, Epilogue::QuickGelu),
                gemm(x, a, w_down, b_d, d, f, Epilogue::AddResidual),
            ]
        };
        let encode = |pixels| {
            let embed: Op = PatchEmbed {
                y: x,
                pixels,
                values,
                source,
                table,
                weight,
                class,
                position,
                norm_weight,
                norm_bias,
                tiles,
                image_size,
                patch_size,
                hidden: d,
                eps,
            }
            .into();
            plan([embed].into_iter().chain((0..LAYERS).flat_map(|_| layer())))
        };
        compare(&format!("{tiles} pictures"), &bed, pictures.map(encode));
    }
}
