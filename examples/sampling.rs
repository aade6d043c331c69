//! Several answers to one question, drawn with a seed, each with how likely it was.
//!
//! ```sh
//! cargo run --release --example sampling
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::ops::ControlFlow;

use ocelli::engine::{Engine, ImageInput, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};

/// Ask, and write every answer, its log-probability and its first token's alternatives to `out`.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").open()?;
    let request = Request {
        // There is none in it, so the model wavers.
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "Where is the blue circle?")]),
        images: vec![ImageInput::Path("demo/images/shapes.jpg".into())],
        // The answer of index i is that of a request for one with the seed 1 + i.
        sampling: Sampling {
            n: 3,
            temperature: 2.0,
            seed: Some(1),
            max_tokens: Some(32),
            top_logprobs: 3,
            ..Sampling::default()
        },
        ..Request::default()
    };
    let output = engine.answer(&request, |_| ControlFlow::Continue(()))?;
    for answer in &output.outputs {
        let logprob: f32 = answer.logprobs.iter().sum();
        writeln!(out, "[{}] {:?} with log-probability {logprob:.2}", answer.index, answer.text)?;
    }
    for (token, logprob) in &output.outputs[0].top_logprobs[0] {
        let (text, _) = engine.tokenizer().token_text(*token)?;
        writeln!(out, "begins with {text:?} at {:.1} %", logprob.exp() * 100.0)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
