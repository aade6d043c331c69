//! Text to tokens and back, against what transformers and tokenizers made of the same input
//! (tools/make_text_fixtures.py).

mod chat;
mod load;
mod size;
mod stream;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ocelli::text::{Piece, Placeholder, Special, Tokenizer};
use serde_json::Value;

/// The directory of a fixture tokenizer.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text").join(name)
}

fn tokenizer(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open(&fixture(name)).unwrap())
}

/// The recorded cases of one kind.
fn cases(kind: &str) -> &'static [Value] {
    static CASES: OnceLock<Value> = OnceLock::new();
    let all =
        CASES.get_or_init(|| serde_json::from_str(&std::fs::read_to_string(fixture("cases.json")).unwrap()).unwrap());
    all[kind].as_array().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Chunks of ids with a picture between each two.
fn around_pictures(chunks: &Value) -> Vec<Piece> {
    let chunks = chunks.as_array().unwrap().iter().enumerate();
    chunks.flat_map(|(n, chunk)| [Piece::Image(n.wrapping_sub(1)), Piece::Ids(ids(chunk))]).skip(1).collect()
}

/// Runs `check` on each case with its tokenizer; returns how many there were.
fn each(kind: &str, mut check: impl FnMut(&Arc<Tokenizer>, &Value)) -> usize {
    let known = ["llama", "metaspace", "phi", "bytelevel"].map(|name| (name, tokenizer(name)));
    for case in cases(kind) {
        let (_, tokenizer) = known.iter().find(|(name, _)| case["tokenizer"] == *name).unwrap();
        check(tokenizer, case);
    }
    cases(kind).len()
}

#[test]
fn trusted_text_encodes_as_the_library_encodes_it() {
    let count = each("encode", |tokenizer, case| {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Special::Parse, true).unwrap(), ids(&case["ids"]), "{case}");
    });
    assert_eq!(count, 100);
}

/// Between tags every text is encoded as if it stood alone.
#[test]
fn tagged_text_encodes_chunk_by_chunk_as_the_library_encodes_it() {
    let count = each("numbered", |tokenizer, case| {
        let pieces = tokenizer.prompt(case["text"].as_str().unwrap(), Placeholder::Numbered(0)).unwrap();
        assert_eq!(pieces, around_pictures(&case["chunks"]), "{case}");
    });
    assert_eq!(count, 26);
}

#[test]
fn user_text_encodes_as_with_the_librarys_switch() {
    let count = each("as_text", |tokenizer, case| {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Special::AsText, true).unwrap(), ids(&case["ids"]), "{case}");
    });
    assert_eq!(count, 75);
}

#[test]
fn ids_decode_as_transformers_decodes_them() {
    let count = each("decode", |tokenizer, case| {
        let skip = case["skip_special"].as_bool().unwrap();
        assert_eq!(tokenizer.decode(&ids(&case["ids"]), skip).unwrap(), case["text"].as_str().unwrap(), "{case}");
    });
    assert_eq!(count, 480);
}

#[test]
fn names_and_ids_of_special_tokens_are_known() {
    let llama = tokenizer("llama");
    assert_eq!(llama.special_token("eos_token"), Some("</s>"));
    assert_eq!(llama.special_id("eos_token"), Some(2));
    assert_eq!(llama.special_id("sep_token"), None);
    assert_eq!(llama.id_to_token(13).as_deref(), Some("<0x0A>"));
    assert_eq!(llama.token_to_id("<image>"), Some(579));
    assert!(llama.is_special(579) && llama.is_control(579) && !llama.is_control(577));
    // Phi's </s> is an added token, but not special: it must be stopped at, since it would be printed.
    let phi = tokenizer("phi");
    assert!(!phi.is_special(2) && phi.is_control(2));
    assert_eq!(phi.decode(&[2], true).unwrap(), "</s>");
}
