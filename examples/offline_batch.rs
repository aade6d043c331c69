//! Many pictures at once, and all answers together, with a word on each as it comes.
//!
//! ```sh
//! cargo run --release --example offline_batch
//! ```

use std::error::Error;
use std::io::{self, Write};

use ocelli::engine::{Engine, ImageInput, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};

const QUESTIONS: [(&str, &str); 4] = [
    ("shapes.jpg", "What is in this picture?"),
    ("two-red-triangles.jpg", "What is in this picture?"),
    ("four-orange-rings.jpg", "How many orange rings do you see?"),
    ("yellow-square.jpg", "What is the yellow shape?"),
];

/// Ask, and write questions and answers to `out`.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").open()?;
    let request = |(file, question): &(&str, &str)| -> io::Result<Request> {
        Ok(Request {
            prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, *question)]),
            images: vec![ImageInput::Path(format!("demo/images/{file}").into())],
            sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
            ..Request::default()
        })
    };
    let requests = QUESTIONS.iter().map(request).collect::<io::Result<Vec<_>>>()?;
    let outputs = engine.generate_with(&requests, |i, answer| {
        let how = if answer.is_ok() { "answered" } else { "failed" };
        // Progress is no data: whoever closed the pipe misses nothing.
        let _ = writeln!(io::stderr(), "{} of {} {how}", i + 1, QUESTIONS.len());
    });
    for ((file, question), output) in QUESTIONS.iter().zip(outputs) {
        writeln!(out, "{file}: {question} {}", output?.outputs[0].text)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
