//! A family of models that ocelli does not know, registered from outside.
//!
//! *Fovea* is LLaVA-1.5 that looks closely at the middle of a picture and not at its margin: it keeps the inner patches
//! alone, and so needs fewer tokens. Its checkpoints are LLaVA's with another name in config.json; `docs/adding-a-model.md`
//! goes through this file.
//!
//! ```sh
//! cargo run --release --example custom_model
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::{env, fs, process};

use anyhow::{Context, Result, bail, ensure};
use ocelli::config::{Config, Family, Files, LLAVA, LlavaConfig, Pictures, Preprocessor, ProcessorKwargs};
use ocelli::engine::{Engine, Prompt, Request, Sampling};
use ocelli::image::{ClipProcessor, Rgb};
use ocelli::mem::{DType, Layout, Region};
use ocelli::models::{
    Architecture, Areas, Content, EMBED, Facts, Fused, ImageInputType, ImageToken, ImageTokens, Limits, Llama, Loader,
    PictureFacts, PictureSizes, Processor, Projector, Registration, RowMap, StepShape, Tensors, Tiles, Tower, Vlm,
    clip_processor, unused,
};
use ocelli::ops::PagedKv;
use ocelli::plan::Plan;
use ocelli::text::{Builtin, Message, Role};
use ocelli::weights::canonical_llava;

/// The family, by the name that config.json gives it.
pub const FOVEA: Registration =
    Registration { architecture: "FoveaForConditionalGeneration", read: |files| Ok(Box::new(Settings::read(files)?)) };

/// Patches that are left out on every side.
const MARGIN: usize = 1;

/// What a checkpoint says.
struct Settings {
    llava: LlavaConfig,
    preprocessor: Preprocessor,
    facts: Facts,
}

impl Settings {
    fn read(files: &Files<'_>) -> Result<Settings> {
        let config = Config::parse_as(files, LLAVA, &[])?;
        let (Family::Llava(llava), Pictures::Clip(preprocessor)) = (config.model.family, config.pictures) else {
            bail!("config.json is not of a LLaVA model");
        };
        let (image_size, rows) = (llava.vision.image_size, inner_rows(&llava).len());
        ensure!(rows > 0, "vision_config.image_size = {image_size} leaves no patch within the margin of {MARGIN}");
        let tokens = ImageTokens::Always(rows);
        let pictures = PictureFacts { image_size, tile_rows: rows, max_tiles: 1, tokens, feature_columns: None };
        let facts = Facts {
            architecture: FOVEA.architecture,
            dtype: config.model.dtype,
            vocab_size: llava.text.vocab_size,
            max_positions: llava.text.max_position_embeddings,
            generation: config.generation,
            end_tokens: &[],
            image_token: ImageToken::Id(llava.image_token_index),
            chat_template: Some(Builtin::Llava15),
            pictures,
            parts: None,
        };
        Ok(Settings { llava, preprocessor, facts })
    }
}

/// Rows of the tower's output that are kept; row 0 is the class token.
fn inner_rows(llava: &LlavaConfig) -> Vec<usize> {
    let side = llava.vision.image_size / llava.vision.patch_size;
    let inner = MARGIN..side.saturating_sub(MARGIN);
    inner.clone().flat_map(|y| inner.clone().map(move |x| 1 + y * side + x)).collect()
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

    fn build(&self, tensors: Tensors<'_>, dtype: DType, limits: Limits, _: ImageInputType) -> Result<Box<dyn Vlm>> {
        Ok(Box::new(Fovea::build(self, tensors, dtype, limits)?))
    }
}

/// The model: places of its weights.
struct Fovea {
    preprocessor: Preprocessor,
    image_size: usize,
    tower: Tower,
    projector: Projector,
    llama: Llama,
    cache: Vec<PagedKv>,
    areas: Areas,
}

impl Fovea {
    fn build(settings: &Settings, tensors: Tensors<'_>, dtype: DType, limits: Limits) -> Result<Fovea> {
        let Settings { llava, preprocessor, facts } = settings;
        let (vision, text, rows) = (&llava.vision, &llava.text, inner_rows(llava));

        // Ask for every tensor by its canonical name and shape.
        let mut loader = Loader::new(tensors, dtype, canonical_llava)?;
        let table = clip_processor(preprocessor).table();
        let tower = Tower::load(&mut loader, vision, &llava.feature_layers, rows.clone(), table, limits.max_tiles);
        let (input, output) = (llava.projector_input(), text.hidden_size);
        let projector = Projector::load(&mut loader, input, output, llava.projector_bias, llava.projector_act);
        let llama = Llama::load(&mut loader, text, EMBED, Fused::No, limits.max_model_len);
        loader.ignore(|name| unused(name, llava.vision_blocks()));

        // Say what is needed beside the weights.
        let mut kv = Layout::new(Region::Kv, dtype);
        let cache = llama.cache(&mut kv, limits.kv_blocks);
        let sizes = PictureSizes {
            image_size: vision.image_size,
            tile_rows: rows.len(),
            hidden: text.hidden_size,
            feature_columns: 0,
            constants: 0,
            values: false,
            resizes: false,
        };
        let areas = Areas::new(loader, &kv, limits, sizes, facts.vocab_size)?;
        let (preprocessor, image_size) = (preprocessor.clone(), vision.image_size);
        let mut model = Fovea { preprocessor, image_size, tower, projector, llama, cache, areas };
        let largest = [
            model.areas.scratch_of(|plan, scratch| model.encode(plan, scratch, limits.max_tiles)),
            model.areas.scratch_of(|plan, scratch| model.step(plan, scratch, limits.largest_step())),
        ];
        model.areas.reserve(largest);
        Ok(model)
    }

    fn encode(&self, plan: &mut Plan, scratch: &mut Layout, tiles: usize) {
        let features = self.tower.forward(plan, scratch, self.areas.tiles, tiles);
        self.projector.forward(plan, scratch, self.areas.rows(0, tiles * self.areas.tile_rows), features);
    }

    fn step(&self, plan: &mut Plan, scratch: &mut Layout, shape: StepShape) {
        self.llama.step(plan, scratch, &self.cache, &self.areas, shape);
    }
}

impl Vlm for Fovea {
    fn areas(&self) -> &Areas {
        &self.areas
    }

    fn processor(&self, kwargs: &ProcessorKwargs) -> Result<Box<dyn Processor>> {
        let how = clip_processor(&self.preprocessor.with_kwargs(kwargs, self.image_size)?);
        Ok(Box::new(Inner { how, rows: self.areas.tile_rows }))
    }

    fn dummy_image(&self) -> Result<Rgb> {
        Rgb::filled(self.image_size as u32, self.image_size as u32, [0; 3])
    }

    fn encode_plan(&self, tiles: usize) -> Plan {
        self.areas.plan(|plan, scratch| self.encode(plan, scratch, tiles))
    }

    fn step_plan(&self, shape: StepShape) -> Plan {
        self.areas.plan(|plan, scratch| self.step(plan, scratch, shape))
    }
}

/// What is done to a picture.
struct Inner {
    how: ClipProcessor,
    rows: usize,
}

impl Processor for Inner {
    fn prepare(&self, picture: &Rgb) -> Result<Tiles> {
        let tile = self.how.apply(picture).context("preparing the picture")?;
        Ok(Tiles { content: Content::Pixels(tile.into_data()), tiles: 1, rows: RowMap::straight(self.rows) })
    }

    fn describe(&self) -> String {
        format!("{:?}", self.how)
    }
}

/// A checkpoint of the family: the demo's, under another name.
fn checkpoint(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for file in fs::read_dir("demo/llava-shapes")? {
        let file = file?;
        fs::copy(file.path(), dir.join(file.file_name()))?;
    }
    let config = fs::read_to_string(dir.join("config.json"))?;
    let config = config.replace("\"LlavaForConditionalGeneration\"", "\"FoveaForConditionalGeneration\"");
    fs::write(dir.join("config.json"), config.replace("\"model_type\": \"llava\"", "\"model_type\": \"fovea\""))?;
    Ok(())
}

/// Ask the model about two pictures.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let dir = env::temp_dir().join(format!("ocelli-fovea-{}", process::id()));
    checkpoint(&dir)?;
    let opened = Engine::builder(&dir).register(FOVEA).open();
    fs::remove_dir_all(&dir)?;
    let engine = opened?;
    for (picture, question) in
        [("two-red-triangles.jpg", "What is in this picture?"), ("yellow-square.jpg", "What color is the square?")]
    {
        let request = Request {
            prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, question)]),
            images: vec![Path::new("demo/images").join(picture).into()],
            sampling: Sampling { temperature: 0.0, max_tokens: Some(32), ..Sampling::default() },
            ..Request::default()
        };
        for output in engine.generate(&[request]) {
            let output = output?;
            writeln!(out, "{picture}, {} tokens: {}", output.image_tokens[0], output.outputs[0].text)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
