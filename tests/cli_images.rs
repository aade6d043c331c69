//! Pictures on the command line: arrays in files, and the flags that say how pictures are given.

mod inputs;

use std::path::Path;
use std::process::{Command, Stdio};

use ocelli::backend::Cpu;
use ocelli::mem::DType;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const MODEL: &str = "tests/goldens/llava-tiny-mha";
const WIDE: &str = "tests/goldens/pictures/wide.png";

/// Exit code, standard output and standard error.
fn ocelli(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")) {
        command.env_remove(name);
    }
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn succeed(args: &[&str]) -> String {
    let (code, out, told) = ocelli(args);
    assert_eq!(code, Some(0), "{args:?}: {told}");
    out
}

fn fail(args: &[&str], code: i32) -> String {
    let (found, out, told) = ocelli(args);
    assert_eq!((found, out.as_str()), (Some(code), ""), "{args:?}: {told}");
    told
}

/// The answer to a question, as `run` prints it.
fn run(more: &[&str]) -> Value {
    let all = ["run", MODEL, "-p", "what is this?", "--max-tokens", "6", "--ignore-eos", "--json"];
    serde_json::from_str(&succeed(&[&all, more].concat())).unwrap()
}

/// The features and the embeddings of the wide picture in one file.
fn file(dir: &Path) -> String {
    let rows = inputs::rows(Path::new(MODEL), DType::F32, |sizes| Cpu::new(sizes).unwrap(), &[WIDE.into()]);
    let tensors = [("features", &rows.features), ("embeds", &inputs::one(&rows.embeddings, 0))];
    let tensors = tensors
        .map(|(name, array)| (name, TensorView::new(Dtype::F32, array.shape.clone(), array.data.bytes()).unwrap()));
    let path = dir.join("rows.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    path.display().to_string()
}

#[test]
fn arrays_in_files_answer_as_their_pictures_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path());
    let (features, embeds) = (format!("{file}:features"), format!("{file}:embeds"));
    let expected = run(&["--image", WIDE]);
    let type_flag = ["--image-input-type", "image_features"];
    for flags in [
        vec!["--image-features", features.as_str()],
        vec!["--image-embeds", &embeds],
        [&type_flag[..], &["--image-features", &features]].concat(),
        [&type_flag[..], &["--image-embeds", &embeds]].concat(),
    ] {
        let found = run(&flags);
        for field in
            ["/prompt_token_ids", "/image_tokens", "/outputs/0/token_ids", "/outputs/0/logits_hash", "/outputs/0/text"]
        {
            let value = |report: &Value| report.pointer(field).unwrap().clone();
            assert_eq!(value(&found), value(&expected), "{field} with {flags:?}");
        }
    }
    let two = run(&["--image", WIDE, "--image-features", &features, "--image-embeds", &embeds]);
    assert_eq!(two["image_tokens"], json!([16, 16, 16]));

    let run = |more: &[&'static str]| [&["run", MODEL, "-p", "a"], more].concat();
    let message = fail(&[&run(&["--image-embeds"])[..], &[&features]].concat(), 1);
    assert!(message.contains("give it as image features (--image-features)"), "{message}");
    let message = fail(&[&run(&["--image-embeds"])[..], &[&file]].concat(), 1);
    assert!(message.contains("it holds 2 tensors, \"embeds\", \"features\""), "{message}");
    let message = fail(&run(&["--image-features", "no/such.safetensors"]), 1);
    assert!(message.contains("no/such.safetensors: No such file"), "{message}");
    let message = fail(&run(&["--image", WIDE, "--image-input-type", "image_features"]), 1);
    assert!(message.contains("picture 1: it is given as pixels"), "{message}");
    let message = fail(
        &[&run(&["--image", WIDE, "--limit-mm-per-prompt", "image=1", "--image-embeds"])[..], &[&embeds]].concat(),
        1,
    );
    assert!(message.contains("the prompt has 2 pictures; at most 1 image(s)"), "{message}");
}

#[test]
fn flags_of_vllm_0_5_0_must_agree_with_the_checkpoint() {
    let agreeing = ["--image-token-id", "323", "--image-feature-size", "16", "--image-input-shape", "1,3,32,32"];
    assert_eq!(run(&[&agreeing[..], &["--image", WIDE]].concat())["image_tokens"], json!([16]));
    for (flag, value, says) in [
        (
            "--image-token-id",
            "32000",
            "image_token_id is 32000 (--image-token-id), and config.json says image_token_index = 323",
        ),
        ("--image-feature-size", "576", "image_feature_size is 576"),
        ("--image-input-shape", "1,3,336,336", "image_input_shape is [1, 3, 336, 336]"),
        ("--mm-processor-kwargs", "{\"num_crops\": 4}", "num_crops = 4 is no option"),
    ] {
        let message = fail(&["run", MODEL, "-p", "a", flag, value], 1);
        assert!(message.contains(says), "{message}");
    }
    for (flag, value, says) in [
        ("--image-input-type", "pixels", "write pixel_values or image_features"),
        ("--image-input-shape", "1,three", "invalid digit"),
        ("--mm-processor-kwargs", "{", "not valid JSON"),
        ("--limit-mm-per-prompt", "video=1", "write image=N"),
    ] {
        let message = fail(&["run", MODEL, "-p", "a", flag, value], 2);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn processor_options_and_the_limit_are_vllms() {
    let plain = run(&["--image", WIDE]);
    let other = run(&["--image", WIDE, "--mm-processor-kwargs", "{\"resample\": 2}"]);
    let hash = |report: &Value| report["outputs"][0]["logits_hash"].as_str().unwrap().to_owned();
    assert_ne!(hash(&plain), hash(&other));
    assert_eq!(hash(&run(&["--image", WIDE, "--limit-mm-per-prompt", "{\"image\": 1}"])), hash(&plain));
}

/// Without its tower a model has less to load, less to plan and less to run.
#[test]
fn inspect_and_plan_know_whether_there_is_a_tower() {
    let features = ["--image-input-type", "image_features"];
    let weights = |more: &[&str]| -> (u64, u64) {
        let report: Value = serde_json::from_str(&succeed(&[&["inspect", MODEL, "--json"], more].concat())).unwrap();
        let run = report["vision"]["blocks_run"].as_u64().unwrap();
        (report["memory"]["weights_bytes"].as_u64().unwrap(), run)
    };
    let ((whole, blocks), (rest, none)) = (weights(&[]), weights(&features));
    assert!(rest < whole && blocks > 0 && none == 0);
    let plan = |more: &[&str]| succeed(&[&["plan", MODEL, "encode"], more].concat());
    assert!(plan(&[]).contains("vision/"));
    let short = plan(&features);
    assert!(short.contains("projector/gemm") && !short.contains("vision/") && short.contains("2 launches"), "{short}");
}
