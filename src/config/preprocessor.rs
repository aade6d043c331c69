//! preprocessor_config.json: how a picture becomes the tower's input.

use std::fmt;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::clip::ClipConfig;
use super::hd::HdConfig;
use super::json;
use super::llava::{LlavaConfig, Select, pinpoints};
use super::model::Family;
use super::object::{Nulls, Object, size};

/// How pictures are made ready, by the kind of processor that a family has.
#[derive(Clone, Debug, PartialEq)]
pub enum Pictures {
    /// LLaVA's: CLIP's steps. In LLaVA-NeXT they apply to every tile, and give its size, its filter and its values.
    Clip(Preprocessor),
    /// Phi-3-vision's.
    Hd(HdConfig),
}

/// CLIP's preprocessing, in the order of its steps: pad, resize, crop, rescale, normalise. Whatever the steps, the
/// result is `image_size` x `image_size` of the tower; that is checked on reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    /// Whether a picture that is not RGB is converted; pictures are always made RGB here.
    pub do_convert_rgb: bool,
    /// Whether the picture is first padded to a square with the mean colour.
    pub do_pad: bool,
    /// Whether it is resized.
    pub do_resize: bool,
    /// To what.
    pub size: Resize,
    /// With which filter.
    pub resample: Resample,
    /// Whether the centre is cut out. Where the picture is smaller than the crop, zeros surround it.
    pub do_center_crop: bool,
    /// Height and width of the crop, in pixels.
    pub crop_size: (usize, usize),
    /// Whether bytes are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Usually 1/255.
    pub rescale_factor: f64,
    /// Whether `mean` is subtracted and the result divided by `std`.
    pub do_normalize: bool,
    /// Of red, green and blue, after rescaling.
    pub mean: [f64; 3],
    /// Of red, green and blue, after rescaling; none is 0.
    pub std: [f64; 3],
    /// Whether these are the steps of every tile of LLaVA-NeXT, which is cut to its size: then they leave its size as it is.
    pub of_tiles: bool,
    /// Whether `do_pad` may be true: LlavaImageProcessor pads when told to, CLIPImageProcessor never.
    pub may_pad: bool,
}

/// `mm_processor_kwargs`: settings of the picture processor by their names in Hugging Face's files.
pub type ProcessorKwargs = serde_json::Map<String, Value>;

/// Those that are known.
const KWARGS: [&str; 12] = [
    "do_convert_rgb",
    "do_pad",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
];

/// `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side becomes so many pixels, the longer follows in proportion.
    ShortestEdge(usize),
    /// Both sides are given; proportions may change.
    Exact {
        /// In pixels.
        height: usize,
        /// In pixels.
        width: usize,
    },
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resize::ShortestEdge(edge) => write!(f, "{{\"shortest_edge\": {edge}}}"),
            Resize::Exact { height, width } => write!(f, "{{\"height\": {height}, \"width\": {width}}}"),
        }
    }
}

/// `resample`, by Pillow's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// 2: the triangle filter.
    Bilinear,
    /// 3: the cubic filter with a = -0.5.
    Bicubic,
}

/// `image_processor_type` without its suffix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Llava,
    Next,
}

/// The classes whose steps are implemented; suffixes name implementations of the same steps.
const KINDS: &[(&str, Kind)] = &[
    ("CLIPImageProcessor", Kind::Clip),
    ("CLIPImageProcessorFast", Kind::Clip),
    ("CLIPImageProcessorPil", Kind::Clip),
    ("LlavaImageProcessor", Kind::Llava),
    ("LlavaImageProcessorFast", Kind::Llava),
    ("LlavaImageProcessorPil", Kind::Llava),
    ("LlavaNextImageProcessor", Kind::Next),
    ("LlavaNextImageProcessorFast", Kind::Next),
    ("LlavaNextImageProcessorPil", Kind::Next),
];

/// Without effect on the pixels: bookkeeping, and the layout of arrays that never leave the process.
const INERT: &[&str] = &[
    "_valid_processor_keys",
    "auto_map",
    "data_format",
    "device",
    "disable_grouping",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "processor_class",
    "return_tensors",
];

/// Without effect in processor_config.json. The number of tokens of a picture follows from the model, not from
/// `num_additional_image_tokens`; templates are read by [`crate::text`].
const PROCESSOR_INERT: &[&str] =
    &["_commit_hash", "auto_map", "chat_template", "num_additional_image_tokens", "processor_class"];

const FILE: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

/// Largest side of a resized or cropped picture.
const MAX_SIDE: usize = 4096;

/// Of CLIP's training pictures: red, green and blue, between 0 and 1.
pub(super) const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub(super) const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// What a file does not say: the defaults of transformers' CLIPImageProcessor, with the means and deviations of CLIP's
/// training pictures.
const CLIP: Preprocessor = Preprocessor {
    do_convert_rgb: true,
    do_pad: false,
    do_resize: true,
    size: Resize::ShortestEdge(224),
    resample: Resample::Bicubic,
    do_center_crop: true,
    crop_size: (224, 224),
    do_rescale: true,
    rescale_factor: 1.0 / 255.0,
    do_normalize: true,
    mean: CLIP_MEAN,
    std: CLIP_STD,
    of_tiles: false,
    may_pad: false,
};

/// Reads both files: transformers 5 writes the picture's settings into processor_config.json, earlier versions into a
/// file of their own. Where both have them, they must agree.
pub(super) fn parse(preprocessor: Option<&[u8]>, processor: Option<&[u8]>, family: &Family) -> Result<Pictures> {
    let own = preprocessor.map(|text| json::object(FILE, text)).transpose()?;
    let beside = processor.map(|text| json::object(PROCESSOR, text)).transpose()?;
    let own = own.as_ref().map(|fields| Object::new(FILE, fields, Nulls::Everywhere));
    let beside = beside.as_ref().map(|fields| Object::new(PROCESSOR, fields, Nulls::Everywhere));
    match family {
        Family::Llava(llava) => Ok(Pictures::Clip(clip(own, beside, llava)?)),
        Family::Phi3V(phi) => {
            let own = own.map(|mut o| HdConfig::read(&mut o, &phi.vision)).transpose()?;
            let nested = beside.map(|mut o| hd_processor_config(&mut o, &phi.vision)).transpose()?.flatten();
            Ok(Pictures::Hd(one_of(own, nested)?))
        }
    }
}

fn clip(own: Option<Object>, beside: Option<Object>, llava: &LlavaConfig) -> Result<Preprocessor> {
    let own = own.map(|mut o| Preprocessor::read(&mut o, llava)).transpose()?;
    let nested = beside.map(|mut o| processor_config(&mut o, llava)).transpose()?.flatten();
    // Either may leave out the class that decides this.
    let may_pad = [&own, &nested].into_iter().flatten().any(|p| p.may_pad);
    let [own, nested] = [own, nested].map(|p| p.map(|p| Preprocessor { may_pad, ..p }));
    one_of(own, nested)
}

/// What the two files say together.
fn one_of<T: PartialEq>(own: Option<T>, nested: Option<T>) -> Result<T> {
    match (own, nested) {
        (Some(own), Some(nested)) => {
            ensure!(
                own == nested,
                "{FILE} contradicts {PROCESSOR}: image_processor; remove the one that is out of date"
            );
            Ok(own)
        }
        (Some(image), None) | (None, Some(image)) => Ok(image),
        (None, None) => bail!(
            "{FILE} is not there, and no {PROCESSOR} with an image_processor either; without it nobody knows how \
             pictures were prepared for this model. Download it into the model directory"
        ),
    }
}

fn hd_processor_config(o: &mut Object, vision: &ClipConfig) -> Result<Option<HdConfig>> {
    let image = o.object("image_processor", Nulls::Everywhere)?;
    o.finish(&[PROCESSOR_INERT])?;
    image.map(|mut image| HdConfig::read(&mut image, vision)).transpose()
}

fn processor_config(o: &mut Object, llava: &LlavaConfig) -> Result<Option<Preprocessor>> {
    let image = o.object("image_processor", Nulls::Everywhere)?;
    let image = image.map(|mut image| Preprocessor::read(&mut image, llava)).transpose()?;
    let patch_size = llava.vision.patch_size;
    if let Some(found) = o.size("patch_size", MAX_SIDE)? {
        ensure!(
            found == patch_size,
            "{} = {found} contradicts config.json: vision_config.patch_size = {patch_size}",
            o.at("patch_size")
        );
    }
    let key = "vision_feature_select_strategy";
    if let Some(found) = o.choice(key, Select::NAMES)? {
        ensure!(found == llava.select, "{} contradicts the same field of config.json", o.at(key));
    }
    let text = |value: &Value| value.as_str().filter(|t| (1..=64).contains(&t.len())).map(String::from);
    // The id in config.json decides.
    o.read("image_token", "a text of 1 to 64 bytes", text)?;
    o.finish(&[PROCESSOR_INERT])?;
    Ok(image)
}

impl Preprocessor {
    /// What the object does not say has the defaults of transformers' CLIPImageProcessor.
    fn read(o: &mut Object, llava: &LlavaConfig) -> Result<Preprocessor> {
        let side = llava.vision.image_size;
        let kind = o.choice("image_processor_type", KINDS)?;
        if let Some(expected) = &llava.pinpoints {
            return Preprocessor::read_next(o, kind, expected, side);
        }
        ensure!(
            kind != Some(Kind::Next),
            "{} is LLaVA-NeXT's, and config.json is not of that model",
            o.at("image_processor_type")
        );
        o.choice("feature_extractor_type", &[("CLIPFeatureExtractor", ()), ("CLIPImageProcessor", ())])?;
        for key in ["default_to_square", "use_square_size"] {
            o.only(key, false)?;
        }
        o.only("pad_size", Value::Null)?;
        let defaults = Preprocessor { may_pad: kind == Some(Kind::Llava), ..CLIP };
        let processor = defaults.overlaid(o, side)?;
        o.finish(&[INERT])?;
        Ok(processor)
    }

    /// LLaVA-NeXT's: the same steps for every tile.
    fn read_next(o: &mut Object, kind: Option<Kind>, expected: &[(u32, u32)], side: usize) -> Result<Preprocessor> {
        ensure!(
            kind.is_none_or(|kind| kind == Kind::Next),
            "{} must be LlavaNextImageProcessor, because config.json is of LLaVA-NeXT",
            o.at("image_processor_type")
        );
        o.choice("aspect_ratio_setting", &[("anyres", ())])?;
        for key in ["default_to_square", "use_square_size"] {
            o.only(key, false)?;
        }
        if let Some(found) = pinpoints(o)? {
            ensure!(
                found == expected,
                "{} contradicts config.json: image_grid_pinpoints; both have height before width, in one order",
                o.at("image_grid_pinpoints")
            );
        }
        let processor = Preprocessor { of_tiles: true, ..CLIP }.overlaid(o, side)?;
        o.finish(&[INERT])?;
        Ok(processor)
    }

    /// These settings with some of them replaced. Whatever they are, the result must be a square of `side` pixels.
    ///
    /// # Errors
    /// When an option is unknown or has a value that this processor cannot do.
    pub fn with_kwargs(&self, kwargs: &ProcessorKwargs, side: usize) -> Result<Preprocessor> {
        if let Some((key, value)) = kwargs.iter().find(|(key, _)| !KWARGS.contains(&key.as_str())) {
            bail!(
                "mm_processor_kwargs: {} = {} is no option of this model's picture processor; it has {}",
                json::shown_key(key),
                json::shown(value),
                KWARGS.join(", ")
            );
        }
        self.overlaid(&mut Object::new("mm_processor_kwargs", kwargs, Nulls::Everywhere), side)
    }

    /// These settings, replaced where the object says something else.
    fn overlaid(&self, o: &mut Object, side: usize) -> Result<Preprocessor> {
        let processor = Preprocessor {
            do_convert_rgb: o.flag("do_convert_rgb")?.unwrap_or(self.do_convert_rgb),
            // Of tiles, it is about the number of them in a batch, of which there is none here.
            do_pad: o.flag("do_pad")?.unwrap_or(self.do_pad) && !self.of_tiles,
            do_resize: o.flag("do_resize")?.unwrap_or(self.do_resize),
            size: o.read("size", SIZES, resize)?.unwrap_or(self.size),
            resample: o.read("resample", "2 (bilinear) or 3 (bicubic)", resample)?.unwrap_or(self.resample),
            do_center_crop: o.flag("do_center_crop")?.unwrap_or(self.do_center_crop),
            crop_size: o.read("crop_size", CROPS, crop)?.unwrap_or(self.crop_size),
            do_rescale: o.flag("do_rescale")?.unwrap_or(self.do_rescale),
            rescale_factor: o
                .number("rescale_factor", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?
                .unwrap_or(self.rescale_factor),
            do_normalize: o.flag("do_normalize")?.unwrap_or(self.do_normalize),
            mean: o.read("image_mean", RGB, |v| rgb(v, |_| true))?.unwrap_or(self.mean),
            std: o.read("image_std", format!("{RGB}, none 0"), |v| rgb(v, |x| x as f32 > 0.0))?.unwrap_or(self.std),
            of_tiles: self.of_tiles,
            may_pad: self.may_pad,
        };
        ensure!(
            !processor.do_pad || processor.may_pad,
            "{} = true contradicts image_processor_type: CLIPImageProcessor never pads, LlavaImageProcessor does",
            o.at("do_pad")
        );
        processor.fits(o, side)?;
        Ok(processor)
    }

    /// The steps must end in a square of `side` pixels.
    fn fits(&self, o: &Object, side: usize) -> Result<()> {
        if self.of_tiles {
            let (height, width) = self.crop_size;
            ensure!(
                self.crop_size == (side, side) && matches!(self.size, Resize::ShortestEdge(n) if n == side),
                "{} = {} and crop_size = {height}x{width} must both be a tile's {side}x{side} pixels, which \
                 config.json: vision_config.image_size says",
                o.at("size"),
                self.size
            );
            return Ok(());
        }
        if self.do_center_crop {
            let (height, width) = self.crop_size;
            ensure!(
                self.crop_size == (side, side),
                "{} = {height}x{width} must be config.json: vision_config.image_size = {side}",
                o.at("crop_size")
            );
            return Ok(());
        }
        let resized = match self.size {
            Resize::Exact { height, width } => (height, width) == (side, side),
            Resize::ShortestEdge(edge) => self.do_pad && edge == side,
        };
        ensure!(
            self.do_resize && resized,
            "{} = false, and size = {} with do_resize = {} does not make every picture {side}x{side}, which \
             config.json: vision_config.image_size asks for",
            o.at("do_center_crop"),
            self.size,
            self.do_resize
        );
        Ok(())
    }
}

const SIZES: &str = "{\"shortest_edge\": pixels}, {\"height\": pixels, \"width\": pixels} or pixels, up to 4096";
const CROPS: &str = "{\"height\": pixels, \"width\": pixels} or pixels, up to 4096";
pub(super) const RGB: &str = "three numbers between -1e6 and 1e6";

fn resize(value: &Value) -> Option<Resize> {
    if let Some(edge) = size(value, MAX_SIDE) {
        return Some(Resize::ShortestEdge(edge));
    }
    let fields = value.as_object()?;
    match fields.get("shortest_edge") {
        Some(edge) if fields.len() == 1 => size(edge, MAX_SIDE).map(Resize::ShortestEdge),
        Some(_) => None,
        None => both(value).map(|(height, width)| Resize::Exact { height, width }),
    }
}

fn crop(value: &Value) -> Option<(usize, usize)> {
    size(value, MAX_SIDE).map(|side| (side, side)).or_else(|| both(value))
}

/// Exactly a height and a width.
fn both(value: &Value) -> Option<(usize, usize)> {
    let fields = value.as_object().filter(|fields| fields.len() == 2)?;
    size(fields.get("height")?, MAX_SIDE).zip(size(fields.get("width")?, MAX_SIDE))
}

fn resample(value: &Value) -> Option<Resample> {
    match value.as_u64()? {
        2 => Some(Resample::Bilinear),
        3 => Some(Resample::Bicubic),
        _ => None,
    }
}

pub(super) fn rgb(value: &Value, allowed: impl Fn(f64) -> bool) -> Option<[f64; 3]> {
    let items = value.as_array()?;
    let numbers: Option<Vec<_>> =
        items.iter().map(|item| item.as_f64().filter(|x| x.abs() <= 1e6 && allowed(*x))).collect();
    numbers?.try_into().ok()
}
