//! Large inputs: encoding is linear in the text, and there is a limit.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli::text::{Builtin, ChatTemplate, MAX_TEXT_BYTES, Message, Placeholder, Role, Special, placeholders};

use super::tokenizer;

#[test]
fn a_mebibyte_of_anything_is_encoded_in_bounded_time() {
    for kind in ["llama", "bytelevel"] {
        let tokenizer = tokenizer(kind);
        for unit in ["a", "\u{1f642}", " ", "e\u{301}\u{200d}", "<image>", "\n"] {
            let text = unit.repeat((1 << 20) / unit.len());
            let start = Instant::now();
            assert!(!tokenizer.encode(&text, Special::AsText, false).unwrap().is_empty());
            // 0.4 to 1.3 s on one busy core; a step for each pair of its million characters would take an hour.
            assert!(start.elapsed() < Duration::from_secs(30), "{kind}, {unit:?}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_conversation_may_be_as_long_as_a_text() {
    let tokenizer = tokenizer("llama");
    let template = ChatTemplate::open(
        Path::new("/nonexistent"),
        None,
        Some(Builtin::Llava15),
        Arc::clone(&tokenizer),
        Some(Placeholder::Token(579)),
    )
    .unwrap();
    // Every character of it is one that is disguised while the template runs.
    let ask = |bytes: usize| template.encode(&[Message::with_images(Role::User, 1, "<image>".repeat(bytes / 7))], true);
    assert_eq!(placeholders(&ask(MAX_TEXT_BYTES - 64).unwrap().pieces), 1);
    assert!(format!("{:#}", ask(MAX_TEXT_BYTES + 7).unwrap_err()).contains("bytes of text"));
}

#[test]
fn longer_texts_are_refused() {
    let tokenizer = tokenizer("llama");
    let error = tokenizer.encode(&"a".repeat(MAX_TEXT_BYTES + 1), Special::AsText, false).unwrap_err().to_string();
    assert!(error.contains(&MAX_TEXT_BYTES.to_string()), "{error}");
}
