//! What is asked of which engine: flags that `latency` and `throughput` share.

use anyhow::{Result, ensure};
use clap::Args;

use super::super::profile_args::ProfileArgs;
use super::super::{EngineArgs, ModelArgs, run};
use super::outcome::OutcomeArgs;
use super::pictures::{Bytes, PicturesArgs, Random, pixels, words};
use crate::engine::{Device, Engine, ImageInput, Options, Output, Prompt, Request, Sampling};

/// Tokens of a prompt, unless its pictures take more: a picture of LLaVA-1.5 and 69 of text.
const USUAL: usize = 645;
/// Tokens of text beside pictures that take more than that.
const TEXT: usize = 64;

/// What is asked of which engine.
#[derive(Args)]
pub(super) struct WorkArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    #[command(flatten)]
    pub pictures: PicturesArgs,
    /// Tokens of a prompt, those of its pictures among them; 645 when left out, or 64 more than the pictures take
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: Option<u32>,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    pub output_len: u32,
    /// Another one makes other prompts and pictures
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub outcome: OutcomeArgs,
    #[command(flatten)]
    pub profile: ProfileArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl WorkArgs {
    /// Options of an engine without caches: with them, all requests but the first would have next to nothing to do.
    pub fn options(&self) -> Options {
        let options = self.engine.apply(self.model.options(), self.device);
        let max_images = options.max_images.max(self.pictures.count());
        Options { max_images, prefix_caching: false, encoder_caching: false, ..options }
    }

    /// Load the model.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open(&self) -> Result<Engine> {
        run::load(&self.model, self.options())
    }

    /// A greedy request whose prompt has exactly the length that was asked for: pictures, and words.
    ///
    /// # Errors
    /// If no number of words has that length.
    pub fn request(&self, engine: &Engine, pictures: Vec<Bytes>) -> Result<Request> {
        let head: String = (1..=pictures.len()).map(|number| engine.placeholder(number) + "\n").collect();
        let mut request = Request {
            images: pictures.into_iter().map(ImageInput::Bytes).collect(),
            sampling: Sampling { temperature: 0.0, ignore_eos: true, ..Sampling::default() },
            ..Request::default()
        };
        request.sampling.max_tokens = Some(self.output_len as usize);
        let room = engine.max_model_len().saturating_sub(self.output_len as usize);
        let mut longest = words(room.max(1), &mut Random::new(self.seed, u64::MAX - 1));
        let mut tokens_of = |text: &str| -> Result<usize> {
            request.prompt = Prompt::Raw(head.clone() + text);
            Ok(engine.prompt_tokens(&request)?.ids.len())
        };
        let shortest = tokens_of(longest[0])?;
        let usual = USUAL.max(shortest - 1 + TEXT).min(room);
        let wanted = self.input_len.map_or(usual, |tokens| tokens as usize);
        ensure!(
            (shortest..=room).contains(&wanted),
            "--input-len {wanted} cannot be met: a word and the pictures make {shortest} tokens, and the model takes \
             {room} beside the {} of the answer",
            self.output_len
        );
        // As many of the words as do not make too many tokens, and then one of a single token.
        let (mut fit, mut over) = (1, longest.len().min(wanted) + 1);
        while fit + 1 < over {
            let half = fit.midpoint(over);
            if tokens_of(&longest[..half].join(" "))? <= wanted { fit = half } else { over = half }
        }
        longest.truncate(fit);
        let missing = wanted - tokens_of(&longest.join(" "))?;
        let found = tokens_of(&(longest.join(" ") + &" a".repeat(missing)))?;
        ensure!(found == wanted, "--input-len {wanted} cannot be met: words make {found} tokens or fewer than that");
        Ok(request)
    }
}

/// Sizes of pictures, as `640x480`.
pub(super) fn sizes(pictures: &[Bytes]) -> Result<Vec<String>> {
    pictures.iter().map(|bytes| pixels(bytes).map(|rgb| format!("{}x{}", rgb.width(), rgb.height()))).collect()
}

/// Milliseconds a token after the first.
pub(super) fn tpot(ttft: f64, e2el: f64, tokens: usize) -> f64 {
    (e2el - ttft) / (tokens as f64 - 1.0).max(1.0)
}

/// Milliseconds that the engine spent on a request before its first token.
type Part = fn(&Output) -> f64;

/// Those parts, by name and in words.
pub(super) const PARTS: [(&str, &str, Part); 3] = [
    ("prepare_ms", "  pictures and tokens ready", |o| o.timings.prepare_ms),
    ("queue_ms", "  then until it is served", |o| o.timings.queue_ms),
    ("prefill_ms", "  then to the first token", |o| o.timings.prefill_ms),
];
