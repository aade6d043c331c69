//! A host of pictures that counts who connects, and that can behave badly.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::picture;

/// Answers until the test's process ends.
pub struct Canary {
    pub port: u16,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Canary {
    /// On loopback, at `127.0.0.1` or `::1`.
    pub fn at(host: &str) -> std::io::Result<Canary> {
        let listener = TcpListener::bind((host, 0))?;
        let port = listener.local_addr()?.port();
        let (connections, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, under_way) = (connections.clone(), open.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                seen.fetch_add(1, Ordering::SeqCst);
                under_way.fetch_add(1, Ordering::SeqCst);
                let under_way = under_way.clone();
                thread::spawn(move || {
                    // Whoever hangs up early has what it wanted.
                    let _ = answer(stream);
                    under_way.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Canary { port, connections, open })
    }

    pub fn start() -> Canary {
        Canary::at("127.0.0.1").unwrap()
    }

    /// How many have connected so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many are being answered.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let head = |more: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{more}\r\n");
    if let Some(to) = path.strip_prefix("/to?") {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {to}\r\n\r\n"
        );
    }
    if let Some(status) = path.strip_prefix("/status/") {
        return write!(stream, "HTTP/1.1 {status} So\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecret");
    }
    match path {
        "/loop" => {
            write!(stream, "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /loop\r\n\r\n")
        }
        "/huge" => write!(stream, "{}", head("Content-Length: 10000000000\r\n")),
        "/endless" => {
            write!(stream, "{}", head("Transfer-Encoding: chunked\r\n"))?;
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            loop {
                stream.write_all(chunk.as_bytes())?;
            }
        }
        "/drip" => {
            write!(stream, "{}", head("Content-Length: 1000\r\n"))?;
            drip(&mut stream)
        }
        "/endless-head" => {
            write!(stream, "HTTP/1.1 200 OK\r\nX: ")?;
            drip(&mut stream)
        }
        "/short" => write!(stream, "{}", head("Content-Length: 1000\r\n")),
        "/gzip" => {
            let bytes = picture("wide.png");
            write!(stream, "{}", head(&format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", bytes.len())))?;
            stream.write_all(&[&[0x1f, 0x8b][..], &bytes[2..]].concat())
        }
        name => {
            let bytes = picture(name.trim_start_matches('/'));
            write!(stream, "{}", head(&format!("Content-Length: {}\r\n", bytes.len())))?;
            stream.write_all(&bytes)
        }
    }
}

/// A byte a second, for ever.
fn drip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        stream.write_all(b"x")?;
        thread::sleep(Duration::from_secs(1));
    }
}
