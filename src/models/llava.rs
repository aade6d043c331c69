//! LLaVA-1.5 and LLaVA-NeXT: CLIP, a two-layer projector, and Llama or Mistral. NeXT looks at a picture once more in
//! tiles, and ends every line of their patches with a row of its own.

use anyhow::{Context, Result, bail, ensure};

use super::areas::{Areas, PictureSizes};
use super::io::{Limits, StepShape};
use super::llama::{EMBED, Fused, Llama};
use super::load::{Loader, Tensors};
use super::processor::{AnyresTiles, OneTile, clip_processor, filter};
use super::registry::{Architecture, Facts, ImageToken, Parts, PictureFacts, Registration};
use super::vision::{Projector, Tower};
use super::{ImageInputType, ImageTokens, Processor, Vlm, unused};
use crate::config::{
    Config, Family, Files, LLAVA, LLAVA_NEXT, LlavaConfig, Pictures, Preprocessor, ProcessorKwargs, Select,
};
use crate::image::{Anyres, Rgb};
use crate::mem::{Act, Buf, DType, Layout, Region};
use crate::ops::PagedKv;
use crate::plan::Plan;
use crate::text::Builtin;
use crate::weights::canonical_llava;

pub(super) const REGISTRATION: Registration =
    Registration { architecture: LLAVA, read: |files| Ok(Box::new(Settings::read(files)?)) };

pub(super) const NEXT: Registration =
    Registration { architecture: LLAVA_NEXT, read: |files| Ok(Box::new(Settings::read(files)?)) };

/// What a checkpoint says.
struct Settings {
    llava: LlavaConfig,
    preprocessor: Preprocessor,
    facts: Facts,
}

impl Settings {
    fn read(files: &Files<'_>) -> Result<Settings> {
        let config = Config::parse(files)?;
        let (Family::Llava(llava), Pictures::Clip(preprocessor)) = (config.model.family.clone(), config.pictures)
        else {
            bail!("config.json is not of a LLaVA model");
        };
        let facts = Facts {
            architecture: config.model.family.architecture(),
            dtype: config.model.dtype,
            vocab_size: llava.text.vocab_size,
            max_positions: llava.text.max_position_embeddings,
            generation: config.generation,
            end_tokens: &[],
            image_token: ImageToken::Id(llava.image_token_index),
            // Vicuna's turns; those of Mistral need its own template.
            chat_template: Some(if llava.text.model_type == "mistral" {
                Builtin::LlavaMistral
            } else {
                Builtin::Llava15
            }),
            pictures: pictures(&llava, &preprocessor)?,
            parts: Some(Parts {
                vision: llava.vision.clone(),
                feature_layers: llava.feature_layers.clone(),
                text: llava.text.clone(),
            }),
        };
        Ok(Settings { llava, preprocessor, facts })
    }
}

/// What pictures cost: in NeXT, the picture that fills the best of the resolutions costs most.
fn pictures(llava: &LlavaConfig, preprocessor: &Preprocessor) -> Result<PictureFacts> {
    let (image_size, rows) = (llava.vision.image_size, llava.tile_rows());
    let Some(anyres) = anyres(llava, preprocessor) else {
        return Ok(PictureFacts {
            image_size,
            tile_rows: rows,
            max_tiles: 1,
            tokens: ImageTokens::Always(rows),
            feature_columns: Some(llava.projector_input()),
        });
    };
    let side = llava.vision.grid();
    let (mut max_tiles, mut max_tokens) = (1, rows);
    for &(height, width) in &anyres.pinpoints {
        let view = anyres.view(width, height)?;
        max_tiles = view.tiles().max(max_tiles);
        max_tokens = view.tokens(side).max(max_tokens);
    }
    let tokens = ImageTokens::UpTo(max_tokens);
    Ok(PictureFacts { image_size, tile_rows: rows, max_tiles, tokens, feature_columns: None })
}

fn anyres(llava: &LlavaConfig, preprocessor: &Preprocessor) -> Option<Anyres> {
    let pinpoints = llava.pinpoints.clone()?;
    Some(Anyres { pinpoints, tile: llava.vision.image_size as u32, resample: filter(preprocessor.resample) })
}

impl Architecture for Settings {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn set_processor(&mut self, kwargs: &ProcessorKwargs) -> Result<()> {
        self.preprocessor = self.preprocessor.with_kwargs(kwargs, self.llava.vision.image_size)?;
        Ok(())
    }

    fn kv_block_bytes(&self, dtype: DType) -> usize {
        Llama::kv_block_bytes(&self.llava.text, dtype)
    }

    fn build(&self, tensors: Tensors<'_>, dtype: DType, limits: Limits, input: ImageInputType) -> Result<Box<dyn Vlm>> {
        Ok(Box::new(Llava::build(self, tensors, dtype, limits, input)?))
    }
}

struct Llava {
    llava: LlavaConfig,
    preprocessor: Preprocessor,
    /// `None` if it is not needed: then nothing but features and embeddings comes in.
    tower: Option<Tower>,
    projector: Projector,
    /// NeXT's end of a line, `[hidden]`.
    newline: Option<Buf<Act>>,
    llama: Llama,
    cache: Vec<PagedKv>,
    areas: Areas,
}

impl Llava {
    fn build(
        settings: &Settings,
        tensors: Tensors<'_>,
        dtype: DType,
        limits: Limits,
        input: ImageInputType,
    ) -> Result<Llava> {
        let Settings { llava, preprocessor, facts } = settings;
        let (vision, text) = (&llava.vision, &llava.text);
        let (d, is_next) = (text.hidden_size, llava.pinpoints.is_some());
        let with_tower = input == ImageInputType::PixelValues;

        let mut loader = Loader::new(tensors, dtype, canonical_llava)?;
        let tower = with_tower.then(|| {
            let table = clip_processor(preprocessor).table();
            Tower::load(&mut loader, vision, &llava.feature_layers, feature_rows(llava), table, limits.max_tiles)
        });
        let projector =
            Projector::load(&mut loader, llava.projector_input(), d, llava.projector_bias, llava.projector_act);
        let newline = is_next.then(|| loader.tensor("image_newline", &[d]));
        let llama = Llama::load(&mut loader, text, EMBED, Fused::No, limits.max_model_len);
        // Without its tower a model reads none of its blocks, nor what stands before them.
        let blocks = if with_tower { llava.vision_blocks() } else { 0 };
        loader.ignore(|name| unused(name, blocks) || !with_tower && name.starts_with("vision_tower."));

        let mut kv = Layout::new(Region::Kv, dtype);
        let cache = llama.cache(&mut kv, limits.kv_blocks);
        let sizes = PictureSizes {
            image_size: if with_tower { vision.image_size } else { 0 },
            tile_rows: llava.tile_rows(),
            hidden: d,
            feature_columns: facts.pictures.feature_columns.unwrap_or(0),
            constants: usize::from(is_next),
            values: false,
            resizes: !is_next,
        };
        let areas = Areas::new(loader, &kv, limits, sizes, text.vocab_size)?;
        let (llava, preprocessor) = (llava.clone(), preprocessor.clone());
        let largest = limits.largest_step();
        let mut model = Llava { llava, preprocessor, tower, projector, newline, llama, cache, areas };
        let (areas, tiles) = (&model.areas, limits.max_tiles);
        let plans = [
            areas.scratch_of(|plan, scratch| model.encode(plan, scratch, tiles)),
            areas.scratch_of(|plan, scratch| model.project(plan, scratch, model.features(tiles), tiles)),
            areas.scratch_of(|plan, scratch| model.step(plan, scratch, largest)),
        ];
        model.areas.reserve(plans);
        Ok(model)
    }

    /// Features that a caller brings, of so many tiles.
    fn features(&self, tiles: usize) -> Buf<Act> {
        self.areas
            .features
            .slice(0..self.areas.features.len().min(tiles * self.areas.tile_rows * self.projector.input()))
    }

    fn encode(&self, plan: &mut Plan, scratch: &mut Layout, tiles: usize) {
        let Some(tower) = &self.tower else { return };
        let features = tower.forward(plan, scratch, self.areas.tiles, tiles);
        self.project(plan, scratch, features, tiles);
    }

    fn project(&self, plan: &mut Plan, scratch: &mut Layout, features: Buf<Act>, tiles: usize) {
        self.projector.forward(plan, scratch, self.areas.rows(0, tiles * self.areas.tile_rows), features);
    }

    fn step(&self, plan: &mut Plan, scratch: &mut Layout, shape: StepShape) {
        self.llama.step(plan, scratch, &self.cache, &self.areas, shape);
    }
}

impl Vlm for Llava {
    fn areas(&self) -> &Areas {
        &self.areas
    }

    fn processor(&self, kwargs: &ProcessorKwargs) -> Result<Box<dyn Processor>> {
        let (llava, loaded) = (&self.llava, &self.preprocessor);
        let asked = loaded.with_kwargs(kwargs, llava.vision.image_size)?;
        let (a, b) = (clip_processor(&asked), clip_processor(loaded));
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
        if let Some(how) = anyres(llava, &asked) {
            return Ok(Box::new(AnyresTiles { how, grid: llava.vision.grid() }));
        }
        let tile = llava.vision.image_size.pow(2) * 3;
        Ok(Box::new(OneTile {
            how: a,
            tile_rows: self.areas.tile_rows,
            has_tower: self.tower.is_some(),
            area: self.areas.picture,
            tile: self.areas.tiles.pixels.slice(0..tile.min(self.areas.tiles.pixels.len())),
        }))
    }

    fn dummy_image(&self) -> Result<Rgb> {
        let side = self.llava.vision.image_size as u32;
        let Some(anyres) = anyres(&self.llava, &self.preprocessor) else {
            // Not of the size of a tile, so that resizing is warmed too.
            return Rgb::filled(2 * side, side + side / 2, [0; 3]);
        };
        // One that fills its resolution loses no row of it.
        let tokens =
            |(height, width): (u32, u32)| Some(anyres.view(width, height).ok()?.tokens(self.llava.vision.grid()));
        let largest = anyres.pinpoints.iter().copied().max_by_key(|&size| tokens(size));
        let (height, width) = largest.context("image_grid_pinpoints is empty")?;
        Rgb::filled(width, height, [0; 3])
    }

    fn setup_plan(&self) -> Plan {
        self.areas.plan(|plan, _| {
            if let Some(newline) = self.newline {
                plan.scope("projector", |p| self.areas.push_constant(p, newline, AnyresTiles::NEWLINE));
            }
        })
    }

    fn encode_plan(&self, tiles: usize) -> Plan {
        self.areas.plan(|plan, scratch| self.encode(plan, scratch, tiles))
    }

    fn project_plan(&self, tiles: usize) -> Plan {
        self.areas.plan(|plan, scratch| self.project(plan, scratch, self.features(tiles), tiles))
    }

    fn step_plan(&self, shape: StepShape) -> Plan {
        self.areas.plan(|plan, scratch| self.step(plan, scratch, shape))
    }
}

/// Rows of a tile's hidden states that are features: all, or all but the class token.
fn feature_rows(llava: &LlavaConfig) -> Vec<usize> {
    let first = match llava.select {
        Select::Default => 1,
        Select::Full => 0,
    };
    (first..1 + llava.vision.patches()).collect()
}
