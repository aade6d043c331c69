//! Phi-3-vision and Phi-3.5-vision: CLIP, whose features are merged two by two, a two-layer projector, and Phi-3.

use anyhow::{Context, Result, bail, ensure};

use super::areas::{Areas, PictureSizes};
use super::io::{Limits, StepShape};
use super::llama::{EMBED, Fused, Llama};
use super::load::{Loader, Tensors};
use super::processor::HdTiles;
use super::registry::{Architecture, Facts, ImageToken, Parts, PictureFacts, Registration};
use super::vision::{Projector, Tower};
use super::{ImageInputType, ImageTokens, LongAngles, Processor, Vlm, unused};
use crate::config::{Activation, Config, Family, Files, HdConfig, PHI3_V, Phi3VConfig, Pictures, ProcessorKwargs};
use crate::image::{Hd, Rgb, hd::MAX_CROPS};
use crate::mem::{Act, Buf, DType, Layout, Region};
use crate::ops::PagedKv;
use crate::plan::Plan;
use crate::text::Builtin;
use crate::weights::canonical_phi3v;

pub(super) const REGISTRATION: Registration =
    Registration { architecture: PHI3_V, read: |files| Ok(Box::new(Settings::read(files)?)) };

/// The embedding's other name: files may have either, or both.
const WTE: &str = "language_model.wte.weight";

/// Tiles of a picture that there is room for unless the engine was told how many: a request may ask for more than the
/// checkpoint's own number, and the model's authors recommend so many for single pictures.
const USUAL_CROPS: u32 = 16;

const _: () = assert!(HdConfig::MAX_CROPS == MAX_CROPS, "what is read can be cut");

/// What a checkpoint says.
struct Settings {
    phi: Phi3VConfig,
    pictures: HdConfig,
    facts: Facts,
}

impl Settings {
    fn read(files: &Files<'_>) -> Result<Settings> {
        let config = Config::parse(files)?;
        let (Family::Phi3V(phi), Pictures::Hd(pictures)) = (config.model.family.clone(), config.pictures) else {
            bail!("config.json is not of a Phi-3-vision model");
        };
        let facts = Facts {
            architecture: config.model.family.architecture(),
            dtype: config.model.dtype,
            vocab_size: phi.text.vocab_size,
            max_positions: phi.text.max_position_embeddings,
            generation: config.generation,
            // The files name </s> alone, with which the model does not end its turns.
            end_tokens: &["<|endoftext|>", "<|end|>"],
            image_token: ImageToken::Tags("<|image|>"),
            chat_template: Some(Builtin::Phi3Vision),
            pictures: costs(&phi, &pictures, pictures.num_crops.max(USUAL_CROPS))?,
            parts: Some(Parts {
                vision: phi.vision.clone(),
                feature_layers: vec![phi.vision_blocks],
                text: phi.text.clone(),
            }),
        };
        Ok(Settings { phi, pictures, facts })
    }
}

/// What pictures cost, in `most` crops.
fn costs(phi: &Phi3VConfig, pictures: &HdConfig, most: u32) -> Result<PictureFacts> {
    let how = hd(phi, &HdConfig { num_crops: most, ..pictures.clone() });
    let (width, height) = dearest(&how);
    let shape = how.shape(width, height)?;
    Ok(PictureFacts {
        image_size: phi.vision.image_size,
        tile_rows: phi.tile_rows(),
        max_tiles: 1 + shape.tiles(),
        tokens: ImageTokens::UpTo(shape.tokens(phi.vision.grid())),
        feature_columns: None,
    })
}

/// Width and height of a picture that takes the most places: of all shapes with the most tiles, a column of them has the
/// most lines.
fn dearest(how: &Hd) -> (u32, u32) {
    (8, 8 * how.num_crops)
}

fn hd(phi: &Phi3VConfig, pictures: &HdConfig) -> Hd {
    let &HdConfig { num_crops, mean, std } = pictures;
    Hd { num_crops, tile: phi.vision.image_size as u32, mean, std }
}

impl Architecture for Settings {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn set_processor(&mut self, kwargs: &ProcessorKwargs) -> Result<()> {
        self.pictures = self.pictures.with_kwargs(kwargs)?;
        let asked = self.pictures.num_crops;
        let most = if kwargs.contains_key("num_crops") { asked } else { asked.max(USUAL_CROPS) };
        self.facts.pictures = costs(&self.phi, &self.pictures, most)?;
        Ok(())
    }

    fn kv_block_bytes(&self, dtype: DType) -> usize {
        Llama::kv_block_bytes(&self.phi.text, dtype)
    }

    fn build(&self, tensors: Tensors<'_>, dtype: DType, limits: Limits, _: ImageInputType) -> Result<Box<dyn Vlm>> {
        Ok(Box::new(Phi3V::build(self, tensors, dtype, limits)?))
    }
}

struct Phi3V {
    phi: Phi3VConfig,
    pictures: HdConfig,
    facts: PictureFacts,
    tower: Tower,
    projector: Projector,
    /// `[4 * hidden of the tower]` each: what ends a line, and what stands between the tiles and the view of everything.
    /// They pass the projector like any feature.
    separators: [Buf<Act>; 2],
    llama: Llama,
    cache: Vec<PagedKv>,
    areas: Areas,
    long_rope: Option<LongAngles>,
}

impl Phi3V {
    fn build(settings: &Settings, tensors: Tensors<'_>, dtype: DType, limits: Limits) -> Result<Phi3V> {
        let Settings { phi, pictures, facts } = settings;
        let (vision, text) = (&phi.vision, &phi.text);
        let (d, merged) = (text.hidden_size, 4 * vision.hidden_size);

        let mut loader = Loader::new(tensors, dtype, canonical_phi3v)?;
        let (layers, table) = ([phi.vision_blocks], hd(phi, pictures).table());
        let tower = Tower::load(&mut loader, vision, &layers, merged_rows(phi.vision.grid()), table, limits.max_tiles);
        let projector = Projector::load(&mut loader, merged, d, true, Activation::Gelu);
        let separators = [loader.tensor("sub_GN", &[1, 1, 1, merged]), loader.tensor("glb_GN", &[1, 1, merged])];
        let embed = loader.only_one_of(EMBED, WTE).unwrap_or(EMBED);
        let llama = Llama::load(&mut loader, text, embed, Fused::Yes, limits.max_model_len);
        loader.ignore(|name| unused(name, phi.vision_blocks) || name == WTE);

        let mut kv = Layout::new(Region::Kv, dtype);
        let cache = llama.cache(&mut kv, limits.kv_blocks);
        let sizes = PictureSizes {
            image_size: vision.image_size,
            tile_rows: phi.tile_rows(),
            hidden: d,
            feature_columns: 0,
            constants: separators.len(),
            values: true,
            resizes: false,
        };
        let areas = Areas::new(loader, &kv, limits, sizes, text.vocab_size)?;
        let mut model = Phi3V {
            phi: phi.clone(),
            pictures: pictures.clone(),
            facts: facts.pictures,
            tower,
            projector,
            separators,
            long_rope: llama.long_rope(limits.max_model_len),
            llama,
            cache,
            areas,
        };
        let (areas, largest) = (&model.areas, limits.largest_step());
        let plans = [
            areas.scratch_of(|plan, scratch| model.setup(plan, scratch)),
            areas.scratch_of(|plan, scratch| model.encode(plan, scratch, limits.max_tiles)),
            areas.scratch_of(|plan, scratch| model.step(plan, scratch, largest)),
        ];
        model.areas.reserve(plans);
        Ok(model)
    }

    fn setup(&self, plan: &mut Plan, scratch: &mut Layout) {
        for (i, &separator) in self.separators.iter().enumerate() {
            let row = self.areas.rows(self.areas.constant_row + i, 1);
            self.projector.forward(plan, scratch, row, separator);
        }
    }

    fn encode(&self, plan: &mut Plan, scratch: &mut Layout, tiles: usize) {
        // Four rows of a patch each, side by side, are a merged one.
        let features = self.tower.forward(plan, scratch, self.areas.tiles, tiles);
        self.projector.forward(plan, scratch, self.areas.rows(0, tiles * self.areas.tile_rows), features);
    }

    fn step(&self, plan: &mut Plan, scratch: &mut Layout, shape: StepShape) {
        self.llama.step(plan, scratch, &self.cache, &self.areas, shape);
    }
}

impl Vlm for Phi3V {
    fn areas(&self) -> &Areas {
        &self.areas
    }

    fn processor(&self, kwargs: &ProcessorKwargs) -> Result<Box<dyn Processor>> {
        let pictures = self.pictures.with_kwargs(kwargs)?;
        let most = self.facts.max_tiles - 1;
        ensure!(
            pictures.num_crops as usize <= most,
            "mm_processor_kwargs: num_crops = {}; this engine has room for {most} tiles of a picture. Ask for fewer, or load \
             the model with --mm-processor-kwargs '{{\"num_crops\": {}}}'",
            pictures.num_crops,
            pictures.num_crops
        );
        Ok(Box::new(HdTiles { how: hd(&self.phi, &pictures), grid: self.phi.vision.grid() / 2 }))
    }

    fn dummy_image(&self) -> Result<Rgb> {
        let (width, height) = dearest(&hd(&self.phi, &self.pictures));
        Rgb::filled(width, height, [0; 3]).context("the picture for warm-up")
    }

    fn setup_plan(&self) -> Plan {
        self.areas.plan(|plan, scratch| self.setup(plan, scratch))
    }

    fn encode_plan(&self, tiles: usize) -> Plan {
        self.areas.plan(|plan, scratch| self.encode(plan, scratch, tiles))
    }

    fn step_plan(&self, shape: StepShape) -> Plan {
        self.areas.plan(|plan, scratch| self.step(plan, scratch, shape))
    }

    fn long_rope(&self) -> Option<LongAngles> {
        self.long_rope
    }
}

/// Rows of a tile's hidden states, four for each merged row: of two patches and the two below them, for a tile of `side` by
/// `side` patches. Row 0 is the class token.
fn merged_rows(side: usize) -> Vec<usize> {
    let cells = (0..side / 2).flat_map(|y| (0..side / 2).map(move |x| (2 * y, 2 * x)));
    cells.flat_map(|(y, x)| [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]).map(|(y, x)| 1 + y * side + x).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_neighbours_become_one_row() {
        assert_eq!(merged_rows(4)[..8], [1, 2, 5, 6, 3, 4, 7, 8]);
        let mut all = merged_rows(24);
        assert_eq!(all[4 * 12..][..4], [49, 50, 73, 74], "the second line");
        all.sort_unstable();
        assert_eq!(all, (1..=576).collect::<Vec<_>>());
    }
}
