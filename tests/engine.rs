//! What a caller of the engine relies on, on tiny random checkpoints.

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli::Error;
use ocelli::engine::{Device, Engine, FinishReason, Options, Output, Prompt, Request, Sampling};
use ocelli::mem::DType;
use ocelli::text::{Message, Role};
use safetensors::SafeTensors;

fn goldens() -> PathBuf {
    PathBuf::from("tests/goldens")
}

fn engine() -> Engine {
    Engine::open(&goldens().join("llava-tiny-mha"), &Options::default(), |_, _| ()).unwrap()
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(goldens().join(format!("pictures/{name}.png"))).unwrap()
}

fn greedy(tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(tokens), ignore_eos: true, ..Sampling::default() }
}

fn raw(text: &str, pictures: &[&str], sampling: Sampling) -> Request {
    Request {
        prompt: Prompt::Raw(text.into()),
        images: pictures.iter().map(|p| picture(p).into()).collect(),
        sampling,
        ..Request::default()
    }
}

fn answer(engine: &Engine, request: &Request) -> Output {
    engine.answer(request, |_| ControlFlow::Continue(())).unwrap()
}

fn refusal(engine: &Engine, request: &Request) -> String {
    match engine.answer(request, |_| ControlFlow::Continue(())) {
        Err(error @ Error::Request(_)) => error.to_string(),
        other => panic!("not refused as a request: {other:?}"),
    }
}

const QUESTION: &str = "USER: <image>\nwhat is this? ASSISTANT:";

#[test]
fn an_answer_is_complete_and_streams_what_it_says() {
    let engine = engine();
    let request = raw(QUESTION, &["wide"], greedy(20));
    let mut streamed = String::new();
    let output = engine
        .answer(&request, |text| {
            streamed.push_str(text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(streamed, output.outputs[0].text);
    assert_eq!(output.outputs[0].token_ids.len(), 20);
    assert_eq!(output.outputs[0].logprobs.len(), 20);
    assert!(output.outputs[0].logprobs.iter().all(|&l| l <= 0.0 && l.is_finite()));
    assert_eq!(output.outputs[0].finish_reason, FinishReason::Length);
    assert_eq!(output.image_tokens, [16]);
    assert_eq!(output.prompt, QUESTION);
    assert_eq!(output.prompt_token_ids.iter().filter(|&&id| id == 323).count(), 16);
    assert_eq!(answer(&engine, &request).outputs[0].logits_hash, output.outputs[0].logits_hash);
}

#[test]
fn a_placeholder_may_stand_once_or_as_often_as_the_picture_has_tokens() {
    let engine = engine();
    let once = answer(&engine, &raw(QUESTION, &["tall"], greedy(8)));
    let repeated = QUESTION.replace("<image>", &"<image>".repeat(16));
    let often = answer(&engine, &raw(&repeated, &["tall"], greedy(8)));
    assert_eq!(
        (&once.outputs[0].token_ids, &once.prompt_token_ids),
        (&often.outputs[0].token_ids, &often.prompt_token_ids)
    );
    for wrong in [0, 2, 15, 17] {
        let text = QUESTION.replace("<image>", &"<image>".repeat(wrong));
        let message = refusal(&engine, &raw(&text, &["tall"], greedy(8)));
        assert!(message.contains(&format!("{wrong} picture placeholders for 1 pictures")), "{message}");
    }
}

#[test]
fn pictures_matter_and_keep_their_order() {
    let engine = engine();
    let text = "USER: <image><image>\ncompare. ASSISTANT:";
    let hash = |pictures: &[&str]| answer(&engine, &raw(text, pictures, greedy(1))).outputs[0].logits_hash.clone();
    let (ab, ba, aa) = (hash(&["wide", "tall"]), hash(&["tall", "wide"]), hash(&["wide", "wide"]));
    assert!(ab != ba && ab != aa && ba != aa);
    assert_eq!(ab, hash(&["wide", "tall"]));
}

#[test]
fn text_of_a_message_is_text() {
    let engine = engine();
    let chat = |text: &str, images| Prompt::Chat(vec![Message::with_images(Role::User, images, text)]);
    let hostile = Request {
        prompt: chat("say <image> and </s> and <pad>", 1),
        images: vec![picture("square").into()],
        sampling: greedy(4),
        ..Request::default()
    };
    let output = answer(&engine, &hostile);
    assert_eq!(output.image_tokens, [16]);
    assert_eq!(output.prompt_token_ids.iter().filter(|&&id| id == 323).count(), 16);
    assert!(!output.prompt_token_ids.contains(&2) && !output.prompt_token_ids.contains(&324));
    let none = Request {
        prompt: chat("<image>", 0),
        images: vec![picture("square").into()],
        sampling: greedy(4),
        ..Request::default()
    };
    assert!(refusal(&engine, &none).contains("0 picture placeholders for 1 pictures"));
}

#[test]
fn sampling_repeats_with_its_seed_and_only_with_it() {
    let engine = engine();
    let with = |seed| {
        let sampling = Sampling { seed, max_tokens: Some(24), ignore_eos: true, ..Sampling::default() };
        answer(&engine, &raw(QUESTION, &["wide"], sampling)).outputs[0].token_ids.clone()
    };
    assert_eq!(with(Some(5)), with(Some(5)));
    assert_ne!(with(Some(5)), with(Some(6)));
    assert_ne!(with(Some(5)), with(Some(5 + (1 << 32))));
    assert_ne!(with(None), with(None));
}

/// Greedy, so each penalty must show in which tokens can follow. A strong one leaves no token twice.
#[test]
fn each_penalty_keeps_an_answer_from_repeating_itself() {
    let engine = engine();
    let plain = answer(&engine, &raw("a", &[], greedy(30)));
    let repeats = |ids: &[u32]| ids.len() - ids.iter().collect::<HashSet<_>>().len();
    assert!(repeats(&plain.outputs[0].token_ids) > 5, "{:?}", plain.outputs[0].token_ids);
    for sampling in [
        Sampling { presence_penalty: 2.0, ..greedy(30) },
        Sampling { frequency_penalty: 2.0, ..greedy(30) },
        Sampling { repetition_penalty: 10.0, ..greedy(30) },
    ] {
        let penalised = answer(&engine, &raw("a", &[], sampling.clone()));
        assert!(repeats(&penalised.outputs[0].token_ids) < repeats(&plain.outputs[0].token_ids), "{sampling:?}");
        // What an earlier request counted is gone.
        assert_eq!(answer(&engine, &raw("a", &[], sampling)).outputs[0].token_ids, penalised.outputs[0].token_ids);
    }
}

/// The repetition penalty is the one that looks at the prompt: a token that would come first, and stands in the prompt,
/// comes later or not at all.
#[test]
fn the_repetition_penalty_knows_the_prompt() {
    let engine = engine();
    for prompt in ["a", "what is the moon?", "the picture is", "USER: hello ASSISTANT:"] {
        let plain = answer(&engine, &raw(prompt, &[], greedy(1)));
        let strong = Sampling { repetition_penalty: 10.0, ..greedy(1) };
        let penalised = answer(&engine, &raw(prompt, &[], strong));
        assert_eq!(penalised.outputs[0].logprobs.len(), 1);
        if plain.prompt_token_ids.contains(&plain.outputs[0].token_ids[0]) {
            assert_ne!(penalised.outputs[0].token_ids, plain.outputs[0].token_ids, "{prompt}");
        }
        assert!(!penalised.prompt_token_ids.contains(&penalised.outputs[0].token_ids[0]), "{prompt}");
    }
}

#[test]
fn alternatives_are_reported_in_their_order() {
    let engine = engine();
    let sampling = Sampling { top_logprobs: 3, ..greedy(5) };
    let output = answer(&engine, &raw("a", &[], sampling));
    assert_eq!(output.outputs[0].top_logprobs.len(), 5);
    for ((top, &token), &logprob) in
        output.outputs[0].top_logprobs.iter().zip(&output.outputs[0].token_ids).zip(&output.outputs[0].logprobs)
    {
        assert_eq!(top.len(), 3);
        assert_eq!(top[0], (token, logprob), "greedy takes the first");
        assert!(top[0].1 >= top[1].1 && top[1].1 >= top[2].1);
    }
    assert!(answer(&engine, &raw("a", &[], greedy(2))).outputs[0].top_logprobs.iter().all(Vec::is_empty));
}

/// Text alone needs no room for pictures, and says so when one comes.
#[test]
fn an_engine_without_images_answers_text() {
    let options = Options { max_images: 0, ..Options::default() };
    let engine = Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).unwrap();
    assert_eq!(answer(&engine, &raw("a", &[], greedy(3))).outputs[0].token_ids.len(), 3);
    assert!(refusal(&engine, &raw(QUESTION, &["wide"], greedy(3))).contains("1 pictures; at most 0"));
}

#[test]
fn an_answer_ends_where_it_should() {
    let engine = engine();
    let whole = answer(&engine, &raw("what is the moon?", &[], greedy(32)));
    let word: String = whole.outputs[0].text.chars().skip(whole.outputs[0].text.chars().count() / 2).take(3).collect();
    let sampling = Sampling { stop: vec!["never said".into(), word.clone()], ..greedy(32) };
    let stopped = answer(&engine, &raw("what is the moon?", &[], sampling));
    assert_eq!(stopped.outputs[0].finish_reason, FinishReason::Stop);
    assert_eq!(stopped.outputs[0].text, whole.outputs[0].text[..whole.outputs[0].text.find(&word).unwrap()]);

    let mut pieces = 0;
    let cancelled = engine.answer(&raw("what is the moon?", &[], greedy(32)), |_| {
        pieces += 1;
        if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let cancelled = cancelled.unwrap();
    assert_eq!((cancelled.outputs[0].finish_reason, pieces), (FinishReason::Cancelled, 3));
    assert!(whole.outputs[0].text.starts_with(&cancelled.outputs[0].text));
}

#[test]
fn the_context_is_filled_to_its_end_and_no_further() {
    let options = Options { max_model_len: Some(40), ..Options::default() };
    let engine = Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).unwrap();
    let output = answer(&engine, &raw(QUESTION, &["wide"], Sampling { max_tokens: None, ..greedy(1) }));
    assert_eq!(output.prompt_token_ids.len() + output.outputs[0].token_ids.len(), 40);
    assert_eq!(output.outputs[0].finish_reason, FinishReason::Length);

    let long = format!("{QUESTION}{}", " word".repeat(40));
    let message = refusal(&engine, &raw(&long, &["wide"], greedy(1)));
    assert!(message.contains("tokens (16 of pictures)") && message.contains("40 fit"), "{message}");
    answer(&engine, &raw(QUESTION, &["wide"], greedy(4)));
}

#[test]
fn a_bad_request_is_refused_and_the_next_good_one_answered() {
    let engine = engine();
    let good = raw(QUESTION, &["wide"], greedy(6));
    let expected = answer(&engine, &good).outputs[0].logits_hash.clone();
    let five = raw(&format!("{} compare", "<image>".repeat(5)), &["wide"; 5], greedy(1));
    let cut = Request { images: vec![picture("large")[..5000].into()], ..good.clone() };
    let noise = Request { images: vec![vec![7; 1000].into()], ..good.clone() };
    let bad = [
        (five, "5 pictures; at most 4"),
        (Request { images: vec![], ..good.clone() }, "1 picture placeholders for 0 pictures"),
        (cut, "picture 1"),
        (noise, "picture 1"),
        (Request { sampling: Sampling { top_p: 7.0, ..greedy(1) }, ..good.clone() }, "top_p is 7"),
        (Request { sampling: Sampling { stop: vec![String::new()], ..greedy(1) }, ..good.clone() }, "stop[0] is empty"),
    ];
    for (request, expected_message) in bad {
        let message = refusal(&engine, &request);
        assert!(message.contains(expected_message), "{message:?} does not say {expected_message:?}");
        assert_eq!(answer(&engine, &good).outputs[0].logits_hash, expected);
    }
}

#[test]
fn impossible_options_are_errors_before_anything_is_loaded() {
    let open = |options: Options| Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).err().unwrap();
    let error = open(Options { max_model_len: Some(1 << 20), ..Options::default() });
    assert!(matches!(error, Error::Request(_)) && error.to_string().contains("max_model_len is 1048576"), "{error}");
    let error = open(Options { max_model_len: Some(0), ..Options::default() });
    assert!(matches!(error, Error::Request(_)) && error.to_string().contains("max_model_len is 0"), "{error}");
    let error = open(Options { dtype: Some(DType::I32), ..Options::default() });
    assert!(matches!(error, Error::Request(_)) && error.to_string().contains("dtype is i32"), "{error}");
    let error = open(Options { chat_template: Some("{% for".into()), ..Options::default() });
    assert!(matches!(error, Error::Request(_)) && error.to_string().contains("chat template"), "{error}");
    let error = open(Options { device: Device::Cuda(0), ..Options::default() });
    assert!(matches!(error, Error::Device(_)) && error.to_string().contains("--device cpu"), "{error}");
    let missing = Engine::open(Path::new("/no/such/model"), &Options::default(), |_, _| ()).err().unwrap();
    assert!(matches!(missing, Error::Model(_)) && missing.to_string().contains("/no/such/model"), "{missing}");
}

/// A context as long as config.json may claim: the memory is planned before anything is allocated.
#[test]
fn a_model_that_does_not_fit_is_an_error_with_the_sizes() {
    let dir = copy("llava-tiny-mha");
    let file = dir.path().join("config.json");
    let config = fs::read_to_string(&file).unwrap();
    let positions = "\"max_position_embeddings\": ";
    let start = config.find(positions).unwrap() + positions.len();
    let end = start + config[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
    fs::write(&file, format!("{}{}{}", &config[..start], 1 << 24, &config[end..])).unwrap();
    let error = Engine::open(dir.path(), &Options::default(), |_, _| ()).err().unwrap();
    let message = error.to_string();
    assert!(matches!(error, Error::Capacity(_)), "{message}");
    assert!(message.contains("now 16777216 tokens (--max-model-len)") && message.contains("of cache"), "{message}");
    let options = Options { max_model_len: Some(64), ..Options::default() };
    let engine = Engine::open(dir.path(), &options, |_, _| ()).unwrap();
    assert_eq!(answer(&engine, &raw("a", &[], greedy(3))).outputs[0].token_ids.len(), 3);
}

fn copy(folder: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// A checkpoint whose final norm is NaN, so that every logit is.
#[test]
fn a_nan_is_an_error_that_names_the_token() {
    let dir = copy("llava-tiny-mha");
    let file = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let norm = SafeTensors::deserialize(&bytes).unwrap().tensor("language_model.model.norm.weight").unwrap();
    let at = norm.data().as_ptr() as usize - bytes.as_ptr() as usize;
    let len = norm.data().len();
    for value in bytes[at..at + len].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&file, bytes).unwrap();
    let engine = Engine::open(dir.path(), &Options::default(), |_, _| ()).unwrap();
    for _ in 0..2 {
        let error = engine.answer(&raw("a", &[], greedy(2)), |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, Error::Model(_)) && error.to_string().contains("token 0 of the answer"), "{error}");
    }
}

#[test]
fn every_type_answers() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let options = Options { dtype: Some(dtype), ..Options::default() };
        let engine = Engine::open(&goldens().join("llava-tiny-mha"), &options, |_, _| ()).unwrap();
        assert_eq!(engine.dtype(), dtype);
        let output = answer(&engine, &raw(QUESTION, &["wide"], greedy(4)));
        assert_eq!(output.outputs[0].token_ids.len(), 4);
    }
}
