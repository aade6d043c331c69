//! LLaVA-1.5: CLIP, a two-layer projector, Llama.

use anyhow::{Context, Result, ensure};

use super::clip::{Clip, TileInput, epilogue};
use super::io::{Limits, StepArea, StepShape, layouts};
use super::llama::Llama;
use super::load::{Loader, Placement, Tensors};
use super::picture::PictureArea;
use super::{Content, ImageInputType, Registration, RowMap, RowMove, Tiles, Vlm};
use crate::config::{Config, Family, LlavaConfig, Preprocessor, ProcessorKwargs, Resample, Resize, Select};
use crate::image::{ClipProcessor, Filter, Rgb, Size};
use crate::mem::{Act, Buf, DType, Layout, Region};
use crate::ops::{Epilogue, Gather, Gemm, PagedKv};
use crate::plan::Plan;
use crate::weights::canonical_llava;

pub(super) const REGISTRATION: Registration = Registration {
    architecture: "LlavaForConditionalGeneration",
    kv_block_bytes: |config, dtype| Llama::kv_block_bytes(&settings(config).text, dtype),
    build: |config, tensors, dtype, limits, input| Ok(Box::new(Llava::build(config, tensors, dtype, limits, input)?)),
};

struct Tower {
    clip: Clip,
    /// `[max_tiles * tokens of a tile]`: rows of the hidden states that are features.
    feature_index: Buf<i32>,
    /// `0, 1, 2, ...` for every tile: each is bytes, at its own place.
    source: Buf<i32>,
}

struct Projector {
    weight1: Buf<Act>,
    bias1: Option<Buf<Act>>,
    weight2: Buf<Act>,
    bias2: Option<Buf<Act>>,
}

struct Llava {
    dtype: DType,
    config: LlavaConfig,
    preprocessor: Preprocessor,
    /// `None` if it is not needed: then nothing but features and embeddings comes in.
    tower: Option<Tower>,
    projector: Projector,
    llama: Llama,
    cache: Vec<PagedKv>,
    pixels: Buf<u8>,
    /// Empty: no tile comes as values.
    values: Buf<f32>,
    /// `[max_tiles * tokens of a tile, projector's input]`: features that callers bring.
    features: Buf<Act>,
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

impl Tower {
    fn load(loader: &mut Loader<'_>, llava: &LlavaConfig, preprocessor: &Preprocessor, tiles: usize) -> Tower {
        let clip = Clip::load(loader, &llava.vision, llava.vision_blocks(), clip_processor(preprocessor).table());
        let settings = llava.clone();
        let feature_index = loader.table(tiles * llava.image_tokens(), move || feature_index(&settings, tiles));
        let source = loader.table(tiles, move || (0..tiles as i32).collect());
        Tower { clip, feature_index, source }
    }
}

impl Llava {
    fn build(
        config: &Config,
        tensors: Tensors<'_>,
        dtype: DType,
        limits: Limits,
        input: ImageInputType,
    ) -> Result<Llava> {
        let llava = settings(config).clone();
        let (vision, text) = (&llava.vision, &llava.text);
        let d = text.hidden_size;

        let mut loader = Loader::new(tensors, dtype, canonical_llava)?;
        let tower = match input {
            ImageInputType::PixelValues => {
                Some(Tower::load(&mut loader, &llava, &config.preprocessor, limits.max_tiles))
            }
            ImageInputType::ImageFeatures => None,
        };
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
        // Without its tower a model reads none of its blocks, nor what stands before them.
        let blocks = if tower.is_some() { llava.vision_blocks() } else { 0 };
        let without = if tower.is_some() { None } else { Some("vision_tower.") };
        loader.ignore(|name| unused(name, blocks) || without.is_some_and(|prefix| name.starts_with(prefix)));
        let (placements, weights_layout, warnings) = loader.finish()?;

        let [_, mut kv, mut scratch, mut io] = layouts(dtype);
        let cache = llama.cache(&mut kv, limits.kv_blocks);
        let image_rows = scratch.take((limits.max_tiles + limits.kept_tiles) * llava.image_tokens() * d);
        let pixel_tiles = if tower.is_some() { limits.max_tiles } else { 0 };
        let pixels = io.take(pixel_tiles * vision.image_size * vision.image_size * 3);
        let values = io.take(0);
        let picture_area = PictureArea::new(&mut io, pixel_tiles > 0);
        let features = io.take(limits.max_tiles * rows * llava.projector_input());
        let step_io = StepArea::new(&mut io, limits, text.vocab_size);
        let mut model = Llava {
            dtype,
            preprocessor: config.preprocessor.clone(),
            tower,
            row_index,
            projector,
            llama,
            cache,
            pixels,
            values,
            features,
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
        let [mut encode, mut project, mut step] = [(); 3].map(|()| self.scratch.clone());
        self.encode(&mut Plan::new(self.dtype), &mut encode, limits.max_tiles);
        self.project(&mut Plan::new(self.dtype), &mut project, self.features, limits.max_tiles);
        self.step(&mut Plan::new(self.dtype), &mut step, largest);
        [encode, project, step].iter().map(Layout::bytes).max().unwrap_or(0)
    }

    /// The one tile of a picture.
    fn tiles(&self, content: Content) -> Tiles {
        Tiles { content, tiles: 1, rows: RowMap::straight(self.config.image_tokens()) }
    }

    /// What `how` makes of pictures.
    fn processor(&self, how: Option<&Preprocessor>) -> Result<ClipProcessor> {
        ensure!(
            self.tower.is_some(),
            "it is given as pixels, and this model was loaded without its vision tower (--image-input-type \
             image_features); give it as image features or embeddings, or load the model with --image-input-type \
             pixel_values"
        );
        Ok(clip_processor(how.unwrap_or(&self.preprocessor)))
    }

    fn encode(&self, plan: &mut Plan, scratch: &mut Layout, tiles: usize) {
        let Some(Tower { clip, feature_index, source }) = &self.tower else { return };
        let c = &self.config;
        let (v, layers) = (c.vision.hidden_size, &c.feature_layers);
        let (n, width) = (tiles * c.image_tokens(), layers.len() * v);
        let features = scratch.take(n * width);
        let input = TileInput { pixels: self.pixels, values: self.values, source: *source };
        plan.scope("vision", |plan| {
            clip.forward(plan, scratch, input, tiles, |p, blocks, x| {
                for slot in (0..layers.len()).filter(|&slot| layers[slot] == blocks) {
                    p.push(Gather {
                        y: features,
                        x,
                        index: feature_index.slice(0..n),
                        rows: n,
                        cols: v,
                        y_cols: width,
                        first_col: slot * v,
                    });
                }
            });
        });
        self.project(plan, scratch, features, tiles);
    }

    fn project(&self, plan: &mut Plan, scratch: &mut Layout, features: Buf<Act>, tiles: usize) {
        let c = &self.config;
        let (n, width, d) = (tiles * c.image_tokens(), c.projector_input(), c.text.hidden_size);
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

    fn preprocessor(&self, kwargs: &ProcessorKwargs) -> Result<Preprocessor> {
        let asked = self.preprocessor.with_kwargs(kwargs, self.config.vision.image_size)?;
        let (a, b) = (clip_processor(&asked), clip_processor(&self.preprocessor));
        // A byte's value is a table among the weights.
        ensure!(
            a.table() == b.table(),
            "mm_processor_kwargs of a request cannot change do_rescale, rescale_factor, do_normalize, image_mean and \
             image_std: they are fixed when the model is loaded, to {}, {}, {}, {:?} and {:?} \
             (--mm-processor-kwargs)",
            b.do_rescale,
            b.rescale_factor,
            b.do_normalize,
            b.mean,
            b.std
        );
        Ok(asked)
    }

    fn prepare(&self, picture: &Rgb, how: Option<&Preprocessor>) -> Result<Tiles> {
        let tile = self.processor(how)?.apply(picture).context("preparing the picture")?;
        Ok(self.tiles(Content::Pixels(tile.into_data())))
    }

    fn prepare_for_device(&self, picture: Rgb, how: Option<&Preprocessor>) -> Result<Tiles> {
        let side = self.config.vision.image_size;
        let tile = self.processor(how)?.tile(picture.width(), picture.height()).context("preparing the picture")?;
        match self.picture_area.picture(picture, &tile, self.pixels.slice(0..side * side * 3)) {
            Ok(picture) => Ok(self.tiles(Content::Picture(Box::new(picture)))),
            Err(picture) => self.prepare(&picture, how),
        }
    }

    fn feature_shape(&self) -> [usize; 2] {
        [self.config.image_tokens(), self.config.projector_input()]
    }

    fn embedding_shape(&self) -> [usize; 2] {
        [self.config.image_tokens(), self.config.text.hidden_size]
    }

    fn image_token_id(&self) -> u32 {
        self.config.image_token_index
    }

    fn encode_plan(&self, tiles: usize) -> Plan {
        let mut plan = Plan::new(self.dtype);
        self.encode(&mut plan, &mut self.scratch.clone(), tiles);
        plan
    }

    fn project_plan(&self, tiles: usize) -> Plan {
        let mut plan = Plan::new(self.dtype);
        let [rows, cols] = self.feature_shape();
        let features = self.features.slice(0..tiles * rows * cols);
        self.project(&mut plan, &mut self.scratch.clone(), features, tiles);
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

    fn features(&self) -> Buf<Act> {
        self.features
    }

    fn image_rows(&self) -> Buf<Act> {
        self.image_rows
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
