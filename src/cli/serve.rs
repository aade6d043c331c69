//! `ocelli serve`: OpenAI's interface over HTTP.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::http::{HeaderValue, Uri};
use clap::{Args, ValueEnum};
use tokio::runtime::Builder;
use tracing::{info, warn};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::LevelFilter;

use super::media_args::{MediaArgs, seconds};
use super::{EngineArgs, ModelArgs, run};
use crate::engine::Device;
use crate::server::http::{Bound, EngineFailed, EngineHangs, HttpOptions};
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
    /// Sites whose pages may ask, as https://HOST; * is every one; without it, none
    #[arg(long, env = "OCELLI_ALLOWED_ORIGINS", value_name = "ORIGIN,...", value_delimiter = ',', value_parser = origin)]
    allowed_origins: Vec<HeaderValue>,
    /// Longest body of a request
    #[arg(long, env = "OCELLI_MAX_BODY_BYTES", default_value_t = 32 << 20, value_name = "BYTES")]
    max_body_bytes: usize,
    /// Requests that may wait beside those that run; more are told to try again
    #[arg(long, env = "OCELLI_MAX_WAITING_REQUESTS", default_value_t = 256, value_name = "N")]
    max_waiting_requests: u16,
    /// Connections at once; one more takes the place of the one that has been idle longest
    #[arg(long, env = "OCELLI_MAX_CONNECTIONS", default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// How long a client may take to send the head of a request, or to send another on the same connection
    #[arg(long, env = "OCELLI_HEADER_TIMEOUT", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    header_timeout: Duration,
    /// How long a client may take to send a body
    #[arg(long, env = "OCELLI_BODY_TIMEOUT", default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    body_timeout: Duration,
    /// How long a client may read nothing of an answer
    #[arg(long, env = "OCELLI_WRITE_TIMEOUT", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    write_timeout: Duration,
    /// How long a step of the model may take; the process ends when one takes longer, for it hangs
    #[arg(long, env = "OCELLI_STEP_TIMEOUT", default_value = "300", value_name = "SECONDS", value_parser = seconds)]
    step_timeout: Duration,
    /// How long requests may take to end after SIGTERM
    #[arg(long, env = "OCELLI_SHUTDOWN_TIMEOUT", default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    shutdown_timeout: Duration,
    /// The log's lines on stderr: for people, or a JSON object each
    #[arg(long, env = "OCELLI_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,
    /// What the log tells: info is a line for every request and answer, debug one for health checks too
    #[arg(long, env = "OCELLI_LOG_LEVEL", default_value = "info", value_name = "error|warn|info|debug")]
    log_level: LevelFilter,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// `https://HOST:PORT` or `*`.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let uri: Option<Uri> = text.parse().ok();
    let plain = |uri: Uri| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?).to_ascii_lowercase());
    let whole = uri.and_then(plain).is_some_and(|plain| plain == text);
    let value = HeaderValue::from_str(text).ok().filter(|_| whole || text == "*");
    value.ok_or_else(|| "write https://HOST or https://HOST:PORT in small letters, with nothing behind it, or *".into())
}

/// Start the log. A thread writes it, so that nobody waits for whoever reads it; when it is far behind, lines are lost. What is
/// returned writes the last of them when dropped.
fn start_log(args: &ServeArgs) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let log = tracing_subscriber::fmt().with_writer(writer).with_max_level(args.log_level).with_target(false);
    let log = log.log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
    }
    guard
}

pub(super) fn run(args: &ServeArgs) -> Result<()> {
    // What can be wrong without a model is found before one is loaded.
    let media = Media::new(args.media.options())?;
    let runtime = Builder::new_multi_thread().enable_all().build().context("starting the server's threads")?;
    let bound = Bound::new(&args.host, args.port)?;
    let _written = start_log(args);
    let engine = run::open(&args.model, args.engine.apply(args.model.options(), args.device))?;
    engine.warnings().iter().for_each(|warning| warn!("{warning}"));
    run::facts(&engine).iter().for_each(|fact| info!("{fact}"));
    let options = HttpOptions {
        served_model_names: args.model.served_names(&args.served_model_name, &engine),
        api_key: args.api_key.clone(),
        allowed_origins: args.allowed_origins.clone(),
        max_body_bytes: args.max_body_bytes,
        max_waiting: args.max_waiting_requests.into(),
        max_connections: args.max_connections as usize,
        header_timeout: args.header_timeout,
        body_timeout: args.body_timeout,
        write_timeout: args.write_timeout,
        step_timeout: args.step_timeout,
        drain: args.shutdown_timeout,
    };
    let served = runtime.block_on(bound.serve(engine, media, options, |address| {
        info!("listening at http://{address}");
    }));
    // A fetch that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    served
}

/// The exit code of a server that must be started again: its engine has failed or hangs.
pub(super) fn exit_code(error: &anyhow::Error) -> Option<u8> {
    let failed = error.is::<EngineFailed>().then_some(70);
    failed.or(error.is::<EngineHangs>().then_some(71))
}
