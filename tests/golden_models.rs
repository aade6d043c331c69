//! The whole model against transformers, on tiny random checkpoints: pixels, vision features, projected rows, logits at
//! every position of the prompt, and 64 greedy tokens with their log-probabilities.
//!
//! Bounds come from transformers' own runs, recorded in `tests/goldens/`: its f32 run differs from its f64 run by 6.4e-7
//! relative L2 on logits, while the smallest wrong detail that was tried makes 4e-5, so f32 is held to 1e-5 (and, element
//! by element, to 1e-4 of the largest logit). Its f16 and bf16 runs differ from its f32 run by what
//! `native_against_f32` records; another correct order of roundings lies as far away, hence twice that.

#![allow(clippy::print_stdout, reason = "how much of a bound was used is worth seeing")]

// Each test uses a part of it.
#[allow(dead_code)]
mod golden;

use std::fs;

use golden::{GREEDY, Golden, SEQUENCES, goldens, hold, max_abs, relative_l2};
use ocelli::backend::Cpu;
use ocelli::config::{Config, Pictures, ProcessorKwargs};
use ocelli::engine::{LogitRows, SequenceStep};
use ocelli::image::{self, Alpha, Limits};
use ocelli::mem::DType;
use ocelli::models::clip_processor;

const F32_RELATIVE_L2: f64 = 1e-5;
const F32_ELEMENT: f64 = 1e-4;

fn open(folder: &str, dtype: Option<DType>) -> Golden<Cpu> {
    Golden::open(folder, dtype, |regions| Cpu::new(regions).unwrap())
}

#[test]
fn f32_is_transformers() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let mut g = open(folder, None);
        assert_eq!(g.checkpoint.dtype, DType::F32);
        for name in g.picture_names() {
            let features = g.encode(&[&name], "gather");
            hold(
                &format!("{folder} {name} features"),
                relative_l2(&features, &g.floats(&format!("picture/{name}/vision_features"))),
                F32_RELATIVE_L2,
            );
            let projected = g.encode(&[&name], "gemm");
            hold(
                &format!("{folder} {name} projected"),
                relative_l2(&projected, &g.floats(&format!("picture/{name}/projected"))),
                F32_RELATIVE_L2,
            );
        }
        for case in g.case_names() {
            let prompt = g.prompt(&case);
            let logits = g.logits(&prompt, prompt.len());
            let expected = g.floats(&format!("case/{case}/logits"));
            hold(&format!("{folder} {case} logits"), relative_l2(&logits, &expected), F32_RELATIVE_L2);
            let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
            hold(
                &format!("{folder} {case} worst logit"),
                max_abs(&logits, &expected) / f64::from(largest),
                F32_ELEMENT,
            );
            let (tokens, logprobs) = g.greedy(&prompt);
            assert_eq!(tokens, g.ids(&format!("case/{case}/greedy_ids")), "{folder} {case}");
            hold(
                &format!("{folder} {case} logprobs"),
                max_abs(&logprobs, &g.floats(&format!("case/{case}/greedy_logprobs"))),
                1e-4,
            );
        }
    }
}

#[test]
fn half_precision_is_as_close_as_transformers_is() {
    for (folder, dtype) in [("llava-tiny-gqa-f16", DType::F16), ("llava-tiny-gqa-bf16", DType::Bf16)] {
        let mut g = open(folder, None);
        assert_eq!(g.checkpoint.dtype, dtype);
        g.is_as_close_as_transformers(folder);
    }
}

/// Weights are rounded when they are loaded in a narrower type, and widened exactly in a wider one.
#[test]
fn a_checkpoint_in_another_type_is_the_checkpoint_of_that_type() {
    for (folder, dtype) in [("llava-tiny-gqa-f16", DType::F16), ("llava-tiny-gqa-bf16", DType::Bf16)] {
        let mut converted = open("llava-tiny-gqa", Some(dtype));
        let mut stored = open(folder, None);
        let mut widened = open(folder, Some(DType::F32));
        for case in stored.case_names() {
            let prompt = stored.prompt(&case);
            assert_eq!(prompt, converted.prompt(&case));
            let logits = stored.logits(&prompt, prompt.len());
            assert_eq!(logits, converted.logits(&prompt, prompt.len()), "{folder} {case}");
            let prompt = widened.prompt(&case);
            let logits = widened.logits(&prompt, prompt.len());
            let expected = stored.floats(&format!("case/{case}/logits"));
            hold(&format!("{folder} as f32, {case} logits"), relative_l2(&logits, &expected), F32_RELATIVE_L2);
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa-f16"] {
        let mut g = open(folder, None);
        for case in ["two_pictures", "text"] {
            let prompt = g.prompt(case);
            let whole = g.logits(&prompt, prompt.len());
            for chunk in [1, 3, 16, 17] {
                assert_eq!(whole, g.logits(&prompt, chunk), "{folder} {case} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn pixels_are_transformers_bit_for_bit() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let g = open(folder, None);
        let Pictures::Clip(preprocessor) = Config::load(&goldens().join(folder)).unwrap().pictures else { panic!() };
        let processor = clip_processor(&preprocessor);
        for name in g.picture_names() {
            let tensor = format!("picture/{name}/pixel_values");
            assert!(g.has(&tensor));
            let bytes = fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap();
            let rgb = image::decode(&bytes, Alpha::Drop, &Limits::default()).unwrap();
            let found = processor.normalise(&processor.apply(&rgb).unwrap());
            assert!(found == g.floats(&tensor), "{folder} {name}");
        }
    }
}

/// Two sequences that decode and one that brings a chunk of its prompt, in one step, over blocks that are dealt out in turn:
/// each row has the bits that it has alone.
#[test]
fn a_mixed_step_has_the_bits_of_its_parts() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa-bf16"] {
        let mut g = open(folder, None);
        let prompts = ["text", "two_pictures", "picture_start"].map(|case| g.ids(&format!("case/{case}/input_ids")));
        let alone = prompts.clone().map(|prompt| g.logits(&prompt, prompt.len()));
        let total = (SEQUENCES * g.checkpoint.max_model_len.min(256).div_ceil(16)) as i32;
        let blocks: [Vec<i32>; 3] = [0, 1, 2].map(|s| (0..total).rev().filter(|b| b % 3 == s).collect());
        // All but the last token of two prompts, and the first ten of the third.
        let cached = [prompts[0].len() - 1, prompts[1].len() - 1, 10];
        for (s, (prompt, &cached)) in prompts.iter().zip(&cached).enumerate() {
            let step = SequenceStep {
                ids: &prompt[..cached],
                cached: 0,
                first_angle: 0,
                blocks: &blocks[s],
                sampling: GREEDY,
            };
            g.runner.step(&[step], LogitRows::Last).unwrap();
        }
        let mixed: Vec<_> = (0..3)
            .map(|s| SequenceStep {
                ids: &prompts[s][cached[s]..],
                cached: cached[s],
                first_angle: 0,
                blocks: &blocks[s],
                sampling: GREEDY,
            })
            .collect();
        let shape = g.runner.step(&mixed, LogitRows::All).unwrap();
        assert_eq!((shape.decode, shape.prefill_seqs, shape.prefill_tokens), (2, 1, prompts[2].len() - 10));
        let logits = g.runner.logits(shape.logit_rows).unwrap();
        let vocab = logits.len() / shape.logit_rows;
        let expected =
            [&alone[0][cached[0] * vocab..], &alone[1][cached[1] * vocab..], &alone[2][10 * vocab..]].concat();
        assert_eq!(logits, expected, "{folder}");

        let shape = g.runner.step(&mixed, LogitRows::Last).unwrap();
        assert_eq!(shape.logit_rows, 3);
        let last = g.runner.logits(3).unwrap();
        for (s, row) in last.chunks_exact(vocab).enumerate() {
            assert_eq!(row, &alone[s][alone[s].len() - vocab..], "{folder} sequence {s}");
        }
    }
}

/// Sequences that bring one token come first; anything else is refused before a buffer is written.
#[test]
fn a_step_that_cannot_be_is_refused() {
    let mut g = open("llava-tiny-mha", None);
    let blocks = g.blocks();
    let step = |ids, blocks| SequenceStep { ids, cached: 0, first_angle: 0, blocks, sampling: GREEDY };
    let cases: [(&[SequenceStep<'_>], &str); 3] = [
        (&[step(&[1, 2], &blocks[..1]), step(&[1], &blocks[1..2])], "sequence 1 is out of order"),
        (&[step(&[], &blocks[..1])], "sequence 0 is out of order"),
        (&[step(&[1; 17], &blocks[..1])], "sequence 0 has 17 tokens and 1 blocks"),
    ];
    for (steps, expected) in cases {
        let error = g.runner.step(steps, LogitRows::Last).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The picture that stands for the worst case costs what the model says the worst case is.
#[test]
fn the_dummy_image_costs_the_most_tokens() {
    for folder in ["llava-tiny-mha", "llava-tiny-gqa"] {
        let g = open(folder, None);
        let model = g.runner.model();
        let processor = model.processor(&ProcessorKwargs::new()).unwrap();
        let tiles = processor.prepare(&model.dummy_image().unwrap()).unwrap();
        assert_eq!(tiles.tokens(), g.checkpoint.facts().pictures.tokens.most());
    }
}
