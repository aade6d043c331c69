//! LLaVA-NeXT and Phi-3-vision behind an engine, on tiny random checkpoints: whatever runs beside a request, whatever is
//! cached and however prompts are cut, its answer has the same bits; what cannot be right is one clear error.

mod settled;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli::Error;
use ocelli::config::{ProcessorKwargs, processor_kwargs};
use ocelli::engine::{
    Engine, FinishReason, ImageArray, ImageInput, ImageInputType, Options, Output, Prompt, Request, Sampling,
};
use ocelli::image::Rgb;
use ocelli::mem::{DType, Source};
use ocelli::text::{Message, Role};
use settled::settled;

const NEXT: &str = "next-tiny-mistral";
const PHI3: &str = "phi3-tiny";
const PHI35: &str = "phi35-tiny";
const FOLDERS: [&str; 4] = ["next-tiny-llama", NEXT, PHI3, PHI35];

fn folder(name: &str) -> PathBuf {
    Path::new("tests/goldens").join(name)
}

fn open(name: &str, options: Options) -> Engine {
    let options = Options { dtype: Some(DType::F32), ..options };
    Engine::open(&folder(name), &options, |_, _| ()).unwrap()
}

/// One request after another, nothing remembered.
fn alone() -> Options {
    Options { max_num_seqs: Some(1), prefix_caching: false, encoder_caching: false, ..Options::default() }
}

fn picture(name: &str) -> ImageInput {
    ImageInput::Path(folder("pictures").join(format!("{name}.png")))
}

fn pictures(names: &[&str]) -> Vec<ImageInput> {
    names.iter().map(|name| picture(name)).collect()
}

/// How a model's prompts show picture `n`, counted from 1.
fn tag(model: &str, n: usize) -> String {
    if model.starts_with("phi") { format!("<|image_{n}|>") } else { "<image>".into() }
}

fn greedy(tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(tokens), ignore_eos: true, ..Sampling::default() }
}

fn raw(text: &str, images: Vec<ImageInput>, tokens: usize) -> Request {
    Request { prompt: Prompt::Raw(text.into()), images, sampling: greedy(tokens), ..Request::default() }
}

/// A prompt that shows the named pictures, with text around each.
fn show(model: &str, names: &[&str], tokens: usize) -> Request {
    let tags: String = (1..=names.len()).map(|n| format!("{} and ", tag(model, n))).collect();
    raw(&format!("look: {tags}compare."), pictures(names), tokens)
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

#[track_caller]
fn refused(engine: &Engine, request: &Request, says: &str) {
    let message = refusal(engine, request);
    assert!(message.contains(says), "{message:?} does not say {says:?}");
}

/// All of an answer that must not change.
fn bits(output: &Output) -> (Vec<u32>, Vec<u32>, String, Vec<u32>) {
    let answer = &output.outputs[0];
    let logprobs = answer.logprobs.iter().map(|l| l.to_bits()).collect();
    (answer.token_ids.clone(), logprobs, answer.logits_hash.clone(), output.prompt_token_ids.clone())
}

fn kwargs(json: &str) -> ProcessorKwargs {
    processor_kwargs(json).unwrap()
}

/// Tokens of an answer of [`mixed`].
const TOKENS: usize = 40;

/// Pictures of one tile and of many, several in a prompt, among text alone. Phi's short prompts cross the length at which
/// their angles change while they answer.
fn mixed(model: &str) -> Vec<Request> {
    let shown: [&[&str]; 7] =
        [&["wide"], &["strip", "photo"], &[], &["column", "tiny", "tall"], &["large"], &["tiny", "wide"], &[]];
    let mut requests: Vec<_> = shown.iter().map(|names| show(model, names, TOKENS)).collect();
    requests.push(raw("what colour is the sky?", vec![], 60));
    requests
}

#[test]
fn requests_answer_among_others_as_they_do_alone() {
    for model in FOLDERS {
        let requests = mixed(model);
        let single = open(model, alone());
        let expected: Vec<_> = requests.iter().map(|r| bits(&answer(&single, r))).collect();
        let same = |options: Options, how: &str| {
            let engine = open(model, options);
            for (i, (output, expected)) in engine.generate(&requests).iter().zip(&expected).enumerate() {
                assert_eq!(bits(output.as_ref().unwrap()), *expected, "{model} request {i}, {how}");
            }
            settled(&engine).scheduler
        };
        let mut switches = 0;
        for (seqs, tokens, caches) in [(8, 2048, true), (8, 2048, false), (3, 7, true), (8, 40, false)] {
            let options = Options {
                max_num_seqs: Some(seqs),
                max_num_batched_tokens: Some(tokens),
                prefix_caching: caches,
                encoder_caching: caches,
                ..Options::default()
            };
            switches +=
                same(options, &format!("{seqs} sequences, {tokens} tokens a step, caches {caches}")).rope_switches;
        }
        assert_eq!(switches > 0, model.starts_with("phi"), "{model}: {switches} sequences crossed");
        let longest = expected.iter().map(|(.., prompt)| prompt.len()).max().unwrap();
        let mut preemptions = 0;
        for (more, caches) in [(1, false), (2, true), (4, false)] {
            let blocks = (longest + TOKENS).div_ceil(16) + more;
            let options = Options {
                num_kv_blocks: Some(blocks),
                prefix_caching: caches,
                encoder_caching: caches,
                ..Options::default()
            };
            preemptions += same(options, &format!("{blocks} blocks, caches {caches}")).preemptions;
        }
        assert!(preemptions > 0, "{model}: the pools were too large to show anything");
    }
}

#[test]
fn the_number_of_pictures_is_limited() {
    for model in [NEXT, PHI35] {
        let engine = open(model, alone());
        refused(&engine, &show(model, &["tiny"; 5], 2), "the prompt has 5 pictures; at most 4 image(s)");
        let engine = open(model, Options { max_images: 5, ..alone() });
        assert_eq!(answer(&engine, &show(model, &["tiny"; 5], 2)).image_tokens.len(), 5);
        let engine = open(model, Options { max_images: 1, ..alone() });
        refused(&engine, &show(model, &["tiny"; 2], 2), "at most 1 image(s) may be given in one prompt");
        refused(&engine, &show(model, &["tiny"; 2], 2), "(--limit-mm-per-prompt image=1)");
        let engine = open(model, Options { max_images: 0, ..alone() });
        answer(&engine, &show(model, &[], 2));
        refused(&engine, &show(model, &["tiny"], 2), "at most 0 image(s)");
    }
}

#[test]
fn placeholders_that_do_not_match_the_pictures_are_refused() {
    let next = open(NEXT, alone());
    for (text, images, says) in [
        ("a", 1, "the prompt has 0 picture placeholders for 1 pictures; write one for each picture, or all 33"),
        ("<image>", 0, "the prompt has 1 picture placeholders for 0 pictures"),
        ("<image> <image>", 1, "the prompt has 2 picture placeholders for 1 pictures"),
        ("<image>", 2, "the prompt has 1 picture placeholders for 2 pictures; write one for each picture, or all 66"),
    ] {
        refused(&next, &raw(text, pictures(&vec!["wide"; images]), 2), says);
    }
    // As many as the picture has places are the same as one.
    let [one, all] = [1, 33].map(|n| bits(&answer(&next, &raw(&"<image>".repeat(n), pictures(&["wide"]), 4))));
    assert_eq!(one, all);

    let phi = open(PHI35, alone());
    for (text, images, says) in [
        ("a", 1, "the prompt has 0 picture tags for 1 pictures; write one for each picture, <|image_1|>"),
        ("<|image_1|>", 0, "the prompt has 1 picture tags for 0 pictures"),
        ("<|image_1|><|image_2|>", 1, "the prompt has 2 picture tags for 1 pictures"),
        ("<|image_1|>", 2, "for 2 pictures; write one for each picture, <|image_1|> to <|image_2|>"),
        ("<|image_2|><|image_1|>", 2, "<|image_2|> where <|image_1|> comes next"),
        ("<|image_1|><|image_1|>", 2, "<|image_1|> a second time where <|image_2|> comes next"),
        ("<|image_1|><|image_3|>", 2, "<|image_3|> where <|image_2|> comes next"),
        ("<|image_0|>", 1, "<|image_0|>; picture tags are counted from <|image_1|>"),
    ] {
        refused(&phi, &raw(text, pictures(&vec!["wide"; images]), 2), says);
    }
}

/// Tokens as `prompt_token_ids` reports them, and with one placeholder a picture.
#[test]
fn prompts_of_tokens_show_pictures_by_the_image_token() {
    for (model, image) in [(NEXT, 323), (PHI35, 335)] {
        let engine = open(model, alone());
        let asked = show(model, &["wide", "tall"], 6);
        let expected = answer(&engine, &asked);
        let ids = &expected.prompt_token_ids;
        let places = ids.iter().filter(|&&id| id == image).count();
        assert_eq!(places, expected.image_tokens.iter().sum::<usize>(), "{model}");
        let of = |ids: Vec<u32>| Request { prompt: Prompt::TokenIds(ids), ..asked.clone() };
        let mut once = ids.clone();
        once.dedup_by(|a, b| a == b && *a == image);
        assert_eq!(bits(&answer(&engine, &of(once.clone()))), bits(&expected), "{model}");
        refused(&engine, &of(once[..4].iter().copied().filter(|&id| id != image).collect()), "has 0 picture");
        refused(&engine, &of([&once[..], &[image]].concat()), "has 3 picture");
        if model == NEXT {
            assert_eq!(bits(&answer(&engine, &of(ids.clone()))), bits(&expected), "{model}");
        }
    }
}

/// What a user writes is text, and the pictures of a message are shown whatever it says.
#[test]
fn placeholders_in_a_conversation_are_text() {
    for (model, image) in [(NEXT, 323), (PHI35, 335)] {
        let engine = open(model, alone());
        for text in ["<|image_1|>", "<image>", "<|image|>", "<|image_2|> <|end|> <|image_7|>", "</s><image>"] {
            let chat = |images: usize| Request {
                prompt: Prompt::Chat(vec![Message::with_images(Role::User, images, text)]),
                ..raw("", pictures(&["wide", "tall"][..images]), 2)
            };
            for images in 0..=2 {
                let output = answer(&engine, &chat(images));
                let places = output.prompt_token_ids.iter().filter(|&&id| id == image).count();
                assert_eq!(places, output.image_tokens.iter().sum::<usize>(), "{model}: {text} with {images}");
                assert_eq!(output.image_tokens.len(), images);
            }
            let wrong = Request { images: pictures(&["wide"]), ..chat(0) };
            refused(&engine, &wrong, "has 0 picture");
        }
    }
}

/// Embeddings that differ from one another, `[rows, columns]`.
fn embeddings(rows: usize, columns: usize) -> ImageInput {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    ImageInput::Embeddings(ImageArray { shape: vec![rows, columns], data: Source::from_vec(values) })
}

/// The most rows are those of the dearest picture: NeXT's fills two tiles by two, 9 + 6 * (6 + 1); Phi's is a column of 16
/// tiles, 17 * 4 + 1 + 17 * 2.
#[test]
fn embeddings_have_as_many_rows_as_a_picture_may_have() {
    for (model, most, columns) in [(NEXT, 51, 64), (PHI3, 103, 192), (PHI35, 103, 192)] {
        let single = open(model, alone());
        let ask = |rows| raw(&format!("a{} b", tag(model, 1)), vec![embeddings(rows, columns)], 4);
        for rows in [1, 2, 9, most - 1, most] {
            assert_eq!(answer(&single, &ask(rows)).image_tokens, [rows], "{model}");
        }
        refused(&single, &ask(most + 1), &format!("and this model's pictures have 1 to {most}"));
        refused(&single, &ask(0), &format!("have 0 rows a picture, and this model's pictures have 1 to {most}"));
        let narrow = raw(&tag(model, 1), vec![embeddings(4, columns - 1)], 4);
        refused(&single, &narrow, &format!("give [pictures, rows, {columns}], or [rows, {columns}] for one"));
        let ImageInput::Embeddings(array) = embeddings(4, columns) else { unreachable!() };
        let features = raw(&tag(model, 1), vec![ImageInput::Features(array)], 4);
        refused(&single, &features, "this model takes no image features");
        refused(&single, &features, "give pixels, or image embeddings (--image-embeds)");

        // Several of them beside pixels, all at once.
        let text = format!("a{} b{} c", tag(model, 1), tag(model, 2));
        let requests: Vec<_> = [1, 7, most]
            .into_iter()
            .flat_map(|rows| {
                let both = [vec![embeddings(rows, columns), picture("wide")], vec![embeddings(rows, columns); 2]];
                both.map(|images| raw(&text, images, 4))
            })
            .collect();
        let expected: Vec<_> = requests.iter().map(|r| bits(&answer(&single, r))).collect();
        for (i, output) in open(model, Options::default()).generate(&requests).iter().enumerate() {
            assert_eq!(bits(output.as_ref().unwrap()), expected[i], "{model} request {i}");
        }
    }
}

#[test]
fn a_model_of_tiles_is_not_loaded_for_features() {
    for model in FOLDERS {
        let options = Options { image_input_type: ImageInputType::ImageFeatures, ..alone() };
        let error = Engine::open(&folder(model), &options, |_, _| ()).err().unwrap();
        let message = error.to_string();
        for says in ["image_features (--image-input-type)", "pixels or embeddings"] {
            assert!(message.contains(says), "{model}: {message}");
        }
    }
}

/// A picture of several tiles is encoded once, and what stands before it is found in the cache with all of its places.
#[test]
fn caches_find_pictures_of_many_tiles() {
    for model in FOLDERS {
        let single = open(model, alone());
        let engine = open(model, Options::default());
        let asked = show(model, &["large", "tall"], 4);
        let expected = bits(&answer(&single, &asked));
        assert_eq!(bits(&answer(&engine, &asked)), expected, "{model}");
        let first = settled(&engine);
        assert_eq!(first.pictures.misses, 2);
        let again = answer(&engine, &asked);
        assert_eq!(bits(&again), expected, "{model}");
        let len = again.prompt_token_ids.len();
        assert!(again.cached_tokens + 16 >= len, "{model}: {} of {len}", again.cached_tokens);
        // The same picture behind other text: no prefix, no encoding.
        let elsewhere = raw(&format!("the sea {} is", tag(model, 1)), pictures(&["tall"]), 4);
        let found = answer(&engine, &elsewhere);
        assert_eq!(bits(&found), bits(&answer(&single, &elsewhere)), "{model}");
        assert!(found.cached_tokens < 16, "{model}");
        assert_eq!(settled(&engine).pictures.misses, 2, "{model}");
        // Another picture of the same number of tokens is another prefix.
        let other = answer(&engine, &show(model, &["photo", "tall"], 4));
        assert!(other.cached_tokens < 16 && settled(&engine).pictures.misses == 3, "{model}");
    }
}

#[test]
fn crops_of_a_request_are_its_own() {
    let engine = open(PHI35, Options::default());
    let asked = |crops: &str| Request { mm_processor_kwargs: kwargs(crops), ..show(PHI35, &["large"], 6) };
    let single = open(PHI35, alone());
    // 84x112 in 2x2 tiles of 56 pixels, 168x224 in 3x4, one tile: (tiles + 1) * 4 + 1 + (lines + 1) * 2.
    let wanted = [("{}", 27), (r#"{"num_crops": 16}"#, 61), (r#"{"num_crops": 1}"#, 13), (r#"{"num_crops": 4}"#, 27)];
    for round in 0..2 {
        for (crops, tokens) in wanted {
            let output = answer(&engine, &asked(crops));
            assert_eq!(output.image_tokens, [tokens], "{crops}");
            assert_eq!(bits(&output), bits(&answer(&single, &asked(crops))), "{crops} in round {round}");
        }
        // The checkpoint's own number, said once more, is the same picture.
        assert_eq!(settled(&engine).pictures.misses, 3, "round {round}");
    }
    for crops in [r#"{"num_crops": 17}"#, r#"{"num_crops": 64}"#] {
        refused(&engine, &asked(crops), "this engine has room for 16 tiles of a picture");
        refused(&engine, &asked(crops), "--mm-processor-kwargs '{\"num_crops\": ");
    }
    for crops in ["0", "-1", "1.5", "\"4\"", "true", "4294967296"] {
        refused(&engine, &asked(&format!("{{\"num_crops\": {crops}}}")), "mm_processor_kwargs: num_crops = ");
    }
    refused(
        &engine,
        &asked(r#"{"size": 336}"#),
        "size = 336 is no option of this model's picture processor; it has num_crops",
    );
    let wide = open(PHI35, Options { mm_processor_kwargs: kwargs(r#"{"num_crops": 17}"#), ..Options::default() });
    let plain = answer(&wide, &asked("{}"));
    assert_eq!(bits(&plain), bits(&answer(&wide, &asked(r#"{"num_crops": 17}"#))));
    assert_eq!(bits(&answer(&wide, &asked(r#"{"num_crops": 4}"#))), bits(&answer(&single, &asked("{}"))));
    let next = open(NEXT, Options::default());
    let asked = Request { mm_processor_kwargs: kwargs(r#"{"num_crops": 4}"#), ..show(NEXT, &["tall"], 2) };
    refused(&next, &asked, "num_crops = 4 is no option");
}

/// Answers of one request share its pictures, and each is that of its own seed.
#[test]
fn several_answers_show_the_same_pictures() {
    for model in [NEXT, PHI3, PHI35] {
        let engine = open(model, Options::default());
        let sampling = |n, seed| Sampling { n, seed: Some(seed), temperature: 1.0, ..greedy(10) };
        let asked = |n, seed| Request { sampling: sampling(n, seed), ..show(model, &["tall", "wide"], 1) };
        let many = answer(&engine, &asked(3, 7));
        assert_eq!(settled(&engine).pictures.misses, 2, "{model}");
        for (i, found) in many.outputs.iter().enumerate() {
            let one = answer(&engine, &asked(1, 7 + i as u64));
            assert_eq!(
                (&found.token_ids, &found.logits_hash),
                (&one.outputs[0].token_ids, &one.outputs[0].logits_hash)
            );
        }
        assert_ne!(many.outputs[0].token_ids, many.outputs[1].token_ids, "{model}");
    }
}

/// Phi turns by the long angles beyond 64 tokens. A sequence that may have no more never does, and the answers to that point
/// are the same.
#[test]
fn a_context_within_the_short_factors_never_leaves_them() {
    for model in [PHI3, PHI35] {
        let asked = raw("what colour is the sky?", vec![], 400);
        let whole = open(model, alone());
        let long = answer(&whole, &asked);
        let prompt = long.prompt_token_ids.len();
        assert_eq!(settled(&whole).scheduler.rope_switches, 1);
        for len in [40, 63, 64] {
            let short = open(model, Options { max_model_len: Some(len), ..alone() });
            let output = answer(&short, &asked);
            let answer = &output.outputs[0];
            assert_eq!((answer.token_ids.len(), answer.finish_reason), (len - prompt, FinishReason::Length));
            assert_eq!(answer.token_ids[..], long.outputs[0].token_ids[..len - prompt], "{model} with {len}");
            assert_eq!(settled(&short).scheduler.rope_switches, 0, "{model} with {len}");
        }
        let over = open(model, Options { max_model_len: Some(66), ..alone() });
        let output = answer(&over, &asked);
        assert_eq!(output.outputs[0].token_ids[..], long.outputs[0].token_ids[..66 - prompt], "{model}");
        assert_eq!(settled(&over).scheduler.rope_switches, 1, "{model}");
    }
    let error = Engine::open(&folder(PHI3), &Options { max_model_len: Some(513), ..alone() }, |_, _| ()).err().unwrap();
    assert!(error.to_string().contains("the model has 512 positions"), "{error}");
}

/// generation_config.json names </s>; Phi's turns end with <|end|> or <|endoftext|> all the same.
#[test]
fn turns_end_at_the_tokens_of_the_family() {
    for (model, ends, others) in [(PHI3, vec![2, 323, 330], vec![335, 1]), (NEXT, vec![2], vec![324, 1])] {
        let engine = open(model, alone());
        let only = |id: u32| {
            let sampling = Sampling { allowed_token_ids: Some(vec![id]), ignore_eos: false, ..greedy(3) };
            let output = answer(&engine, &Request { sampling, ..raw("a", vec![], 3) });
            (output.outputs[0].token_ids.len(), output.outputs[0].finish_reason)
        };
        for id in ends {
            assert_eq!(only(id), (1, FinishReason::Stop), "{model}: {id}");
        }
        for id in others {
            assert_eq!(only(id), (3, FinishReason::Length), "{model}: {id}");
        }
    }
}

/// Shapes at the ends: one pixel, lines, and what no tile can hold.
#[test]
fn odd_pictures_are_shown_or_refused() {
    for model in FOLDERS {
        let engine = open(model, alone());
        for (width, height) in [(1, 1), (2, 1), (1, 2), (7, 3), (500, 500), (1, 40), (40, 1), (300, 10)] {
            let rgb = Rgb::filled(width, height, [9, 99, 200]).unwrap();
            let request = raw(&tag(model, 1), vec![rgb.into()], 2);
            match engine.answer(&request, |_| ControlFlow::Continue(())) {
                Ok(output) => assert!(output.image_tokens[0] > 0, "{model} {width}x{height}"),
                Err(Error::Request(error)) => {
                    let message = format!("{error:#}");
                    assert!(message.contains(&format!("{width}x{height}")), "{model}: {message}");
                }
                Err(other) => panic!("{model} {width}x{height}: {other}"),
            }
        }
    }
}
