//! A conversation: every turn is a request with all that was said, of which the prefix cache holds most.
//!
//! ```sh
//! cargo run --release --example chat
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::ops::ControlFlow;

use ocelli::engine::{Engine, ImageInput, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};

/// Talk about one picture, and write both sides to `out`.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").open()?;
    let picture = ImageInput::Path("demo/images/shapes.jpg".into());
    let mut messages = Vec::new();
    for question in ["What is in this picture?", "How many red stars are there?", "What is written in this picture?"] {
        // The first message shows the picture; later ones refer to it.
        let images = usize::from(messages.is_empty());
        messages.push(Message::with_images(Role::User, images, question));
        let request = Request {
            prompt: Prompt::Chat(messages.clone()),
            images: vec![picture.clone()],
            sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
            ..Request::default()
        };
        let output = engine.answer(&request, |_| ControlFlow::Continue(()))?;
        let answer = &output.outputs[0].text;
        writeln!(out, "> {question}\n{answer} ({} prompt tokens from the cache)", output.cached_tokens)?;
        messages.push(Message::text(Role::Assistant, answer));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
