//! Added tokens: the strings that are cut out of a text before the model sees it, and what the files say about them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper};

use super::file::kind;
use super::names::Names;

/// Every added token by id.
pub(super) type AddedTokens = BTreeMap<u32, Added>;

/// One entry of `added_tokens`: a string that is cut out of the text before the model sees it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    pub special: bool,
}

impl Added {
    /// A special token that only the configuration names; it stands in the vocabulary as `id`.
    pub fn special(id: u32, content: &str) -> Added {
        Added {
            id,
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: Some(false),
            special: true,
        }
    }

    /// Whether it is matched in the normalised text; a special token is not unless the file says so.
    pub fn normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }

    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "id": self.id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized(), "special": self.special,
        })
    }
}

/// The entries of `added_tokens`, with what `tokenizer_config.json` changes about them, by id.
pub(super) fn added_tokens(list: &Value, names: &Names, vocab: &HashMap<String, u32>) -> Result<AddedTokens> {
    ensure!(list.is_null() || list.is_array(), "field 'added_tokens' is {}, expected an array", kind(list));
    let mut added = AddedTokens::new();
    let mut ids: HashMap<String, u32> = HashMap::new();
    for entry in list.as_array().into_iter().flatten() {
        let token: Added = serde_json::from_value(entry.clone()).with_context(|| format!("added token {entry}"))?;
        if let Some(id) = ids.insert(token.content.clone(), token.id) {
            bail!("field 'added_tokens' holds {:?} twice, as ids {id} and {}", token.content, token.id);
        }
        if let Some(other) = added.insert(token.id, token.clone()) {
            bail!("field 'added_tokens' gives id {} to both {:?} and {:?}", token.id, other.content, token.content);
        }
    }
    for token in &names.added {
        let known = ids.get(&token.content).or_else(|| vocab.get(&token.content));
        let holder = added.get(&token.id);
        ensure!(
            known.is_none_or(|&id| id == token.id) && holder.is_none_or(|holder| holder.content == token.content),
            "tokenizer_config.json's added_tokens_decoder has {:?} as id {}, tokenizer.json has {}",
            token.content,
            token.id,
            match (known, holder) {
                (Some(id), _) => format!("it as id {id}"),
                (None, Some(holder)) => format!("{:?} there", holder.content),
                (None, None) => "neither".to_owned(),
            }
        );
        ids.insert(token.content.clone(), token.id);
        added.insert(token.id, token.clone());
    }
    // transformers makes these special even where only the configuration names them.
    for name in ["bos_token", "eos_token", "unk_token"] {
        let Some(text) = names.tokens.get(name).filter(|text| !ids.contains_key(*text)) else { continue };
        let id = vocab.get(text).copied().with_context(|| {
            format!("tokenizer_config.json's {name} is {text:?}, which tokenizer.json does not know")
        })?;
        ids.insert(text.clone(), id);
        added.insert(id, Added::special(id, text));
    }
    for token in added.values() {
        ensure!(!token.content.is_empty(), "field 'added_tokens': id {} is empty", token.id);
        // The library looks back through the whole text at each occurrence of either.
        for (flag, set) in [("single_word", token.single_word), ("lstrip", token.lstrip)] {
            ensure!(!set, "field 'added_tokens': {:?} has '{flag}: true', which is not supported", token.content);
        }
    }
    Ok(added)
}

/// The added tokens alone, matched in text as it is written. A token that the file matches in normalised text is
/// matched in raw text here: normalising could turn other characters into one of its own.
pub(super) fn control_vocabulary(literal: &tokenizers::Tokenizer, added: &AddedTokens) -> Result<AddedVocabulary> {
    let tokens = added.values().map(|token| AddedToken {
        content: token.content.clone(),
        single_word: false,
        lstrip: false,
        rstrip: token.rstrip,
        normalized: false,
        special: token.special,
    });
    let mut control = AddedVocabulary::new();
    control.add_tokens(tokens, literal.get_model(), None::<&NormalizerWrapper>).map_err(|e| anyhow!(e))?;
    Ok(control)
}
