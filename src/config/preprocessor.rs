//! preprocessor_config.json: how a picture becomes the tower's input.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::clip::ClipConfig;
use super::json;
use super::llava::{LlavaConfig, Select};
use super::object::{Nulls, Object, size};

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
}

/// The classes whose steps are implemented; suffixes name implementations of the same steps.
const KINDS: &[(&str, Kind)] = &[
    ("CLIPImageProcessor", Kind::Clip),
    ("CLIPImageProcessorFast", Kind::Clip),
    ("CLIPImageProcessorPil", Kind::Clip),
    ("LlavaImageProcessor", Kind::Llava),
    ("LlavaImageProcessorFast", Kind::Llava),
    ("LlavaImageProcessorPil", Kind::Llava),
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
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
    may_pad: false,
};

/// What the two files say together.
pub(super) struct Processor {
    pub image: Preprocessor,
    pub image_token: String,
}

/// Reads both files: transformers 5 writes the picture's settings into processor_config.json, earlier versions into a
/// file of their own. Where both have them, they must agree.
pub(super) fn parse(preprocessor: Option<&[u8]>, processor: Option<&[u8]>, llava: &LlavaConfig) -> Result<Processor> {
    let own = match preprocessor {
        Some(text) => {
            let fields = json::object(FILE, text)?;
            Some(Preprocessor::read(&mut Object::new(FILE, &fields, Nulls::Everywhere), &llava.vision)?)
        }
        None => None,
    };
    let (nested, image_token) = match processor {
        Some(text) => {
            let fields = json::object(PROCESSOR, text)?;
            processor_config(&mut Object::new(PROCESSOR, &fields, Nulls::Everywhere), llava)?
        }
        None => (None, None),
    };
    let image = match (own, nested) {
        (Some(own), Some(nested)) => {
            // Either may leave out the class that decides this.
            let may_pad = own.may_pad || nested.may_pad;
            let [own, nested] = [own, nested].map(|p| Preprocessor { may_pad, ..p });
            ensure!(
                own == nested,
                "{FILE} contradicts {PROCESSOR}: image_processor; remove the one that is out of date"
            );
            own
        }
        (Some(image), None) | (None, Some(image)) => image,
        (None, None) => bail!(
            "{FILE} is not there, and no {PROCESSOR} with an image_processor either; without it nobody knows how \
             pictures were prepared for this model. Download it into the model directory"
        ),
    };
    Ok(Processor { image, image_token: image_token.unwrap_or_else(|| "<image>".into()) })
}

fn processor_config(o: &mut Object, llava: &LlavaConfig) -> Result<(Option<Preprocessor>, Option<String>)> {
    let image = match o.object("image_processor", Nulls::Everywhere)? {
        Some(mut image) => Some(Preprocessor::read(&mut image, &llava.vision)?),
        None => None,
    };
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
    let image_token = o.read("image_token", "a text of 1 to 64 bytes", text)?;
    o.finish(&[PROCESSOR_INERT])?;
    Ok((image, image_token))
}

impl Preprocessor {
    /// What the object does not say has the defaults of transformers' CLIPImageProcessor.
    fn read(o: &mut Object, vision: &ClipConfig) -> Result<Preprocessor> {
        let kind = o.choice("image_processor_type", KINDS)?;
        o.choice("feature_extractor_type", &[("CLIPFeatureExtractor", ()), ("CLIPImageProcessor", ())])?;
        for key in ["default_to_square", "use_square_size"] {
            o.only(key, false)?;
        }
        o.only("pad_size", Value::Null)?;
        let defaults = Preprocessor { may_pad: kind == Some(Kind::Llava), ..CLIP };
        let processor = defaults.overlaid(o, vision.image_size)?;
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
            do_pad: o.flag("do_pad")?.unwrap_or(self.do_pad),
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
            std: o.read("image_std", format!("{RGB}, none 0"), |v| rgb(v, |x| x > 0.0))?.unwrap_or(self.std),
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
            "{} = false, and size = {:?} with do_resize = {} does not make every picture {side}x{side}, which \
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
const RGB: &str = "three numbers between -1e6 and 1e6";

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

fn rgb(value: &Value, allowed: impl Fn(f64) -> bool) -> Option<[f64; 3]> {
    let items = value.as_array()?;
    let numbers: Option<Vec<_>> =
        items.iter().map(|item| item.as_f64().filter(|x| x.abs() <= 1e6 && allowed(*x))).collect();
    numbers?.try_into().ok()
}
