//! Conversations: the same text and tokens as transformers, and text that stays text whatever it says.

use std::path::Path;
use std::sync::Arc;

use ocelli::text::{
    Builtin, ChatPrompt, ChatTemplate, Message, Part, Piece, Placeholder, Role, Special, TokenName, Tokenizer, expand,
    placeholders,
};
use proptest::prelude::*;
use serde_json::Value;

use super::{around_pictures, cases, fixture, ids, tokenizer};

fn template(tokenizer_name: &str, name: &str) -> ChatTemplate {
    let builtin = match name {
        "llava-1.5" => Some(Builtin::Llava15),
        "llava-1.6-mistral" => Some(Builtin::LlavaMistral),
        "phi-3-vision" => Some(Builtin::Phi3Vision),
        _ => None,
    };
    let all: Value = serde_json::from_str(&std::fs::read_to_string(fixture("cases.json")).unwrap()).unwrap();
    let explicit = all["templates"][name].as_str();
    let tokenizer = tokenizer(tokenizer_name);
    let placeholder = match name {
        "phi-3-vision" => Some(Placeholder::Numbered(image_token(&tokenizer).unwrap())),
        _ => by_token(&tokenizer),
    };
    ChatTemplate::open(&fixture(tokenizer_name), explicit, builtin, tokenizer, placeholder).unwrap()
}

fn by_token(tokenizer: &Tokenizer) -> Option<Placeholder> {
    image_token(tokenizer).map(Placeholder::Token)
}

fn image_token(tokenizer: &Tokenizer) -> Option<u32> {
    ["<image>", "<|image|>"].into_iter().find_map(|text| tokenizer.image_token(TokenName::Text(text)).ok())
}

fn messages(value: &Value) -> Vec<Message> {
    let part = |part: &Value| match part["text"].as_str() {
        Some(text) => Part::Text(text.to_owned()),
        None => Part::Image,
    };
    let message = |message: &Value| Message {
        role: message["role"].as_str().unwrap().parse().unwrap(),
        parts: message["parts"].as_array().unwrap().iter().map(part).collect(),
    };
    value.as_array().unwrap().iter().map(message).collect()
}

/// The ids with one token for each picture.
fn flat(prompt: &ChatPrompt, image_token: u32) -> Vec<u32> {
    let ones = vec![1; placeholders(&prompt.pieces)];
    expand(&prompt.pieces, &ones, Placeholder::Token(image_token)).unwrap().ids
}

#[test]
fn conversations_render_and_encode_as_in_transformers() {
    for case in cases("chat") {
        let name = case["tokenizer"].as_str().unwrap();
        let template = template(name, case["template"].as_str().unwrap());
        let messages = messages(&case["messages"]);
        let prompt = template.encode(&messages, case["generation_prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(prompt.text, case["text"].as_str().unwrap(), "{case}");
        if case["chunks"].is_array() {
            assert_eq!(prompt.pieces, around_pictures(&case["chunks"]), "{case}");
        } else {
            assert_eq!(flat(&prompt, image_token(&tokenizer(name)).unwrap()), ids(&case["ids"]), "{case}");
        }
    }
    assert_eq!(cases("chat").len(), 80);
}

/// The prompts that the model cards and papers show.
#[test]
fn builtin_templates_write_the_published_prompts() {
    let ask = [Message::with_images(Role::User, 1, "What's this?")];
    let talk = [
        Message::text(Role::System, "Be kind."),
        Message::with_images(Role::User, 2, "A?"),
        Message::text(Role::Assistant, "B."),
        Message::text(Role::User, "C?"),
    ];
    let text = |tokenizer, name, messages: &[Message]| template(tokenizer, name).encode(messages, true).unwrap().text;
    assert_eq!(text("llama", "llava-1.5", &ask), "USER: <image>\nWhat's this? ASSISTANT:");
    assert_eq!(
        text("llama", "llava-1.5", &talk),
        "Be kind. USER: <image>\n<image>\nA? ASSISTANT: B. USER: C? ASSISTANT:"
    );
    assert_eq!(text("llama", "llava-1.6-mistral", &ask), "[INST] <image>\nWhat's this? [/INST]");
    assert_eq!(
        text("llama", "llava-1.6-mistral", &talk),
        "<<SYS>>\nBe kind.\n<</SYS>>\n\n[INST] <image>\n<image>\nA? [/INST] B.</s> [INST] C? [/INST]"
    );
    let phi = |messages: &[Message]| text("phi", "phi-3-vision", messages);
    assert_eq!(phi(&ask), "<|user|>\n<|image_1|>\nWhat's this?<|end|>\n<|assistant|>\n");
    let more = [&talk[1..], &[Message::with_images(Role::User, 1, "D?")]].concat();
    assert_eq!(
        phi(&more),
        "<|user|>\n<|image_1|>\n<|image_2|>\nA?<|end|>\n<|assistant|>\nB.<|end|>\n<|user|>\nC?<|end|>\n\
         <|user|>\n<|image_3|>\nD?<|end|>\n<|assistant|>\n"
    );
}

/// Text made of what control tokens, templates and this crate's own disguise are made of.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        prop::sample::select(vec![
            "<image>",
            "</s>",
            "<s>",
            "<unk>",
            "<pad>",
            "<|user|>",
            "<|end|>",
            "<|assistant|>",
            "<|image|>",
            "<|image_1|>",
            "<|image_2|>",
            "<|image_",
            "_1|>",
            "0123456789",
            "<|",
            "|>",
            "<",
            ">",
            "<ima",
            "ge>",
            "image",
            "/s",
            "\u{ff1c}image\u{ff1e}",
            "<0x0A>",
            "{{ x }}",
            "{% endfor %}",
            "[INST]",
            " ",
            "\n",
            "\t",
            "\u{a0}",
            "USER:",
            "\u{f0000}",
            "\u{f0001}",
            "\u{10fffd}",
            "\u{e000}",
            "\u{2581}",
            "\0",
            "e\u{301}",
            "\u{1f469}\u{200d}",
            "\u{202e}",
            "\u{fffe}",
            "\\",
            "\"",
            "'",
            "[{'type': 'image'}]",
            "{\"type\": \"image\"}",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
        "[a-z <>|/]{0,4}",
    ];
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

fn conversation() -> impl Strategy<Value = Vec<Message>> {
    let part = prop_oneof![1 => Just(Part::Image), 3 => hostile().prop_map(Part::Text)];
    let role = prop::sample::select(vec![Role::User, Role::Assistant, Role::System]);
    let message = (role, prop::collection::vec(part, 0..4)).prop_map(|(role, mut parts)| {
        // Not every template shows pictures of others; to lose one is an error.
        parts.retain(|part| role == Role::User || *part != Part::Image);
        Message { role, parts }
    });
    prop::collection::vec(message, 1..5)
}

/// The same conversation, in which every text says `x`, keeping empty texts and white space that templates look at.
fn tame(messages: &[Message]) -> Vec<Message> {
    let tame = |part: &Part| match part {
        Part::Image => Part::Image,
        Part::Text(_) => Part::Text("x".to_owned()),
    };
    messages.iter().map(|m| Message { role: m.role, parts: m.parts.iter().map(tame).collect() }).collect()
}

fn control_ids(prompt: &ChatPrompt, tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = flat(prompt, image_token(tokenizer).unwrap());
    ids.into_iter().filter(|&id| tokenizer.is_control(id)).collect()
}

const TEMPLATES: [(&str, &str); 8] = [
    ("llama", "llava-1.5"),
    ("llama", "llava-1.6-mistral"),
    ("llama", "vicuna"),
    ("llama", "blocks"),
    ("metaspace", "vicuna"),
    ("phi", "turns"),
    ("phi", "phi-3-vision"),
    ("metaspace", "blocks"),
];

fn opened() -> &'static [(Arc<Tokenizer>, ChatTemplate)] {
    static OPENED: std::sync::OnceLock<Vec<(Arc<Tokenizer>, ChatTemplate)>> = std::sync::OnceLock::new();
    OPENED.get_or_init(|| TEMPLATES.iter().map(|(t, name)| (tokenizer(t), template(t, name))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the texts say, the control tokens are those that the template writes for `x`, and there are as many
    /// placeholders as pictures.
    #[test]
    fn text_never_becomes_a_control_token(messages in conversation()) {
        let images: usize = messages.iter().map(Message::images).sum();
        for (tokenizer, template) in opened() {
            let prompt = template.encode(&messages, true).unwrap();
            prop_assert_eq!(placeholders(&prompt.pieces), images);
            let expected = control_ids(&template.encode(&tame(&messages), true).unwrap(), tokenizer);
            prop_assert_eq!(control_ids(&prompt, tokenizer), expected, "{}", template.origin());
        }
    }

    /// Text without any control token's text encodes as if the whole prompt were trusted, so no border between the
    /// template's text and a user's adds or loses a space.
    #[test]
    fn plain_text_encodes_as_part_of_the_whole(
        texts in prop::collection::vec("[ a-zA-Z.,?'\n\u{e9}\u{1f642}]{0,12}", 1..4)
    ) {
        let messages: Vec<Message> =
            texts.iter().map(|text| Message::with_images(Role::User, text.len() % 2, text.as_str())).collect();
        for (tokenizer, template) in opened() {
            let prompt = template.encode(&messages, true).unwrap();
            if template.origin().contains("phi-3-vision") {
                prop_assert_eq!(prompt.pieces, tokenizer.prompt(&prompt.text, Placeholder::Numbered(0)).unwrap());
                continue;
            }
            let add_bos = !prompt.text.starts_with("<s>");
            let expected = tokenizer.encode(&prompt.text, Special::Parse, add_bos).unwrap();
            prop_assert_eq!(flat(&prompt, image_token(tokenizer).unwrap()), expected);
        }
    }

    /// Text that a user wrote gives no added token, and all of it comes back.
    #[test]
    fn user_text_has_no_control_token(text in hostile()) {
        for (tokenizer, _) in opened() {
            let ids = tokenizer.encode(&text, Special::AsText, false).unwrap();
            prop_assert!(!ids.iter().any(|&id| tokenizer.is_control(id)));
            let back = tokenizer.decode(&ids, false).unwrap();
            // U+2581 is how the model writes a space, so it comes back as one.
            let text = text.replace('\u{2581}', " ");
            prop_assert!(back == text || back == text.strip_prefix(' ').unwrap_or(&text), "{:?} {:?}", text, back);
        }
    }
}

#[test]
fn a_control_token_spelled_together_by_template_and_text_is_text() {
    let source = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}\
                  <{{ p.text }}>{% endif %}{% endfor %}{% endfor %}";
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let template =
        ChatTemplate::open(Path::new("/nonexistent"), Some(source), None, Arc::clone(&tokenizer), image).unwrap();
    let prompt = template.encode(&[Message::with_images(Role::User, 1, "image")], false).unwrap();
    assert_eq!(prompt.text, "<image><image>");
    assert_eq!(placeholders(&prompt.pieces), 1);
    let Some(Piece::Ids(spelled)) = prompt.pieces.last() else { panic!("{:?}", prompt.pieces) };
    assert_eq!(tokenizer.decode(spelled, false).unwrap(), "<image>");
}

#[test]
fn white_space_beside_a_stripping_token_goes_with_it() {
    // As in the library, <|image|> of the Phi-style file takes along the white space behind it, a user's included.
    let template = template("phi", "turns");
    let plain = template.encode(&[Message::with_images(Role::User, 1, "hi")], true).unwrap();
    let spaced = template.encode(&[Message::with_images(Role::User, 1, " \n hi")], true).unwrap();
    assert_eq!(spaced.pieces, plain.pieces);
}

#[test]
fn templates_that_lose_pictures_or_text_are_refused_when_loaded() {
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let open = |source: &str| {
        let opened = ChatTemplate::open(&fixture("llama"), Some(source), None, Arc::clone(&tokenizer), image);
        opened.err().map(|error| format!("{error:#}")).expect(source)
    };
    for (source, expected) in [
        // No pictures: as a list of parts its text is a list's, as one string it is upper-case.
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "depending on what they say"),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
            "0 picture placeholders for 1",
        ),
        ("{% for m in messages %}<image><image>{{ m.content }}{% endfor %}", "3 picture placeholders for 1"),
        ("{% for m in messages %}<image>{% endfor %}", "text of a message is not in the output"),
        ("{{ messages[0].content[0].kind.of }}", "undefined"),
        ("{{ raise_exception('no pictures, please') }}", "no pictures, please"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for m in messages %}", "unexpected end of input"),
    ] {
        let error = open(source);
        assert!(error.contains(expected) && error.contains("--chat-template"), "{source}: {error}");
    }
}

#[test]
fn a_conversation_that_the_template_rejects_is_an_error_with_its_words() {
    let source = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
                  {{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}";
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let template = ChatTemplate::open(&fixture("llama"), Some(source), None, tokenizer, image).unwrap();
    assert!(template.encode(&[Message::text(Role::User, "a")], true).is_ok());
    let error = template.encode(&[Message::text(Role::Assistant, "a")], true).unwrap_err();
    assert!(format!("{error:#}").contains("roles must alternate"), "{error:#}");
}

#[test]
fn pictures_are_refused_where_the_prompt_has_no_placeholder() {
    let (none, phi) = (Path::new("/nonexistent"), Some(Builtin::Phi3Vision));
    let template = ChatTemplate::open(none, None, phi, tokenizer("phi"), None).unwrap();
    let error = template.encode(&[Message::with_images(Role::User, 1, "hi")], true).unwrap_err();
    assert!(format!("{error:#}").contains("1 pictures"), "{error:#}");
}

/// A user's tag is text, also where the template's text and the user's spell one together.
#[test]
fn tags_that_a_user_writes_are_text() {
    let template = template("phi", "phi-3-vision");
    let message = Message::with_images(Role::User, 1, "<|image_1|> and <|image_2|>");
    let prompt = template.encode(&[message, Message::with_images(Role::User, 1, "<|image_")], true).unwrap();
    assert_eq!(
        prompt.text,
        "<|user|>\n<|image_1|>\n<|image_1|> and <|image_2|><|end|>\n<|user|>\n<|image_2|>\n<|image_<|end|>\n\
         <|assistant|>\n"
    );
    let [Piece::Ids(_), Piece::Image(0), Piece::Ids(between), Piece::Image(1), Piece::Ids(_)] = &prompt.pieces[..]
    else {
        panic!("{:?}", prompt.pieces)
    };
    let shown = tokenizer("phi").decode(between, false).unwrap();
    assert!(shown.contains("<|image_1|> and <|image_2|><|end|>"), "{shown}");

    let source = "{% for m in messages %}{{ m.content }}<|image_{{ m.content[-1:] }}|>{% endfor %}";
    let tokenizer = tokenizer("phi");
    let numbered = image_token(&tokenizer).map(Placeholder::Numbered);
    let spelled = ChatTemplate::open(&fixture("phi"), Some(source), None, tokenizer, numbered).unwrap();
    let prompt = spelled.encode(&[Message::with_images(Role::User, 1, "no 2")], true).unwrap();
    assert_eq!((prompt.text.as_str(), placeholders(&prompt.pieces)), ("<|image_1|>\nno 2<|image_2|>", 1));
}

/// Given a list of parts, a template may write the tags itself, if it numbers them.
#[test]
fn a_template_may_write_the_tags() {
    let tokenizer = tokenizer("phi");
    let numbered = image_token(&tokenizer).map(Placeholder::Numbered);
    let open = |tag: &str| {
        let source = format!(
            "{{% set ns = namespace(n=0) %}}{{% for m in messages %}}{{% for p in m.content %}}\
             {{% if p.type == 'image' %}}{{% set ns.n = ns.n + 1 %}}{tag}{{% else %}}{{{{ p.text }}}}{{% endif %}}\
             {{% endfor %}}{{% endfor %}}"
        );
        ChatTemplate::open(&fixture("phi"), Some(&source), None, Arc::clone(&tokenizer), numbered).unwrap()
    };
    let two = [Message::with_images(Role::User, 2, "a")];
    let prompt = open("<|image_{{ ns.n }}|>").encode(&two, false).unwrap();
    assert_eq!((prompt.text.as_str(), placeholders(&prompt.pieces)), ("<|image_1|><|image_2|>a", 2));
    let error = format!("{:#}", open("<|image_1|>").encode(&two, false).unwrap_err());
    assert!(error.contains("<|image_1|> a second time where <|image_2|> comes next"), "{error}");
}

/// What Jinja would do, silently, with a list where a template expects a string.
#[test]
fn a_list_printed_as_such_is_an_error() {
    let source = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}\
                  {% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}\
                  {% endif %}{% endfor %}";
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let template = ChatTemplate::open(&fixture("llama"), Some(source), None, tokenizer, image).unwrap();
    let quoting = Message::text(Role::User, "[{'type': 'text', 'text': 'x'}]");
    assert_eq!(template.encode(std::slice::from_ref(&quoting), true).unwrap().text, "[{'type': 'text', 'text': 'x'}]");
    let error = template.encode(&[Message::text(Role::System, "x"), quoting], true).unwrap_err();
    assert!(format!("{error:#}").contains("prints a list"), "{error:#}");
}

#[test]
fn a_text_that_says_what_a_template_looks_for_is_refused_if_that_changes_the_rest() {
    let source = "{% for m in messages %}<image>{{ m.content.split('</think>')[-1] }}{% endfor %}";
    let source = source.replace("<image>", "{{ '' }}");
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let template = ChatTemplate::open(&fixture("llama"), Some(&source), None, tokenizer, image).unwrap();
    assert_eq!(template.encode(&[Message::text(Role::User, "a b")], true).unwrap().text, "a b");
    let error = template.encode(&[Message::text(Role::User, "a</think>b")], true).unwrap_err();
    assert!(format!("{error:#}").contains("depending on what they say"), "{error:#}");
}

#[test]
fn unknown_roles_are_refused() {
    for name in ["<s>", "tool", "User", ""] {
        let error = name.parse::<Role>().unwrap_err().to_string();
        assert!(error.contains("system, user and assistant"), "{error}");
    }
}

#[test]
fn templates_are_found_in_the_documented_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let body = |tag: &str| format!("{tag}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}");
    let tokenizer = tokenizer("llama");
    let image = by_token(&tokenizer);
    let open = |explicit: Option<&str>, builtin| {
        ChatTemplate::open(dir.path(), explicit, builtin, Arc::clone(&tokenizer), image)
    };
    let text = |explicit: Option<&str>| {
        open(explicit, Some(Builtin::Llava15)).unwrap().encode(&[Message::text(Role::User, "x")], false).unwrap().text
    };

    assert!(format!("{:#}", open(None, None).err().unwrap()).contains("no chat template"));
    assert_eq!(text(None), "USER: x ");
    let named = [("tool_use", String::new()), ("default", body("E"))]
        .map(|(name, template)| serde_json::json!({ "name": name, "template": template }));
    let named = serde_json::json!({ "chat_template": named });
    write("tokenizer_config.json", &named.to_string());
    assert_eq!(text(None), "Ex");
    write("tokenizer_config.json", &serde_json::json!({ "chat_template": body("D") }).to_string());
    assert_eq!(text(None), "Dx");
    write("chat_template.json", &serde_json::json!({ "chat_template": body("C") }).to_string());
    assert_eq!(text(None), "Cx");
    write("chat_template.jinja", &body("B"));
    assert_eq!(text(None), "Bx");
    write("mine.txt", &body("A"));
    assert_eq!(text(dir.path().join("mine.txt").to_str()), "Ax");
    assert_eq!(text(Some(&body("literal "))), "literal x");

    let error = format!("{:#}", open(Some("no-such-file"), None).err().unwrap());
    assert!(error.contains("neither a file nor a template"), "{error}");
    write("chat_template.jinja", "{% for %}");
    let error = format!("{:#}", open(None, None).err().unwrap());
    assert!(error.contains("chat_template.jinja"), "{error}");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    write("chat_template.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#);
    let error = format!("{:#}", open(None, None).err().unwrap());
    assert!(error.contains("chat_template.json") && error.contains("rag"), "{error}");
}
