//! A file of OpenAI batch lines in, a file of answers out.
//!
//! One thread reads lines, a few check them and fetch their pictures, the engine answers many at once, and the thread that
//! called writes each answer as it comes. What is under way is bounded, so memory does not grow with the file but for
//! some 50 bytes a line, by which a `custom_id` is known again.
//!
//! An answer is in the file once its whole line is, so a run that was killed is resumed by starting it again: half a line
//! at the end is cut off, and lines whose `custom_id` has an answer are skipped. A line that is no request of its own, as
//! it has no `custom_id` or that of an earlier line, is known by its number instead.

mod input;
mod line;
mod record;

use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::media::{Media, MediaOptions};
use super::openai::{ApiError, ChatRequest, ImageUrl, Report, chat_completion, unique_id};
use crate::engine::{Engine, Stream, Ticket, Window};
use input::{Lines, Text};
use line::{Answered, Asked, Fault, Who};
use record::{Done, Record};

/// Longest line of the input, in bytes: a few large pictures in base64.
pub const MAX_LINE_BYTES: usize = 64 << 20;
/// Threads that check requests, and fetch and decode their pictures.
const LOADERS: usize = 8;

/// How a batch is answered.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Names that `model` may have in a request; answers to requests without one carry the first.
    pub served_model_names: Vec<String>,
    /// What pictures may be fetched.
    pub media: MediaOptions,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input whose lines are done.
    pub bytes: u64,
    /// Bytes of the input.
    pub total_bytes: u64,
    /// Lines answered in this run.
    pub answered: u64,
    /// Lines that got an error in this run.
    pub failed: u64,
    /// Lines that were done already.
    pub kept: u64,
    /// Those of them that are errors.
    pub kept_failed: u64,
    /// Tokens of the prompts of this run, those of pictures among them.
    pub prompt_tokens: u64,
    /// Tokens of its answers.
    pub completion_tokens: u64,
}

impl Progress {
    /// Lines that are done.
    pub fn lines(&self) -> u64 {
        self.answered + self.failed + self.kept
    }
}

/// A line that needs no more work than to be written down.
struct Finished {
    /// Its length in the input.
    bytes: u64,
    outcome: Outcome,
    /// Its place among those that are under way.
    _ticket: Ticket,
}

enum Outcome {
    /// Its answer was there already; whether that is an error.
    Kept { failed: bool },
    /// Its answer.
    Answered(Answered),
    /// It is not answered, and nothing will be any more.
    Fatal(crate::Error),
}

/// What all threads of a run share.
struct Run<'a> {
    engine: &'a Engine,
    options: &'a BatchOptions,
    media: Media,
    /// Nobody writes any more.
    stopped: AtomicBool,
}

/// Answer the lines of `input` that have no answer in `output` yet. `observe` is told after each.
///
/// # Errors
/// Files that cannot be read or written, an output that is not that of a batch or that somebody else writes, and an engine
/// that answers nothing any more. A line that is wrong gets its error in the output and ends nothing.
pub fn run(
    engine: &Engine,
    input: &Path,
    output: &Path,
    options: &BatchOptions,
    mut observe: impl FnMut(&Progress),
) -> Result<Progress> {
    let file = check(input, output)?;
    let total_bytes = file.metadata()?.len();
    let run = Run { engine, options, media: Media::new(options.media.clone())?, stopped: AtomicBool::new(false) };
    let (mut record, done) = Record::open(output)?;
    let mut progress = Progress { total_bytes, ..Progress::default() };
    let runtime = Builder::new_current_thread().build()?;
    let lines = Lines::new(BufReader::new(file), MAX_LINE_BYTES);
    let (jobs, queue) = sync_channel(0);
    let (results, mut arriving) = unbounded_channel();
    let (run, queue) = (&run, &Mutex::new(queue));

    let written = thread::scope(|scope| {
        let own = results.clone();
        scope.spawn(move || run.read(lines, done, &jobs, &own));
        for _ in 0..LOADERS {
            let (results, handle) = (results.clone(), runtime.handle().clone());
            scope.spawn(move || run.load(queue, &results, &handle));
        }
        drop(results);
        let written = runtime.block_on(async {
            while let Some(finished) = arriving.recv().await {
                progress.bytes += finished.bytes;
                record.write(finished.outcome, &mut progress)?;
                observe(&progress);
            }
            Ok::<_, anyhow::Error>(())
        });
        // With the answers that nobody waits for, the requests go.
        run.stopped.store(true, Ordering::Relaxed);
        drop(arriving);
        drop(runtime);
        written
    });
    written?;
    record.close()?;
    Ok(progress)
}

/// Open the input, and refuse what cannot be one, or cannot take its answers. For whoever wants to know before a model is
/// loaded; [`run`] asks itself.
///
/// # Errors
/// If the input cannot be read, or both are one file.
pub fn check(input: &Path, output: &Path) -> Result<File> {
    let file = File::open(input).with_context(|| input.display().to_string())?;
    ensure!(!file.metadata()?.is_dir(), "{} is a directory; name a file of requests", input.display());
    let same = output.canonicalize().is_ok_and(|out| input.canonicalize().is_ok_and(|input| input == out));
    ensure!(!same, "{} is the input; its answers go into another file", output.display());
    ensure!(!output.is_dir(), "{} is a directory; name a file for the answers", output.display());
    for (path, what) in [(input, "requests"), (output, "answers")] {
        // What was read of a pipe is gone, and a batch is taken up again by reading both.
        let is_file = path.metadata().is_ok_and(|m| m.is_file());
        ensure!(is_file || !path.exists(), "{} is no file; the {what} of a batch stand in a file", path.display());
    }
    Ok(file)
}

impl Run<'_> {
    /// Read all lines, and pass on those that are to be answered.
    fn read(
        &self,
        mut lines: Lines<BufReader<File>>,
        mut done: Done,
        jobs: &SyncSender<(Asked, Ticket)>,
        results: &UnboundedSender<Finished>,
    ) {
        let window = Window::new(2 * self.engine.memory().max_num_seqs);
        // Bytes of empty lines, which count with the next.
        let mut blank = 0;
        loop {
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(error) => {
                    let error = crate::Error::Request(anyhow::Error::new(error).context("reading the input"));
                    let finished = Finished { bytes: 0, outcome: Outcome::Fatal(error), _ticket: window.enter() };
                    // Whoever does not receive has stopped for a reason of its own.
                    let _ = results.send(finished);
                    return;
                }
            };
            let ticket = window.enter();
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let (number, bytes) = (line.number, blank + line.bytes);
            blank = 0;
            let asked = match line.text {
                Text::Blank => {
                    blank = bytes;
                    continue;
                }
                Text::TooLong => Err(Fault::too_long(number, bytes)),
                Text::Whole(text) => Asked::parse(number, bytes, &text),
            };
            let outcome = match asked.and_then(|asked| done.admit(asked)) {
                Ok(Ok(asked)) => match jobs.send((asked, ticket)) {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Ok(Err(failed)) => Outcome::Kept { failed },
                Err(fault) if done.has_fault(&fault) => Outcome::Kept { failed: true },
                Err(fault) => Outcome::Answered(fault.answered()),
            };
            if results.send(Finished { bytes, outcome, _ticket: ticket }).is_err() {
                return;
            }
        }
    }

    /// Check requests, fetch their pictures, ask the engine, and leave it to the runtime to wait.
    fn load(&self, queue: &Mutex<Receiver<(Asked, Ticket)>>, results: &UnboundedSender<Finished>, handle: &Handle) {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((asked, ticket)) = next else { return };
            if self.stopped.load(Ordering::Relaxed) {
                // The reader ends as soon as it is rid of this.
                continue;
            }
            let Asked { who, body } = asked;
            let bytes = who.bytes;
            // A defect that one line finds must not take a loader from all others.
            let asked = body.and_then(|body| {
                let asked = catch_unwind(AssertUnwindSafe(|| self.ask(&body)));
                asked.unwrap_or_else(|_| {
                    Err(ApiError::from(&crate::Error::Model(anyhow!("reading the request failed"))))
                })
            });
            match asked {
                Ok((stream, model, report)) => {
                    let (engine, results) = (self.engine.clone(), results.clone());
                    handle.spawn(async move {
                        let outcome = wait(stream, &engine, &model, report, &who).await;
                        let _ = results.send(Finished { bytes, outcome, _ticket: ticket });
                    });
                }
                Err(error) => {
                    let outcome = Outcome::Answered(who.failed(&error));
                    let _ = results.send(Finished { bytes, outcome, _ticket: ticket });
                }
            }
        }
    }

    /// Ask the engine, and say in whose name and with which reports it answers.
    fn ask(&self, body: &RawValue) -> Result<(Stream, String, Report), ApiError> {
        let mut chat = ChatRequest::parse(body.get(), self.engine.max_images())?;
        let served = &self.options.served_model_names;
        let model = match chat.model.take() {
            Some(name) if !served.is_empty() && !served.contains(&name) => {
                return Err(ApiError::no_such_model(&name, served));
            }
            Some(name) => name,
            None => served.first().cloned().unwrap_or_else(|| self.engine.model_name().to_owned()),
        };
        if chat.delivery.stream {
            let message = "stream is true; a batch has whole answers alone";
            return Err(ApiError::invalid("stream", "unsupported_parameter", message));
        }
        let fetch = |image: &ImageUrl| self.media.fetch(&image.url).map_err(|e| e.at(&image.param));
        let images = chat.images.iter().map(fetch).collect::<Result<Vec<_>, _>>()?;
        let report = chat.report;
        Ok((self.engine.submit(chat.into_request(images)), model, report))
    }
}

/// Wait for an answer, and write it as its line.
async fn wait(mut stream: Stream, engine: &Engine, model: &str, report: Report, who: &Who) -> Outcome {
    let output = match stream.complete().await {
        Ok(output) => output,
        Err(error) if error.is_final() => return Outcome::Fatal(error),
        Err(error) => return Outcome::Answered(who.failed(&ApiError::from(&error))),
    };
    match chat_completion(&unique_id("chatcmpl-"), model, engine.tokenizer(), report, &output) {
        Ok(body) => Outcome::Answered(who.answered(&body, &output)),
        Err(error) => Outcome::Answered(who.failed(&ApiError::from(&crate::Error::Model(error)))),
    }
}
