//! Reading a JSON object field by field, with errors that name the field.

use serde_json::{Map, Value};

use super::ApiError;

/// Most characters of a value that an error shows.
const SHOWN: usize = 64;

/// An object of a request. Fields that nobody asks for are ignored, and `null` is an absent field, as in vLLM.
pub(super) struct Fields {
    /// What stands before a field's name in an error: `messages[0].`
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object at `path`; the outermost has none.
    pub fn new(path: &str, value: Value) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) if path.is_empty() => Ok(Fields { prefix: String::new(), map }),
            Value::Object(map) => Ok(Fields { prefix: format!("{path}."), map }),
            other if path.is_empty() => {
                let message = format!("the body is {}; it must be an object", shown(&other));
                Err(ApiError::refused("invalid_value", message))
            }
            other => Err(invalid(path, format!("{path} is {}; it must be an object", shown(&other)))),
        }
    }

    /// The body of a request.
    pub fn parse(body: &str) -> Result<Fields, ApiError> {
        let body = serde_json::from_str(body)
            .map_err(|error| ApiError::refused("invalid_json", format!("the body is no JSON: {error}")))?;
        Fields::new("", body)
    }

    /// A field's full name.
    pub fn at(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether the field is there.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// The field, taken out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// The field through `convert`, which returns nothing for a value that is not `expected`.
    pub fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match convert(&value) {
            Some(value) => Ok(Some(value)),
            None => {
                let at = self.at(name);
                Err(invalid(&at, format!("{at} is {}; it must be {expected}", shown(&value))))
            }
        }
    }

    /// A finite number.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        self.read(name, "a number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// A whole number from 0 on.
    pub fn count(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        self.read(name, "a whole number from 0 on", |value| whole(value).and_then(|n| usize::try_from(n).ok()))
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A text, which may be long.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                let at = self.at(name);
                Err(invalid(&at, format!("{at} is {}; it must be a text", shown(&other))))
            }
        }
    }

    /// Refuse a field unless it is absent or has a value that changes nothing; `remedy` is what to do.
    pub fn only(&mut self, name: &str, harmless: &[Value], remedy: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !harmless.contains(&value) => {
                let at = self.at(name);
                let message = format!("{at} is {}, which is not supported; {remedy}", shown(&value));
                Err(ApiError::invalid(at, "unsupported_parameter", message))
            }
            _ => Ok(()),
        }
    }
}

/// A whole number, also where it is written with a fraction of 0.
pub(super) fn whole(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64);
    value.as_i64().or_else(float)
}

/// A token's id.
pub(super) fn token(value: &Value) -> Option<u32> {
    whole(value).and_then(|id| u32::try_from(id).ok())
}

/// A field with a value that it cannot have.
pub(super) fn invalid(at: &str, message: String) -> ApiError {
    ApiError::invalid(at, "invalid_value", message)
}

/// A value as an error shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => clipped(text),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}

/// The beginning of a text in quotes, with nothing in it that a terminal would obey.
pub(in crate::server) fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
