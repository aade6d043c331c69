//! preprocessor_config.json of Phi-3-vision.

use anyhow::{Result, bail};
use serde_json::Value;

use super::clip::ClipConfig;
use super::json;
use super::object::{Nulls, Object, size};
use super::preprocessor::{CLIP_MEAN, CLIP_STD, ProcessorKwargs, RGB, rgb};

/// How Phi-3-vision's processor cuts and normalises pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct HdConfig {
    /// Most tiles of a picture, without the one that shows everything.
    pub num_crops: u32,
    /// Of red, green and blue, of bytes divided by 255.
    pub mean: [f64; 3],
    /// Of red, green and blue; none is 0.
    pub std: [f64; 3],
}

/// Without effect on the pixels.
const INERT: &[&str] = &["auto_map", "do_convert_rgb", "model_input_names", "processor_class"];

impl HdConfig {
    /// Most tiles that may be asked for.
    pub const MAX_CROPS: u32 = 64;

    /// What the object does not say has the defaults of Phi3VImageProcessor.
    pub(super) fn read(o: &mut Object, vision: &ClipConfig) -> Result<HdConfig> {
        o.choice("image_processor_type", &[("Phi3VImageProcessor", ())])?;
        o.only("num_img_tokens", vision.patches() / 4)?;
        let config = HdConfig {
            num_crops: crops(o)?.unwrap_or(1),
            mean: o.read("image_mean", RGB, |v| rgb(v, |_| true))?.unwrap_or(CLIP_MEAN),
            std: o.read("image_std", format!("{RGB}, none 0"), |v| rgb(v, |x| x as f32 > 0.0))?.unwrap_or(CLIP_STD),
        };
        o.finish(&[INERT])?;
        Ok(config)
    }

    /// These settings with some of them replaced.
    ///
    /// # Errors
    /// When an option is unknown or has a value that this processor cannot do.
    pub fn with_kwargs(&self, kwargs: &ProcessorKwargs) -> Result<HdConfig> {
        if let Some((key, value)) = kwargs.iter().find(|(key, _)| key.as_str() != "num_crops") {
            bail!(
                "mm_processor_kwargs: {} = {} is no option of this model's picture processor; it has num_crops",
                json::shown_key(key),
                json::shown(value)
            );
        }
        let mut o = Object::new("mm_processor_kwargs", kwargs, Nulls::Everywhere);
        Ok(HdConfig { num_crops: crops(&mut o)?.unwrap_or(self.num_crops), ..self.clone() })
    }
}

fn crops(o: &mut Object) -> Result<Option<u32>> {
    let number = |value: &Value| size(value, HdConfig::MAX_CROPS as usize).map(|n| n as u32);
    o.read("num_crops", format!("a whole number from 1 to {}", HdConfig::MAX_CROPS), number)
}
