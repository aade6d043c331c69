//! The named special tokens (`bos_token`, `eos_token`, ...) of `tokenizer_config.json` and `special_tokens_map.json`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::added::Added;
use super::file::kind;

/// What the two files say about special tokens; `tokenizer_config.json` wins.
pub(super) struct Names {
    /// `bos_token` and the like: every key that ends in `_token`, with the token's text. Chat templates see them all.
    pub tokens: BTreeMap<String, String>,
    /// Overrides of `added_tokens`, as transformers applies them.
    pub added: Vec<Added>,
    /// `add_bos_token`; transformers rebuilds the post-processor from it when it is present.
    pub add_bos: Option<bool>,
}

impl Names {
    pub fn new(config: Option<&Value>, map: Option<&Value>) -> Result<Names> {
        let mut tokens = BTreeMap::new();
        for (file, object) in [("special_tokens_map.json", map), ("tokenizer_config.json", config)] {
            for (key, value) in object.and_then(Value::as_object).into_iter().flatten() {
                let is_name = key.ends_with("_token") && !key.starts_with("add_");
                if !is_name || value.is_null() {
                    continue;
                }
                // Either the text, or an object with the token's flags.
                let text = value.as_str().or_else(|| value["content"].as_str());
                let text =
                    text.with_context(|| format!("{file}: field '{key}' is {}, expected a token", kind(value)))?;
                tokens.insert(key.clone(), text.to_owned());
            }
        }
        let Some(config) = config else { return Ok(Names { tokens, added: Vec::new(), add_bos: None }) };
        let add_bos = match &config["add_bos_token"] {
            Value::Null => None,
            value => Some(value.as_bool().with_context(|| {
                format!("tokenizer_config.json: field 'add_bos_token' is {}, expected true or false", kind(value))
            })?),
        };
        Ok(Names { tokens, added: added_tokens_decoder(&config["added_tokens_decoder"])?, add_bos })
    }
}

/// `added_tokens_decoder` maps an id, as a string, to the token's text and flags.
fn added_tokens_decoder(decoder: &Value) -> Result<Vec<Added>> {
    const FIELD: &str = "tokenizer_config.json: field 'added_tokens_decoder'";
    ensure!(decoder.is_null() || decoder.is_object(), "{FIELD} is {}, expected an object", kind(decoder));
    let mut added = Vec::new();
    for (key, value) in decoder.as_object().into_iter().flatten() {
        let id: u32 = key.parse().with_context(|| format!("{FIELD}: {key:?} is not a token id"))?;
        let mut entry = value.clone();
        ensure!(entry.is_object(), "{FIELD}, id {id} is {}, expected an object", kind(value));
        entry["id"] = id.into();
        added.push(serde_json::from_value(entry).with_context(|| format!("{FIELD}, id {id}"))?);
    }
    Ok(added)
}
