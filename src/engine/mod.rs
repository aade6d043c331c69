//! Requests in, streams of text out.
//!
//! One thread owns the device and serves many requests at once; pictures are decoded and text is tokenised on the
//! threads that ask. [`Engine`] is a handle that every thread may use.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use ocelli::engine::{Engine, Event, Prompt, Request, Sampling};
//! use ocelli::text::{Message, Role};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder("llava-1.5-7b-hf").max_num_seqs(64).open()?;
//! let request = Request {
//!     prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "What is in this picture?")]),
//!     images: vec![Path::new("cat.jpg").into()],
//!     sampling: Sampling { temperature: 0.0, ..Sampling::default() },
//!     ..Request::default()
//! };
//!
//! // Many at once, and all answers together.
//! for output in engine.generate(&[request.clone(), request.clone()]) {
//!     assert_eq!(output?.image_tokens, [576]);
//! }
//!
//! // One, token by token. In an async function, `while let Some(event) = stream.next().await`.
//! for event in engine.submit(request) {
//!     match event {
//!         Event::Piece(piece) => assert!(piece.logprob <= 0.0),
//!         Event::Done(output) => assert!(!output.outputs[0].token_ids.is_empty()),
//!         Event::Failed(error) => return Err(error.into()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod answers;
mod blocks;
mod builder;
mod checkpoint;
mod encoder_cache;
mod image_array;
mod image_input;
mod instruments;
mod job;
mod memory;
mod options;
mod output;
mod pictures;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod start;
mod stats;
mod step_inputs;
mod step_outputs;
mod stream;
mod window;
mod worker;

pub use blocks::{BlockCounts, BlockKey, BlockPool};
pub use builder::Builder;
pub use checkpoint::Checkpoint;
pub use encoder_cache::{Acquired, CacheCounts, EncoderCache, PictureKey};
pub use image_array::ImageArray;
pub use image_input::ImageInput;
pub use memory::{GPU_STEP_TOKENS, Memory};
pub use options::{
    Device, LoadFormat, MAX_IMAGES, MAX_KV_BLOCKS, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, Options, available_memory,
};
pub use output::{Completion, End, Event, FinishReason, Output, Piece, StopReason, Timings};
pub use request::{Prompt, PromptTokens, PromptTooLong, Request};
pub use runner::{InFlight, Runner};
pub use sampling::{MAX_N, Sampler, Sampling};
pub use scheduler::{Encode, Row, Scheduler, SchedulerCounts, SchedulerLimits, Step};
pub use sequence::{Place, Sequence, SequenceId};
pub(crate) use start::load_model;
pub use start::{Startup, Upload};
pub use stats::Stats;
pub use step_inputs::{LogitRows, SequenceLists, SequenceStep};
pub use step_outputs::{Outputs, Sampled};
pub use stream::Stream;
pub use window::{Ticket, Window};

pub use crate::models::ImageInputType;
pub use crate::ops::MAX_TOP_LOGPROBS;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::Result;
use crate::mem::DType;
use crate::models::Vlm;
use crate::text::Tokenizer;
use crate::trace::{Detail, Trace};
use instruments::Instruments;
use job::Job;
use pictures::Processing;
use request::Ready;
use stream::Lost;
use worker::Arrival;

/// A loaded model that answers many requests at once. Cloning gives another handle to the same.
///
/// When the last handle goes, what was asked is still answered, and dropping it waits for that.
#[derive(Clone)]
pub struct Engine {
    thread: Arc<Thread>,
}

/// The engine's thread, and the only way to reach it.
struct Thread {
    shared: Arc<Shared>,
    arrivals: Option<Sender<Arrival>>,
    handle: Option<JoinHandle<()>>,
}

/// What callers and the engine's thread both know.
struct Shared {
    checkpoint: Checkpoint,
    model: Arc<dyn Vlm>,
    /// What is done to pictures, if a request does not say otherwise.
    processing: Processing,
    runs_kernels: bool,
    backend: &'static str,
    hardware: String,
    warnings: Vec<String>,
    upload: Option<Upload>,
    startup: Startup,
    memory: Memory,
    load_ms: f64,
    stats: Mutex<Stats>,
    /// When the engine's thread began the step that it is at.
    step: Mutex<Option<Instant>>,
    instruments: Mutex<Instruments>,
    lost: Lost,
}

impl Shared {
    /// # Errors
    /// If the device is lost.
    fn alive(&self) -> Result<()> {
        self.lost.error().map_or(Ok(()), Err)
    }

    fn step(&self) -> MutexGuard<'_, Option<Instant>> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Thread {
    /// Nothing can be asked any more; wait until everything that was is answered.
    fn drop(&mut self) {
        self.arrivals = None;
        if let Some(handle) = self.handle.take() {
            // If it panicked, its requests have been told.
            let _ = handle.join();
        }
    }
}

impl Engine {
    /// Choose how a model is loaded.
    pub fn builder(dir: impl Into<PathBuf>) -> Builder {
        Builder::new(dir.into())
    }

    /// Open, check, plan the memory and load the weights, in this order: a bad checkpoint or too little memory is an
    /// error before a byte is copied. `progress` is called with the bytes in place and their total.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for a bad checkpoint, [`Error::Capacity`](crate::Error::Capacity) if it does not fit, [`Error::Device`](crate::Error::Device), or
    /// [`Error::Request`](crate::Error::Request) for impossible options.
    pub fn open(dir: &Path, options: &Options, progress: impl FnMut(u64, u64)) -> Result<Engine> {
        let (shared, arrivals, handle) = start::start(dir, options, progress)?;
        let thread = Thread { shared, arrivals: Some(arrivals), handle: Some(handle) };
        Ok(Engine { thread: Arc::new(thread) })
    }

    /// Ask for an answer. The request is checked, its pictures are decoded and its text is tokenised before this returns;
    /// what is wrong with it comes as the stream's only event.
    pub fn submit(&self, request: Request) -> Stream {
        match self.shared().prepare(&request) {
            Ok(ready) => self.send(ready, None),
            Err(error) => Stream::refused(error),
        }
    }

    /// Ask for the answers to several requests, or for none of them if one is wrong: then the error is that of the first
    /// such request, with its index.
    ///
    /// # Errors
    /// Those that [`Engine::submit`] finds before the model runs.
    pub fn submit_all(&self, requests: &[Request]) -> Result<Vec<Stream>, (usize, crate::Error)> {
        let ready = |(i, request)| self.shared().prepare(request).map_err(|error| (i, error));
        let ready: Vec<Ready> = requests.iter().enumerate().map(ready).collect::<Result<_, _>>()?;
        Ok(ready.into_iter().map(|ready| self.send(ready, None)).collect())
    }

    /// What a request's prompt is to the model, its pictures decoded and expanded as those of an answer would be. It may be
    /// longer than the model takes.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) if the prompt, its pictures or the sampling cannot be taken.
    pub fn prompt_tokens(&self, request: &Request) -> Result<PromptTokens> {
        self.shared().prompt_tokens(request)
    }

    fn send(&self, ready: Ready, ticket: Option<Ticket>) -> Stream {
        let prompt_tokens = ready.output.prompt_token_ids.len();
        let (stream, events, cancelled) = Stream::new(self.shared().lost.clone(), prompt_tokens);
        let arrivals = self.thread.arrivals.as_ref();
        match arrivals.map(|a| a.send(Box::new(Job::new(ready, events, cancelled, ticket)))) {
            Some(Ok(())) => stream,
            _ => Stream::refused(self.shared().lost.or_gone()),
        }
    }

    /// Answer one request. `on_text` gets the answer piece by piece, never a part of a character, and can end it; the
    /// answer is then what it was given. Of several answers it gets the first, and ends them all.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) if the request cannot be answered, [`Error::Capacity`](crate::Error::Capacity) if there is no room for it,
    /// [`Error::Model`](crate::Error::Model) if the model yields no number, [`Error::Device`](crate::Error::Device) if the backend fails.
    pub fn answer(&self, request: &Request, mut on_text: impl FnMut(&str) -> ControlFlow<()>) -> Result<Output> {
        let mut stream = self.send(self.shared().prepare(request)?, None);
        let (mut tokens, mut bytes) = (0, 0);
        let mut wanted = true;
        while let Some(event) = Iterator::next(&mut stream) {
            match event {
                Event::Piece(piece) if wanted && piece.index == 0 => {
                    tokens += 1;
                    bytes += piece.text.len();
                    if !piece.text.is_empty() && on_text(&piece.text).is_break() {
                        wanted = false;
                        stream.cancel();
                    }
                }
                Event::Piece(_) => {}
                Event::Done(mut output) => {
                    let first = &mut output.outputs[0];
                    if !wanted {
                        first.cut(tokens, bytes);
                    } else if bytes < first.text.len() && on_text(&first.text[bytes..]).is_break() {
                        first.finish_reason = FinishReason::Cancelled;
                    }
                    return Ok(*output);
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(self.shared().lost.or_gone())
    }

    /// Answer many requests at once; the answers come in the order of the requests. A request that fails spoils no other.
    pub fn generate(&self, requests: &[Request]) -> Vec<Result<Output>> {
        self.generate_with(requests, |_, _| ())
    }

    /// [`Engine::generate`], with a word on every answer when it and all before it are complete: its index, and what it is.
    /// That is what a progress bar needs, with the tokens of each for a rate; [`Engine::stats`] says from any thread how many
    /// requests and tokens are done amid a long answer.
    pub fn generate_with(
        &self,
        requests: &[Request],
        mut progress: impl FnMut(usize, &Result<Output>),
    ) -> Vec<Result<Output>> {
        // The first are being answered while later pictures are decoded; not all of them, as they take memory.
        let together = 2 * rayon::current_num_threads();
        let window = Window::new(2 * self.memory().max_num_seqs);
        let (mut streams, mut outputs) = (VecDeque::new(), Vec::with_capacity(requests.len()));
        let mut keep = |output| {
            progress(outputs.len(), &output);
            outputs.push(output);
        };
        for some in requests.chunks(together) {
            let ready: Vec<_> = some.par_iter().map(|r| self.shared().prepare(r)).collect();
            let send = |r: Result<Ready>| r.map_or_else(Stream::refused, |r| self.send(r, Some(window.enter())));
            streams.extend(ready.into_iter().map(send));
            while let Some(output) = streams.front_mut().and_then(Stream::try_output) {
                streams.pop_front();
                keep(output);
            }
        }
        streams.into_iter().for_each(|mut stream| keep(stream.output()));
        outputs
    }

    /// Whether requests can be answered.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device is lost or the engine's thread has ended.
    pub fn alive(&self) -> Result<()> {
        self.shared().alive()?;
        if self.thread.handle.as_ref().is_some_and(JoinHandle::is_finished) { Err(stream::gone()) } else { Ok(()) }
    }

    /// How long the engine has been at the step that it computes; `None` while it waits for requests. A step takes
    /// milliseconds on a GPU; one that takes minutes hangs, and so does every request.
    pub fn step_time(&self) -> Option<Duration> {
        self.shared().step().map(|start| start.elapsed())
    }

    /// Record what the engine does from now on: what its threads do, and every plan or launch of its device. A recording
    /// that is under way goes on, in this detail.
    pub fn start_trace(&self, detail: Detail) {
        self.shared().instruments().record(detail);
    }

    /// What was recorded since [`Engine::start_trace`]; nothing is recorded any more. A step that is still under way is not in
    /// it; one whose tokens have arrived is.
    pub fn take_trace(&self) -> Trace {
        self.shared().instruments().take()
    }

    /// Tell a profiler that is attached to this process (`ncu --profile-from-start off`, `nsys --capture-range=cudaProfilerApi`) to
    /// look at the steps from the next one on, or no longer.
    pub fn profile(&self, on: bool) {
        self.shared().instruments().profiled = on;
    }

    /// How things stood after the last step.
    pub fn stats(&self) -> Stats {
        *self.shared().stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As if the device had been lost.
    #[cfg(all(test, feature = "server"))]
    pub(crate) fn lose(&self) {
        let (device, cause) = ("cpu".into(), "a test said so".into());
        self.shared().lost.set(&crate::DeviceLost { device, cause });
    }

    fn shared(&self) -> &Shared {
        &self.thread.shared
    }

    /// What bringing the weights to the device took; `None` if they are random numbers.
    pub fn upload(&self) -> Option<Upload> {
        self.shared().upload
    }

    /// Where the time of its start went.
    pub fn startup(&self) -> Startup {
        self.shared().startup
    }

    /// What there is room for.
    pub fn memory(&self) -> Memory {
        self.shared().memory
    }

    /// Name of the checkpoint's directory.
    pub fn model_name(&self) -> &str {
        &self.shared().checkpoint.name
    }

    /// Longest sequence in tokens, prompt and answer together.
    pub fn max_model_len(&self) -> usize {
        self.shared().checkpoint.max_model_len
    }

    /// Pictures that a prompt may hold.
    pub fn max_images(&self) -> usize {
        self.shared().checkpoint.max_images
    }

    /// What stands for picture `number`, counted from 1, in a [`Prompt::Raw`]: `<image>`, or `<|image_1|>` and so on.
    pub fn placeholder(&self, number: usize) -> String {
        let checkpoint = &self.shared().checkpoint;
        checkpoint.placeholder.text(number, &checkpoint.tokenizer)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared().checkpoint.tokenizer
    }

    /// What runs the plans.
    pub fn backend_name(&self) -> &'static str {
        self.shared().backend
    }

    /// The device it runs on, for example `NVIDIA H200`.
    pub fn hardware(&self) -> &str {
        &self.shared().hardware
    }

    /// Type of the activations.
    pub fn dtype(&self) -> DType {
        self.shared().checkpoint.dtype
    }

    /// What was odd about the checkpoint but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.shared().warnings
    }
}
