//! The checks that `tokenizer.json` must pass before the `tokenizers` crate sees it.
//!
//! That crate trusts the file: a merge whose result is longer than every entry, or a decoder that strips the end of an
//! empty text, makes it panic; an added token whose id does not follow from its place gets another id with a log line.
//! So the parts that this crate's models use are listed, and everything else is refused by name.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::file::kind;

const NORMALIZERS: [&str; 9] = ["Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip"];
const PRE_TOKENIZERS: [&str; 3] = ["Sequence", "Metaspace", "ByteLevel"];
const DECODERS: [&str; 7] = ["Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "ByteLevel"];

/// Refuses normalizers, pre-tokenizers and decoders that the models here do not use, and a file without a decoder.
///
/// Patterns must be plain strings: the time that a regular expression of the file takes on a user's text has no bound.
pub(super) fn check_components(json: &Value) -> Result<()> {
    check_types(json, "normalizer", "normalizers", &NORMALIZERS)?;
    check_types(json, "pre_tokenizer", "pretokenizers", &PRE_TOKENIZERS)?;
    check_types(json, "decoder", "decoders", &DECODERS)?;
    ensure!(!json["decoder"].is_null(), "field 'decoder' is missing: tokens could not be turned into text");
    if let Some(stop) = parts(&json["decoder"], "decoders").find_map(|part| part["stop"].as_u64().filter(|&n| n > 0)) {
        bail!("decoder 'Strip' has stop {stop}; only 0 is supported, because text is decoded while it is produced");
    }
    Ok(())
}

fn check_types(json: &Value, field: &str, list: &str, known: &[&str]) -> Result<()> {
    for part in parts(&json[field], list) {
        let name = part["type"].as_str().unwrap_or("(none)");
        ensure!(known.contains(&name), "field '{field}' has type '{name}'; supported are {}", known.join(", "));
        ensure!(
            part["pattern"]["Regex"].is_null(),
            "field '{field}', type '{name}' has the regular expression {}; only strings are supported",
            part["pattern"]["Regex"]
        );
        for (key, text) in [("prepend", &part["prepend"]), ("pattern", &part["pattern"]["String"])] {
            ensure!(*text != "", "field '{field}', type '{name}': '{key}' is empty, which the library cannot handle");
        }
    }
    Ok(())
}

/// A component and, if it is a sequence, those inside it. serde_json has already bounded the depth.
fn parts<'a>(component: &'a Value, list: &'a str) -> impl Iterator<Item = &'a Value> {
    let mut pending = if component.is_null() { Vec::new() } else { vec![component] };
    std::iter::from_fn(move || {
        let part = pending.pop()?;
        pending.extend(part[list].as_array().into_iter().flatten());
        Some(part)
    })
}

/// Whether the decoder joins `<0xNN>` tokens to UTF-8.
pub(super) fn has_byte_fallback(json: &Value) -> bool {
    parts(&json["decoder"], "decoders").any(|part| part["type"] == "ByteFallback")
}

/// Checks the BPE model and returns its vocabulary.
pub(super) fn check_model(model: &Value) -> Result<HashMap<String, u32>> {
    let name = model["type"].as_str().unwrap_or("(none)");
    ensure!(name == "BPE", "field 'model.type' is '{name}'; only BPE tokenizers are supported");
    let dropout = &model["dropout"];
    ensure!(
        dropout.is_null() || dropout.as_f64() == Some(0.0),
        "field 'model.dropout' is {dropout}: the same text would give different tokens each time; set it to null"
    );
    for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let value = &model[field];
        ensure!(value.is_null() || value == "", "field 'model.{field}' is {value}; only null is supported");
    }
    let vocab = vocabulary(&model["vocab"])?;
    if let Some(unknown) = model["unk_token"].as_str() {
        ensure!(vocab.contains_key(unknown), "field 'model.unk_token' is {unknown:?}, which is not in the vocabulary");
    }
    check_merges(&model["merges"], &vocab)?;
    Ok(vocab)
}

fn vocabulary(entries: &Value) -> Result<HashMap<String, u32>> {
    let entries =
        entries.as_object().with_context(|| format!("field 'model.vocab' is {}, expected an object", kind(entries)))?;
    ensure!(!entries.is_empty(), "field 'model.vocab' is empty");
    let mut vocab = HashMap::with_capacity(entries.len());
    let mut seen = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("field 'model.vocab': the id of {token:?} is {id}, expected a 32-bit number"))?;
        if let Some(other) = seen.insert(id, token) {
            bail!("field 'model.vocab' gives id {id} to both {other:?} and {token:?}");
        }
        vocab.insert(token.clone(), id);
    }
    Ok(vocab)
}

fn check_merges(merges: &Value, vocab: &HashMap<String, u32>) -> Result<()> {
    let list =
        merges.as_array().with_context(|| format!("field 'model.merges' is {}, expected an array", kind(merges)))?;
    for (rank, merge) in list.iter().enumerate() {
        let Some((left, right)) = merge_parts(merge) else {
            // The library skips such a line of the legacy form.
            if merge.as_str().is_some_and(|line| line.starts_with("#version")) {
                continue;
            }
            bail!("field 'model.merges', entry {rank} is {merge}, expected two pieces");
        };
        for piece in [left, right] {
            ensure!(
                !piece.is_empty() && vocab.contains_key(piece),
                "field 'model.merges', entry {rank}: {piece:?} is not in the vocabulary"
            );
        }
        let joined = format!("{left}{right}");
        ensure!(
            vocab.contains_key(&joined),
            "field 'model.merges', entry {rank}: its result {joined:?} is not in the vocabulary"
        );
    }
    Ok(())
}

/// The two pieces of a merge, written as `"a b"` or `["a", "b"]`.
fn merge_parts(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

/// The BPE model without any way to produce one of the `control` strings: what text that a user wrote is encoded with.
/// `None` if the model has no such way to begin with, as most have not.
///
/// Entries go from the vocabulary because `ignore_merges` looks a whole word up there, because a character or a byte
/// may stand for itself, and merges because they could build the string from its letters. The unknown token stays: it
/// is the model's answer to a character that it does not know.
pub(super) fn without_control(model: &Value, control: &HashSet<&str>) -> Option<Value> {
    let unknown = model["unk_token"].as_str();
    let goes = |piece: &str| unknown != Some(piece) && control.contains(piece);
    let merged = |merge: &Value| {
        merge_parts(merge).is_some_and(|(left, right)| {
            goes(left)
                || goes(right)
                || control.iter().any(|token| token.strip_prefix(left) == Some(right) && goes(token))
        })
    };
    let merges = model["merges"].as_array()?;
    let alone = |token: &&str| token.chars().count() == 1 || byte_of(token).is_some();
    if model["ignore_merges"] != true && !control.iter().any(alone) && !merges.iter().any(merged) {
        return None;
    }
    let mut plain = model.clone();
    if let Some(vocab) = plain["vocab"].as_object_mut() {
        vocab.retain(|token, _| !goes(token));
    }
    if let Some(merges) = plain["merges"].as_array_mut() {
        merges.retain(|merge| !merged(merge));
    }
    Some(plain)
}

/// The byte that a token stands for, by the rule of the library's byte fallback decoder.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The ids that the post-processor puts in front of a text: BOS, or nothing.
///
/// What it would put behind (an EOS) is left out, because every text encoded here is one that the model continues.
pub(super) fn post_processor_prefix(processor: &Value) -> Result<Vec<u32>> {
    let mut prefix = Vec::new();
    for part in parts(processor, "processors") {
        match part["type"].as_str().unwrap_or("(none)") {
            "Sequence" | "ByteLevel" => {}
            "TemplateProcessing" => {
                for piece in part["single"].as_array().into_iter().flatten() {
                    let Some(name) = piece["SpecialToken"]["id"].as_str() else { break };
                    let ids: Vec<u32> = Vec::deserialize(&part["special_tokens"][name]["ids"])
                        .with_context(|| format!("field 'post_processor.special_tokens': no ids for {name:?}"))?;
                    prefix.extend(ids);
                }
            }
            other => bail!(
                "field 'post_processor' has type '{other}'; supported are Sequence, ByteLevel and TemplateProcessing"
            ),
        }
    }
    Ok(prefix)
}
