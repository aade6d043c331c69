//! Chat templates: where they come from, the test that each must pass when it is loaded, and a conversation's tokens.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use minijinja::Value;
use serde_json::Value as Json;

use super::chat::{Disguise, Message, Part, Role};
use super::file::{kind, read, read_json};
use super::jinja::Compiled;
use super::placeholder::{Piece, Placeholder, pieces, placeholders};
use super::tags;
use super::tokenizer::{Cut, MAX_TEXT_BYTES, Tokenizer};

/// Largest file that holds a template, in bytes. Published ones stay under 32 KiB; `tokenizer_config.json` of a model
/// with many added tokens is the largest file that is read for one.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Largest template, in bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// What shows in a rendering when a list of parts was printed as a list.
const LIST_MARKS: [&str; 2] = ["'type': 'text'", "\"type\": \"text\""];

/// A template of this crate, for checkpoints that bring none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// LLaVA-1.5, and LLaVA-1.6 on Vicuna.
    Llava15,
    /// LLaVA-1.6 on Mistral-7B-Instruct.
    LlavaMistral,
    /// Phi-3-vision and Phi-3.5-vision, whose placeholders are numbered.
    Phi3Vision,
}

impl Builtin {
    fn name(self) -> &'static str {
        match self {
            Builtin::Llava15 => "llava-1.5",
            Builtin::LlavaMistral => "llava-1.6-mistral",
            Builtin::Phi3Vision => "phi-3-vision",
        }
    }

    /// The template.
    pub fn source(self) -> &'static str {
        match self {
            Builtin::Llava15 => include_str!("templates/llava-1.5.jinja"),
            Builtin::LlavaMistral => include_str!("templates/llava-1.6-mistral.jinja"),
            Builtin::Phi3Vision => include_str!("templates/phi-3-vision.jinja"),
        }
    }
}

/// How a template wants a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A list of parts; the template writes the placeholders.
    Parts,
    /// One string: the placeholders, each on a line of its own, then the texts, each on a line of its own.
    Text,
}

/// A conversation as the model gets it, before pictures are expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The rendered text.
    pub text: String,
    /// Its tokens, and the placeholders in the order of the conversation's pictures.
    pub pieces: Vec<Piece>,
}

/// A chat template that has passed its test.
pub struct ChatTemplate {
    origin: String,
    compiled: Compiled,
    content: Content,
    tokenizer: Arc<Tokenizer>,
    placeholder: Option<Placeholder>,
}

impl ChatTemplate {
    /// Finds the template, in this order: `explicit` (a file's path or the template itself), `chat_template.jinja`,
    /// `chat_template.json`, the `chat_template` of `tokenizer_config.json` in `dir`, `builtin`.
    ///
    /// With a `placeholder`, the template is tried with a question about one picture; without, it takes none.
    ///
    /// # Errors
    /// No template, one that does not compile, or one that loses the picture or the question. They name where it is
    /// from.
    pub fn open(
        dir: &Path,
        explicit: Option<&str>,
        builtin: Option<Builtin>,
        tokenizer: Arc<Tokenizer>,
        placeholder: Option<Placeholder>,
    ) -> Result<ChatTemplate> {
        let (origin, source) = find(dir, explicit, builtin)?;
        ensure!(
            source.len() <= MAX_TEMPLATE_BYTES,
            "the chat template in {origin} has {} bytes; the limit is {MAX_TEMPLATE_BYTES}",
            source.len()
        );
        let compiled = Compiled::new(&source).with_context(|| format!("the chat template in {origin}"))?;
        let mut template = ChatTemplate { origin, compiled, content: Content::Parts, tokenizer, placeholder };
        if let Err(parts) = template.self_test() {
            template.content = Content::Text;
            if let Err(text) = template.self_test() {
                bail!(
                    "the chat template in {} does not work for this model. With a message's content as a list of \
                     parts: {parts:#}. With its content as one string: {text:#}. Pass another with --chat-template",
                    template.origin
                );
            }
        }
        Ok(template)
    }

    /// Where the template is from: a path, or the name of a built-in one.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Renders and encodes a conversation, with BOS in front unless the template writes it, also in front of every text
    /// between numbered placeholders. With `generation_prompt`, the text ends where the model is to answer.
    ///
    /// # Errors
    /// The template fails, writes another number of placeholders than there are pictures, or changes text depending on
    /// what it says; the conversation is longer than [`MAX_TEXT_BYTES`].
    pub fn encode(&self, messages: &[Message], generation_prompt: bool) -> Result<ChatPrompt> {
        self.try_encode(messages, generation_prompt)
            .with_context(|| format!("the chat template in {} with this conversation", self.origin))
    }

    fn try_encode(&self, messages: &[Message], generation_prompt: bool) -> Result<ChatPrompt> {
        let texts = || messages.iter().flat_map(Message::texts);
        let bytes: usize = texts().map(str::len).sum();
        ensure!(bytes <= MAX_TEXT_BYTES, "the conversation has {bytes} bytes of text; the limit is {MAX_TEXT_BYTES}");
        let images: usize = messages.iter().map(Message::images).sum();
        ensure!(
            images == 0 || self.placeholder.is_some(),
            "it has {images} pictures, which this model's prompts do not take"
        );

        let mut alphabet = self.tokenizer.control_alphabet();
        if let Some(Placeholder::Numbered(_)) = self.placeholder {
            alphabet.extend(tags::ALPHABET.chars());
        }
        alphabet.extend(LIST_MARKS.iter().flat_map(|mark| mark.chars()).filter(|c| c.is_alphabetic()));
        let disguise = Disguise::new(&alphabet, texts())?;
        let hidden: Vec<Message> = messages.iter().map(|message| disguise.hide_message(message)).collect();
        let contexts = [messages, &hidden].map(|messages| self.context(messages, generation_prompt));
        let rendered = self.compiled.render(contexts.into())?;
        let [text, disguised] = rendered.try_into().ok().context("a rendering is missing")?;
        ensure!(
            disguise.reveal(&disguised) == text,
            "it changes the text of messages depending on what they say, so that text could pass for a control token"
        );

        ensure!(
            !LIST_MARKS.iter().any(|mark| disguised.contains(mark)),
            "it prints a list where it expects a message's content to be one string"
        );

        let encode = |disguised: &str| self.encode_rendered(disguised, &disguise);
        let pieces = match self.placeholder {
            Some(Placeholder::Token(id)) => pieces(&encode(&disguised)?, id),
            Some(Placeholder::Numbered(_)) => {
                let chunks: Result<Vec<_>> = tags::chunks(&disguised)?.into_iter().map(encode).collect();
                tags::join(chunks?)
            }
            None => vec![Piece::Ids(encode(&disguised)?)],
        };
        let found = placeholders(&pieces);
        ensure!(found == images, "it writes {found} picture placeholders for {images} pictures");
        Ok(ChatPrompt { text, pieces })
    }

    /// The ids of what `disguised` hides. Exactly the control tokens that can be seen in it count as such.
    fn encode_rendered(&self, disguised: &str, disguise: &Disguise) -> Result<Vec<u32>> {
        let mut cuts = Vec::new();
        let mut at = 0;
        for (piece, id) in self.tokenizer.split_control(disguised) {
            let end = at + disguise.reveal(piece).len();
            if let Some(id) = id {
                cuts.push(Cut { at: at..end, id });
            }
            at = end;
        }
        let ids = self.tokenizer.encode_cut(&disguise.reveal(disguised), &cuts)?;
        let bos = self.tokenizer.bos_prefix();
        Ok(if ids.starts_with(bos) { ids } else { [bos, &ids].concat() })
    }

    /// The variables that transformers passes to a template.
    fn context(&self, messages: &[Message], generation_prompt: bool) -> Value {
        let mut shown = 0;
        let messages: Value = messages
            .iter()
            .map(|message| {
                let first = shown + 1;
                shown += message.images();
                self.message(message, first)
            })
            .collect();
        let variables = [
            ("messages", messages),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(generation_prompt)),
        ];
        let tokens = self.tokenizer.special_tokens();
        let tokens = tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        Value::from_pairs(tokens.chain(variables))
    }

    /// A message, whose first picture is number `first` of the conversation.
    fn message(&self, message: &Message, first: usize) -> Value {
        let content = match self.content {
            Content::Parts => message.parts.iter().map(part).collect(),
            Content::Text => {
                let placeholders = (first..first + message.images()).map(|n| self.written(n));
                let lines = placeholders.chain(message.texts().map(str::to_owned));
                Value::from(lines.collect::<Vec<_>>().join("\n"))
            }
        };
        Value::from_pairs([("role", Value::from(message.role.as_str())), ("content", content)])
    }

    /// The placeholder of picture number `n`, in words.
    fn written(&self, n: usize) -> String {
        match self.placeholder {
            Some(Placeholder::Token(id)) => self.tokenizer.control_token(id).unwrap_or_default().to_owned(),
            Some(Placeholder::Numbered(_)) => tags::tag(n),
            None => String::new(),
        }
    }

    /// Asks about one picture.
    fn self_test(&self) -> Result<()> {
        const QUESTION: &str = "What is on shelf 7?";
        let images = usize::from(self.placeholder.is_some());
        let prompt = self.try_encode(&[Message::with_images(Role::User, images, QUESTION)], true)?;
        ensure!(prompt.text.contains(QUESTION), "the text of a message is not in the output");
        Ok(())
    }
}

fn part(part: &Part) -> Value {
    match part {
        Part::Image => Value::from_pairs([("type", "image")]),
        Part::Text(text) => Value::from_pairs([("type", "text"), ("text", text.as_str())]),
    }
}

/// The first template in the order of [`ChatTemplate::open`], and where it is from.
fn find(dir: &Path, explicit: Option<&str>, builtin: Option<Builtin>) -> Result<(String, String)> {
    if let Some(given) = explicit {
        if given.contains("{{") || given.contains("{%") {
            return Ok(("--chat-template".to_owned(), given.to_owned()));
        }
        let text = read(Path::new(given), MAX_FILE_BYTES)?;
        let text = text.with_context(|| {
            format!("--chat-template {given:?} is neither a file nor a template (it has no '{{{{' and no '{{%')")
        })?;
        return Ok((given.to_owned(), text));
    }
    let jinja = dir.join("chat_template.jinja");
    if let Some(text) = read(&jinja, MAX_FILE_BYTES)? {
        return Ok((jinja.display().to_string(), text));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        let Some(json) = read_json(&path, MAX_FILE_BYTES)? else { continue };
        let origin = path.display().to_string();
        if let Some(text) = from_field(&json["chat_template"]).with_context(|| origin.clone())? {
            return Ok((origin, text));
        }
    }
    match builtin {
        Some(builtin) => Ok((format!("(built in: {})", builtin.name()), builtin.source().to_owned())),
        None => bail!("{} has no chat template; pass one with --chat-template", dir.display()),
    }
}

/// The field `chat_template`: a template, or a list of named ones of which `default` is used.
fn from_field(field: &Json) -> Result<Option<String>> {
    let list = match field {
        Json::Null => return Ok(None),
        Json::String(text) => return Ok(Some(text.clone())),
        Json::Array(list) => list,
        other => bail!("field 'chat_template' is {}, expected a string or a list of named templates", kind(other)),
    };
    let names: Vec<&str> = list.iter().filter_map(|entry| entry["name"].as_str()).collect();
    let default = list.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str());
    let default = default.with_context(|| {
        format!(
            "field 'chat_template' has no template named \"default\", only {names:?}; pass one with --chat-template"
        )
    })?;
    Ok(Some(default.to_owned()))
}
