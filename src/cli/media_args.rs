//! Flags about pictures behind URLs.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;

use crate::server::media::MediaOptions;

/// What pictures may be fetched.
#[derive(Args)]
pub(super) struct MediaArgs {
    /// The directory whose files file: URLs may name; without it, none
    #[arg(long, env = "OCELLI_ALLOWED_LOCAL_MEDIA_PATH", value_name = "DIR")]
    allowed_local_media_path: Option<PathBuf>,
    /// The only hosts that http: and https: URLs may name
    #[arg(long, env = "OCELLI_ALLOWED_MEDIA_DOMAINS", value_name = "HOST,...", value_delimiter = ',')]
    allowed_media_domains: Vec<String>,
    /// Let http: and https: URLs reach this machine and its networks
    #[arg(long, env = "OCELLI_ALLOW_PRIVATE_MEDIA_ADDRESSES", value_parser = FalseyValueParser::new())]
    allow_private_media_addresses: bool,
    /// Seconds until a picture must be there; 5 when left out, or what VLLM_IMAGE_FETCH_TIMEOUT says
    #[arg(long, env = "OCELLI_IMAGE_FETCH_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    image_fetch_timeout: Option<Duration>,
}

/// A positive number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse().ok().filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.ok_or_else(|| "write a number of seconds above 0".into())
}

impl MediaArgs {
    pub fn options(&self) -> MediaOptions {
        let base = MediaOptions::default();
        let vllms = || env::var("VLLM_IMAGE_FETCH_TIMEOUT").ok().and_then(|text| seconds(&text).ok());
        MediaOptions {
            allowed_media_domains: self.allowed_media_domains.clone(),
            allow_private_addresses: self.allow_private_media_addresses,
            allowed_local_media_path: self.allowed_local_media_path.clone(),
            timeout: self.image_fetch_timeout.or_else(vllms).unwrap_or(base.timeout),
            ..base
        }
    }
}
