//! One answer, token by token, on an ordinary thread.
//!
//! ```sh
//! cargo run --release --example streaming
//! ```

use std::error::Error;
use std::io::{self, Write};

use ocelli::engine::{Engine, Event, ImageInput, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};

/// Ask, and write the answer to `out` while it comes.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").open()?;
    let request = Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
        images: vec![ImageInput::Path("demo/images/shapes.jpg".into())],
        sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
        ..Request::default()
    };
    let mut shown = 0;
    // Dropping the stream would cancel the request.
    for event in engine.submit(request) {
        match event {
            Event::Piece(piece) => {
                shown += piece.text.len();
                write!(out, "{}", piece.text)?;
                out.flush()?;
            }
            // Text that might have become a stop string is held back until it cannot.
            Event::Done(output) => writeln!(out, "{}", &output.outputs[0].text[shown..])?,
            Event::Failed(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
