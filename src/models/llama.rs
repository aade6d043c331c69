//! The Llama language model over a paged cache: Llama, Mistral and Phi-3, which differ in sizes, in how tensors are stored
//! and in the rotary angles.

use super::LongAngles;
use super::areas::Areas;
use super::io::{StepIo, StepShape};
use super::load::Loader;
use crate::config::LlamaConfig;
use crate::mem::{Act, Buf, DType, Layout};
use crate::ops::{
    EmbedSplice, Epilogue, Gather, Gemm, Gemv, KV_BLOCK, Norm, PagedDecode, PagedKv, PagedPrefill, RmsNorm, RopeKv,
    Sample, long_rope_table, rope_table,
};
use crate::plan::Plan;

/// The embedding's canonical name.
pub const EMBED: &str = "language_model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// How the matrices that one GEMM reads are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    /// Each by itself: `q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`.
    No,
    /// One below the other: `qkv_proj`; `gate_up_proj`.
    Yes,
}

struct Block {
    attn_norm: Buf<Act>,
    qkv: Buf<Act>,
    out: Buf<Act>,
    mlp_norm: Buf<Act>,
    gate_up: Buf<Act>,
    down: Buf<Act>,
}

/// Weights of the language model.
pub struct Llama {
    config: LlamaConfig,
    embed: Buf<Act>,
    rope: Buf<f32>,
    blocks: Vec<Block>,
    norm: Buf<Act>,
    head: Buf<Act>,
}

/// Activations of one step.
struct Rows {
    x: Buf<Act>,
    h: Buf<Act>,
    qkv: Buf<Act>,
    attn: Buf<Act>,
    mlp: Buf<Act>,
    last: Buf<Act>,
}

impl Llama {
    /// Ask for the weights; angles are tabulated for `positions` positions. The embedding goes by the name `embed`.
    pub fn load(loader: &mut Loader<'_>, config: &LlamaConfig, embed: &str, fused: Fused, positions: usize) -> Llama {
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        // Tied embeddings are stored once, under either name; where both are, each is used for itself.
        let tied = if config.tie_word_embeddings { loader.only_one_of(embed, HEAD) } else { None };
        let embed = loader.tensor(tied.unwrap_or(embed), &[vocab, d]);
        Llama {
            embed,
            rope: rope(loader, config, positions),
            blocks: (0..config.num_hidden_layers).map(|i| block(loader, config, fused, i)).collect(),
            norm: loader.tensor("language_model.norm.weight", &[d]),
            head: if tied.is_some() { embed } else { loader.tensor(HEAD, &[vocab, d]) },
            config: config.clone(),
        }
    }

    /// Where the angles of sequences that are longer than the model was trained on at first begin, if `positions`
    /// positions go so far.
    pub fn long_rope(&self, positions: usize) -> Option<LongAngles> {
        let switch = self.config.long_rope.as_ref()?.original_max_position_embeddings;
        (positions > switch).then_some(LongAngles { switch, first_row: switch })
    }

    /// Bytes of a block of the caches of all layers.
    pub fn kv_block_bytes(config: &LlamaConfig, dtype: DType) -> usize {
        2 * config.num_hidden_layers * config.num_key_value_heads * KV_BLOCK * config.head_dim * dtype.size()
    }

    /// Keys and values of every layer.
    pub fn cache(&self, kv: &mut Layout, blocks: usize) -> Vec<PagedKv> {
        let (kv_heads, head_dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let len = blocks * kv_heads * KV_BLOCK * head_dim;
        (0..self.blocks.len()).map(|_| PagedKv { k: kv.take(len), v: kv.take(len), kv_heads, head_dim }).collect()
    }

    /// One step over the buffers of a model, under the label `llm`.
    pub fn step(&self, plan: &mut Plan, scratch: &mut Layout, cache: &[PagedKv], areas: &Areas, shape: StepShape) {
        let io = areas.io.packed(shape);
        plan.scope("llm", |p| self.forward(p, scratch, cache, areas.image_rows, &io, shape));
    }

    /// One step: embed, run the layers, compute the logits of the wanted rows, and sample.
    fn forward(
        &self,
        plan: &mut Plan,
        scratch: &mut Layout,
        cache: &[PagedKv],
        image_rows: Buf<Act>,
        io: &StepIo,
        shape: StepShape,
    ) {
        let c = &self.config;
        let (n, d) = (shape.tokens(), c.hidden_size);
        let rows = self.rows(scratch, shape);
        let ids = io.ids.slice(0..n);
        let sampled = io.sampled;
        plan.push(EmbedSplice { y: rows.x, table: self.embed, image_rows, ids, sampled, rows: n, cols: d });
        let norm = |weight| Some(Norm { weight, eps: c.rms_norm_eps as f32 });
        let linear = |p: &mut Plan, c, (norm, a), b, n_out, k, epilogue| {
            project(p, Gemv { c, a, b, m: n, n: n_out, k, norm, epilogue }, rows.h);
        };
        let (q, f) = (c.num_attention_heads * c.head_dim, c.intermediate_size);
        for (i, (b, kv)) in self.blocks.iter().zip(cache).enumerate() {
            plan.scope(i, |plan| {
                plan.scope("attn", |p| {
                    linear(p, rows.qkv, (norm(b.attn_norm), rows.x), b.qkv, qkv_width(c), d, Epilogue::Store);
                    self.attend(p, &rows, *kv, io, shape);
                    linear(p, rows.x, (None, rows.attn), b.out, d, q, Epilogue::AddResidual);
                });
                plan.scope("mlp", |p| {
                    linear(p, rows.mlp, (norm(b.mlp_norm), rows.x), b.gate_up, 2 * f, d, Epilogue::SwiGlu);
                    linear(p, rows.x, (None, rows.mlp), b.down, d, f, Epilogue::AddResidual);
                });
            });
        }
        plan.scope("head", |p| self.sample(p, &rows, io, shape));
    }

    fn rows(&self, scratch: &mut Layout, shape: StepShape) -> Rows {
        let (n, c) = (shape.tokens(), &self.config);
        Rows {
            x: scratch.take(n * c.hidden_size),
            h: scratch.take(n * c.hidden_size),
            qkv: scratch.take(n * qkv_width(c)),
            attn: scratch.take(n * c.num_attention_heads * c.head_dim),
            mlp: scratch.take(n * c.intermediate_size),
            last: scratch.take(shape.logit_rows * c.hidden_size),
        }
    }

    fn attend(&self, p: &mut Plan, rows: &Rows, kv: PagedKv, io: &StepIo, shape: StepShape) {
        let (heads, width) = (self.config.num_attention_heads, qkv_width(&self.config));
        let StepShape { decode, prefill_seqs, prefill_tokens, context, .. } = shape;
        let (o, qkv, table, max_blocks) = (rows.attn, rows.qkv, self.rope, io.max_blocks);
        if decode > 0 {
            let StepIo { positions, slot_mapping, block_table, seq_lens, .. } = *io;
            p.push(PagedDecode {
                o,
                qkv,
                kv,
                table,
                positions,
                slot_mapping,
                block_table,
                seq_lens,
                seqs: decode,
                heads,
                max_blocks,
                context,
            });
        }
        if prefill_seqs > 0 {
            let (seqs, tokens) = (decode + prefill_seqs, shape.tokens());
            p.push(RopeKv {
                qkv: qkv.slice(decode * width..tokens * width),
                kv,
                table,
                positions: io.positions.slice(decode..tokens),
                slot_mapping: io.slot_mapping.slice(decode..tokens),
                tokens: prefill_tokens,
                heads,
            });
            p.push(PagedPrefill {
                o,
                qkv,
                kv,
                block_table: io.block_table.slice(decode * max_blocks..seqs * max_blocks),
                seq_lens: io.seq_lens.slice(decode..seqs),
                query_start: io.query_start.slice(decode..seqs + 1),
                seqs: prefill_seqs,
                heads,
                tokens: prefill_tokens,
                max_blocks,
                context,
            });
        }
    }

    fn sample(&self, p: &mut Plan, rows: &Rows, io: &StepIo, shape: StepShape) {
        let (n, d, vocab) = (shape.logit_rows, self.config.hidden_size, self.config.vocab_size);
        let (last, logits) = (rows.last, io.logits.slice(0..n * vocab));
        let norm = Some(Norm { weight: self.norm, eps: self.config.rms_norm_eps as f32 });
        // Of decode sequences alone every row is wanted, in order.
        let is_every_row = shape.prefill_seqs == 0 && n == shape.decode;
        let a = if is_every_row { rows.x } else { last };
        if !is_every_row {
            p.push(Gather { y: last, x: rows.x, index: io.logit_index, rows: n, cols: d, y_cols: d, first_col: 0 });
        }
        let head = Gemv { c: logits.into(), a, b: self.head, m: n, n: vocab, k: d, norm, epilogue: Epilogue::Store };
        project(p, head, last);
        p.push(Sample {
            token: io.token,
            logprobs: io.logprobs,
            top: io.top,
            hash: io.hash,
            logits,
            params: io.sampling,
            biases: io.biases,
            counts: io.counts,
            rows: n,
            vocab,
        });
    }
}

/// A linear layer with the normalisation before it: one op where the rows are few, else by way of `h`, which may be `a`.
fn project(p: &mut Plan, op: Gemv, h: Buf<Act>) {
    let Gemv { c, a, b, m, n, k, norm, epilogue } = op;
    if m <= Gemv::MAX_ROWS {
        p.push(op);
        return;
    }
    if let Some(Norm { weight, eps }) = norm {
        p.push(RmsNorm { y: h, x: a, weight, rows: m, cols: k, eps });
    }
    let a = if norm.is_some() { h } else { a };
    p.push(Gemm { c, a, b, m, n, k, bias: None, epilogue });
}

/// Elements of a row of q, k and v.
fn qkv_width(c: &LlamaConfig) -> usize {
    (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
}

/// `[rows, head_dim]`: cosines, then sines, of every position; where long sequences have angles of their own, first those
/// of the short ones, as many as are ever needed, and behind them those of the long ones.
fn rope(loader: &mut Loader<'_>, c: &LlamaConfig, positions: usize) -> Buf<f32> {
    let (theta, head_dim) = (c.rope_theta, c.head_dim);
    let Some(long) = c.long_rope.clone() else {
        return loader.table(positions * head_dim, move || rope_table(theta, head_dim, positions));
    };
    let short_rows = long.original_max_position_embeddings.min(positions);
    let long_rows = if positions > short_rows { positions } else { 0 };
    loader.table((short_rows + long_rows) * head_dim, move || {
        let table = |factors: &[f64], rows| long_rope_table(theta, factors, long.attention_factor, rows);
        [table(&long.short_factor, short_rows), table(&long.long_factor, long_rows)].concat()
    })
}

fn block(loader: &mut Loader<'_>, c: &LlamaConfig, fused: Fused, i: usize) -> Block {
    let at = |name: &str| format!("language_model.layers.{i}.{name}.weight");
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let qkv = [(at("self_attn.q_proj"), q), (at("self_attn.k_proj"), kv), (at("self_attn.v_proj"), kv)];
    let gate_up = [(at("mlp.gate_proj"), f), (at("mlp.up_proj"), f)];
    Block {
        attn_norm: loader.tensor(&at("input_layernorm"), &[d]),
        qkv: match fused {
            Fused::No => loader.stacked(&qkv, d),
            Fused::Yes => loader.tensor(&at("self_attn.qkv_proj"), &[q + 2 * kv, d]),
        },
        out: loader.tensor(&at("self_attn.o_proj"), &[d, q]),
        mlp_norm: loader.tensor(&at("post_attention_layernorm"), &[d]),
        gate_up: match fused {
            Fused::No => loader.stacked(&gate_up, d),
            Fused::Yes => loader.tensor(&at("mlp.gate_up_proj"), &[2 * f, d]),
        },
        down: loader.tensor(&at("mlp.down_proj"), &[d, f]),
    }
}
