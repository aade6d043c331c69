//! The body of a chat completion: messages with pictures, and how they are to be answered.

use serde_json::Value;

use super::delivery::{cache_salt, model};
use super::fields::{Fields, invalid, shown};
use super::sampling::{chat_logprobs, check, sampling};
use super::unsupported::unsupported;
use super::{ApiError, Delivery, Report};
use crate::config::ProcessorKwargs;
use crate::engine::{ImageInput, Prompt, Request, Sampling};
use crate::text::{Message, Part, Role};

/// A checked body of `/v1/chat/completions`.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Whether an answer begins behind it; if not, its last message goes on.
    pub add_generation_prompt: bool,
    /// Its pictures, in the order in which it shows them.
    pub images: Vec<ImageUrl>,
    /// How the answer is sampled.
    pub sampling: Sampling,
    /// What is reported beside the text.
    pub report: Report,
    /// How the answer is handed over.
    pub delivery: Delivery,
    /// Requests share cached prompts with those of the same salt alone.
    pub cache_salt: Option<String>,
    /// Options of the picture processor.
    pub mm_processor_kwargs: ProcessorKwargs,
}

/// Where a picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUrl {
    /// A URL; of what kind and from where, [`Media`](crate::server::media::Media) decides.
    pub url: String,
    /// The field that holds it.
    pub param: String,
}

/// Messages, and their pictures.
pub(super) struct Conversation {
    pub messages: Vec<Message>,
    pub add_generation_prompt: bool,
    pub images: Vec<ImageUrl>,
    pub mm_processor_kwargs: ProcessorKwargs,
}

/// What a message may hold beside text.
const KNOWN_PARTS: &str = "text or image_url";

impl ChatRequest {
    /// Check a body. Pictures are counted, and refused if there are more than `max_images`, before anybody fetches one.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn parse(body: &str, max_images: usize) -> Result<ChatRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        // Before all else: without it the body is most likely meant for somebody else.
        let messages = Conversation::items(&mut fields)?;
        unsupported(&mut fields)?;
        fields.only("echo", &[Value::Bool(false)], "leave it out")?;
        fields.only("best_of", &[Value::from(1)], "leave it out")?;
        let (logprobs, top_logprobs) = chat_logprobs(&mut fields)?;
        let sampling = Sampling { top_logprobs, ..sampling(&mut fields)? };
        check(&sampling)?;
        let conversation = Conversation::read(messages, &mut fields, max_images)?;
        let cache_salt = cache_salt(&mut fields)?;
        let report = Report {
            logprobs,
            prompt_logprobs: sampling.prompt_logprobs.is_some(),
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            timings: fields.flag("return_timings")?.unwrap_or(false),
        };
        let delivery = Delivery::read(&mut fields)?;
        if delivery.stream && report.prompt_logprobs {
            return Err(invalid("prompt_logprobs", "prompt_logprobs are not streamed; leave out stream".into()));
        }
        let Conversation { messages, add_generation_prompt, images, mm_processor_kwargs } = conversation;
        Ok(ChatRequest {
            model: model(&mut fields)?,
            messages,
            add_generation_prompt,
            images,
            sampling,
            report,
            delivery,
            cache_salt,
            mm_processor_kwargs,
        })
    }

    /// The engine's request, with the bytes of [`ChatRequest::images`] in their order.
    pub fn into_request(self, images: Vec<Vec<u8>>) -> Request {
        Request {
            prompt: prompt(self.messages, self.add_generation_prompt),
            images: images.into_iter().map(ImageInput::from).collect(),
            sampling: self.sampling,
            cache_salt: self.cache_salt,
            mm_processor_kwargs: self.mm_processor_kwargs,
        }
    }
}

/// A conversation for the chat template.
pub(super) fn prompt(messages: Vec<Message>, add_generation_prompt: bool) -> Prompt {
    if add_generation_prompt { Prompt::Chat(messages) } else { Prompt::Transcript(messages) }
}

impl Conversation {
    /// The messages, not looked at yet.
    pub fn items(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
        match fields.take("messages") {
            Some(Value::Array(items)) => Ok(items),
            Some(other) => {
                Err(invalid("messages", format!("messages is {}; it must be a list of messages", shown(&other))))
            }
            None => {
                let message = "messages must be a list of messages";
                Err(ApiError::invalid("messages", "missing_required_parameter", message))
            }
        }
    }

    /// What a request says of its prompt.
    pub fn read(items: Vec<Value>, fields: &mut Fields, max_images: usize) -> Result<Conversation, ApiError> {
        let remedy = "the template says where BOS stands: leave it out";
        fields.only("add_special_tokens", &[Value::Bool(false)], remedy)?;
        let mut images = Vec::new();
        let message = |(i, item)| message(&format!("messages[{i}]"), item, &mut images);
        let messages = items.into_iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() {
            return Err(invalid("messages", "messages is empty; say something".into()));
        }
        if images.len() > max_images {
            let found = images.len();
            let message =
                format!("messages show {found} pictures; at most {max_images} are allowed (--limit-mm-per-prompt)");
            return Err(ApiError::invalid("messages", "too_many_images", message));
        }
        Ok(Conversation {
            messages,
            add_generation_prompt: fields.flag("add_generation_prompt")?.unwrap_or(true),
            images,
            mm_processor_kwargs: fields.read("mm_processor_kwargs", "an object", kwargs)?.unwrap_or_default(),
        })
    }
}

fn kwargs(value: &Value) -> Option<ProcessorKwargs> {
    value.as_object().cloned()
}

fn message(at: &str, item: Value, images: &mut Vec<ImageUrl>) -> Result<Message, ApiError> {
    let mut fields = Fields::new(at, item)?;
    let name = fields.text("role")?.ok_or_else(|| missing(&fields, "role"))?;
    // What OpenAI calls the system's messages to its newer models.
    let name = if name == "developer" { "system" } else { &name };
    let role: Role =
        name.parse().map_err(|error| invalid(&fields.at("role"), format!("{}: {error}", fields.at("role"))))?;
    fields.only("tool_calls", &[Value::Array(Vec::new())], "leave it out")?;
    fields.only("function_call", &[], "leave it out")?;
    let at = fields.at("content");
    let parts = match fields.take("content") {
        None if role == Role::Assistant => Vec::new(),
        None => return Err(missing(&fields, "content")),
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(Value::Array(items)) => {
            let part = |(i, item)| part(&format!("{at}[{i}]"), item, images);
            items.into_iter().enumerate().map(part).collect::<Result<_, _>>()?
        }
        Some(other) => {
            return Err(invalid(&at, format!("{at} is {}; it must be a text or a list of parts", shown(&other))));
        }
    };
    Ok(Message { role, parts })
}

/// A part of a message. Without a type it is what its field says, and a bare text is one, as in vLLM.
fn part(at: &str, item: Value, images: &mut Vec<ImageUrl>) -> Result<Part, ApiError> {
    let item = match item {
        Value::String(text) => return Ok(Part::Text(text)),
        other => other,
    };
    let mut fields = Fields::new(at, item)?;
    let kind = fields.text("type")?;
    let typed = kind.is_some();
    let kind = match kind {
        Some(kind) => kind,
        None => {
            let known = ["text", "image_url"].into_iter().find(|name| fields.has(name));
            known.ok_or_else(|| missing(&fields, "type"))?.into()
        }
    };
    match kind.as_str() {
        "text" => Ok(Part::Text(fields.text("text")?.ok_or_else(|| missing(&fields, "text"))?)),
        "image_url" => {
            images.push(image_url(&mut fields, typed)?);
            Ok(Part::Image)
        }
        other => {
            let at = fields.at("type");
            let other = super::fields::clipped(other);
            Err(ApiError::invalid(
                at.clone(),
                "unsupported_content_type",
                format!("{at} is {other}; a part is {KNOWN_PARTS}"),
            ))
        }
    }
}

/// `{"url": ...}`; without the part's type, a bare URL too.
fn image_url(fields: &mut Fields, typed: bool) -> Result<ImageUrl, ApiError> {
    let at = fields.at("image_url");
    match fields.take("image_url") {
        Some(Value::String(url)) if !typed => Ok(ImageUrl { url, param: at }),
        Some(value) => {
            let mut fields = Fields::new(&at, value)?;
            let url = fields.text("url")?.ok_or_else(|| missing(&fields, "url"))?;
            Ok(ImageUrl { url, param: fields.at("url") })
        }
        None => Err(missing(fields, "image_url")),
    }
}

fn missing(fields: &Fields, name: &str) -> ApiError {
    let at = fields.at(name);
    ApiError::invalid(at.clone(), "missing_required_parameter", format!("{at} is missing"))
}
