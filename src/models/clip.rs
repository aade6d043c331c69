//! CLIP's vision transformer, up to the layer whose features are wanted.

use super::load::Loader;
use crate::config::{Activation, ClipConfig};
use crate::mem::{Act, Buf, Layout};
use crate::ops::{DenseAttention, Epilogue, Gemm, LayerNorm, PatchEmbed};
use crate::plan::Plan;

struct Norm {
    weight: Buf<Act>,
    bias: Buf<Act>,
}

struct Linear {
    weight: Buf<Act>,
    bias: Buf<Act>,
}

struct Block {
    norm1: Norm,
    qkv: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// Where the tiles stand that are to be encoded, each as bytes or as values.
#[derive(Clone, Copy, Debug)]
pub struct TileInput {
    /// `[any, image_size, image_size, 3]` bytes, RGB.
    pub pixels: Buf<u8>,
    /// `[any, 3, image_size, image_size]`, normalised.
    pub values: Buf<f32>,
    /// `[tiles]`: `n` for tile `n` of the bytes, `-1 - n` for tile `n` of the values.
    pub source: Buf<i32>,
}

/// Weights of the tower.
pub struct Clip {
    config: ClipConfig,
    table: Buf<f32>,
    patch: Buf<Act>,
    class: Buf<Act>,
    position: Buf<Act>,
    pre_norm: Norm,
    blocks: Vec<Block>,
}

impl Clip {
    /// Ask for the weights of the first `blocks` blocks; `table` says what a byte of a pixel stands for.
    pub fn load(loader: &mut Loader<'_>, config: &ClipConfig, blocks: usize, table: Vec<f32>) -> Clip {
        let (d, p) = (config.hidden_size, config.patch_size);
        let tokens = 1 + config.patches();
        let at = |name: &str| format!("vision_tower.{name}");
        Clip {
            config: config.clone(),
            table: loader.table(table.len(), move || table.clone()),
            patch: loader.tensor(&at("embeddings.patch_embedding.weight"), &[d, 3, p, p]),
            class: loader.tensor(&at("embeddings.class_embedding"), &[d]),
            position: loader.tensor(&at("embeddings.position_embedding.weight"), &[tokens, d]),
            pre_norm: norm(loader, &at("pre_layrnorm"), d),
            blocks: (0..blocks)
                .map(|i| block(loader, &at(&format!("encoder.layers.{i}")), d, config.intermediate_size))
                .collect(),
        }
    }

    /// Rows of hidden states of `tiles` tiles.
    pub fn rows(&self, tiles: usize) -> usize {
        tiles * (1 + self.config.patches())
    }

    /// Run the blocks over `tiles` tiles; `layer` is called with the plan and the hidden states after each
    /// number of blocks, 0 included.
    pub fn forward(
        &self,
        plan: &mut Plan,
        scratch: &mut Layout,
        input: TileInput,
        tiles: usize,
        mut layer: impl FnMut(&mut Plan, usize, Buf<Act>),
    ) {
        let c = &self.config;
        let (d, rows, eps) = (c.hidden_size, self.rows(tiles), c.layer_norm_eps as f32);
        let activation = epilogue(c.hidden_act);
        let x = scratch.take(rows * d);
        let h = scratch.take(rows * d);
        let qkv = scratch.take(rows * 3 * d);
        let mlp = scratch.take(rows * c.intermediate_size);
        plan.push(PatchEmbed {
            y: x,
            pixels: input.pixels,
            values: input.values,
            source: input.source.slice(0..tiles),
            table: self.table,
            weight: self.patch,
            class: self.class,
            position: self.position,
            norm_weight: self.pre_norm.weight,
            norm_bias: self.pre_norm.bias,
            tiles,
            image_size: c.image_size,
            patch_size: c.patch_size,
            hidden: d,
            eps,
        });
        layer(plan, 0, x);
        let normed = |n: &Norm| LayerNorm { y: h, x, weight: n.weight, bias: n.bias, rows, cols: d, eps };
        for (i, b) in self.blocks.iter().enumerate() {
            plan.scope(i, |plan| {
                plan.scope("attn", |p| {
                    p.push(normed(&b.norm1));
                    p.push(linear(qkv, h, &b.qkv, rows, 3 * d, d, Epilogue::Store));
                    p.push(DenseAttention {
                        o: h,
                        qkv,
                        tiles,
                        tokens: 1 + c.patches(),
                        heads: c.num_attention_heads,
                        head_dim: c.head_dim,
                    });
                    p.push(linear(x, h, &b.out, rows, d, d, Epilogue::AddResidual));
                });
                plan.scope("mlp", |p| {
                    p.push(normed(&b.norm2));
                    p.push(linear(mlp, h, &b.fc1, rows, c.intermediate_size, d, activation));
                    p.push(linear(x, mlp, &b.fc2, rows, d, c.intermediate_size, Epilogue::AddResidual));
                });
                layer(plan, i + 1, x);
            });
        }
    }
}

/// What an MLP does between its matrices.
pub(super) fn epilogue(activation: Activation) -> Epilogue {
    match activation {
        Activation::Gelu => Epilogue::Gelu,
        Activation::QuickGelu => Epilogue::QuickGelu,
    }
}

fn linear(c: Buf<Act>, a: Buf<Act>, l: &Linear, m: usize, n: usize, k: usize, epilogue: Epilogue) -> Gemm {
    Gemm { c, a, b: l.weight, m, n, k, bias: Some(l.bias), epilogue }
}

fn norm(loader: &mut Loader<'_>, name: &str, d: usize) -> Norm {
    Norm { weight: loader.tensor(&format!("{name}.weight"), &[d]), bias: loader.tensor(&format!("{name}.bias"), &[d]) }
}

fn block(loader: &mut Loader<'_>, name: &str, d: usize, inner: usize) -> Block {
    let part = |loader: &mut Loader<'_>, part: &str, n: usize, k: usize| Linear {
        weight: loader.tensor(&format!("{name}.{part}.weight"), &[n, k]),
        bias: loader.tensor(&format!("{name}.{part}.bias"), &[n]),
    };
    let qkv = |kind: &str| ["q", "k", "v"].map(|x| (format!("{name}.self_attn.{x}_proj.{kind}"), d));
    Block {
        norm1: norm(loader, &format!("{name}.layer_norm1"), d),
        qkv: Linear { weight: loader.stacked(&qkv("weight"), d), bias: loader.joined(&qkv("bias")) },
        out: part(loader, "self_attn.out_proj", d, d),
        norm2: norm(loader, &format!("{name}.layer_norm2"), d),
        fc1: part(loader, "mlp.fc1", inner, d),
        fc2: part(loader, "mlp.fc2", d, inner),
    }
}
