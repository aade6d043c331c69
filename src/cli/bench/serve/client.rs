//! Connections that stay open, and a request over one of them.

use std::future::poll_fn;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::answer::{Answer, Failure, Reader};

/// How long a connection may take to be opened.
const DIAL: Duration = Duration::from_secs(10);
/// Longest body that is kept whole: a list of models, or an error.
const WHOLE: usize = 1 << 20;

/// Where a server is.
#[derive(Clone, Debug)]
pub(super) struct BaseUrl {
    /// Host and port, as in the URL.
    authority: String,
    /// The same, to be dialled.
    host: String,
    port: u16,
    /// What stands before every path.
    prefix: String,
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BaseUrl, String> {
        let url: Uri = text.parse().map_err(|error| format!("{error}; it must be like http://127.0.0.1:8000"))?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken here; measure the server itself and not the proxy before it".into());
            }
            _ => return Err("must begin with http://".into()),
        }
        let authority = url.authority().ok_or("has no host")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let prefix = url.path().trim_end_matches('/').to_owned();
        Ok(BaseUrl { authority: authority.to_string(), host, port: authority.port_u16().unwrap_or(80), prefix })
    }
}

pub(super) struct Client {
    url: BaseUrl,
    authority: HeaderValue,
    /// `Bearer KEY`.
    key: Option<HeaderValue>,
    /// Connections that wait for their next request.
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl Client {
    pub fn new(url: &BaseUrl, key: Option<&str>) -> Result<Client> {
        let key = key.map(|key| HeaderValue::try_from(format!("Bearer {key}"))).transpose();
        let key = key.context("--api-key has a character that no header may hold")?;
        let authority = HeaderValue::try_from(&url.authority).context("--base-url")?;
        Ok(Client { url: url.clone(), authority, key, idle: Mutex::new(Vec::new()) })
    }

    /// The name of the server's first model.
    pub async fn first_model(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Card>,
        }
        #[derive(Deserialize)]
        struct Card {
            id: String,
        }
        let path = format!("http://{}{}/v1/models", self.url.authority, self.url.prefix);
        let named = || format!("asking {path} for the model (--base-url, --model)");
        let sent = self.send(Method::GET, "/v1/models", Bytes::new()).await.with_context(named)?;
        let (response, connection) = sent;
        let status = response.status();
        let body = axum::body::to_bytes(Body::new(response.into_body()), WHOLE).await.with_context(named)?;
        self.keep(connection);
        ensure!(status == StatusCode::OK, "{}: {}", named(), refusal(status, &body));
        let models: Models = serde_json::from_slice(&body).with_context(named)?;
        let first = models.data.into_iter().next();
        Ok(first.with_context(|| format!("{path} lists no model; name one (--model)"))?.id)
    }

    /// Ask a chat completion, and read its events.
    ///
    /// # Errors
    /// Says why there is no whole answer.
    pub async fn chat(&self, body: Bytes) -> Result<Answer, String> {
        let sent = Instant::now();
        let (response, connection) =
            self.send(Method::POST, "/v1/chat/completions", body).await.map_err(|error| format!("{error:#}"))?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = axum::body::to_bytes(Body::new(response.into_body()), WHOLE).await.unwrap_or_default();
            self.keep(connection);
            return Err(refusal(status, &body));
        }
        let mut reader = Reader::new(sent);
        let mut body = response.into_body();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let now = Instant::now();
            let frame = frame.map_err(|error| format!("the stream broke off: {error}"))?;
            if let Some(bytes) = frame.data_ref() {
                reader.feed(bytes, now)?;
            }
        }
        self.keep(connection);
        reader.finish()
    }

    /// Send a request over a connection that waits, or over a new one. Returns with the head of the answer.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(Response<Incoming>, SendRequest<Body>)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url.prefix));
        request = request.header(HOST, &self.authority).header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        let mut request = request.body(Body::from(body))?;
        while let Some(mut connection) = self.take() {
            // The server may close it at any time. What it has not begun to read can be sent again.
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error()).context("sending a request"),
                },
            }
        }
        let mut connection = self.dial().await?;
        let response = connection.send_request(request).await.context("sending a request")?;
        Ok((response, connection))
    }

    async fn dial(&self) -> Result<SendRequest<Body>> {
        let BaseUrl { authority, host, port, .. } = &self.url;
        let named = || format!("connecting to {authority} (--base-url)");
        let Ok(socket) = timeout(DIAL, TcpStream::connect((host.as_str(), *port))).await else {
            bail!("{}: nobody answered within {} seconds", named(), DIAL.as_secs());
        };
        let socket = socket.with_context(named)?;
        socket.set_nodelay(true).with_context(named)?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.with_context(named)?;
        // Its failures are those of the request on it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, connection: SendRequest<Body>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

/// A status and what the body says about it, in a line.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: Failure,
    }
    let message = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.error.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    format!("{status}: {message}").trim_end_matches(": ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let parts = |text: &str| {
            text.parse::<BaseUrl>().map(|url| format!("{} {} {} {}", url.authority, url.host, url.port, url.prefix))
        };
        assert_eq!(parts("http://127.0.0.1:8000"), Ok("127.0.0.1:8000 127.0.0.1 8000 ".into()));
        assert_eq!(parts("http://[::1]:81/a/"), Ok("[::1]:81 ::1 81 /a".into()));
        assert_eq!(parts("http://gpu"), Ok("gpu gpu 80 ".into()));
        for (text, message) in [("https://x", "not spoken"), ("127.0.0.1:8000", "http://"), ("", "http://")] {
            let error = parts(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_refusal_is_a_line() {
        let error = br#"{"error":{"message":"too\nmany","code":"queue_full"}}"#;
        assert_eq!(refusal(StatusCode::TOO_MANY_REQUESTS, error), "429 Too Many Requests: too many");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>\n"), "502 Bad Gateway: <html> ");
        assert_eq!(refusal(StatusCode::SERVICE_UNAVAILABLE, b""), "503 Service Unavailable");
    }
}
