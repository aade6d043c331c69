//! The demo models answer 40 held-out questions each, about one picture or two, as transformers does, word for word.

#![allow(clippy::print_stdout, reason = "how many answers are right is worth seeing")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use ocelli::engine::{Device, Engine, FinishReason, ImageInput, Options, Prompt, Request, Sampling};
use ocelli::mem::DType;
use ocelli::text::{Message, Role};
use serde_json::Value;

/// A demo model, and the questions with transformers' answers to them.
struct Demo {
    model: &'static str,
    pictures: &'static str,
}

const LLAVA: Demo = Demo { model: "demo/llava-shapes", pictures: "demo/images" };
/// Compares pictures, too.
const PHI: Demo = Demo { model: "demo/phi3v-shapes", pictures: "demo/pairs" };

impl Demo {
    fn items(&self) -> Vec<Value> {
        let expected = fs::read(Path::new(self.pictures).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let items = expected["items"].as_array().unwrap().clone();
        assert_eq!(items.len(), 40);
        items
    }

    /// The files of an item's one picture or several.
    fn files(&self, item: &Value) -> Vec<ImageInput> {
        let several = item["pictures"].as_array().cloned();
        let files = several.unwrap_or_else(|| vec![item["file"].clone()]);
        files.iter().map(|file| Path::new(self.pictures).join(file.as_str().unwrap()).into()).collect()
    }

    fn same_text_as_transformers(&self, dtype: Option<DType>) {
        let options = Options { dtype, device: Device::Cpu, ..Options::default() };
        let engine = Engine::open(Path::new(self.model), &options, |_, _| ()).unwrap();
        assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
        let (mut right, mut worst_margin) = (0, f64::INFINITY);
        let items = self.items();
        for item in &items {
            let (images, question) = (self.files(item), item["question"].as_str().unwrap());
            let request = Request {
                prompt: Prompt::Chat(vec![Message::with_images(Role::User, images.len(), question)]),
                images,
                sampling: Sampling { temperature: 0.0, max_tokens: Some(80), ..Sampling::default() },
                ..Request::default()
            };
            let output = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();
            let answer = &output.outputs[0];
            assert_eq!(answer.text, item["text"].as_str().unwrap(), "{item}");
            assert_eq!(serde_json::json!(answer.token_ids), item["token_ids"], "{item}");
            assert_eq!(answer.finish_reason, FinishReason::Stop);
            if let Some(tokens) = item["prompt_tokens"].as_u64() {
                assert_eq!(output.prompt_token_ids.len() as u64, tokens, "{item}");
                assert_eq!(output.prompt, item["prompt"].as_str().unwrap());
            }
            right += usize::from(answer.text == item["answer"].as_str().unwrap());
            worst_margin = item["min_margin"].as_f64().unwrap().min(worst_margin);
        }
        println!(
            "{} in {}: {right} of {} answers are right, smallest margin {worst_margin}",
            self.model,
            engine.dtype(),
            items.len()
        );
    }
}

#[test]
fn forty_pictures_in_the_checkpoints_own_type() {
    LLAVA.same_text_as_transformers(None);
}

#[test]
fn forty_pictures_in_f32() {
    LLAVA.same_text_as_transformers(Some(DType::F32));
}

#[test]
fn forty_questions_about_pictures_and_pairs_in_the_checkpoints_own_type() {
    PHI.same_text_as_transformers(None);
}

#[test]
fn forty_questions_about_pictures_and_pairs_in_f32() {
    PHI.same_text_as_transformers(Some(DType::F32));
}
