//! What schemas are made of.

use serde_json::{Value, json};

/// An object with these of its properties always there.
pub(super) fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

/// A property that may be absent, which null means, too.
pub(super) fn optional(kind: &str, about: &str) -> Value {
    json!({ "type": [kind, "null"], "description": about })
}

/// The same, from `low` to `high`.
pub(super) fn within(kind: &str, low: impl Into<Value>, high: impl Into<Value>, about: &str) -> Value {
    with(optional(kind, about), json!({ "minimum": low.into(), "maximum": high.into() }))
}

/// A schema and more that holds of its values.
pub(super) fn with(mut schema: Value, more: Value) -> Value {
    if let (Some(schema), Value::Object(more)) = (schema.as_object_mut(), more) {
        schema.extend(more);
    }
    schema
}

/// Another schema of the document.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Another schema of the document, or null.
pub(super) fn or_null(name: &str) -> Value {
    json!({ "anyOf": [reference(name), { "type": "null" }] })
}

pub(super) fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

/// A whole number from 0 on.
pub(super) fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

/// A token's id.
pub(super) fn token() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
}

/// Token ids, or null.
pub(super) fn tokens_or_null() -> Value {
    json!({ "type": ["array", "null"], "items": token() })
}
