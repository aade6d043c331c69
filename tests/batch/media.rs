//! Pictures behind URLs: those that are allowed, whole; of all others nothing, and nobody inside hears of them.

use std::fs;
use std::time::{Duration, Instant};

use ocelli::server::media::{Media, MediaOptions};

use super::host::Host;
use super::picture;

fn media(options: MediaOptions) -> Media {
    Media::new(options).unwrap()
}

fn inside() -> MediaOptions {
    let timeout = Duration::from_secs(2);
    MediaOptions { allow_private_addresses: true, timeout, max_bytes: 1 << 20, ..MediaOptions::default() }
}

#[test]
fn a_picture_comes_whole_also_by_way_of_others() {
    let bytes = fs::read(picture("wide.png")).unwrap();
    let host = Host::start(bytes.clone());
    let media = media(inside());
    let elsewhere = format!("to/{}", host.url("to//picture"));
    for path in ["picture", "to//picture", "picture#part", &elsewhere] {
        assert_eq!(media.fetch(&host.url(path)).unwrap(), bytes, "{path}");
    }
}

#[test]
fn a_bad_host_is_an_error_with_a_reason_in_time() {
    let host = Host::start(vec![1; 100]);
    let loops = format!("to/{}", host.url("to/x"));
    let media = media(inside());
    for (path, code, part) in [
        ("missing", "image_fetch_failed", "answered 404"),
        ("endless", "image_too_large", "more than the 1048576 bytes"),
        ("boast", "image_too_large", "more than the 1048576 bytes"),
        ("drip", "image_fetch_timeout", "within 2 s (OCELLI_IMAGE_FETCH_TIMEOUT)"),
        ("silence", "image_fetch_timeout", "within 2 s"),
        ("half", "image_fetch_failed", "127.0.0.1"),
        ("nonsense", "image_fetch_failed", "127.0.0.1"),
        ("to/http://[", "image_fetch_failed", "answered 302 without a usable place"),
        ("to/file:///etc/passwd", "image_fetch_failed", "answered 302 without a usable place"),
        ("to/gopher://a.test/", "invalid_image_url", "names no host"),
        (&loops, "image_fetch_failed", "leads on more than 3 times"),
    ] {
        let start = Instant::now();
        let error = media.fetch(&host.url(path)).unwrap_err();
        assert!(error.code == code && error.message.contains(part), "{path}: {} {error}", error.code);
        assert!(start.elapsed() < Duration::from_secs(8), "{path} took {:?}", start.elapsed());
    }
    let secure = host.url("picture").replace("http:", "https:");
    assert_eq!(media.fetch(&secure).unwrap_err().code, "image_fetch_failed", "a host without TLS");
    let round = format!("http://127.0.0.1:{}/to//to//to//to//to//picture", host.port);
    assert!(media.fetch(&round).unwrap_err().message.contains("more than 3 times"));
    for (url, part) in [
        ("ftp://a/b", "is no URL of a picture"),
        ("picture.png", "is no URL of a picture"),
        ("", "is no URL of a picture"),
        ("http://", "is no URL"),
        ("http:///picture", "is no URL"),
        ("http://a b/", "is no URL"),
        ("http://127.0.0.1:80\\@a.test/x", "is no URL"),
        ("http://user:word@127.0.0.1/", "name or password"),
    ] {
        let error = media.fetch(url).unwrap_err();
        assert!(error.message.contains(part), "{url}: {error}");
    }
}

/// However an address of this machine is written, and whoever sends us there, nobody is dialled.
#[test]
fn what_only_this_machine_can_reach_is_not_reached() {
    let canary = Host::start(vec![1; 100]);
    let media = media(MediaOptions { timeout: Duration::from_secs(3), ..MediaOptions::default() });
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "2130706433",
        "017700000001",
        "0x7f.1",
        "0x7f000001",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "\u{ff11}27.0.0.1",
        "127.0.0.1%00.a.test",
        "a.test@127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fd00:ec2::254]",
    ] {
        let error = media.fetch(&format!("http://{host}:{}/picture", canary.port)).unwrap_err();
        assert!(
            ["image_url_not_allowed", "invalid_image_url", "image_fetch_failed"].contains(&error.code),
            "{host}: {} {error}",
            error.code
        );
        assert!(!error.message.contains("169.254.169.254 ") || host.contains("169.254"), "{error}");
    }
    assert_eq!(canary.connections(), 0);
    let error = media.fetch(&canary.url("picture")).unwrap_err();
    assert!(error.message.contains("private network (--allow-private-media-addresses)"), "{error}");
}

#[test]
fn a_named_host_is_the_only_one_also_behind_a_redirect() {
    let (host, canary) = (Host::start(vec![1; 100]), Host::start(vec![2; 100]));
    let media = media(MediaOptions { allowed_media_domains: vec!["127.0.0.1".into()], ..inside() });
    assert_eq!(media.fetch(&host.url("picture")).unwrap(), [1; 100]);
    let elsewhere = format!("http://localhost:{}/picture", canary.port);
    for url in [elsewhere.clone(), host.url(&format!("to/{elsewhere}"))] {
        let error = media.fetch(&url).unwrap_err();
        assert!(error.message.contains("\"localhost\" are not allowed here (--allowed-media-domains)"), "{error}");
    }
    assert_eq!(canary.connections(), 0);
    // The list of hosts does not make their addresses public.
    let strict = self::media(MediaOptions {
        allowed_media_domains: vec!["127.0.0.1".into()],
        allow_private_addresses: false,
        ..inside()
    });
    assert_eq!(strict.fetch(&host.url("picture")).unwrap_err().code, "image_url_not_allowed");
    assert!(Media::new(MediaOptions { allowed_local_media_path: Some("/no/such".into()), ..inside() }).is_err());
}
