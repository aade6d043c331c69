//! URLs of pictures that would have the server ask what only it can reach.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::canary::Canary;
use super::process::Server;
use super::{about, alone, body, chat, with};

/// Hosts that are this machine, its networks or nobody's, in every spelling.
const HOSTS: [&str; 53] = [
    // This machine.
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "0",
    "0.0.0.0",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    // Other alphabets' digits and dots, and escapes.
    "１２７.0.0.1",
    "127。0。0。1",
    "①②⑦.0.0.1",
    "%31%32%37.0.0.1",
    "127.0.0.1%00",
    "127.0.0.1\\@example.com",
    "127.0.0.1\t",
    "127.0.0.1\n",
    "127.0.0.1#",
    // Metadata services.
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:169.254.169.254]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    // IPv4 inside IPv6: NAT64, 6to4, Teredo.
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::1]",
    // Networks of others.
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
];

/// URLs that are wrong in another way. `PORT` is the canary's.
const URLS: [&str; 20] = [
    "http://user@127.0.0.1:PORT/wide.png",
    "http://user:word@127.0.0.1:PORT/wide.png",
    "http://example.com@127.0.0.1:PORT/wide.png",
    "http://127.0.0.1:PORT\\@example.com/wide.png",
    "http://example.com\\@127.0.0.1:PORT/wide.png",
    "http:127.0.0.1:PORT/wide.png",
    "http:/127.0.0.1:PORT/wide.png",
    "http:///127.0.0.1:PORT/wide.png",
    "http:\\\\127.0.0.1:PORT\\wide.png",
    " http://127.0.0.1:PORT/wide.png",
    "HTTP://127.0.0.1:PORT/wide.png",
    "https://127.0.0.1:PORT/wide.png",
    "//127.0.0.1:PORT/wide.png",
    "ftp://127.0.0.1:PORT/wide.png",
    "gopher://127.0.0.1:PORT/_GET",
    "javascript:fetch('http://127.0.0.1:PORT/')",
    "jar:http://127.0.0.1:PORT/wide.png!/",
    "unix:/var/run/docker.sock",
    "file://127.0.0.1/etc/passwd",
    "",
];

/// The table, with a canary's port.
fn table(port: u16) -> Vec<String> {
    let port = port.to_string();
    let hosts = HOSTS.iter().map(|host| format!("http://{host}:{port}/wide.png"));
    let bare = HOSTS.iter().map(|host| format!("http://{host}/latest/meta-data/"));
    hosts.chain(bare).chain(URLS.iter().map(|url| url.replace("PORT", &port))).collect()
}

/// A picture's request is refused, with an error that names no address which its URL does not.
fn assert_refused(server: &Server, url: &str) {
    let reply = chat(server, &body(about(&[url], "what is it?"), 2));
    let error = &reply.json()["error"];
    let refused = ["image_url_not_allowed", "invalid_image_url"].iter().any(|code| error["code"] == *code);
    // Whether a name that ends in a dot has an address is the resolver's to say.
    let unknown = error["code"] == "image_fetch_failed" && (url.contains(".:") || url.contains("./"));
    assert!(reply.status == 400 && (refused || unknown), "{url}: {}", reply.body);
    assert_eq!(error["param"], "messages[0].content[0].image_url.url");
    let message = error["message"].as_str().unwrap();
    let address = |word: &&str| word.trim_matches(['.', '[', ']', '"']).parse::<IpAddr>().is_ok();
    let named: Vec<_> = message.split([' ', ',', '/']).filter(address).collect();
    assert!(named.iter().all(|word| url.to_lowercase().contains(word.trim_matches(['.', '[', ']', '"']))), "{message}");
}

#[test]
fn nothing_behind_the_server_is_asked() {
    let _alone = alone();
    let canary = Canary::start();
    let sixth = Canary::at("::1").ok();
    let server = Server::start(&[]);
    let urls: Vec<_> = table(canary.port)
        .into_iter()
        .chain(sixth.iter().map(|c| format!("http://[::1]:{}/wide.png", c.port)))
        .collect();
    urls.iter().for_each(|url| assert_refused(&server, url));
    println!("{} URLs were refused", urls.len());
    assert_eq!(canary.connections() + sixth.map_or(0, |canary| canary.connections()), 0);
}

/// The same table where it is allowed: the canary counts, so its silence above means something.
#[test]
fn the_canary_sings_when_it_is_asked() {
    let _alone = alone();
    let canary = Canary::start();
    let server = Server::start(&["--allow-private-media-addresses", "--image-fetch-timeout", "1"]);
    let hosts = ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "[::ffff:127.0.0.1]"];
    for (i, host) in hosts.iter().enumerate() {
        let url = format!("http://{host}:{}/wide.png", canary.port);
        let reply = chat(&server, &body(about(&[&url], "what is it?"), 2));
        assert_eq!((reply.status, canary.connections()), (200, i + 1), "{url}: {}", reply.body);
    }
}

#[test]
fn redirects_lead_to_nobody_else() {
    let _alone = alone();
    let (allowed, other) = (Canary::start(), Canary::start());
    let server = Server::start(&["--allowed-media-domains", "localhost", "--allow-private-media-addresses"]);
    let by_way_of = |to: &str| format!("http://localhost:{}/to?{to}", allowed.port);
    let ask = |url: &str| chat(&server, &body(about(&[url], "what is it?"), 2));
    let hosts = ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "user@localhost", "localhost.localdomain"];
    let seen = |i: usize| (allowed.connections(), other.connections()) == (i, 0);
    for (i, host) in hosts.iter().enumerate() {
        let url = by_way_of(&format!("http://{host}:{}/wide.png", other.port));
        ask(&url).error(400, "image_url_not_allowed");
        assert!(seen(i + 1), "{url}");
    }
    ask(&by_way_of("file:///etc/passwd")).error(400, "image_fetch_failed");
    let before = allowed.connections();
    ask(&format!("http://localhost:{}/loop", allowed.port)).error(400, "image_fetch_failed");
    assert_eq!(allowed.connections(), before + 4, "three redirects are followed");
    let before = allowed.connections();
    let reply = ask(&by_way_of("/wide.png"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!((allowed.connections(), other.connections()), (before + 2, 0), "one that is allowed is followed");
}

#[test]
fn text_is_no_reason_to_fetch_and_too_many_pictures_are_counted_first() {
    let _alone = alone();
    let canary = Canary::start();
    let server = Server::start(&["--allow-private-media-addresses"]);
    let url = canary.url("/wide.png");
    let text = format!("![]({url}) <img src=\"{url}\"> <image> {url}");
    assert_eq!(chat(&server, &body(json!(text), 2)).status, 200);
    let parts: Vec<Value> = (0..10_000).map(|_| json!({ "image_url": url })).collect();
    let many = with(body(json!(""), 2), json!({ "messages": [{ "role": "user", "content": parts }] }));
    assert!(chat(&server, &many).error(400, "too_many_images").contains("10000 pictures"));
    assert_eq!(canary.connections(), 0);
}
