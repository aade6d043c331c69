//! `ocelli serve`: OpenAI's interface over HTTP.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::runtime::Builder;

use super::media_args::{MediaArgs, seconds};
use super::{EngineArgs, ModelArgs, run, tell};
use crate::engine::Device;
use crate::server::http::{Bound, HttpOptions};
use crate::server::media::Media;

#[derive(Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen at; 0.0.0.0 is every one of this machine
    #[arg(long, env = "OCELLI_HOST", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen at; 0 is any free one
    #[arg(long, env = "OCELLI_PORT", default_value_t = 8000)]
    port: u16,
    /// What requests must bring as Authorization: Bearer KEY
    #[arg(long, env = "OCELLI_API_KEY", hide_env_values = true, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    api_key: Option<String>,
    /// A name that requests may have for the model; MODEL and the name of its directory when left out
    #[arg(long, env = "OCELLI_SERVED_MODEL_NAME", value_name = "NAME,...", value_delimiter = ',')]
    served_model_name: Vec<String>,
    /// Longest body of a request
    #[arg(long, env = "OCELLI_MAX_BODY_BYTES", default_value_t = 32 << 20, value_name = "BYTES")]
    max_body_bytes: usize,
    /// Requests that may wait beside those that run; more are told to try again
    #[arg(long, env = "OCELLI_MAX_WAITING_REQUESTS", default_value_t = 256, value_name = "N")]
    max_waiting_requests: u16,
    /// How long requests may take to end after SIGTERM
    #[arg(long, env = "OCELLI_SHUTDOWN_TIMEOUT", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    shutdown_timeout: Duration,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    // What can be wrong without a model is found before one is loaded.
    let media = Media::new(args.media.options())?;
    let runtime = Builder::new_multi_thread().enable_all().build().context("starting the server's threads")?;
    let bound = Bound::new(&args.host, args.port)?;
    let engine = run::load(&args.model, args.engine.apply(args.model.options(), args.device))?;
    let options = HttpOptions {
        served_model_names: args.model.served_names(&args.served_model_name, &engine),
        api_key: args.api_key.clone(),
        max_body_bytes: args.max_body_bytes,
        max_waiting: args.max_waiting_requests.into(),
        drain: args.shutdown_timeout,
        log: |message| tell(format_args!("error: {message}")),
    };
    let served = runtime.block_on(bound.serve(engine, media, options, |address| {
        tell(format_args!("[listening at http://{address}]"));
    }));
    // A fetch that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    served
}
