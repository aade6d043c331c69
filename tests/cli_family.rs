//! LLaVA-NeXT and Phi-3-vision on the command line.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const NEXT: &str = "tests/goldens/next-tiny-mistral";
const PHI: &str = "tests/goldens/phi35-tiny";
const WIDE: &str = "tests/goldens/pictures/wide.png";
const TALL: &str = "tests/goldens/pictures/tall.png";

fn ocelli(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = ocelli(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(args: &[&str]) -> String {
    let output = ocelli(args);
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[args, &["--json"]].concat())).unwrap()
}

#[test]
fn inspect_says_what_pictures_cost_and_where_angles_change() {
    let shown = succeed(&["inspect", PHI]);
    for part in [
        "Phi3VForCausalLM, 702144 parameters",
        "56x56 pixels in patches of 14: up to 17 tiles and 103 tokens a picture",
        "2 of 3 blocks run",
        "other angles beyond 64 tokens",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    let shown = succeed(&["inspect", NEXT]);
    for part in [
        "LlavaNextForConditionalGeneration, 296480 parameters",
        "42x42 pixels in patches of 14: up to 5 tiles and 51 tokens a picture",
        "8 heads and 2 of keys and values",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(!shown.contains("angles"), "{shown}");
    for (model, original) in [(PHI, json!(64)), (NEXT, Value::Null)] {
        assert_eq!(json_of(&["inspect", model])["text"]["original_max_position_embeddings"], original, "{model}");
    }
    let few = succeed(&["inspect", PHI, "--mm-processor-kwargs", r#"{"num_crops": 4}"#]);
    // A column of 4 tiles: 5 of 4 rows, a separator, 5 lines of 2 ends.
    assert!(few.contains("up to 5 tiles and 31 tokens a picture"), "{few}");
}

#[test]
fn plans_begin_and_end_where_the_model_does() {
    for model in [NEXT, PHI] {
        for (kind, first, last) in [
            ("encode", "vision/patch_embed", "projector/gemm"),
            ("prefill", "llm/embed_splice", "llm/head/sample"),
            ("decode", "llm/embed_splice", "llm/head/sample"),
        ] {
            let plan = json_of(&["plan", model, kind]);
            let steps = plan["steps"].as_array().unwrap();
            assert_eq!(
                (&steps[0]["label"], &steps[steps.len() - 1]["label"]),
                (&first.into(), &last.into()),
                "{model}"
            );
            assert!(succeed(&["plan", model, kind, "--cost"]).lines().last().unwrap().starts_with("total"));
        }
    }
    let flops = |images| json_of(&["plan", PHI, "encode", "--images", images])["flops"].as_u64().unwrap();
    assert_eq!(flops("2"), 2 * flops("1"));
}

#[test]
fn run_shows_two_pictures() {
    let asked = ["-p", "compare", "--image", WIDE, "--image", TALL, "--max-tokens", "5", "--ignore-eos"];
    for (model, prompt, tokens) in [
        (PHI, "<|user|>\n<|image_1|>\n<|image_2|>\ncompare<|end|>\n<|assistant|>\n", [17, 19]),
        (NEXT, "[INST] <image>\n<image>\ncompare [/INST]", [33, 33]),
    ] {
        let out = json_of(&[&["run", model], &asked[..]].concat());
        assert_eq!((&out["prompt"], &out["image_tokens"]), (&json!(prompt), &json!(tokens)));
        assert_eq!(out["outputs"][0]["token_ids"].as_array().unwrap().len(), 5);
        let told = fail(&[&["run", model], &asked[..], &["--limit-mm-per-prompt", "image=1"]].concat());
        assert!(told.contains("the prompt has 2 pictures; at most 1 image(s)"), "{told}");
    }
    let crops = |n: u32| {
        let options = format!("{{\"num_crops\": {n}}}");
        json_of(&[&["run", PHI], &asked[..], &["--mm-processor-kwargs", &options]].concat())["image_tokens"].clone()
    };
    // 1: one tile each. 16: 3 by 5 tiles, and 5 by 3.
    assert_eq!((crops(1), crops(16)), (json!([13, 13]), json!([73, 77])));
    let told = fail(&["run", PHI, "-p", "a", "--mm-processor-kwargs", r#"{"num_crops": 65}"#]);
    assert!(told.contains("num_crops = 65; expected a whole number from 1 to 64"), "{told}");
    for model in [NEXT, PHI] {
        let told = fail(&["run", model, "-p", "a", "--image-input-type", "image_features"]);
        assert!(
            told.contains("image_features (--image-input-type)") && told.contains("pixels or embeddings"),
            "{told}"
        );
    }
}

/// Lines with two pictures are answered as `run` answers them.
#[cfg(feature = "server")]
#[test]
fn batch_lines_show_two_pictures() {
    use std::fs;

    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let pictures = fs::canonicalize("tests/goldens/pictures").unwrap();
    let image = |name: &str| json!({ "type": "image_url", "image_url": { "url": format!("file://{}/{name}", pictures.display()) } });
    let line = |id: &str, names: &[&str]| {
        let parts: Vec<_> =
            names.iter().map(|name| image(name)).chain([json!({ "type": "text", "text": "compare" })]).collect();
        let messages = json!([{ "role": "user", "content": parts }]);
        let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 5, "ignore_eos": true });
        format!("{}\n", json!({ "custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body }))
    };
    let lines = [
        line("two", &["wide.png", "tall.png"]),
        line("other", &["tall.png", "wide.png"]),
        line("five", &["wide.png"; 5]),
    ];
    fs::write(&input, lines.concat()).unwrap();
    let (from, to, media) = (input.display().to_string(), output.display().to_string(), pictures.display().to_string());
    ocelli(&["batch", PHI, &from, &to, "--allowed-local-media-path", &media]);
    let answers = fs::read_to_string(&output).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    let of = |id: &str| answers.iter().find(|a| a["custom_id"] == id).unwrap();
    for (id, first, second) in [("two", WIDE, TALL), ("other", TALL, WIDE)] {
        let asked = ["-p", "compare", "--image", first, "--image", second, "--max-tokens", "5", "--ignore-eos"];
        let run = json_of(&[&["run", PHI], &asked[..], &["--temperature", "0"]].concat());
        let body = &of(id)["response"]["body"];
        assert_eq!(body["choices"][0]["message"]["content"], run["outputs"][0]["text"], "{id}: {body}");
        assert_eq!(body["usage"]["prompt_tokens"], run["prompt_tokens"], "{id}");
    }
    assert_ne!(of("two")["response"]["body"]["choices"], of("other")["response"]["body"]["choices"]);
    let refused = of("five").to_string();
    assert!(refused.contains("messages show 5 pictures; at most 4 are allowed (--limit-mm-per-prompt)"), "{refused}");
}
