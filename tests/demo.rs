//! The demo model answers about its 40 held-out pictures what transformers answers, word for word.

#![allow(clippy::print_stdout, reason = "how many answers are right is worth seeing")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli::engine::{Engine, FinishReason, Options, Prompt, Request, Sampling};
use ocelli::mem::DType;
use ocelli::text::{Message, Role};
use serde_json::Value;

fn demo(path: &str) -> PathBuf {
    Path::new("demo").join(path)
}

fn items() -> Vec<Value> {
    let expected: Value = serde_json::from_slice(&fs::read(demo("images/expected.json")).unwrap()).unwrap();
    let items = expected["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 40);
    items
}

fn same_text_as_transformers(dtype: Option<DType>) {
    let options = Options { dtype, ..Options::default() };
    let engine = Engine::open(&demo("llava-shapes"), &options, |_, _| ()).unwrap();
    assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
    let (mut right, mut worst_margin) = (0, f64::INFINITY);
    let items = items();
    for item in &items {
        let (file, question) = (item["file"].as_str().unwrap(), item["question"].as_str().unwrap());
        let request = Request {
            prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, question)]),
            images: vec![demo("images").join(file).into()],
            sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
            ..Request::default()
        };
        let output = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(output.outputs[0].text, item["text"].as_str().unwrap(), "{file}: {question}");
        let ids: Vec<u64> = output.outputs[0].token_ids.iter().map(|&id| u64::from(id)).collect();
        assert_eq!(serde_json::json!(ids), item["token_ids"], "{file}");
        assert_eq!(output.outputs[0].finish_reason, FinishReason::Stop);
        right += usize::from(output.outputs[0].text == item["answer"].as_str().unwrap());
        worst_margin = item["min_margin"].as_f64().unwrap().min(worst_margin);
    }
    println!("{}: {right} of {} answers are right, smallest margin {worst_margin}", engine.dtype(), items.len());
}

#[test]
fn forty_pictures_in_the_checkpoints_own_type() {
    same_text_as_transformers(None);
}

#[test]
fn forty_pictures_in_f32() {
    same_text_as_transformers(Some(DType::F32));
}
