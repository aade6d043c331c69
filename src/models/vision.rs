//! From tiles to image rows: the features that are taken of the tower's hidden states, and the projector over them.

use super::clip::{Clip, TileInput, epilogue};
use super::load::Loader;
use crate::config::{Activation, ClipConfig};
use crate::mem::{Act, Buf, Layout};
use crate::ops::{Epilogue, Gather, Gemm};
use crate::plan::Plan;

/// CLIP, and which rows of which of its hidden states are features.
pub struct Tower {
    clip: Clip,
    hidden: usize,
    /// Outputs that are joined, channel after channel: how many blocks have run before each.
    layers: Vec<usize>,
    /// Rows that are taken of a tile's hidden states.
    rows: usize,
    /// `[max_tiles * rows]`
    index: Buf<i32>,
}

impl Tower {
    /// Ask for the weights of the blocks that run. `layers` are as in
    /// [`LlavaConfig::feature_layers`](crate::config::LlavaConfig::feature_layers); `rows` are those that are taken of a
    /// tile's hidden states, in their order, of which row 0 is the class token; `table` says what a byte of a pixel stands
    /// for, `[3, 256]`.
    pub fn load(
        loader: &mut Loader<'_>,
        config: &ClipConfig,
        layers: &[usize],
        rows: Vec<usize>,
        table: Vec<f32>,
        max_tiles: usize,
    ) -> Tower {
        let blocks = layers.iter().copied().max().unwrap_or(0);
        let tokens = 1 + config.patches();
        let taken = rows.len();
        Tower {
            clip: Clip::load(loader, config, blocks, table),
            hidden: config.hidden_size,
            layers: layers.to_vec(),
            rows: taken,
            index: loader.table(max_tiles * taken, move || {
                (0..max_tiles).flat_map(|t| rows.iter().map(move |row| (t * tokens + row) as i32)).collect()
            }),
        }
    }

    /// Run the tower over `tiles` tiles. Returns their features, `[tiles * rows, layers * hidden]`.
    pub fn forward(&self, plan: &mut Plan, scratch: &mut Layout, input: TileInput, tiles: usize) -> Buf<Act> {
        let (n, cols, y_cols) = (tiles * self.rows, self.hidden, self.layers.len() * self.hidden);
        let y = scratch.take(n * y_cols);
        plan.scope("vision", |plan| {
            self.clip.forward(plan, scratch, input, tiles, |p, blocks, x| {
                for slot in (0..self.layers.len()).filter(|&slot| self.layers[slot] == blocks) {
                    let (index, first_col) = (self.index.slice(0..n), slot * cols);
                    p.push(Gather { y, x, index, rows: n, cols, y_cols, first_col });
                }
            });
        });
        y
    }
}

/// Two matrices with a function between them.
pub struct Projector {
    weight1: Buf<Act>,
    bias1: Option<Buf<Act>>,
    weight2: Buf<Act>,
    bias2: Option<Buf<Act>>,
    input: usize,
    output: usize,
    activation: Activation,
}

impl Projector {
    /// Ask for `multi_modal_projector.linear_1`, `[output, input]`, and `linear_2`, `[output, output]`.
    pub fn load(loader: &mut Loader<'_>, input: usize, output: usize, bias: bool, activation: Activation) -> Projector {
        let at = |layer: usize, part: &str| format!("multi_modal_projector.linear_{layer}.{part}");
        let bias = |loader: &mut Loader<'_>, layer| bias.then(|| loader.tensor(&at(layer, "bias"), &[output]));
        Projector {
            weight1: loader.tensor(&at(1, "weight"), &[output, input]),
            bias1: bias(loader, 1),
            weight2: loader.tensor(&at(2, "weight"), &[output, output]),
            bias2: bias(loader, 2),
            input,
            output,
            activation,
        }
    }

    /// Columns of what it is given.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Project `x`, `[rows, input]`, to `y`, `[rows, output]`.
    pub fn forward(&self, plan: &mut Plan, scratch: &mut Layout, y: Buf<Act>, x: Buf<Act>) {
        let (d, k) = (self.output, self.input);
        let m = y.len() / d;
        plan.scope("projector", |p| {
            let hidden = scratch.take(m * d);
            let act = epilogue(self.activation);
            p.push(Gemm { c: hidden, a: x, b: self.weight1, m, n: d, k, bias: self.bias1, epilogue: act });
            p.push(Gemm {
                c: y,
                a: hidden,
                b: self.weight2,
                m,
                n: d,
                k: d,
                bias: self.bias2,
                epilogue: Epilogue::Store,
            });
        });
    }
}
