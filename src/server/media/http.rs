//! Pictures behind `http:` and `https:`.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::header::{CONTENT_LENGTH, LOCATION};
use ureq::http::uri::Scheme;
use ureq::http::{StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Error};

use super::{MediaError, MediaOptions, is_public};
use crate::server::openai::clipped;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// A client that asks no proxy, follows nothing by itself and, unless private addresses are allowed, dials public ones alone.
pub(super) fn agent(allow_private_addresses: bool) -> Agent {
    let config = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("ocelli/", env!("CARGO_PKG_VERSION")))
        .build();
    let resolver = Guard { inner: DefaultResolver::default(), allow_private_addresses };
    Agent::with_parts(config, DefaultConnector::default(), resolver)
}

/// Resolves a host once, and refuses it if any of its addresses is private: those that it returns are dialled. Numbers in
/// place of names come this way too.
#[derive(Debug)]
struct Guard<R> {
    inner: R,
    allow_private_addresses: bool,
}

/// What [`Guard`] refuses with.
#[derive(Debug)]
struct NotPublic;

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address is not public")
    }
}

impl std::error::Error for NotPublic {}

impl<R: Resolver> Resolver for Guard<R> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        // What the system's resolver says is not for strangers, and it has no kind of its own for a name that is none.
        let unknown = |error| if let Error::Io(_) = error { Error::HostNotFound } else { error };
        let addresses = self.inner.resolve(uri, config, timeout).map_err(unknown)?;
        if !self.allow_private_addresses && addresses.iter().any(|address| !is_public(address.ip())) {
            return Err(Error::Other(Box::new(NotPublic)));
        }
        Ok(addresses)
    }
}

/// The bytes behind a URL, wherever it leads to.
pub(super) fn get(agent: &Agent, mut uri: Uri, options: &MediaOptions) -> Result<Vec<u8>, MediaError> {
    let deadline = Instant::now() + options.timeout;
    for _ in 0..=MAX_REDIRECTS {
        check(&uri, &options.allowed_media_domains)?;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let request = agent.get(uri.clone()).config().timeout_global(Some(left)).build();
        let response = request.call().map_err(|error| failed(&error, &uri, options))?;
        let status = response.status();
        if !status.is_redirection() {
            return body(response, &uri, options);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        uri = follow(&uri, location, status)?;
    }
    Err(MediaError::new(
        "image_fetch_failed",
        format!("the URL leads on more than {MAX_REDIRECTS} times; give the one where the picture is"),
    ))
}

/// Whether a URL may be asked at all, whatever addresses its host has.
fn check(uri: &Uri, allowed: &[String]) -> Result<(), MediaError> {
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let Some(authority) = authority.filter(|_| [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme()))
    else {
        return Err(MediaError::invalid("the URL names no host; write https://HOST/PATH"));
    };
    if authority.as_str().contains('@') {
        return Err(MediaError::not_allowed("the URL holds a user's name or password; leave it out"));
    }
    let host = authority.host().trim_end_matches('.');
    if !allowed.is_empty() && !allowed.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        return Err(MediaError::not_allowed(format!(
            "pictures from {} are not allowed here (--allowed-media-domains)",
            clipped(host)
        )));
    }
    Ok(())
}

/// Where a redirect leads.
fn follow(from: &Uri, location: Option<&str>, status: StatusCode) -> Result<Uri, MediaError> {
    let broken = || {
        let message = format!("the picture's host answered {} without a usable place to go on", status.as_u16());
        MediaError::new("image_fetch_failed", message)
    };
    let location = location.ok_or_else(broken)?;
    let (scheme, authority) = (from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute = match location {
        _ if has_scheme(location) => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ if location.starts_with('?') => format!("{scheme}://{authority}{}{location}", from.path()),
        _ => {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    let to: Uri = absolute.parse().map_err(|_| broken())?;
    if from.scheme() == Some(&Scheme::HTTPS) && to.scheme() != Some(&Scheme::HTTPS) {
        return Err(MediaError::not_allowed("the URL leads from https: to http:"));
    }
    Ok(to)
}

/// Whether a place is a whole URL. One inside a path or a query does not make it one.
fn has_scheme(location: &str) -> bool {
    let scheme = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    location.split_once("://").is_some_and(|(before, _)| scheme(before))
}

/// The body, never more of it than allowed.
fn body(response: ureq::http::Response<Body>, uri: &Uri, options: &MediaOptions) -> Result<Vec<u8>, MediaError> {
    let status = response.status();
    if status != StatusCode::OK {
        let message = format!("the picture's host answered {}", status.as_u16());
        return Err(MediaError::new("image_fetch_failed", message));
    }
    let declared = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > options.max_bytes) {
        return Err(MediaError::too_large(options.max_bytes));
    }
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(options.max_bytes + 1);
    reader.read_to_end(&mut bytes).map_err(|error| failed(&error.into(), uri, options))?;
    if bytes.len() as u64 > options.max_bytes {
        return Err(MediaError::too_large(options.max_bytes));
    }
    Ok(bytes)
}

/// An error of the client, without what it knows of this machine and its networks.
fn failed(error: &Error, uri: &Uri, options: &MediaOptions) -> MediaError {
    let host = clipped(uri.host().unwrap_or_default());
    let failed = |what: &str| MediaError::new("image_fetch_failed", format!("{host} {what}"));
    match error {
        Error::Timeout(_) => MediaError::new(
            "image_fetch_timeout",
            format!(
                "{host} did not give the picture within {} s (OCELLI_IMAGE_FETCH_TIMEOUT)",
                options.timeout.as_secs_f64()
            ),
        ),
        Error::Other(inner) if inner.is::<NotPublic>() => MediaError::not_allowed(format!(
            "{host} has an address of a private network (--allow-private-media-addresses)"
        )),
        Error::HostNotFound => failed("is no host that can be found"),
        Error::ConnectionFailed => failed("cannot be reached"),
        Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            failed("did not answer as HTTP and TLS want it, or has no certificate that is trusted")
        }
        Error::Io(error) => failed(&format!("cannot be reached or broke off: {}", error.kind())),
        _ => failed("did not answer as HTTP and TLS want it, or has no certificate that is trusted"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    /// Answers every name with the same addresses.
    #[derive(Debug)]
    struct Fixed(Vec<SocketAddr>);

    impl Resolver for Fixed {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
            let mut addresses = self.empty();
            self.0.iter().for_each(|&address| addresses.push(address));
            Ok(addresses)
        }
    }

    /// One private address among public ones, in any place, is enough; and then none is dialled.
    #[test]
    fn a_name_with_any_private_address_is_not_dialled() {
        let canary = TcpListener::bind("127.0.0.1:0").unwrap();
        canary.set_nonblocking(true).unwrap();
        let (private, public) = (canary.local_addr().unwrap(), SocketAddr::from(([8, 8, 8, 8], 80)));
        for addresses in [vec![private], vec![private, public], vec![public, private]] {
            let guard = Guard { inner: Fixed(addresses), allow_private_addresses: false };
            let agent = Agent::with_parts(Config::default(), DefaultConnector::default(), guard);
            let uri = "http://example.test/a.png".parse().unwrap();
            let error = get(&agent, uri, &MediaOptions::default()).unwrap_err();
            assert_eq!(error.code, "image_url_not_allowed", "{error}");
            assert!(!error.message.contains("127."), "{error}");
        }
        assert!(canary.accept().is_err(), "somebody dialled");
    }

    #[test]
    fn redirects_are_urls_that_are_checked_again() {
        let from: Uri = "https://a.test:444/x/y?z".parse().unwrap();
        for (location, to) in [
            ("https://b.test/c", Some("https://b.test/c")),
            ("//b.test/c", Some("https://b.test/c")),
            ("/c", Some("https://a.test:444/c")),
            ("c?d=e", Some("https://a.test:444/x/c?d=e")),
            ("?d=e", Some("https://a.test:444/x/y?d=e")),
            ("/im/https://b.test/c", Some("https://a.test:444/im/https://b.test/c")),
            ("c?next=http://b.test/", Some("https://a.test:444/x/c?next=http://b.test/")),
            ("http://a.test/", None),
            ("file:///etc/passwd", None),
            ("ht tp://b", None),
        ] {
            let found = follow(&from, Some(location), StatusCode::FOUND).ok();
            assert_eq!(found, to.map(|to| to.parse().unwrap()), "{location}");
        }
        assert!(follow(&from, None, StatusCode::FOUND).is_err());
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let allowed = ["pictures.test".to_owned()];
        assert!(check(&uri("http://Pictures.test.:81/a"), &allowed).is_ok());
        for wrong in [
            "http://a.pictures.test/",
            "http://pictures.test@b.test/",
            "http://pictures.test.b.test/",
            "/a",
            "ftp://pictures.test/",
        ] {
            assert!(check(&uri(wrong), &allowed).is_err(), "{wrong}");
        }
        assert!("http://127.0.0.1:80\\@pictures.test/".parse::<Uri>().is_err(), "one reading alone");
    }
}
