//! A service with limits: a queue that has an end, a deadline for every answer, and no work for who has left.
//!
//! ```sh
//! cargo run --release --example embedding
//! ```

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ocelli::engine::{Engine, Output, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// An engine, and how many requests it may have at once. It has no such limit of its own.
struct Service {
    engine: Engine,
    places: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Debug)]
enum Refusal {
    /// As many requests as may be are under way. Nothing was computed.
    Busy,
    /// The deadline has passed. What was computed is lost, and nothing more will be.
    Late,
    /// The engine says why.
    Engine(ocelli::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Busy => f.write_str("busy, try again in a second"),
            Refusal::Late => f.write_str("too late"),
            Refusal::Engine(error) => write!(f, "{error}"),
        }
    }
}

impl Service {
    /// As many requests run as the engine has room for, and so many wait.
    fn new(engine: Engine, waiting: usize) -> Service {
        let places = engine.memory().max_num_seqs + waiting;
        Service { engine, places: Arc::new(Semaphore::new(places)) }
    }

    /// Take a place at once or not at all: whoever is refused can ask another replica. The answer is awaited on its own.
    fn ask(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<impl Future<Output = Result<Output, Refusal>> + Send + 'static, Refusal> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let engine = self.engine.clone();
        let answer = async move {
            // Decoding and tokenising are work of milliseconds: not on a thread of the runtime. The place goes along, for
            // that work is not called back when its deadline passes.
            let submitted = spawn_blocking(move || (engine.submit(request), place)).await;
            let (mut stream, _place) = submitted.expect("submitting does not panic");
            stream.complete().await.map_err(Refusal::Engine)
        };
        // At the deadline the future is dropped, the stream with it, and that cancels the request before its next step.
        Ok(async move { timeout(patience, answer).await.unwrap_or(Err(Refusal::Late)) })
    }
}

fn question(max_tokens: Option<usize>) -> Result<Request, io::Error> {
    Ok(Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
        images: vec![std::fs::read("demo/images/shapes.jpg")?.into()],
        // Without a limit and an end, an answer goes on until the context is full.
        sampling: Sampling { temperature: 0.0, max_tokens, ignore_eos: max_tokens.is_none(), ..Sampling::default() },
        ..Request::default()
    })
}

/// Ask in time, too impatiently, and once too often, and write what comes of it to `out`.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").max_num_seqs(1).open()?;
    let service = Service::new(engine.clone(), 1);
    let runtime = Runtime::new()?;
    let told = |answer: Result<Output, Refusal>| match answer {
        Ok(output) => output.outputs[0].text.clone(),
        Err(refusal) => refusal.to_string(),
    };

    let answer = service.ask(question(Some(64))?, Duration::from_secs(60)).map_err(|r| r.to_string())?;
    writeln!(out, "in time: {}", told(runtime.block_on(answer)))?;

    let answer = service.ask(question(None)?, Duration::from_millis(5)).map_err(|r| r.to_string())?;
    writeln!(out, "impatient: {}", told(runtime.block_on(answer)))?;
    // The engine notices before its next step.
    while engine.stats().cancelled == 0 || service.places.available_permits() < 2 {
        thread::sleep(Duration::from_millis(1));
    }

    // One to run and one to wait: there is no place for a third.
    let patience = Duration::from_secs(60);
    let first = service.ask(question(Some(64))?, patience).map_err(|r| r.to_string())?;
    let second = service.ask(question(Some(64))?, patience).map_err(|r| r.to_string())?;
    let third = service.ask(question(Some(64))?, patience).map(drop);
    writeln!(out, "one too many: {}", third.err().map_or("answered".into(), |refusal| refusal.to_string()))?;
    let (first, second) = (runtime.spawn(first), runtime.spawn(second));
    for answer in [first, second] {
        writeln!(out, "waited: {}", told(runtime.block_on(answer)?))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
