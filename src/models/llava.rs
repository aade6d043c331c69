//! LLaVA-1.5: CLIP, a two-layer projector, Llama.

use anyhow::{Context, Result};

use super::clip::{Clip, epilogue};
use super::io::{Limits, StepArea, StepShape, layouts};
use super::llama::Llama;
use super::load::{Loader, Placement, Tensors};
use super::picture::PictureArea;
use super::{Pixels, Registration, RowMove, Tiles, Vlm};
use crate::config::{Config, Family, LlavaConfig, Preprocessor, Resample, Resize, Select};
use crate::image::{ClipProcessor, Filter, Rgb, Size};
use crate::mem::{Act, Buf, DType, Layout, Region};
use crate::ops::{Epilogue, Gather, Gemm, PagedKv};
use crate::plan::Plan;
use crate::weights::canonical_llava;

pub(super) const REGISTRATION: Registration = Registration {
    architecture: "LlavaForConditionalGeneration",
    kv_block_bytes: |config, dtype| Llama::kv_block_bytes(&settings(config).text, dtype),
    build: |config, tensors, dtype, limits| Ok(Box::new(Llava::build(config, tensors, dtype, limits)?)),
};

struct Projector {
    weight1: Buf<Act>,
    bias1: Option<Buf<Act>>,
    weight2: Buf<Act>,
    bias2: Option<Buf<Act>>,
}

struct Llava {
    dtype: DType,
    config: LlavaConfig,
    processor: ClipProcessor,
    clip: Clip,
    /// `[max_tiles * tokens of a tile]`: rows of the hidden states that are features.
    feature_index: Buf<i32>,
    projector: Projector,
    llama: Llama,
    cache: Vec<PagedKv>,
    pixels: Buf<u8>,
    picture_area: PictureArea,
    /// `0, 1, 2, ...` for every row of a tile: what copies rows is told so.
    row_index: Buf<i32>,
    /// `[(max_tiles + kept_tiles) * tokens of a tile, hidden]`: projected features, which outlive the plan that wrote them:
    /// those of the last encoding, then those that are kept.
    image_rows: Buf<Act>,
    /// What is taken from scratch before any plan.
    scratch: Layout,
    io: StepArea,
    regions: [usize; 4],
    placements: Vec<Placement>,
    warnings: Vec<String>,
}

impl Llava {
    fn build(config: &Config, tensors: Tensors<'_>, dtype: DType, limits: Limits) -> Result<Llava> {
        let processor = clip_processor(&config.preprocessor);
        let llava = settings(config).clone();
        let (vision, text) = (&llava.vision, &llava.text);
        let d = text.hidden_size;

        let mut loader = Loader::new(tensors, dtype, canonical_llava)?;
        let blocks = llava.vision_blocks();
        let clip = Clip::load(&mut loader, vision, blocks, processor.table());
        let (settings, tiles) = (llava.clone(), limits.max_tiles);
        let feature_index = loader.table(tiles * llava.image_tokens(), move || feature_index(&settings, tiles));
        let rows = llava.image_tokens();
        let row_index = loader.table(rows, move || (0..rows as i32).collect());
        let bias = |loader: &mut Loader<'_>, name: &str| llava.projector_bias.then(|| loader.tensor(name, &[d]));
        let projector = Projector {
            weight1: loader.tensor("multi_modal_projector.linear_1.weight", &[d, llava.projector_input()]),
            bias1: bias(&mut loader, "multi_modal_projector.linear_1.bias"),
            weight2: loader.tensor("multi_modal_projector.linear_2.weight", &[d, d]),
            bias2: bias(&mut loader, "multi_modal_projector.linear_2.bias"),
        };
        let llama = Llama::load(&mut loader, text, limits.max_model_len);
        loader.ignore(|name| unused(name, blocks));
        let (placements, weights_layout, warnings) = loader.finish()?;

        let [_, mut kv, mut scratch, mut io] = layouts(dtype);
        let cache = llama.cache(&mut kv, limits.kv_blocks);
        let image_rows = scratch.take((limits.max_tiles + limits.kept_tiles) * llava.image_tokens() * d);
        let pixels = io.take(limits.max_tiles * vision.image_size * vision.image_size * 3);
        let picture_area = PictureArea::new(&mut io, limits.max_tiles > 0);
        let step_io = StepArea::new(&mut io, limits, text.vocab_size);
        let mut model = Llava {
            dtype,
            processor,
            clip,
            feature_index,
            row_index,
            projector,
            llama,
            cache,
            pixels,
            picture_area,
            image_rows,
            scratch,
            io: step_io,
            regions: [weights_layout.bytes(), kv.bytes(), 0, io.bytes()],
            placements,
            warnings,
            config: llava,
        };
        model.regions[Region::Scratch as usize] = model.largest_scratch(limits);
        Ok(model)
    }

    /// Scratch bytes of the largest plans, which is what the region must hold.
    fn largest_scratch(&self, limits: Limits) -> usize {
        let largest = StepShape {
            decode: 0,
            prefill_seqs: 1,
            prefill_tokens: limits.max_num_batched_tokens,
            logit_rows: limits.max_logit_rows,
            context: limits.max_model_len,
        };
        let mut encode = self.scratch.clone();
        self.encode(&mut Plan::new(self.dtype), &mut encode, limits.max_tiles);
        let mut step = self.scratch.clone();
        self.step(&mut Plan::new(self.dtype), &mut step, largest);
        encode.bytes().max(step.bytes())
    }

    /// The one tile of a picture.
    fn tiles(&self, pixels: Pixels) -> Tiles {
        Tiles { pixels, tiles: 1, tokens: self.config.image_tokens() }
    }

    fn encode(&self, plan: &mut Plan, scratch: &mut Layout, tiles: usize) {
        let c = &self.config;
        let (v, d, layers) = (c.vision.hidden_size, c.text.hidden_size, &c.feature_layers);
        let (n, width) = (tiles * c.image_tokens(), layers.len() * v);
        let features = scratch.take(n * width);
        plan.scope("vision", |plan| {
            self.clip.forward(plan, scratch, self.pixels, tiles, |p, blocks, x| {
                for slot in (0..layers.len()).filter(|&slot| layers[slot] == blocks) {
                    p.push(Gather {
                        y: features,
                        x,
                        index: self.feature_index.slice(0..n),
                        rows: n,
                        cols: v,
                        y_cols: width,
                        first_col: slot * v,
                    });
                }
            });
        });
        plan.scope("projector", |p| {
            let w = &self.projector;
            let hidden = scratch.take(n * d);
            let image_rows = self.image_rows.slice(0..n * d);
            let (act, store) = (epilogue(c.projector_act), Epilogue::Store);
            p.push(Gemm { c: hidden, a: features, b: w.weight1, m: n, n: d, k: width, bias: w.bias1, epilogue: act });
            p.push(Gemm { c: image_rows, a: hidden, b: w.weight2, m: n, n: d, k: d, bias: w.bias2, epilogue: store });
        });
    }

    fn step(&self, plan: &mut Plan, scratch: &mut Layout, shape: StepShape) {
        let io = self.io.packed(shape);
        plan.scope("llm", |p| self.llama.forward(p, scratch, &self.cache, self.image_rows, &io, shape));
    }
}

impl Vlm for Llava {
    fn max_image_tokens(&self) -> usize {
        self.config.image_tokens()
    }

    fn dummy_image(&self) -> Result<Rgb> {
        // Not of the size of a tile, so that resizing is warmed too.
        let side = self.config.vision.image_size as u32;
        Rgb::filled(2 * side, side + side / 2, [0; 3])
    }

    fn prepare(&self, picture: &Rgb) -> Result<Tiles> {
        let tile = self.processor.apply(picture).context("preparing the picture")?;
        Ok(self.tiles(Pixels::Ready(tile.into_data())))
    }

    fn prepare_for_device(&self, picture: Rgb) -> Result<Tiles> {
        let side = self.config.vision.image_size;
        let tile = self.processor.tile(picture.width(), picture.height()).context("preparing the picture")?;
        match self.picture_area.picture(picture, &tile, self.pixels.slice(0..side * side * 3)) {
            Ok(picture) => Ok(self.tiles(Pixels::Picture(Box::new(picture)))),
            Err(picture) => self.prepare(&picture),
        }
    }

    fn image_token_id(&self) -> u32 {
        self.config.image_token_index
    }

    fn encode_plan(&self, tiles: usize) -> Plan {
        let mut plan = Plan::new(self.dtype);
        self.encode(&mut plan, &mut self.scratch.clone(), tiles);
        plan
    }

    fn tile_rows(&self) -> usize {
        self.config.image_tokens()
    }

    fn keep_plan(&self, moves: &[RowMove]) -> Plan {
        let cols = self.config.text.hidden_size;
        let mut plan = Plan::new(self.dtype);
        plan.scope("projector/keep", |p| {
            for &RowMove { from, to, rows } in moves {
                let at = |row: usize| self.image_rows.slice(row * cols..(row + rows) * cols);
                let index = self.row_index.slice(0..rows);
                p.push(Gather { y: at(to), x: at(from), index, rows, cols, y_cols: cols, first_col: 0 });
            }
        });
        plan
    }

    fn step_plan(&self, shape: StepShape) -> Plan {
        let mut plan = Plan::new(self.dtype);
        self.step(&mut plan, &mut self.scratch.clone(), shape);
        plan
    }

    fn pixels(&self) -> Buf<u8> {
        self.pixels
    }

    fn picture_area(&self) -> &PictureArea {
        &self.picture_area
    }

    fn io(&self) -> &StepArea {
        &self.io
    }

    fn regions(&self) -> [usize; 4] {
        self.regions
    }

    fn placements(&self) -> &[Placement] {
        &self.placements
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// What config.json says of this family.
fn settings(config: &Config) -> &LlavaConfig {
    let Family::Llava(llava) = &config.model.family;
    llava
}

/// The processor that preprocessor_config.json describes; its sizes were checked when it was read.
pub fn clip_processor(p: &Preprocessor) -> ClipProcessor {
    ClipProcessor {
        do_pad: p.do_pad,
        do_resize: p.do_resize,
        size: match p.size {
            Resize::ShortestEdge(n) => Size::ShortestEdge(n as u32),
            Resize::Exact { height, width } => Size::Exact { height: height as u32, width: width as u32 },
        },
        resample: match p.resample {
            Resample::Bilinear => Filter::Bilinear,
            Resample::Bicubic => Filter::Bicubic,
        },
        do_center_crop: p.do_center_crop,
        crop: (p.crop_size.0 as u32, p.crop_size.1 as u32),
        do_rescale: p.do_rescale,
        rescale_factor: p.rescale_factor,
        do_normalize: p.do_normalize,
        mean: p.mean,
        std: p.std,
    }
}

/// Rows of the tower's hidden states that are features: all, or all but each tile's class token.
fn feature_index(config: &LlavaConfig, tiles: usize) -> Vec<i32> {
    let tokens = 1 + config.vision.patches();
    let first = match config.select {
        Select::Default => 1,
        Select::Full => 0,
    };
    (0..tiles).flat_map(|t| (first..tokens).map(move |i| (t * tokens + i) as i32)).collect()
}

/// Tensors that checkpoints carry and this model does not read.
fn unused(name: &str, blocks: usize) -> bool {
    let later_block = name
        .strip_prefix("vision_tower.encoder.layers.")
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok())
        .is_some_and(|i| i >= blocks);
    later_block
        || name.ends_with(".position_ids")
        || name.ends_with(".rotary_emb.inv_freq")
        || name.starts_with("vision_tower.post_layernorm.")
}
