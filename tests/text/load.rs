//! Broken tokenizer files: each is an error that says what is wrong, before any model is loaded.

use std::path::Path;

use ocelli::text::{ChatTemplate, Message, Placeholder, Role, Special, TokenName, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{fixture, tokenizer};

fn file(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("tokenizer.json")).unwrap()).unwrap()
}

/// Opens a directory with this `tokenizer.json` and `tokenizer_config.json`.
fn open(json: &Value, config: &Value) -> anyhow::Result<Tokenizer> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string())?;
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string())?;
    Tokenizer::open(dir.path())
}

fn error(json: &Value, config: &Value) -> String {
    format!("{:#}", open(json, config).err().expect("it was accepted"))
}

#[test]
fn unreadable_files_are_named() {
    let error = |dir: &Path| format!("{:#}", Tokenizer::open(dir).err().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    assert!(error(dir.path()).contains("tokenizer.json does not exist"));

    let whole = std::fs::read_to_string(fixture("llama").join("tokenizer.json")).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(error(dir.path()).contains("truncated"));
    std::fs::write(&path, "").unwrap();
    assert!(error(dir.path()).contains("truncated"));
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1842767\n").unwrap();
    assert!(error(dir.path()).contains("git lfs pull"));
    std::fs::write(&path, "[1, 2]").unwrap();
    assert!(error(dir.path()).contains("an array"));
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(error(dir.path()).contains("UTF-8"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(error(dir.path()).contains("not a regular file"));
    std::fs::remove_dir(&path).unwrap();
    let huge = std::fs::File::create(&path).unwrap();
    huge.set_len((64 << 20) + 1).unwrap();
    assert!(error(dir.path()).contains("larger than the limit"));
    std::fs::write(&path, whole).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(error(dir.path()).contains("tokenizer_config.json"));
}

#[test]
fn unsupported_and_broken_parts_are_named() {
    let cases: [(&str, Value, &str); 21] = [
        ("/model/type", json!("Oracle"), "'Oracle'"),
        ("/model/type", json!(null), "model.type"),
        ("/model/vocab", json!({}), "empty"),
        ("/model/vocab", json!([]), "an array"),
        ("/model/vocab", json!({ "a": -1 }), "-1"),
        ("/model/vocab", json!({ "<unk>": 0, "a": 1, "b": 1 }), "both"),
        ("/model/merges", json!([["a", "zzz"]]), "\"zzz\" is not in the vocabulary"),
        ("/model/merges", json!([["w", "k"]]), "result \"wk\""),
        ("/model/merges", json!(["a b c"]), "expected two pieces"),
        ("/model/merges", json!(["a "]), "\"\" is not in the vocabulary"),
        ("/model/unk_token", json!("<what>"), "<what>"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
        ("/decoder", json!(null), "decoder"),
        ("/decoder/decoders/3/stop", json!(1), "stop 1"),
        ("/normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }), "Precompiled"),
        ("/pre_tokenizer", json!({ "type": "UnicodeScripts" }), "UnicodeScripts"),
        ("/pre_tokenizer", json!({ "type": "Split", "pattern": { "String": "a" } }), "Split"),
        ("/normalizer/normalizers/1/pattern", json!({ "Regex": "(a+)+$" }), "(a+)+$"),
        ("/post_processor", json!({ "type": "RobertaProcessing" }), "RobertaProcessing"),
        ("/version", json!("2.0"), "2.0"),
    ];
    for (pointer, value, expected) in cases {
        let mut json = file("llama");
        *json.pointer_mut(pointer).unwrap() = value;
        let error = error(&json, &json!({}));
        assert!(error.contains(expected) && error.contains("tokenizer.json"), "{pointer}: {error}");
    }
}

#[test]
fn added_tokens_must_agree_with_everything_else() {
    let with = |edit: &dyn Fn(&mut Vec<Value>)| {
        let mut json = file("llama");
        edit(json["added_tokens"].as_array_mut().unwrap());
        json
    };
    let push =
        |id: u32, content: &str| with(&|list| list.push(json!({ "id": id, "content": content, "special": true })));
    for (json, expected) in [
        (push(581, "<image>"), "twice"),
        (push(579, "<other>"), "both"),
        (push(600, "<other>"), "without gaps"),
        (push(577, "<other>"), "without gaps"),
        (push(581, ""), "empty"),
        (with(&|list| list[3]["single_word"] = json!(true)), "single_word"),
        (with(&|list| list[3]["lstrip"] = json!(true)), "lstrip"),
        (with(&|list| list[3]["id"] = json!("x")), "added token"),
    ] {
        assert!(error(&json, &json!({})).contains(expected), "{expected}");
    }

    let json = file("llama");
    for (config, expected) in [
        (json!({ "added_tokens_decoder": { "7": { "content": "<image>" } } }), "as id 579"),
        (json!({ "added_tokens_decoder": { "579": { "content": "<picture>" } } }), "\"<image>\" there"),
        (json!({ "added_tokens_decoder": { "x": { "content": "<image>" } } }), "not a token id"),
        (json!({ "eos_token": "<gone>" }), "<gone>"),
        (json!({ "bos_token": 7 }), "bos_token"),
        (json!({ "add_bos_token": "yes" }), "add_bos_token"),
    ] {
        let error = error(&json, &config);
        assert!(error.contains(expected), "{config}: {error}");
    }
}

#[test]
fn tokenizer_config_overrides_flags_as_in_transformers() {
    let json = file("llama");
    let config = json!({ "added_tokens_decoder": { "579": { "content": "<image>", "special": false } } });
    let tokenizer = open(&json, &config).unwrap();
    let error = tokenizer.image_token(TokenName::Id(579)).unwrap_err().to_string();
    assert!(error.contains("special: false"), "{error}");
    // Not special, and still not reachable from a user's text.
    assert!(!tokenizer.encode("<image>", Special::AsText, false).unwrap().contains(&579));

    let off = open(&json, &json!({ "add_bos_token": false, "bos_token": "<s>" })).unwrap();
    assert!(off.encode("", Special::Parse, true).unwrap().is_empty());
    // A special token that only the configuration names is one.
    let named = open(&json, &json!({ "eos_token": "<0x00>", "pad_token": "a" })).unwrap();
    assert!(named.is_special(3) && named.is_control(3));
    assert!(!named.encode("\0", Special::AsText, false).unwrap().contains(&3));
    // A padding token is not one of them: "a" stays a letter.
    assert!(!named.is_control(552));
}

#[test]
fn the_placeholder_must_be_one_special_token() {
    let llama = tokenizer("llama");
    assert_eq!(llama.image_token(TokenName::Text("<image>")).unwrap(), 579);
    assert_eq!(llama.image_token(TokenName::Id(579)).unwrap(), 579);
    for (name, expected) in [
        (TokenName::Text("<picture>"), "no added token \"<picture>\""),
        (TokenName::Text("USER"), "no added token"),
        (TokenName::Id(32000), "no added token with that id"),
    ] {
        assert!(llama.image_token(name).unwrap_err().to_string().contains(expected), "{name:?}");
    }
}

#[test]
fn the_vocabulary_must_fit_the_model() {
    let llama = tokenizer("llama");
    llama.check_vocab(581).unwrap();
    llama.check_vocab(640).unwrap();
    let error = llama.check_vocab(580).unwrap_err().to_string();
    assert!(error.contains("580") && error.contains("<pad>"), "{error}");
}

/// Merges or `ignore_merges` could build a control token from its letters; the crate's own switch does not see that.
#[test]
fn user_text_cannot_build_a_control_token_by_merges() {
    let mut json = file("llama");
    for (piece, merge) in [("<s", ["<", "s"]), ("<s>", ["<s", ">"])] {
        let next = json["model"]["vocab"].as_object().unwrap().len();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        for symbol in merge.iter().copied().chain([piece]) {
            let id = next + 100 + vocab.len();
            vocab.entry(symbol).or_insert(json!(id));
        }
        json["model"]["merges"].as_array_mut().unwrap().insert(0, json!(merge.join(" ")));
    }
    json["model"]["ignore_merges"] = json!(true);
    json["normalizer"] = json!(null);
    json["added_tokens"].as_array_mut().unwrap().truncate(3);
    let tokenizer = open(&json, &json!({})).unwrap();
    for text in ["<s>", "a<s>b", "</s>", "<unk>"] {
        let ids = tokenizer.encode(text, Special::AsText, false).unwrap();
        let control: Vec<u32> = ids.into_iter().filter(|&id| tokenizer.is_control(id) && id != 0).collect();
        assert!(control.is_empty(), "{text}");
    }
}

/// Replaces one value of a JSON tree, chosen by `at`.
fn mutate(value: &mut Value, at: &mut usize, with: &Value) {
    if *at == 0 {
        *value = with.clone();
    }
    *at = at.wrapping_sub(1);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| mutate(item, at, with)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, item)| mutate(item, at, with)),
        _ => {}
    }
}

fn odd_value() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(579),
        json!(4_294_967_296_u64),
        json!(1e300),
        json!(""),
        json!("a"),
        json!("<image>"),
        json!("\u{2581}"),
        json!("Sequence"),
        json!("Metaspace"),
        json!("Strip"),
        json!([]),
        json!(["a", "b"]),
        json!({}),
        json!({ "type": "Strip", "content": "\u{2581}", "start": 9, "stop": 0 }),
        json!({ "type": "Prepend", "prepend": "" }),
        json!({ "String": "" }),
        json!({ "type": "ByteLevel" }),
    ])
}

const TEMPLATE_PIECES: [&str; 34] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m['content'][0]['text'] }}",
    "<image>",
    "{% if m.role %}",
    "{% else %}",
    "{% endif %}",
    "{{ messages | tojson(indent=2) }}",
    "{{ 'x' * 1000 }}",
    "{%- generation -%}",
    "{% endgeneration %}",
    "{% macro f(x) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{% set a = [a] %}",
    "{{ a }}",
    "{% break %}",
    "{#",
    "#}",
    "{{",
    "}}",
    "%}",
    "{{ strftime_now('%d %B') }}",
    "{{ m.content | trim | upper | list | first }}",
    "{{ bos_token ~ eos_token }}",
    "\n  -%}",
    "{%-",
    "{% raw %}",
    "{% endraw %}",
    "{{ range(9999) | join(m.role) }}",
    "{{ 1 // 0 }}",
    "{{ messages[-1:][::-1] }}",
    "{% include m %}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file with one wrong value is an error, or a tokenizer that works.
    #[test]
    fn a_wrong_value_anywhere_never_panics(
        early in 0usize..200, late in 0usize..1000, pick in any::<bool>(), with in odd_value(),
        name in prop::sample::select(vec!["llama", "phi", "bytelevel"])
    ) {
        let mut json = file(name);
        let mut at = if pick { early } else { late };
        mutate(&mut json, &mut at, &with);
        if let Ok(tokenizer) = open(&json, &json!({})) {
            for text in ["", "a <image> b", "\u{1f642}\0"] {
                let ids = tokenizer.encode(text, Special::Parse, true).unwrap_or_default();
                let _ = tokenizer.decode(&ids, true);
                let _ = tokenizer.encode(text, Special::AsText, true);
            }
        }
    }

    /// A template made of anything is an error, or one that renders.
    #[test]
    fn any_template_renders_or_is_an_error(
        pieces in prop::collection::vec(prop::sample::select(TEMPLATE_PIECES.to_vec()), 0..12)
    ) {
        static TOKENIZER: std::sync::OnceLock<std::sync::Arc<Tokenizer>> = std::sync::OnceLock::new();
        let tokenizer = TOKENIZER.get_or_init(|| tokenizer("llama"));
        let source = format!("{{{{ '' }}}}{}", pieces.concat());
        let dir = Path::new("/nonexistent");
        if let Ok(template) = ChatTemplate::open(dir, Some(&source), None, tokenizer.clone(), Some(Placeholder::Token(579))) {
            let ask = [Message::text(Role::System, "a"), Message::with_images(Role::User, 2, "b")];
            let _ = template.encode(&ask, true);
        }
    }
}
