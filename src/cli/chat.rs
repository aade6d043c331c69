//! `ocelli run` without a prompt: a conversation, with pictures.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::run::{closing_line, stream};
use crate::engine::{Engine, ImageInput, Prompt, Request, Sampling};
use crate::text::{Message, Role};

const HELP: &str = "/image FILE  add a picture to the next message\n/clear       forget the conversation\n/help        this\n/quit        leave (or Ctrl-D)";

/// What was said so far, and the pictures that go with the next message.
struct Conversation {
    messages: Vec<Message>,
    pictures: Vec<ImageInput>,
    /// Those of them that no message refers to yet.
    waiting: usize,
}

/// Talk until the input ends.
pub(super) fn run(engine: &Engine, pictures: Vec<ImageInput>, sampling: &Sampling) -> Result<()> {
    let waiting = pictures.len();
    let mut talk = Conversation { messages: Vec::new(), pictures, waiting };
    let mut lines = Lines::new()?;
    if lines.is_terminal() {
        writeln!(io::stderr(), "{HELP}")?;
    }
    while let Some(line) = lines.next()? {
        let line = line.trim();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => {}
            ("/quit", _) => break,
            ("/help", _) => writeln!(io::stderr(), "{HELP}")?,
            ("/clear", _) => talk = Conversation { messages: Vec::new(), pictures: Vec::new(), waiting: 0 },
            ("/image", "") => writeln!(io::stderr(), "error: write /image FILE")?,
            ("/image", path) => match ImageInput::open(Path::new(path.trim())) {
                Ok(picture) => {
                    talk.pictures.push(picture);
                    talk.waiting += 1;
                }
                Err(error) => writeln!(io::stderr(), "error: {error:#}")?,
            },
            (word, _) if word.starts_with('/') => writeln!(io::stderr(), "error: {word} is no command; see /help")?,
            _ => talk.say(engine, line, sampling)?,
        }
    }
    Ok(())
}

impl Conversation {
    /// One question and its answer. A question that fails is taken back, with its pictures, so the talk can go on.
    fn say(&mut self, engine: &Engine, text: &str, sampling: &Sampling) -> Result<()> {
        let new = &self.pictures[self.pictures.len() - self.waiting..];
        let count = new.iter().map(ImageInput::count).sum();
        self.messages.push(Message::with_images(Role::User, count, text));
        let request = Request {
            prompt: Prompt::Chat(self.messages.clone()),
            images: self.pictures.clone(),
            sampling: sampling.clone(),
            ..Request::default()
        };
        match stream(engine, &request) {
            Ok(output) => {
                self.waiting = 0;
                closing_line(engine, &output);
                self.messages.push(Message::text(Role::Assistant, &output.outputs[0].text));
            }
            Err(error) if error.downcast_ref::<crate::Error>().is_some() => {
                self.messages.pop();
                self.pictures.truncate(self.pictures.len() - self.waiting);
                self.waiting = 0;
                writeln!(io::stderr(), "error: {error:#} (/clear starts over)")?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Lines with editing and history on a terminal, plain lines from a pipe.
enum Lines {
    Editor(Box<DefaultEditor>),
    Pipe,
}

impl Lines {
    fn new() -> Result<Lines> {
        if io::stdin().is_terminal() { Ok(Lines::Editor(Box::new(DefaultEditor::new()?))) } else { Ok(Lines::Pipe) }
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Lines::Editor(_))
    }

    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Editor(editor) => match editor.readline("> ") {
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Lines::Pipe => {
                let mut line = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut line)?;
                Ok((read > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
            }
        }
    }
}
