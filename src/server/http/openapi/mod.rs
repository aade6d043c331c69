//! `/openapi.json`: the interface in OpenAPI 3.1, as this server has it: its model's names, its limits, its key.
//!
//! | module | job |
//! |---|---|
//! | `paths` | routes, and the statuses of their answers |
//! | `requests` | bodies of requests |
//! | `answers` | bodies of answers, and events |
//! | `schema` | what schemas are made of |

mod answers;
mod paths;
mod requests;
mod schema;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::app::App;
use crate::server::openai::MAX_VALUES;

/// What differs between servers.
struct Facts<'a> {
    models: &'a [String],
    max_images: usize,
    max_body_bytes: usize,
    /// Whether requests must bring one.
    key: bool,
}

pub(super) async fn openapi(State(app): State<Arc<App>>) -> Json<Value> {
    Json(document(&Facts {
        models: &app.options.served_model_names,
        max_images: app.engine.max_images(),
        max_body_bytes: app.options.max_body_bytes,
        key: app.options.api_key.is_some(),
    }))
}

fn document(facts: &Facts) -> Value {
    let mut schemas = Map::new();
    schemas.extend(requests::schemas(facts));
    schemas.extend(answers::schemas());
    let mut components = json!({ "schemas": schemas, "responses": paths::failures() });
    if facts.key {
        components["securitySchemes"] = json!({ "key": { "type": "http", "scheme": "bearer" } });
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ocelli",
            "version": env!("CARGO_PKG_VERSION"),
            "description": about(facts),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths::paths(facts),
        "components": components,
    })
}

fn about(facts: &Facts) -> String {
    let Facts { max_images, max_body_bytes, .. } = facts;
    format!(
        "OpenAI's chat completions for vision-language models, with vLLM's additions. A field that is null is absent, and \
         one that is not known is ignored; one that would change the answer and is not supported is refused. A body has at \
         most {max_body_bytes} bytes and {MAX_VALUES} values, and a conversation at most {max_images} pictures."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Value {
        document(&Facts { models: &["m".into()], max_images: 4, max_body_bytes: 99, key: true })
    }

    /// Every value under a name, however deep.
    fn under<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                found.extend((key == name).then_some(value));
                under(value, name, found);
            }),
            Value::Array(items) => items.iter().for_each(|item| under(item, name, found)),
            _ => {}
        }
    }

    #[test]
    fn what_is_referred_to_is_there() {
        let document = whole();
        let mut references = Vec::new();
        under(&document, "$ref", &mut references);
        assert!(references.len() > 20);
        for reference in references.iter().filter_map(|reference| reference.as_str()) {
            let path = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(path).is_some(), "{reference}");
        }
    }

    #[test]
    fn what_is_required_is_described() {
        let document = whole();
        for schema in document["components"]["schemas"].as_object().unwrap().values() {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(!schema["properties"][name].is_null(), "{name}");
            }
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let document = whole();
        let mut names = Vec::new();
        under(&document["paths"], "operationId", &mut names);
        let different: std::collections::BTreeSet<_> = names.iter().map(|name| name.as_str()).collect();
        assert_eq!(different.len(), names.len());
    }
}
