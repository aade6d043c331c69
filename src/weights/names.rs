//! Tensor names: how they are printed, and the several spellings of one checkpoint.

use std::borrow::Cow;
use std::fmt;

/// Most characters of a name that an error prints.
const SHOWN: usize = 120;

/// A name from a file as an error prints it: in quotes, clipped, and with everything escaped that is not plainly
/// visible.
pub(crate) fn quoted(name: &str) -> Quoted<'_> {
    Quoted(name)
}

/// See [`quoted`].
pub(crate) struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN) {
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// The one name under which LLaVA's code asks for a tensor, whichever program wrote the file.
///
/// Hub files say `language_model.model.layers...` and `vision_tower.vision_model...`; newer versions of transformers
/// write `vision_tower...` without the inner model, or put everything but the head under `model.`; the original
/// repositories nest the tower twice and number the projector's layers. The canonical prefixes are `vision_tower.`,
/// `language_model.`, `lm_head.`, `multi_modal_projector.` and `image_newline`. Other names stay as they are.
pub fn canonical_llava(name: &str) -> Cow<'_, str> {
    for (stored, canonical) in ORIGINAL {
        if let Some(rest) = name.strip_prefix(stored) {
            return Cow::Owned(format!("{canonical}{rest}"));
        }
    }
    let inner = name.strip_prefix("model.").filter(|rest| PARTS.iter().any(|part| rest.starts_with(part)));
    let name = inner.unwrap_or(name);
    if let Some(rest) = name.strip_prefix("vision_tower.") {
        let rest = rest.strip_prefix("vision_tower.").unwrap_or(rest);
        return match rest.strip_prefix("vision_model.") {
            Some(rest) => Cow::Owned(format!("vision_tower.{rest}")),
            None => Cow::Borrowed(name),
        };
    }
    match name.strip_prefix("language_model.") {
        Some(rest) if rest.starts_with("lm_head.") => Cow::Borrowed(rest),
        Some(rest) => match rest.strip_prefix("model.") {
            Some(rest) => Cow::Owned(format!("language_model.{rest}")),
            None => Cow::Borrowed(name),
        },
        None => Cow::Borrowed(name),
    }
}

/// The name under which Phi-3-vision's code asks for a tensor: LLaVA's for what is alike. `wte` is another name of the
/// embedding.
pub fn canonical_phi3v(name: &str) -> Cow<'_, str> {
    for (stored, canonical) in PHI3_V {
        if let Some(rest) = name.strip_prefix(stored) {
            return Cow::Owned(format!("{canonical}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

const PHI3_V: [(&str, &str); 9] = [
    ("model.vision_embed_tokens.img_processor.vision_model.", "vision_tower."),
    ("model.vision_embed_tokens.img_projection.0.", "multi_modal_projector.linear_1."),
    ("model.vision_embed_tokens.img_projection.2.", "multi_modal_projector.linear_2."),
    ("model.vision_embed_tokens.sub_GN", "sub_GN"),
    ("model.vision_embed_tokens.glb_GN", "glb_GN"),
    ("model.vision_embed_tokens.wte.", "language_model.wte."),
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
];

/// What may follow a leading `model.` that means nothing.
const PARTS: [&str; 4] = ["vision_tower.", "language_model.", "multi_modal_projector.", "image_newline"];

/// Prefixes that only the original repositories use.
const ORIGINAL: [(&str, &str); 5] = [
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Prefixes of the tower, the text model, the head, the projector's two layers and the newline, as each program
    /// writes them.
    const LAYOUTS: [(&str, [&str; 6]); 5] = [
        (
            "hub files",
            [
                "vision_tower.vision_model.",
                "language_model.model.",
                "language_model.lm_head.",
                "multi_modal_projector.linear_1.",
                "multi_modal_projector.linear_2.",
                "image_newline",
            ],
        ),
        (
            "transformers 5 by default",
            [
                "vision_tower.",
                "language_model.model.",
                "language_model.lm_head.",
                "multi_modal_projector.linear_1.",
                "multi_modal_projector.linear_2.",
                "image_newline",
            ],
        ),
        (
            "transformers 5 as in memory",
            [
                "model.vision_tower.",
                "model.language_model.",
                "lm_head.",
                "model.multi_modal_projector.linear_1.",
                "model.multi_modal_projector.linear_2.",
                "model.image_newline",
            ],
        ),
        (
            "transformers 4.52 as in memory",
            [
                "model.vision_tower.vision_model.",
                "model.language_model.",
                "lm_head.",
                "model.multi_modal_projector.linear_1.",
                "model.multi_modal_projector.linear_2.",
                "model.image_newline",
            ],
        ),
        (
            "the original repositories",
            [
                "model.vision_tower.vision_tower.vision_model.",
                "model.",
                "lm_head.",
                "model.mm_projector.0.",
                "model.mm_projector.2.",
                "model.image_newline",
            ],
        ),
    ];

    #[test]
    fn every_layout_resolves_to_the_same_names() {
        for (layout, [tower, text, head, first, second, newline]) in LAYOUTS {
            for (stored, canonical) in [
                (format!("{tower}embeddings.class_embedding"), "vision_tower.embeddings.class_embedding"),
                (format!("{tower}pre_layrnorm.weight"), "vision_tower.pre_layrnorm.weight"),
                (
                    format!("{tower}encoder.layers.23.self_attn.q_proj.bias"),
                    "vision_tower.encoder.layers.23.self_attn.q_proj.bias",
                ),
                (format!("{tower}post_layernorm.weight"), "vision_tower.post_layernorm.weight"),
                (format!("{text}embed_tokens.weight"), "language_model.embed_tokens.weight"),
                (format!("{text}layers.0.mlp.up_proj.weight"), "language_model.layers.0.mlp.up_proj.weight"),
                (format!("{text}norm.weight"), "language_model.norm.weight"),
                (format!("{head}weight"), "lm_head.weight"),
                (format!("{first}bias"), "multi_modal_projector.linear_1.bias"),
                (format!("{second}weight"), "multi_modal_projector.linear_2.weight"),
                (newline.to_string(), "image_newline"),
            ] {
                assert_eq!(canonical_llava(&stored), canonical, "{layout}: {stored}");
                assert_eq!(canonical_llava(canonical), canonical, "a canonical name maps to itself");
            }
        }
    }

    #[test]
    fn other_names_stay_as_they_are() {
        for name in
            ["", "model.", "model.foo", "lm_head", "language_modelling.x", "vision_towers.y", "model.lm_head.weight"]
        {
            assert_eq!(canonical_llava(name), name);
        }
    }

    #[test]
    fn printed_names_are_clipped_and_escaped() {
        assert_eq!(quoted("a\0b\u{202e}c").to_string(), r#""a\0b\u{202e}c""#);
        assert_eq!(quoted(&"é".repeat(200)).to_string(), format!("\"{}\"...", "é".repeat(120)));
    }
}
