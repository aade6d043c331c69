//! Where the time of a request goes: by its own timings, by the engine's books, and by op.
//!
//! ```sh
//! cargo run --release --example measuring
//! ```
//!
//! `ocelli bench` measures with warm-ups, repeats and the ceilings of the card; this is for a service that wants to know
//! about its own requests.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use ocelli::engine::{Engine, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};
use ocelli::trace::{Detail, Kind};

/// Ask the same of several pictures, one after another, and write to `out` where the time went.
pub fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder("demo/llava-shapes").prefix_caching(false).encoder_caching(false).open()?;
    let ask = |file: &str| -> Result<_, Box<dyn Error>> {
        let request = Request {
            prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
            images: vec![fs::read(format!("demo/images/{file}"))?.into()],
            // As many tokens each, so that they can be compared.
            sampling: Sampling { temperature: 0.0, max_tokens: Some(16), ignore_eos: true, ..Sampling::default() },
            ..Request::default()
        };
        Ok(engine.submit(request).output()?)
    };
    // The books are closed behind the last event of an answer.
    let books = |answers| loop {
        let stats = engine.stats();
        if stats.finished == answers {
            return stats;
        }
        thread::yield_now();
    };
    // The first one finds cold memory.
    ask("cat.jpg")?;
    let before = books(1);
    engine.start_trace(Detail::Launches);
    let files = ["shapes.jpg", "two-red-triangles.jpg", "yellow-square.jpg"];
    let timings = files.into_iter().map(|file| Ok(ask(file)?.timings)).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let trace = engine.take_trace();
    let after = books(4);

    for (file, t) in files.iter().zip(&timings) {
        let (prepare, queue, prefill, rate) = (t.prepare_ms, t.queue_ms, t.prefill_ms, t.tokens_per_s);
        writeln!(
            out,
            "{file}: prepared {prepare:.1} ms, waited {queue:.1}, prefill {prefill:.1}, then {rate:.0} tokens a second"
        )?;
    }
    let tokens = after.generation_tokens - before.generation_tokens;
    writeln!(out, "{} steps, {tokens} tokens", after.steps - before.steps)?;

    let mut ops: BTreeMap<&str, Duration> = BTreeMap::new();
    for launch in trace.runs.iter().filter(|run| run.kind == Kind::Decode).flat_map(|run| &run.launches) {
        *ops.entry(launch.op).or_default() += launch.time;
    }
    let mut ops: Vec<_> = ops.into_iter().collect();
    ops.sort_by_key(|&(_, time)| std::cmp::Reverse(time));
    for (op, time) in ops {
        writeln!(out, "decode, {op}: {:.2} ms", time.as_secs_f64() * 1e3)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout())
}
