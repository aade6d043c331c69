//! A host of pictures, good and bad, on a thread.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Serves until the process ends.
pub struct Host {
    pub port: u16,
    connections: Arc<AtomicUsize>,
}

impl Host {
    /// Whoever asks for `/to/URL` is sent on to that; `/picture` is `picture`.
    pub fn start(picture: Vec<u8>) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let picture = picture.clone();
                // A client that goes away is no concern of the host.
                thread::spawn(move || answer(stream, &picture).ok());
            }
        });
        Host { port, connections }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// How many have come so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, picture: &[u8]) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    match path.as_str() {
        "/picture" => {
            write!(stream, "{}", head("200 OK", &format!("Content-Length: {}\r\n", picture.len())))?;
            stream.write_all(picture)
        }
        "/endless" => {
            write!(stream, "{}", head("200 OK", ""))?;
            loop {
                stream.write_all(&[7; 1 << 16])?;
            }
        }
        "/boast" => write!(stream, "{}", head("200 OK", "Content-Length: 99999999999\r\n")),
        "/drip" => {
            write!(stream, "{}", head("200 OK", "Content-Length: 1000\r\n"))?;
            loop {
                stream.write_all(&[7])?;
                thread::sleep(Duration::from_millis(50));
            }
        }
        "/silence" => {
            thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        "/half" => {
            write!(stream, "{}", head("200 OK", "Content-Length: 1000\r\n"))?;
            stream.write_all(&[7; 10])
        }
        "/nonsense" => write!(stream, "this is no HTTP\r\n\r\n"),
        "/text" => write!(stream, "{}no picture", head("200 OK", "Content-Length: 10\r\n")),
        _ => match path.strip_prefix("/to/") {
            Some(to) => write!(stream, "{}", head("302 Found", &format!("Location: {to}\r\nContent-Length: 0\r\n"))),
            None => write!(stream, "{}", head("404 Not Found", "Content-Length: 0\r\n")),
        },
    }
}
