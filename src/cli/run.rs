//! `ocelli run`: one answer, streamed; a chat when no prompt is given.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::{Value, json};

use super::image_args::PictureArgs;
use super::machine::Machine;
use super::profile_args::ProfileArgs;
use super::{EngineArgs, ModelArgs, chat, human_bytes, progress, tell};
use crate::engine::{
    Checkpoint, Completion, Device, Engine, ImageInput, Options, Output, Prompt, Request, Sampled, Sampling,
};
use crate::text::{Message, Role};
use crate::trace::Detail;

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// The question; without it, a chat that takes /image FILE
    #[arg(short, long, env = "OCELLI_PROMPT", value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    pictures: PictureArgs,
    /// Take the prompt as it is, without the chat template; its <image> are places of pictures
    #[arg(long, requires = "prompt")]
    raw_prompt: bool,
    /// Print one JSON object instead of streaming
    #[arg(long, requires = "prompt")]
    json: bool,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Answers to the prompt, printed when all are complete
    #[arg(long, env = "OCELLI_N", default_value_t = 1, requires = "prompt")]
    n: usize,
    /// 0 takes the most likely token every time
    #[arg(long, env = "OCELLI_TEMPERATURE", default_value_t = 0.0)]
    temperature: f64,
    /// Keep the most likely tokens that reach this probability together
    #[arg(long, env = "OCELLI_TOP_P", default_value_t = 1.0)]
    top_p: f64,
    /// Keep this many of the most likely tokens; 0 or -1 keeps all
    #[arg(long, env = "OCELLI_TOP_K", default_value_t = 0, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    top_k: i64,
    /// Drop tokens below this fraction of the largest probability
    #[arg(long, env = "OCELLI_MIN_P", default_value_t = 0.0)]
    min_p: f64,
    /// Divide the scores of tokens that occurred
    #[arg(long, env = "OCELLI_REPETITION_PENALTY", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Subtract from the scores of tokens of the answer
    #[arg(long, env = "OCELLI_PRESENCE_PENALTY", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Subtract from the scores of tokens of the answer, once for every time they occurred
    #[arg(long, env = "OCELLI_FREQUENCY_PENALTY", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// The same seed gives the same answer; of several, the answer of index i is that of the seed + i
    #[arg(long, env = "OCELLI_SEED")]
    seed: Option<u64>,
    /// Longest answer in tokens
    #[arg(long, env = "OCELLI_MAX_TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Do not end before so many tokens
    #[arg(long, env = "OCELLI_MIN_TOKENS", default_value_t = 0)]
    min_tokens: usize,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// End the answer behind the stop text instead
    #[arg(long, env = "OCELLI_INCLUDE_STOP_STR_IN_OUTPUT", value_parser = FalseyValueParser::new())]
    include_stop_str_in_output: bool,
    /// End the answer at these tokens
    #[arg(long, env = "OCELLI_STOP_TOKEN_IDS", value_name = "ID,...", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Go on after the model's end-of-sequence token
    #[arg(long, env = "OCELLI_IGNORE_EOS", value_parser = FalseyValueParser::new())]
    ignore_eos: bool,
    /// Add this to the score of a token; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f64)>,
    /// Choose no other tokens than these
    #[arg(long, env = "OCELLI_ALLOWED_TOKEN_IDS", value_name = "ID,...", value_delimiter = ',')]
    allowed_token_ids: Option<Vec<u32>>,
    /// Never write this word; may be given several times
    #[arg(long, value_name = "WORD")]
    bad_words: Vec<String>,
    /// Report so many alternatives beside every token; with --json
    #[arg(long, env = "OCELLI_TOP_LOGPROBS", default_value_t = 0)]
    top_logprobs: usize,
    /// Report the tokens of the prompt, with so many alternatives beside each; with --json
    #[arg(long, env = "OCELLI_PROMPT_LOGPROBS")]
    prompt_logprobs: Option<usize>,
}

/// `ID=BIAS`.
fn bias(text: &str) -> Result<(u32, f64), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| "write ID=BIAS, for example 42=-5".into())
}

impl SamplingArgs {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            n: self.n,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: u32::try_from(self.top_k).unwrap_or(0),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            max_tokens: Some(self.max_tokens as usize),
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            include_stop_str_in_output: self.include_stop_str_in_output,
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            logit_bias: self.logit_bias.iter().copied().collect(),
            allowed_token_ids: self.allowed_token_ids.clone(),
            bad_words: self.bad_words.clone(),
            top_logprobs: self.top_logprobs,
            prompt_logprobs: self.prompt_logprobs,
        }
    }
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let sampling = args.sampling.sampling();
    // Before the model is loaded: nobody should wait for a wrong flag or a missing file.
    sampling.check()?;
    let pictures = args.pictures.read()?;
    let options = args.engine.apply(args.model.options(), args.device);
    let trace = args.profile.trace()?;
    let machine = trace.is_some().then(|| machine(&args.model, &options)).transpose()?;
    let engine = load(&args.model, options)?;
    engine.profile(args.profile.profile());
    if trace.is_some() {
        engine.start_trace(Detail::Launches);
    }
    answer(args, &engine, pictures, sampling)?;
    if let (Some(trace), Some(machine)) = (trace, machine) {
        trace.write(&engine.take_trace(), &engine, &machine)?;
    }
    Ok(())
}

/// The machine that `options` choose, with its ceilings.
fn machine(model: &ModelArgs, options: &Options) -> Result<Machine> {
    let checkpoint = Checkpoint::open(&model.directory()?, options)?;
    Machine::of(options.device.choose(checkpoint.dtype)?, checkpoint.dtype, true)
}

/// Answer the question, or hold a chat.
fn answer(args: &RunArgs, engine: &Engine, pictures: Vec<ImageInput>, sampling: Sampling) -> Result<()> {
    let Some(text) = &args.prompt else {
        return chat::run(engine, pictures, &sampling);
    };
    let prompt = if args.raw_prompt {
        Prompt::Raw(text.clone())
    } else {
        let count = pictures.iter().map(ImageInput::count).sum();
        Prompt::Chat(vec![Message::with_images(Role::User, count, text)])
    };
    let request = Request { prompt, images: pictures, sampling, ..Request::default() };
    if args.json {
        let output = engine.answer(&request, |_| ControlFlow::Continue(()))?;
        return Ok(writeln!(io::stdout(), "{:#}", as_json(engine, &output))?);
    }
    let output = if request.sampling.n > 1 { print_all(engine, &request)? } else { stream(engine, &request)? };
    closing_line(engine, &output);
    Ok(())
}

/// Load the model with a bar, and say what there is to say about it.
pub(super) fn load(model: &ModelArgs, options: Options) -> Result<Engine> {
    let engine = open(model, options)?;
    for warning in engine.warnings() {
        tell(format_args!("warning: {warning}"));
    }
    for fact in facts(&engine) {
        tell(format_args!("[{fact}]"));
    }
    Ok(engine)
}

/// Load the model with a bar.
pub(super) fn open(model: &ModelArgs, options: Options) -> Result<Engine> {
    let bar = progress::loading(0);
    let engine = Engine::open(&model.directory()?, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(engine)
}

/// What loading took, and what there is room for.
pub(super) fn facts(engine: &Engine) -> Vec<String> {
    let m = engine.memory();
    let cache = format!(
        "cache of {} blocks, {} tokens, {}; steps of up to {} sequences and {} tokens",
        m.kv_blocks,
        m.kv_tokens,
        human_bytes(m.kv_bytes),
        m.max_num_seqs,
        m.max_num_batched_tokens
    );
    let uploaded = engine.upload().filter(|_| engine.backend_name() != "cpu").map(|upload| {
        let gb = upload.bytes as f64 / 1e9;
        format!("{gb:.2} GB of weights in {:.0} ms, {:.1} GB/s", upload.ms, upload.gb_per_s())
    });
    uploaded.into_iter().chain([cache]).collect()
}

/// Print the answer as it comes. A reader that goes away ends the generation.
pub(super) fn stream(engine: &Engine, request: &Request) -> Result<Output> {
    let mut out = io::stdout();
    let mut closed = None;
    let output = engine.answer(request, |text| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            closed = Some(e);
            ControlFlow::Break(())
        }
    })?;
    match closed {
        Some(e) => Err(e.into()),
        None => {
            writeln!(out)?;
            Ok(output)
        }
    }
}

/// Several answers cannot be printed while they are written side by side.
fn print_all(engine: &Engine, request: &Request) -> Result<Output> {
    let output = engine.answer(request, |_| ControlFlow::Continue(()))?;
    for completion in &output.outputs {
        writeln!(io::stdout(), "[{}] {}", completion.index, completion.text)?;
    }
    Ok(output)
}

/// Tokens, speed, and the hash of the (first answer's) last logits: a change in the numbers shows even where the text is the same.
pub(super) fn closing_line(engine: &Engine, output: &Output) {
    let t = &output.timings;
    tell(format_args!(
        "[{} {}: {} prompt tokens ({} of pictures), {} tokens in {:.2} s, {:.1} tokens/s, first after {:.0} ms, logits {}]",
        engine.backend_name(),
        engine.dtype(),
        output.prompt_token_ids.len(),
        output.image_tokens.iter().sum::<usize>(),
        output.outputs.iter().map(|o| o.token_ids.len()).sum::<usize>(),
        (t.ttft_ms + t.decode_ms) / 1e3,
        t.tokens_per_s,
        t.ttft_ms,
        output.outputs[0].logits_hash
    ));
}

fn completion(o: &Completion) -> Value {
    json!({
        "index": o.index,
        "text": o.text,
        "token_ids": o.token_ids,
        "logprobs": o.logprobs,
        "top_logprobs": o.top_logprobs,
        "finish_reason": o.finish_reason.name(),
        "stop_reason": o.stop_reason,
        "logits_hash": o.logits_hash,
    })
}

/// A token of the prompt.
fn reported(sampled: &Sampled) -> Value {
    json!({ "token_id": sampled.token, "logprob": sampled.logprob, "top_logprobs": sampled.top })
}

fn as_json(engine: &Engine, o: &Output) -> Value {
    json!({
        "model": engine.model_name(),
        "backend": engine.backend_name(),
        "dtype": engine.dtype().name(),
        "prompt": o.prompt,
        "prompt_token_ids": o.prompt_token_ids,
        "prompt_tokens": o.prompt_token_ids.len(),
        "image_tokens": o.image_tokens,
        "cached_tokens": o.cached_tokens,
        "prompt_logprobs": o.prompt_logprobs.iter().map(|p| p.as_ref().map(reported)).collect::<Vec<_>>(),
        "outputs": o.outputs.iter().map(completion).collect::<Vec<_>>(),
        "timings": {
            "upload_ms": engine.upload().map(|u| u.ms),
            "upload_gb_per_s": engine.upload().map(|u| u.gb_per_s()),
            "load_ms": o.timings.load_ms,
            "prepare_ms": o.timings.prepare_ms,
            "queue_ms": o.timings.queue_ms,
            "prefill_ms": o.timings.prefill_ms,
            "ttft_ms": o.timings.ttft_ms,
            "decode_ms": o.timings.decode_ms,
            "tokens_per_s": o.timings.tokens_per_s,
        },
    })
}
