//! What a request moves and computes, by the plans that run it.

use anyhow::Result;

use super::pictures::{self, Bytes};
use crate::config::ProcessorKwargs;
use crate::engine::Checkpoint;
use crate::models::{Limits, StepShape, Vlm};

/// Bytes and operations of a request.
pub(super) struct RequestCost {
    /// Operations until its first token: vision tower, projector, the prompt.
    pub prefill_flops: u64,
    /// Bytes of a decode step alone, its cache as long as it is on average.
    pub decode_bytes: u64,
    /// Operations of that step.
    pub decode_flops: u64,
}

impl RequestCost {
    /// Of a prompt of so many tokens with these pictures, and so many tokens of answer. Builds the model for it, on no
    /// device and without its weights.
    ///
    /// # Errors
    /// If the checkpoint lacks a tensor, or the pictures are none.
    pub fn of(checkpoint: &Checkpoint, pictures: &[Bytes], prompt: usize, output: usize) -> Result<RequestCost> {
        // How many tiles the pictures make is only known once there is a model.
        let tiles = tiles(&*build(checkpoint, prompt, 0)?, pictures)?;
        let model = build(checkpoint, prompt, tiles)?;
        let none = StepShape { decode: 0, prefill_seqs: 0, prefill_tokens: 0, logit_rows: 1, context: prompt };
        let prefill = model.step_plan(StepShape { prefill_seqs: 1, prefill_tokens: prompt, ..none }).cost();
        let encode = if tiles > 0 { model.encode_plan(tiles).cost().flops } else { 0 };
        // The step that reads token k of the answer finds those before it in the cache.
        let decode = model.step_plan(StepShape { decode: 1, context: prompt + output / 2, ..none }).cost();
        Ok(RequestCost {
            prefill_flops: encode + prefill.flops,
            decode_bytes: decode.bytes,
            decode_flops: decode.flops,
        })
    }

    /// Operations of the whole request.
    pub fn flops(&self, output: usize) -> u64 {
        self.prefill_flops + self.decode_flops * output.saturating_sub(1) as u64
    }
}

/// The model for one request with so many tiles.
fn build(checkpoint: &Checkpoint, prompt: usize, tiles: usize) -> crate::Result<Box<dyn Vlm>> {
    checkpoint.build(Limits {
        max_model_len: checkpoint.max_model_len,
        max_num_seqs: 1,
        max_num_batched_tokens: prompt,
        max_logit_rows: 1,
        max_tiles: tiles.max(checkpoint.facts().pictures.max_tiles),
        kept_tiles: 0,
        kv_blocks: 0,
    })
}

fn tiles(model: &dyn Vlm, pictures: &[Bytes]) -> Result<usize> {
    if pictures.is_empty() {
        return Ok(0);
    }
    let processor = model.processor(&ProcessorKwargs::new())?;
    pictures.iter().map(|picture| Ok(processor.prepare(&pictures::pixels(picture)?)?.tiles)).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::Options;

    #[test]
    fn a_request_costs_what_its_plans_do() {
        let checkpoint = Checkpoint::open(Path::new("demo/llava-shapes"), &Options::default()).unwrap();
        let picture = std::fs::read("demo/images/shapes.jpg").unwrap();
        let of = |pictures: &[Bytes], prompt, output| RequestCost::of(&checkpoint, pictures, prompt, output).unwrap();
        let (text, seen) = (of(&[], 200, 3), of(std::slice::from_ref(&picture), 200, 3));
        let model = build(&checkpoint, 200, 2).unwrap();
        assert_eq!(seen.prefill_flops - text.prefill_flops, model.encode_plan(1).cost().flops);
        assert_eq!(of(&[picture.clone(), picture], 200, 3).prefill_flops - text.prefill_flops, {
            model.encode_plan(2).cost().flops
        });
        assert_eq!(text.flops(3), text.prefill_flops + 2 * text.decode_flops);
        // Two operations for each weight that a token meets, and those are read once.
        let weights = of(&[], 1, 1);
        assert!(weights.decode_flops as f64 > 1.5 * weights.decode_bytes as f64 / 4.0, "f32 weights");
        assert!(of(&[], 200, 400).decode_bytes > text.decode_bytes, "a longer cache is more to read");
    }
}
