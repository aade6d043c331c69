//! Fields that are there in OpenAI's interface or vLLM's and not here: a request that sets one would be answered otherwise
//! than it says. A value that asks for nothing passes. All other fields that are not known are ignored.

use serde_json::{Value, json};

use super::ApiError;
use super::fields::Fields;

const LEAVE_OUT: &str = "leave it out";
const NO_GRAMMAR: &str = "answers are held to no grammar: ask for the format in the prompt, and leave it out";
const NO_TOOLS: &str = "these models have no format for calls: describe the tools in a message, and leave it out";
const NO_TEMPLATE: &str = "the template is that of the server (--chat-template): leave it out";

/// Refuse what would change the answer to a chat or a completion.
pub(super) fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    for name in [
        "audio",
        "length_penalty",
        "logits_processors",
        "prompt_embeds",
        "thinking_token_budget",
        "truncate_prompt_tokens",
        "web_search_options",
    ] {
        fields.only(name, &[], LEAVE_OUT)?;
    }
    fields.only("suffix", &[json!("")], LEAVE_OUT)?;
    fields.only("reasoning_effort", &[json!("none")], LEAVE_OUT)?;
    fields.only("modalities", &[json!(["text"])], LEAVE_OUT)?;
    fields.only("media_io_kwargs", &[json!({})], LEAVE_OUT)?;
    fields.only("priority", &[json!(0)], LEAVE_OUT)?;
    grammar(fields)?;
    template(fields)?;
    for (name, harmless) in
        [("return_tokens_as_token_ids", false), ("skip_special_tokens", true), ("use_beam_search", false)]
    {
        fields.only(name, &[Value::Bool(harmless)], LEAVE_OUT)?;
    }
    // Nothing is there to put spaces between: special tokens are not shown.
    fields.take("spaces_between_special_tokens");
    Ok(())
}

fn grammar(fields: &mut Fields) -> Result<(), ApiError> {
    fields.only("response_format", &[json!({ "type": "text" })], NO_GRAMMAR)?;
    for name in [
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_json_object",
        "guided_regex",
        "guided_whitespace_pattern",
        "structural_tag",
        "structured_outputs",
    ] {
        fields.only(name, &[json!(false)], NO_GRAMMAR)?;
    }
    Ok(())
}

/// Refuse what would change how a conversation becomes a prompt.
pub(super) fn template(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions"] {
        fields.only(name, &[json!([])], NO_TOOLS)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.only(name, &[json!("none"), json!("auto")], NO_TOOLS)?;
    }
    fields.only("chat_template", &[], NO_TEMPLATE)?;
    fields.only("chat_template_kwargs", &[json!({})], NO_TEMPLATE)?;
    fields.only("documents", &[json!([])], LEAVE_OUT)?;
    fields.only("continue_final_message", &[json!(false)], LEAVE_OUT)
}
