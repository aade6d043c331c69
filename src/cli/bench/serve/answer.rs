//! The events of an answer, and when they came.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// What an answer took, from when its request was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Until the first event with something of the answer. One that only says who speaks is none.
    pub ttft: Duration,
    /// Between such events.
    pub itl: Vec<Duration>,
    /// Until the last event with a choice.
    pub latency: Duration,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// An answer that is being read.
pub(super) struct Reader {
    sent: Instant,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
    /// When the last event with something of the answer came.
    token: Option<Duration>,
    answer: Answer,
    usage: bool,
    done: bool,
}

impl Reader {
    pub fn new(sent: Instant) -> Reader {
        Reader { sent, rest: Vec::new(), token: None, answer: Answer::default(), usage: false, done: false }
    }

    /// Bytes of the body, which came at `now`.
    ///
    /// # Errors
    /// If an event is no chunk, or says that the server failed.
    pub fn feed(&mut self, bytes: &[u8], now: Instant) -> Result<(), String> {
        let time = now - self.sent;
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                self.line(line.trim_ascii_end(), time)?;
            }
        }
        Ok(())
    }

    /// The answer, once the body has ended.
    ///
    /// # Errors
    /// If something is missing.
    pub fn finish(self) -> Result<Answer, String> {
        match () {
            () if !self.done => Err("the stream ended without [DONE]".into()),
            () if self.token.is_none() => Err("the stream ended without a token".into()),
            () if !self.usage => Err("the stream ended without usage (stream_options.include_usage)".into()),
            () => Ok(self.answer),
        }
    }

    fn line(&mut self, line: &[u8], time: Duration) -> Result<(), String> {
        // Others are empty, comments, or fields that nobody sends here.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii_start();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| format!("an event is no chunk: {error}"))?;
        if let Some(error) = chunk.error {
            return Err(format!("in mid-stream: {}", error.message));
        }
        if let Some(choice) = chunk.choices.first() {
            self.answer.latency = time;
            if choice.delta.as_ref().is_some_and(Delta::is_token) {
                self.token(time);
            }
        }
        if let Some(usage) = chunk.usage {
            (self.answer.prompt_tokens, self.answer.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            self.usage = true;
        }
        Ok(())
    }

    fn token(&mut self, time: Duration) {
        match self.token {
            None => self.answer.ttft = time,
            Some(before) => self.answer.itl.push(time - before),
        }
        self.token = Some(time);
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

impl Delta {
    /// As vLLM 0.33's client has it: an empty text is a token, too, unless it comes with the role.
    fn is_token(&self) -> bool {
        let texts = [&self.content, &self.reasoning, &self.reasoning_content];
        let mut texts = texts.into_iter().flatten();
        texts.any(|text| !text.is_empty() || self.role.is_none())
    }
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// The object behind `"error"`.
#[derive(Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    const TEXT: &str = r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":null}"#;
    const EMPTY: &str = r#"data: {"choices":[{"delta":{"content":""}}]}"#;
    const END: &str = r#"data: {"choices":[{"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// What comes of events, one each 10 ms.
    fn read(events: &[&str], end: &str) -> Result<Answer, String> {
        let sent = Instant::now();
        let mut reader = Reader::new(sent);
        for (i, event) in events.iter().enumerate() {
            reader.feed(format!("{event}{end}{end}").as_bytes(), sent + ms(10 * (i as u64 + 1)))?;
        }
        reader.finish()
    }

    #[test]
    fn the_first_token_is_not_the_role_and_the_end_is_not_usage() {
        let events = [": hello", ROLE, TEXT, EMPTY, TEXT, END, USAGE, "data: [DONE]"];
        let answer =
            Answer { ttft: ms(30), itl: vec![ms(10); 2], latency: ms(60), prompt_tokens: 7, completion_tokens: 3 };
        for end in ["\n", "\r\n"] {
            assert_eq!(read(&events, end), Ok(answer.clone()));
        }
    }

    #[test]
    fn lines_may_come_in_any_pieces() {
        let text = [ROLE, TEXT, USAGE, "data:[DONE]", ""].join("\n\n");
        for size in 1..text.len() {
            let sent = Instant::now();
            let mut reader = Reader::new(sent);
            for piece in text.as_bytes().chunks(size) {
                reader.feed(piece, sent + ms(1)).unwrap();
            }
            assert_eq!(reader.finish().map(|answer| answer.completion_tokens), Ok(3), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (events, message) in [
            (&[ROLE, TEXT, USAGE][..], "without [DONE]"),
            (&[ROLE, USAGE, "data: [DONE]"], "without a token"),
            (&[ROLE, TEXT, "data: [DONE]"], "without usage"),
            (&[ROLE, r#"data: {"error":{"message":"engine fell over"}}"#], "engine fell over"),
            (&["data: {"], "no chunk"),
        ] {
            let error = read(events, "\n").unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
