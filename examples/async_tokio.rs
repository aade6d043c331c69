//! The same engine from the tasks of a tokio runtime: they share the steps of one model.
//!
//! ```sh
//! cargo run --release --example async_tokio
//! ```

use std::error::Error;
use std::fs;
use std::io::{self, Write};

use ocelli::engine::{Engine, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

/// Ask about one picture. Decoding it takes a moment, so that is done where blocking is allowed.
async fn ask(engine: Engine, file: &'static str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let submit = move || {
        let request = Request {
            prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
            images: vec![fs::read(format!("demo/images/{file}"))?.into()],
            sampling: Sampling { temperature: 0.0, max_tokens: Some(64), ..Sampling::default() },
            ..Request::default()
        };
        io::Result::Ok(engine.submit(request))
    };
    let mut stream = spawn_blocking(submit).await??;
    // Or `while let Some(event) = stream.next().await`, token by token.
    Ok(stream.complete().await?.outputs.remove(0).text)
}

/// Ask about several pictures at once, and write the answers to `out`.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").open()?;
    let runtime = Runtime::new()?;
    let files = ["shapes.jpg", "two-red-triangles.jpg", "yellow-square.jpg"];
    let tasks = files.map(|file| runtime.spawn(ask(engine.clone(), file)));
    for (file, task) in files.into_iter().zip(tasks) {
        let answer = runtime.block_on(task)?.map_err(|error| error as Box<dyn Error>)?;
        writeln!(out, "{file}: {answer}")?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
