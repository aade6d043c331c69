//! A checkpoint in several files.

use std::path::Path;

use ocelli::weights::{INDEX, Weights};
use serde_json::{Value, json};

use crate::{fails, file, write};

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";

/// Tensors `a` and `b` in the first shard, `c` in the second, and this index.
fn shards(dir: &Path, index: &Value) -> anyhow::Result<Weights> {
    write(dir, ONE, file(&[("a", "F32", &[2]), ("b", "F16", &[2])]));
    write(dir, TWO, file(&[("c", "BF16", &[2])]));
    write(dir, INDEX, index.to_string());
    Weights::open(dir)
}

fn refused(index: &Value, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    fails(shards(dir.path(), index).map(drop), parts);
}

fn good() -> Value {
    json!({ "metadata": { "total_size": 16 }, "weight_map": { "a": ONE, "b": ONE, "c": TWO } })
}

#[test]
fn shards_open_together() {
    let dir = tempfile::tempdir().unwrap();
    let weights = shards(dir.path(), &good()).unwrap();
    assert_eq!(weights.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(weights.files().map(|(name, _)| name).collect::<Vec<_>>(), [ONE, TWO]);
    assert_eq!((weights.get("a").unwrap().file, weights.get("c").unwrap().file), (0, 1));
    assert!(weights.warnings().is_empty(), "{:?}", weights.warnings());
}

#[test]
fn a_wrong_total_size_and_an_unlisted_tensor_are_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let weights =
        shards(dir.path(), &json!({ "metadata": { "total_size": 17 }, "weight_map": { "a": ONE, "c": TWO } }));
    let warnings = weights.unwrap().warnings().join("\n");
    assert!(warnings.contains("total_size = 17") && warnings.contains("have 16 bytes"), "{warnings}");
    assert!(warnings.contains("does not list tensor \"b\""), "{warnings}");
}

#[test]
fn an_index_without_metadata_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let weights = shards(dir.path(), &json!({ "weight_map": { "a": ONE, "b": ONE, "c": TWO } })).unwrap();
    assert!(weights.warnings().is_empty());
}

#[test]
fn an_absent_shard_is_named() {
    refused(
        &json!({ "weight_map": { "a": ONE, "c": "model-00003-of-00003.safetensors" } }),
        &["model-00003-of-00003.safetensors", "index", "the file is not there"],
    );
}

#[test]
fn a_tensor_in_another_shard_or_in_none_is_named() {
    refused(
        &json!({ "weight_map": { "a": TWO, "b": ONE, "c": TWO } }),
        &[INDEX, "puts tensor \"a\" into \"model-00002", "it is in \"model-00001"],
    );
    refused(&json!({ "weight_map": { "a": ONE, "x": TWO } }), &["puts tensor \"x\"", "which lacks it"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), ONE, file(&[("a", "F32", &[2])]));
    write(dir.path(), TWO, file(&[("a", "F32", &[2]), ("c", "F32", &[1])]));
    write(dir.path(), INDEX, json!({ "weight_map": { "a": ONE, "c": TWO } }).to_string());
    fails(Weights::open(dir.path()).map(drop), &[TWO, "tensor \"a\" is also in", ONE]);
}

#[test]
fn shard_names_are_never_paths() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir_all(model.join("sub")).unwrap();
    for place in ["outside.safetensors", "model/sub/inside.safetensors"] {
        write(dir.path(), place, file(&[("a", "F32", &[2])]));
    }
    let absolute = dir.path().join("outside.safetensors");
    for name in [
        "../outside.safetensors",
        absolute.to_str().unwrap(),
        "sub/inside.safetensors",
        "./model-00001-of-00002.safetensors",
        "sub\\inside.safetensors",
        "C:inside.safetensors",
        "..",
        "",
        "/etc/passwd",
        "pytorch_model.bin",
        ".safetensors",
        "a\0.safetensors",
    ] {
        let result = shards(&model, &json!({ "weight_map": { "a": name } }));
        fails(result.map(drop), &["weight_map[\"a\"]", "is not the plain name"]);
    }
}

#[cfg(unix)]
#[test]
fn a_shard_may_not_be_a_link_elsewhere() {
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "x", file(&[("a", "F32", &[2])]));
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("x"), dir.path().join(ONE)).unwrap();
    write(dir.path(), INDEX, json!({ "weight_map": { "a": ONE } }).to_string());
    fails(Weights::open(dir.path()).map(drop), &[ONE, "link out of the model directory"]);
}

#[test]
fn a_malformed_index_is_refused() {
    for (text, part) in [
        ("", "the index is not valid"),
        ("[]", "expected an object"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":{}}"#, "weight_map is empty"),
        (r#"{"weight_map":{"a":1}}"#, "expected a string"),
        (r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, "\"a\" occurs twice"),
        (r#"{"weight_map":{"a":"x.safetensors"},"weight_map":{}}"#, "duplicate field `weight_map`"),
        (r#"{"metadata":{"total_size":"9"},"weight_map":{"a":"x.safetensors"}}"#, "the index is not valid"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), INDEX, text);
        fails(Weights::open(dir.path()).map(drop), &[INDEX, part]);
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), INDEX, format!(r#"{{"weight_map":{}"#, "[".repeat(100_000)));
    fails(Weights::open(dir.path()).map(drop), &[INDEX]);
}
