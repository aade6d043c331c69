//! What a model asks for against what is stored.

use std::borrow::Cow;
use std::path::Path;

use ocelli::mem::DType;
use ocelli::weights::{SINGLE, Wants, Weights, canonical_llava};

use crate::{fails, file, write};

fn open(dir: &Path, tensors: &[(&str, &str, &[usize])]) -> Weights {
    write(dir, SINGLE, file(tensors));
    Weights::open(dir).unwrap()
}

/// Opens `tensors`, runs `ask`, and returns the outcome.
fn ask(
    tensors: &[(&str, &str, &[usize])],
    strict: bool,
    ask: impl FnOnce(&mut Wants<'_>),
) -> anyhow::Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let weights = open(dir.path(), tensors);
    let mut wants = Wants::new(&weights, Cow::Borrowed)?;
    ask(&mut wants);
    wants.finish(strict)
}

#[test]
fn every_float_type_is_handed_out_as_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let weights = open(dir.path(), &[("a", "F32", &[2]), ("b", "F16", &[2]), ("c", "BF16", &[2])]);
    let mut wants = Wants::new(&weights, Cow::Borrowed).unwrap();
    let types = ["a", "b", "c"].map(|name| wants.want(name, &[2]).unwrap().dtype());
    assert_eq!(types, [DType::F32, DType::F16, DType::Bf16]);
    assert!(wants.finish(true).unwrap().is_empty());
}

#[test]
fn the_type_of_a_checkpoint_is_the_one_with_the_most_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mixed = open(dir.path(), &[("a", "F32", &[2]), ("b", "F16", &[9]), ("c", "BF16", &[3]), ("d", "I64", &[99])]);
    assert_eq!(mixed.float_dtype(), Some(DType::F16));
    let none = open(dir.path(), &[("d", "I64", &[1])]);
    assert_eq!(none.float_dtype(), None);
}

#[test]
fn missing_misshapen_and_unusable_tensors_are_listed_together() {
    let outcome = ask(&[("wide", "F32", &[3, 2]), ("double", "F64", &[2]), ("extra", "F32", &[1])], false, |wants| {
        assert!(wants.want("wide", &[2, 3]).is_none());
        assert!(wants.want("double", &[2]).is_none());
        assert!(wants.want("gone.weight", &[1]).is_none());
        assert!(wants.want("gone.bias", &[1]).is_none());
    });
    fails(
        outcome,
        &[
            "2 tensors missing from the checkpoint: gone.weight; gone.bias",
            "1 tensor of another shape than config.json says: \"wide\" is [3, 2], the model needs [2, 3]",
            "1 tensor of a type that cannot be used (F32, F16 and BF16 can): \"double\" is F64",
            "1 tensor in the checkpoint that the model does not know: \"extra\"",
        ],
    );
}

#[test]
fn types_that_no_model_computes_in_are_refused_only_when_wanted() {
    for dtype in ["F64", "I8", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "U8", "I32"] {
        let outcome = ask(&[("w", dtype, &[2])], false, |wants| assert!(wants.want("w", &[2]).is_none()));
        fails(outcome, &[&format!("\"w\" is {dtype}")]);
        ask(&[("w", dtype, &[2])], true, |wants| wants.ignore(|name| name == "w")).unwrap();
    }
}

#[test]
fn a_vocabulary_that_disagrees_with_the_embedding_shows_both_numbers() {
    for rows in [31, 33] {
        let outcome = ask(&[("embed_tokens.weight", "F32", &[rows, 4])], false, |wants| {
            wants.want("embed_tokens.weight", &[32, 4]);
        });
        fails(outcome, &[&format!("is [{rows}, 4], the model needs [32, 4]")]);
    }
}

#[test]
fn scalars_and_empty_tensors_satisfy_no_wish() {
    let outcome = ask(&[("scalar", "F32", &[]), ("empty", "F32", &[0])], false, |wants| {
        wants.want("scalar", &[1]);
        wants.want("empty", &[1]);
    });
    fails(outcome, &["2 tensors of another shape", "\"scalar\" is []", "\"empty\" is [0]"]);
}

#[test]
fn long_lists_are_cut_after_ten() {
    let outcome = ask(&[("a", "F32", &[1])], false, |wants| {
        for i in 0..25 {
            wants.want(&format!("layers.{i}.weight"), &[1]);
        }
    });
    fails(outcome, &["25 tensors missing", "layers.9.weight; and 15 more"]);
}

#[test]
fn unexpected_tensors_are_a_warning_or_with_strict_an_error() {
    let stored: [(&str, &str, &[usize]); 3] =
        [("w", "F32", &[1]), ("w.inv_freq", "F32", &[1]), ("\u{202e}odd", "F32", &[1])];
    let settle = |wants: &mut Wants<'_>| {
        wants.want("w", &[1]);
        wants.ignore(|name| name.ends_with(".inv_freq"));
    };
    let warnings = ask(&stored, false, settle).unwrap();
    assert_eq!(warnings, [r#"1 tensor in the checkpoint that the model does not know: "\u{202e}odd""#]);
    fails(ask(&stored, true, settle), &["1 tensor in the checkpoint that the model does not know"]);
}

#[test]
fn old_and_new_names_answer_to_the_same_wish() {
    for (tower, text, head) in [
        ("vision_tower.vision_model", "language_model.model", "language_model.lm_head"),
        ("vision_tower", "language_model.model", "language_model.lm_head"),
        ("model.vision_tower", "model.language_model", "lm_head"),
        ("model.vision_tower.vision_model", "model.language_model", "lm_head"),
        ("model.vision_tower.vision_tower.vision_model", "model", "lm_head"),
    ] {
        let names =
            [format!("{tower}.embeddings.class_embedding"), format!("{text}.norm.weight"), format!("{head}.weight")];
        let dir = tempfile::tempdir().unwrap();
        let tensors: Vec<(&str, &str, &[usize])> = names.iter().map(|name| (name.as_str(), "F32", &[1][..])).collect();
        let weights = open(dir.path(), &tensors);
        let mut wants = Wants::new(&weights, canonical_llava).unwrap();
        for name in ["vision_tower.embeddings.class_embedding", "language_model.norm.weight", "lm_head.weight"] {
            assert!(wants.has(name) && wants.want(name, &[1]).is_some(), "{name} in the layout of {tower}");
        }
        assert!(wants.finish(true).unwrap().is_empty());
    }
}

#[test]
fn two_spellings_of_one_tensor_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let weights =
        open(dir.path(), &[("language_model.model.norm.weight", "F32", &[1]), ("model.norm.weight", "F32", &[1])]);
    fails(
        Wants::new(&weights, canonical_llava).map(drop),
        &["\"language_model.model.norm.weight\"", "\"model.norm.weight\"", "two spellings"],
    );
}
