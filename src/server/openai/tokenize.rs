//! Bodies of `/tokenize` and `/detokenize`, and their answers.

use serde_json::{Value, json};

use super::chat::{Conversation, prompt};
use super::delivery::{model, tokens};
use super::fields::{Fields, invalid};
use super::unsupported::template;
use super::{ApiError, ImageUrl};
use crate::config::ProcessorKwargs;
use crate::engine::{ImageInput, Prompt, Request};
use crate::text::{Special, Tokenizer};

/// A checked body of `/tokenize`.
#[derive(Clone, Debug)]
pub struct TokenizeRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// What is to become tokens: a trusted text, or messages.
    pub prompt: Prompt,
    /// Whether the tokenizer puts BOS in front of a text.
    pub add_special_tokens: bool,
    /// The pictures of messages, in the order in which they show them.
    pub images: Vec<ImageUrl>,
    /// Options of the picture processor.
    pub mm_processor_kwargs: ProcessorKwargs,
    /// Whether tokens are shown as the tokenizer's file writes them, too.
    pub token_strs: bool,
}

impl TokenizeRequest {
    /// Check a body. Pictures are counted, and refused if there are more than `max_images`, before anybody fetches one.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn parse(body: &str, max_images: usize) -> Result<TokenizeRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let token_strs = fields.flag("return_token_strs")?.unwrap_or(false);
        if let Some(text) = fields.text("prompt")? {
            if fields.has("messages") {
                return Err(invalid("prompt", "prompt and messages are set; leave out one of them".into()));
            }
            let add_special_tokens = fields.flag("add_special_tokens")?.unwrap_or(true);
            let (prompt, images, mm_processor_kwargs) = (Prompt::Raw(text), Vec::new(), ProcessorKwargs::new());
            return Ok(TokenizeRequest { model, prompt, add_special_tokens, images, mm_processor_kwargs, token_strs });
        }
        if !fields.has("messages") {
            let message = "prompt is missing, and so are messages; one of them is tokenised";
            return Err(ApiError::invalid("prompt", "missing_required_parameter", message));
        }
        template(&mut fields)?;
        let items = Conversation::items(&mut fields)?;
        let conversation = Conversation::read(items, &mut fields, max_images)?;
        Ok(TokenizeRequest {
            model,
            prompt: prompt(conversation.messages, conversation.add_generation_prompt),
            // The template says where BOS stands.
            add_special_tokens: true,
            images: conversation.images,
            mm_processor_kwargs: conversation.mm_processor_kwargs,
            token_strs,
        })
    }

    /// The request whose prompt it is, with the bytes of [`TokenizeRequest::images`] in their order.
    ///
    /// # Errors
    /// If a text is too long for the tokenizer.
    pub fn into_request(self, tokenizer: &Tokenizer, images: Vec<Vec<u8>>) -> anyhow::Result<Request> {
        let prompt = match self.prompt {
            Prompt::Raw(text) if !self.add_special_tokens => {
                Prompt::TokenIds(tokenizer.encode(&text, Special::Parse, false)?)
            }
            other => other,
        };
        let images = images.into_iter().map(ImageInput::from).collect();
        Ok(Request { prompt, images, mm_processor_kwargs: self.mm_processor_kwargs, ..Request::default() })
    }
}

/// The object that `/tokenize` answers with. The tokens of pictures are the placeholder's, as often as a picture has tokens.
pub fn tokenized(tokenizer: &Tokenizer, ids: &[u32], max_model_len: usize, token_strs: bool) -> Value {
    let strs = token_strs.then(|| ids.iter().map(|&id| tokenizer.id_to_token(id)).collect::<Vec<_>>());
    json!({ "count": ids.len(), "max_model_len": max_model_len, "tokens": ids, "token_strs": strs })
}

/// A checked body of `/detokenize`.
#[derive(Clone, Debug)]
pub struct DetokenizeRequest {
    /// The model that is asked for.
    pub model: Option<String>,
    /// What is to become text.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Check a body.
    ///
    /// # Errors
    /// Names the field, its value and what is allowed.
    pub fn parse(body: &str) -> Result<DetokenizeRequest, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let ids = fields.read("tokens", "a list of token ids", tokens)?;
        let missing = || ApiError::invalid("tokens", "missing_required_parameter", "tokens is missing");
        Ok(DetokenizeRequest { model, tokens: ids.ok_or_else(missing)? })
    }
}

/// The object that `/detokenize` answers with. Control tokens are written out.
///
/// # Errors
/// If the tokenizer does not know an id.
pub fn detokenized(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Value, ApiError> {
    if let Some(i) = ids.iter().position(|&id| tokenizer.id_to_token(id).is_none()) {
        let message = format!("tokens[{i}] is {}; the tokenizer has no such token", ids[i]);
        return Err(invalid(&format!("tokens[{i}]"), message));
    }
    let text = tokenizer.decode(ids, false);
    let text = text.map_err(|error| invalid("tokens", format!("tokens make no text: {error:#}")))?;
    Ok(json!({ "prompt": text }))
}
