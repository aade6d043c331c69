//! Pictures behind URLs, within what the operator allows.
//!
//! Requests are not trusted, and whoever writes one would have this machine fetch what only this machine can reach. So:
//! hosts are those that the operator named, if any were; every address that a host has must be a public one, and the
//! address that was checked is the one that is dialled; each redirect is a new URL to which all of this applies again; no
//! proxy is asked; files are those under one directory, links resolved; and nothing is read beyond a number of bytes or
//! after a time.

mod address;
mod data;
mod http;
mod local;

pub use address::is_public;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ureq::Agent;
use ureq::http::Uri;

use super::openai::ApiError;
use crate::image::Limits;

/// What may be fetched.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// Hosts of `http:` and `https:` URLs, exactly; without any, all.
    pub allowed_media_domains: Vec<String>,
    /// Whether hosts may have private, local and reserved addresses.
    pub allow_private_addresses: bool,
    /// The directory of `file:` URLs; without one, there are none.
    pub allowed_local_media_path: Option<PathBuf>,
    /// For a whole fetch, redirects and all.
    pub timeout: Duration,
    /// Longest picture file.
    pub max_bytes: u64,
}

impl Default for MediaOptions {
    fn default() -> MediaOptions {
        MediaOptions {
            allowed_media_domains: Vec::new(),
            allow_private_addresses: false,
            allowed_local_media_path: None,
            timeout: Duration::from_secs(5),
            max_bytes: Limits::default().max_bytes,
        }
    }
}

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaError {
    /// For programs: `invalid_image_url`, `image_url_not_allowed`, `image_fetch_failed`, `image_fetch_timeout` or
    /// `image_too_large`.
    pub code: &'static str,
    /// For people. Names no address that a host has, nor any path of this machine.
    pub message: String,
}

impl MediaError {
    fn new(code: &'static str, message: impl Into<String>) -> MediaError {
        MediaError { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> MediaError {
        MediaError::new("invalid_image_url", message)
    }

    fn not_allowed(message: impl Into<String>) -> MediaError {
        MediaError::new("image_url_not_allowed", message)
    }

    fn too_large(max_bytes: u64) -> MediaError {
        MediaError::new("image_too_large", format!("the picture has more than the {max_bytes} bytes that it may have"))
    }

    /// As the error of a request whose field `param` holds the URL.
    pub fn at(&self, param: &str) -> ApiError {
        ApiError::invalid(param, self.code, format!("{param}: {}", self.message))
    }
}

impl fmt::Display for MediaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for MediaError {}

/// Whether a URL holds its bytes itself, so that [`Media::fetch`] waits for nobody.
pub fn is_data(url: &str) -> bool {
    url.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("data"))
}

/// Fetches pictures. For any number of threads at once; each fetch blocks its own.
pub struct Media {
    options: MediaOptions,
    agent: Agent,
    /// [`MediaOptions::allowed_local_media_path`] with its links resolved.
    root: Option<PathBuf>,
}

impl Media {
    /// Nothing is fetched yet.
    ///
    /// # Errors
    /// If the directory of files is none.
    pub fn new(options: MediaOptions) -> Result<Media> {
        let root = match &options.allowed_local_media_path {
            Some(path) => {
                let named = || format!("{} (--allowed-local-media-path)", path.display());
                let root = path.canonicalize().with_context(named)?;
                ensure!(root.is_dir(), "{} is no directory", named());
                Some(root)
            }
            None => None,
        };
        let agent = http::agent(options.allow_private_addresses);
        Ok(Media { options, agent, root })
    }

    /// The bytes behind a URL. What they are is for the decoder to say.
    ///
    /// # Errors
    /// A URL of no known kind or that is not allowed, nothing behind it, too much behind it, or too late.
    pub fn fetch(&self, url: &str) -> Result<Vec<u8>, MediaError> {
        let shown = super::openai::clipped(url);
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        match scheme.as_str() {
            "data" => data::decode(url, self.options.max_bytes),
            "file" => local::read(url, self.root.as_deref(), self.options.max_bytes),
            "http" | "https" => {
                let uri: Uri =
                    url.parse().map_err(|error| MediaError::invalid(format!("{shown} is no URL: {error}")))?;
                http::get(&self.agent, uri, &self.options)
            }
            _ => {
                Err(MediaError::invalid(format!("{shown} is no URL of a picture: write data:, https:, http: or file:")))
            }
        }
    }
}
