//! Settings files as strict JSON: one object, and no key twice.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Most characters of a value or key that an error prints.
const SHOWN: usize = 64;

/// The object that `text` holds. Depth is bounded by serde_json, size by the caller.
pub(super) fn object(file: &str, text: &[u8]) -> Result<Map<String, Value>> {
    let value: Strict = serde_json::from_slice(text).with_context(|| format!("{file} is not valid JSON"))?;
    match value.0 {
        Value::Object(fields) => Ok(fields),
        other => bail!("{file} holds {}, not an object of settings", shown(&other)),
    }
}

/// A value as an error prints it: JSON, clipped, and with everything escaped that is not plainly visible.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", visible(&text[..end])),
        None => visible(&text),
    }
}

/// A key as an error prints it.
pub(super) fn shown_key(key: &str) -> String {
    match key.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", visible(&key[..end])),
        None => visible(key),
    }
}

/// Escapes what could hide in a terminal or a log; quotes and backslashes stay, so that JSON stays JSON.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out
}

/// [`Value`] without its leniency: an object that holds a key twice is an error, not the last of the two.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("\"{}\" occurs twice in one object", shown_key(&key))));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_values_are_clipped_and_escaped() {
        assert_eq!(shown(&Value::from("a\"\u{202e}b")), "\"a\\\"\\u{202e}b\"");
        assert_eq!(shown(&Value::from("x".repeat(1 << 20))), format!("\"{}...", "x".repeat(63)));
        assert_eq!(shown_key("a\0b"), "a\\0b");
    }
}
