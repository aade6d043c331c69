//! The ways to give a picture, on tiny random checkpoints: whatever way it is, the answer has the same bits, and what
//! cannot be right is refused before it comes near the model.

mod inputs;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use inputs::{Rows, one};
use ocelli::Error;
use ocelli::backend::Cpu;
use ocelli::config::{ProcessorKwargs, processor_kwargs};
use ocelli::engine::{
    CacheCounts, Engine, ImageArray, ImageInput, ImageInputType, Options, Output, Prompt, Request, Sampling,
};
use ocelli::image::{Alpha, Limits, decode};
use ocelli::mem::{DType, Source};
use ocelli::text::{Message, Role};
use safetensors::tensor::{Dtype, TensorView};

const MHA: &str = "tests/goldens/llava-tiny-mha";
const LOOK: &str = "USER: <image>\nwhat is this? ASSISTANT:";
const COMPARE: &str = "USER: <image><image>\ncompare the first with the second. ASSISTANT:";
const IMAGE_TOKEN: u32 = 323;

fn file(name: &str) -> PathBuf {
    Path::new("tests/goldens/pictures").join(format!("{name}.png"))
}

fn open(options: Options) -> Engine {
    Engine::open(Path::new(MHA), &options, |_, _| ()).unwrap()
}

/// One request after another, nothing remembered.
fn alone(dtype: DType) -> Options {
    Options {
        dtype: Some(dtype),
        max_num_seqs: Some(1),
        prefix_caching: false,
        encoder_caching: false,
        ..Options::default()
    }
}

fn request(text: &str, images: Vec<ImageInput>) -> Request {
    let sampling = Sampling { temperature: 0.0, max_tokens: Some(12), ignore_eos: true, ..Sampling::default() };
    Request { prompt: Prompt::Raw(text.into()), images, sampling, ..Request::default() }
}

fn answer(engine: &Engine, request: &Request) -> Output {
    engine.answer(request, |_| ControlFlow::Continue(())).unwrap()
}

/// All of an answer that must not change.
fn bits(output: &Output) -> (Vec<u32>, Vec<u32>, String, Vec<u32>) {
    let answer = &output.outputs[0];
    let logprobs = answer.logprobs.iter().map(|l| l.to_bits()).collect();
    (answer.token_ids.clone(), logprobs, answer.logits_hash.clone(), output.prompt_token_ids.clone())
}

fn refusal(engine: &Engine, request: &Request) -> String {
    match engine.answer(request, |_| ControlFlow::Continue(())) {
        Err(error @ Error::Request(_)) => error.to_string(),
        other => panic!("not refused as a request: {other:?}"),
    }
}

fn rows(dir: &str, dtype: DType, pictures: &[&str]) -> Rows {
    let files: Vec<_> = pictures.iter().map(|name| file(name)).collect();
    inputs::rows(Path::new(dir), dtype, |sizes| Cpu::new(sizes).unwrap(), &files)
}

fn pixels(name: &str) -> ImageInput {
    ImageInput::Path(file(name))
}

fn features(array: &ImageArray) -> ImageInput {
    ImageInput::Features(array.clone())
}

fn embeddings(array: &ImageArray) -> ImageInput {
    ImageInput::Embeddings(array.clone())
}

/// Picture counters once the engine has nothing to do.
fn counts(engine: &Engine) -> CacheCounts {
    let start = Instant::now();
    loop {
        let stats = engine.stats();
        if stats.running == 0 && stats.waiting == 0 && stats.blocks.used == 0 {
            return stats.pictures;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still at work: {stats:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_way_to_give_a_picture_gives_the_same_bits() {
    for dir in [MHA, "tests/goldens/llava-tiny-gqa"] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let engine = Engine::open(Path::new(dir), &alone(dtype), |_, _| ()).unwrap();
            let rows = rows(dir, dtype, &["wide"]);
            assert_eq!(rows.features.data.dtype(), dtype);
            let bytes = fs::read(file("wide")).unwrap();
            let expected = bits(&answer(&engine, &request(LOOK, vec![bytes.clone().into()])));
            let other = bits(&answer(&engine, &request(LOOK, vec![pixels("tall")])));
            assert_ne!(expected.2, other.2, "the picture matters");
            let rgb = decode(&bytes, Alpha::White, &Limits::default()).unwrap();
            for (how, input) in [
                ("a path", pixels("wide")),
                ("a slice", bytes.as_slice().into()),
                ("decoded pixels", rgb.into()),
                ("features", features(&rows.features)),
                ("features of one picture", features(&one(&rows.features, 0))),
                ("embeddings", embeddings(&rows.embeddings)),
                ("embeddings of one picture", embeddings(&one(&rows.embeddings, 0))),
            ] {
                let output = answer(&engine, &request(LOOK, vec![input]));
                assert_eq!(bits(&output), expected, "{how} in {dtype}, {dir}");
            }
        }
    }
}

/// Two pictures in every combination of ways, all requests at once: they meet in steps, and in the steps' encodings.
#[test]
fn ways_may_be_mixed_in_a_prompt_and_in_a_batch() {
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let Rows { features: f, embeddings: e } = rows(MHA, dtype, &["wide", "tall"]);
        let ways = |i: usize| [pixels(["wide", "tall"][i]), features(&one(&f, i)), embeddings(&one(&e, i))];
        let mut pictures: Vec<Vec<ImageInput>> = vec![vec![features(&f)], vec![embeddings(&e)]];
        for first in ways(0) {
            pictures.extend(ways(1).map(|second| vec![first.clone(), second]));
        }
        let requests: Vec<_> = pictures.into_iter().map(|images| request(COMPARE, images)).collect();
        let expected = bits(&answer(&open(alone(dtype)), &requests[2]));
        for caches in [false, true] {
            let options = Options {
                dtype: Some(dtype),
                max_num_seqs: Some(11),
                prefix_caching: caches,
                encoder_caching: caches,
                ..Options::default()
            };
            for (i, output) in open(options).generate(&requests).iter().enumerate() {
                assert_eq!(bits(output.as_ref().unwrap()), expected, "request {i} in {dtype}, caches {caches}");
            }
        }
    }
}

/// Prompts that are cut within the places of a picture, and requests that are computed again: the rows are there again.
#[test]
fn chunks_and_preemption_change_no_bit() {
    let Rows { features: f, embeddings: e } = rows(MHA, DType::F32, &["wide", "tall"]);
    let requests: Vec<_> = [
        (COMPARE, vec![features(&one(&f, 0)), embeddings(&one(&e, 1))]),
        (LOOK, vec![embeddings(&one(&e, 0))]),
        (COMPARE, vec![pixels("square"), features(&one(&f, 1))]),
        (LOOK, vec![features(&one(&f, 1))]),
        (COMPARE, vec![embeddings(&e)]),
        (LOOK, vec![pixels("wide")]),
        (COMPARE, vec![features(&f)]),
        (COMPARE, vec![embeddings(&one(&e, 1)), pixels("wide")]),
    ]
    .into_iter()
    .map(|(text, images)| request(text, images))
    .collect();
    let single = open(alone(DType::F32));
    let expected: Vec<_> = requests.iter().map(|r| bits(&answer(&single, r))).collect();
    let same = |options: Options, how: &str| {
        let engine = open(options);
        for (i, (output, expected)) in engine.generate(&requests).iter().zip(&expected).enumerate() {
            assert_eq!(bits(output.as_ref().unwrap()), *expected, "request {i}, {how}");
        }
        counts(&engine);
        engine.stats().scheduler.preemptions
    };
    for (seqs, tokens) in [(1, 5), (3, 7), (8, 13), (8, 40)] {
        let options = Options { max_num_seqs: Some(seqs), max_num_batched_tokens: Some(tokens), ..Options::default() };
        same(options, &format!("{seqs} sequences and {tokens} tokens a step"));
    }
    let mut preemptions = 0;
    for (blocks, caches) in [(6, false), (7, true), (8, false), (9, true), (12, false)] {
        let options = Options {
            num_kv_blocks: Some(blocks),
            prefix_caching: caches,
            encoder_caching: caches,
            ..Options::default()
        };
        preemptions += same(options, &format!("{blocks} blocks, caches {caches}"));
    }
    assert!(preemptions > 3, "{preemptions} preemptions: the pools were too large to show anything");
}

/// A picture, its features and its embeddings are three things to a cache, and the same one is one thing however it came.
#[test]
fn caches_tell_kinds_and_types_apart() {
    let Rows { features: f, embeddings: e } = rows(MHA, DType::F32, &["wide", "tall"]);
    let narrow: Vec<f16> = floats(&e).into_iter().map(f16::from_f32).collect();
    let narrow = ImageArray { shape: e.shape.clone(), data: Source::from_vec(narrow) };
    let engine = open(Options { max_num_seqs: Some(1), ..Options::default() });
    let ask = |images: Vec<ImageInput>| {
        let before = counts(&engine);
        let text = if images.iter().map(ImageInput::count).sum::<usize>() == 2 { COMPARE } else { LOOK };
        let output = answer(&engine, &request(text, images));
        let after = counts(&engine);
        (after.misses - before.misses, output.cached_tokens > 0)
    };
    assert_eq!(ask(vec![pixels("wide")]), (1, false));
    assert_eq!(ask(vec![features(&one(&f, 0))]), (1, false));
    assert_eq!(ask(vec![embeddings(&one(&e, 0))]), (1, false));
    assert_eq!(ask(vec![embeddings(&one(&narrow, 0))]), (1, false));
    // The same bytes as numbers of another type.
    let brain = Source::new(Arc::new(narrow.data.bytes().to_vec()), 0..narrow.data.bytes().len(), DType::Bf16).unwrap();
    let brain = ImageArray { shape: e.shape.clone(), data: brain };
    assert_eq!(ask(vec![embeddings(&one(&brain, 0))]), (1, false));
    // Each is found by its own key, in the array that holds it, too.
    for same in [
        vec![ImageInput::open(&file("wide")).unwrap()],
        vec![features(&one(&f, 0))],
        vec![embeddings(&one(&e, 0))],
        vec![embeddings(&one(&narrow, 0))],
    ] {
        assert_eq!(ask(same), (0, true));
    }
    assert_eq!(ask(vec![features(&f)]).0, 1, "the second picture of the array alone");
    assert_eq!(ask(vec![features(&one(&f, 1))]).0, 0);
}

/// Where features are as wide as embeddings, the same numbers are two things: to the model, and to every cache.
#[test]
fn the_same_numbers_as_features_and_as_embeddings_are_two_things() {
    const GQA: &str = "tests/goldens/llava-tiny-gqa";
    let array = rows(GQA, DType::F32, &["wide"]).embeddings;
    assert_eq!(rows(GQA, DType::F32, &["wide"]).features.shape, array.shape);
    let single = Engine::open(Path::new(GQA), &alone(DType::F32), |_, _| ()).unwrap();
    let requests = [features(&array), embeddings(&array)].map(|input| request(LOOK, vec![input]));
    let expected = requests.each_ref().map(|r| bits(&answer(&single, r)));
    assert_ne!(expected[0].2, expected[1].2);
    let engine = Engine::open(Path::new(GQA), &Options::default(), |_, _| ()).unwrap();
    for round in 0..2 {
        for (request, expected) in requests.iter().zip(&expected) {
            assert_eq!(bits(&answer(&engine, request)), *expected, "round {round}");
        }
    }
    assert_eq!(counts(&engine).misses, 2);
}

/// Features and embeddings that transformers computed, with the ids of its prompts, give the tokens that transformers gave.
#[test]
fn arrays_of_transformers_give_the_tokens_of_transformers() {
    for dir in [MHA, "tests/goldens/llava-tiny-gqa"] {
        let file = Path::new(dir).join("golden.safetensors");
        let bytes = fs::read(&file).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = |name: &str| -> Vec<u32> { bytemuck::pod_collect_to_vec(golden.tensor(name).unwrap().data()) };
        let cases: serde_json::Value =
            serde_json::from_slice(&fs::read(Path::new(dir).join("cases.json")).unwrap()).unwrap();
        let options = Options { image_input_type: ImageInputType::ImageFeatures, ..Options::default() };
        let engine = Engine::open(Path::new(dir), &options, |_, _| ()).unwrap();
        let mut shown = 0;
        for (case, entry) in cases["cases"].as_object().unwrap() {
            for (kind, name) in
                [(ImageInput::Features as fn(_) -> _, "vision_features"), (ImageInput::Embeddings, "projected")]
            {
                let pictures = entry["pictures"].as_array().unwrap().iter();
                let tensor = |picture: &serde_json::Value| format!("picture/{}/{name}", picture.as_str().unwrap());
                let images = pictures.map(|p| kind(ImageArray::read(&file, Some(&tensor(p))).unwrap())).collect();
                let prompt = Prompt::TokenIds(ids(&format!("case/{case}/input_ids")));
                let sampling = Sampling { max_tokens: Some(64), ..request("", vec![]).sampling };
                let output = answer(&engine, &Request { prompt, images, sampling, ..Request::default() });
                assert_eq!(
                    output.outputs[0].token_ids,
                    ids(&format!("case/{case}/greedy_ids")),
                    "{case} of {dir} with {name}"
                );
                shown += output.image_tokens.len();
            }
        }
        assert!(shown >= 8, "{shown} pictures were shown");
    }
}

/// Many requests at once that show one picture as three things: each is computed once for all of them.
#[test]
fn what_many_requests_show_is_computed_once() {
    let Rows { features: f, embeddings: e } = rows(MHA, DType::F32, &["wide"]);
    let engine = open(Options { prefix_caching: false, ..Options::default() });
    let ways = [pixels("wide"), features(&f), embeddings(&e)];
    let requests: Vec<_> = (0..60).map(|i| request(LOOK, vec![ways[i % 3].clone()])).collect();
    let outputs: Vec<_> = engine.generate(&requests).into_iter().map(|o| bits(&o.unwrap())).collect();
    assert!(outputs.iter().all(|o| *o == outputs[0]));
    assert_eq!(counts(&engine), CacheCounts { hits: 57, misses: 3 });
}

fn floats(array: &ImageArray) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(array.data.bytes())
}

#[test]
fn token_ids_are_taken_as_they_are() {
    let engine = open(alone(DType::F32));
    let expected = answer(&engine, &request(LOOK, vec![pixels("wide")]));
    let ids = &expected.prompt_token_ids;
    let places: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == IMAGE_TOKEN).collect();
    assert_eq!(places.len(), 16);
    let once = [&ids[..places[0] + 1], &ids[places[15] + 1..]].concat();
    let asked = |ids: Vec<u32>| Request { prompt: Prompt::TokenIds(ids), ..request("", vec![pixels("wide")]) };
    for ids in [ids.clone(), once.clone()] {
        let output = answer(&engine, &asked(ids));
        assert_eq!(bits(&output), bits(&expected));
        assert_eq!(output.prompt, "");
    }
    // No token is put in front, and text needs no picture.
    let text = Request { prompt: Prompt::TokenIds(vec![5]), ..request("", vec![]) };
    assert_eq!(answer(&engine, &text).prompt_token_ids, [5]);

    let fifteen = [&ids[..places[15]], &ids[places[15] + 1..]].concat();
    for (ids, says) in [
        (fifteen, "15 picture placeholders for 1 pictures"),
        (vec![], "0 picture placeholders for 1 pictures"),
        (
            vec![1, 331, IMAGE_TOKEN],
            "token 1 of the prompt is 331; the vocabulary has 331 tokens, so ids go from 0 to 330",
        ),
        (vec![u32::MAX], "token 0 of the prompt is 4294967295"),
    ] {
        let message = refusal(&engine, &asked(ids));
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    let empty = Request { prompt: Prompt::TokenIds(vec![]), ..request("", vec![]) };
    assert!(refusal(&engine, &empty).contains("the prompt has no tokens"));
}

fn zeros(shape: &[usize]) -> ImageArray {
    let len = shape.iter().product();
    ImageArray { shape: shape.to_vec(), data: Source::from_vec(vec![0f32; len]) }
}

fn with(value: f32, at: usize, shape: &[usize]) -> ImageArray {
    let mut data = vec![0f32; shape.iter().product()];
    data[at] = value;
    ImageArray { shape: shape.to_vec(), data: Source::from_vec(data) }
}

/// Every refusal says what it is, what was expected and what to do; what is asked beside it is not touched.
#[test]
fn what_cannot_be_right_is_refused_and_spoils_nothing() {
    let Rows { features: f, embeddings: e } = rows(MHA, DType::F32, &["wide"]);
    let ([_, n, wide], [_, _, hidden]) = ([f.shape[0], f.shape[1], f.shape[2]], [0, 0, e.shape[2]]);
    assert_eq!((n, wide == hidden), (16, false), "the widths must tell the kinds apart");
    let integers = ImageArray { shape: vec![n, hidden], data: Source::from_vec(vec![0i32; n * hidden]) };
    let short = ImageArray { shape: vec![2, n, hidden], data: zeros(&[n, hidden]).data };
    let huge = ImageArray { shape: vec![usize::MAX, n, hidden], data: zeros(&[1]).data };
    let give = format!("give [pictures, 16, {hidden}], or [16, {hidden}] for one");
    let bad: Vec<(ImageInput, Vec<String>)> = vec![
        (embeddings(&integers), vec!["image embeddings are i32; give f32, f16 or bf16".into()]),
        (
            embeddings(&zeros(&[hidden])),
            vec![format!("of shape [{hidden}] have 1 dimension, and 3 or 2 are expected"), give.clone()],
        ),
        (embeddings(&zeros(&[1, 1, n, hidden])), vec!["have 4 dimensions".into(), give.clone()]),
        (embeddings(&zeros(&[])), vec!["of shape [] have 0 dimensions".into()]),
        (
            embeddings(&zeros(&[1, n - 1, hidden])),
            vec!["have 15 rows a picture, and this model's pictures have 16".into(), give.clone()],
        ),
        (
            embeddings(&zeros(&[n, hidden + 1])),
            vec![format!("are {} wide, and what this model's projector gives is {hidden}", hidden + 1), give.clone()],
        ),
        (
            embeddings(&f),
            vec![
                format!("are {wide} wide, and what this model's projector gives is {hidden}"),
                format!("what its vision tower gives is {wide}: give it as image features (--image-features)"),
            ],
        ),
        (
            features(&e),
            vec![format!("what its projector gives is {hidden}: give it as image embeddings (--image-embeds)")],
        ),
        (features(&zeros(&[n, wide - 1])), vec![format!("give [pictures, 16, {wide}], or [16, {wide}] for one")]),
        (embeddings(&short), vec![format!("[2, 16, {hidden}] hold {} elements", n * hidden)]),
        (
            embeddings(&with(f32::NAN, hidden + 3, &[1, n, hidden])),
            vec!["image embeddings hold NaN at [0, 1, 3]; every number must be finite".into()],
        ),
        (features(&with(f32::NEG_INFINITY, 2 * wide, &[n, wide])), vec!["image features hold -inf at [2, 0]".into()]),
        (embeddings(&huge), vec![format!("the prompt has {} pictures; at most 4 image(s)", usize::MAX)]),
        (ImageInput::Path("no/such.png".into()), vec!["picture 1: no/such.png".into(), "No such file".into()]),
        (ImageInput::Path("tests".into()), vec!["tests is a directory; name a picture file".into()]),
        (vec![7u8; 100].into(), vec!["picture 1".into()]),
    ];
    let single = open(alone(DType::F32));
    let good = request(LOOK, vec![embeddings(&e)]);
    let expected = bits(&answer(&single, &good));
    let engine = open(Options::default());
    for (input, says) in &bad {
        let message = refusal(&engine, &request(LOOK, vec![input.clone()]));
        for says in says {
            assert!(message.contains(says.as_str()), "{message:?} does not say {says:?}");
        }
    }
    // Among good ones, all at once.
    let many: Vec<_> = bad.iter().flat_map(|(input, _)| [request(LOOK, vec![input.clone()]), good.clone()]).collect();
    for (i, output) in engine.generate(&many).into_iter().enumerate() {
        match output {
            Ok(output) => assert!(i % 2 == 1 && bits(&output) == expected, "request {i}"),
            Err(error) => assert!(i % 2 == 0 && matches!(error, Error::Request(_)), "request {i}: {error}"),
        }
    }
    // The number of a bad picture is its place among all pictures, those of arrays counted one by one.
    let two = ImageArray { shape: vec![2, n, hidden], data: Source::from_vec([floats(&e), floats(&e)].concat()) };
    let third = request(LOOK, vec![embeddings(&two), vec![7u8; 100].into()]);
    assert!(refusal(&engine, &third).starts_with("picture 3: "));
}

#[test]
fn the_limit_counts_pictures_however_they_are_given() {
    let Rows { features: f, embeddings: e } = rows(MHA, DType::F32, &["wide", "tall"]);
    let engine = open(Options { max_images: 3, ..Options::default() });
    let text = "USER: <image><image><image>\nwhat? ASSISTANT:";
    answer(&engine, &request(text, vec![embeddings(&e), pixels("wide")]));
    answer(&engine, &request(text, vec![features(&one(&f, 1)), embeddings(&e)]));
    let message = refusal(&engine, &request(text, vec![features(&f), pixels("wide"), embeddings(&one(&e, 0))]));
    assert_eq!(
        message,
        "the prompt has 4 pictures; at most 3 image(s) may be given in one prompt (--limit-mm-per-prompt image=3)"
    );
}

/// Numbers in another type than the model's are converted, and those that it cannot hold are refused.
#[test]
fn arrays_of_other_types_are_converted() {
    let array = rows(MHA, DType::F32, &["wide"]).embeddings;
    let values = floats(&array);
    let as_f16: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    let as_bf16: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let sources = |shape: &[usize]| {
        [Source::from_vec(values.clone()), Source::from_vec(as_f16.clone()), Source::from_vec(as_bf16.clone())]
            .map(|data| ImageArray { shape: shape.to_vec(), data })
    };
    let [wide, half, brain] = sources(&array.shape);
    let hash =
        |dtype, array: &ImageArray| bits(&answer(&open(alone(dtype)), &request(LOOK, vec![embeddings(array)]))).2;
    assert_eq!(hash(DType::F16, &wide), hash(DType::F16, &half));
    assert_eq!(hash(DType::Bf16, &wide), hash(DType::Bf16, &brain));
    let widened = |values: Vec<f32>| ImageArray { shape: array.shape.clone(), data: Source::from_vec(values) };
    assert_eq!(hash(DType::F32, &half), hash(DType::F32, &widened(as_f16.iter().map(|v| v.to_f32()).collect())));
    assert_eq!(hash(DType::F16, &brain), hash(DType::F16, &widened(as_bf16.iter().map(|v| v.to_f32()).collect())));

    let large = with(70000.0, 5, &array.shape);
    let message = refusal(&open(alone(DType::F16)), &request(LOOK, vec![embeddings(&large)]));
    assert!(message.contains("hold 70000 at [0, 0, 5], which is beyond f16"), "{message}");
    assert!(message.contains("--dtype bf16 or f32"), "{message}");
    answer(&open(alone(DType::Bf16)), &request(LOOK, vec![embeddings(&large)]));
}

/// The checkpoint without its vision tower.
fn without_tower() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(MHA).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let bytes = fs::read(Path::new(MHA).join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rest: Vec<_> = all.tensors().into_iter().filter(|(name, _)| !name.starts_with("vision_tower.")).collect();
    assert!(rest.len() < all.len());
    fs::write(dir.path().join("model.safetensors"), safetensors::serialize(rest, None).unwrap()).unwrap();
    dir
}

#[test]
fn an_engine_for_features_needs_no_vision_tower() {
    let dir = without_tower();
    let dtype = DType::F16;
    let Rows { features: f, embeddings: e } = rows(MHA, dtype, &["wide"]);
    let whole = open(alone(dtype));
    let expected = bits(&answer(&whole, &request(LOOK, vec![pixels("wide")])));
    let options = Options { image_input_type: ImageInputType::ImageFeatures, ..alone(dtype) };
    for dir in [Path::new(MHA), dir.path()] {
        let engine = Engine::open(dir, &options, |_, _| ()).unwrap();
        assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
        for input in [features(&f), embeddings(&e)] {
            assert_eq!(bits(&answer(&engine, &request(LOOK, vec![input]))), expected);
        }
        let message = refusal(&engine, &request(LOOK, vec![pixels("wide")]));
        assert!(message.contains("picture 1: it is given as pixels"), "{message}");
        assert!(message.contains("give it as image features or embeddings"), "{message}");
        assert!(message.contains("--image-input-type pixel_values"), "{message}");
        assert_eq!(bits(&answer(&engine, &request(LOOK, vec![features(&f)]))), expected);
        // The tower is the half of this checkpoint, and the plan of memory knows.
        let (small, large) = (engine.memory(), whole.memory());
        assert!(small.weight_bytes * 10 < large.weight_bytes * 7, "{small:?}, {large:?}");
        assert!(small.other_bytes < large.other_bytes);
    }
    let error = Engine::open(dir.path(), &alone(dtype), |_, _| ()).err().unwrap();
    assert!(matches!(error, Error::Model(_)) && error.to_string().contains("vision_tower."), "{error}");
}

#[test]
fn what_vllm_0_5_0_asked_for_must_agree_with_the_checkpoint() {
    let shape = rows(MHA, DType::F32, &["wide"]).features.shape;
    let builder = || Engine::builder(MHA).image_token_id(IMAGE_TOKEN).image_feature_size(16);
    builder().image_input_type(ImageInputType::PixelValues).image_input_shape([1, 3, 32, 32]).open().unwrap();
    builder().image_input_type(ImageInputType::ImageFeatures).image_input_shape(shape.clone()).open().unwrap();
    for (builder, says) in [
        (
            builder().image_token_id(7),
            "image_token_id is 7 (--image-token-id), and config.json says image_token_index = 323",
        ),
        (
            builder().image_feature_size(576),
            "image_feature_size is 576 (--image-feature-size), and a picture takes 16 tokens",
        ),
        (
            builder().image_input_shape([1, 3, 336, 336]),
            "image_input_shape is [1, 3, 336, 336] (--image-input-shape), and by config.json pixel_values have [1, 3, 32, 32]",
        ),
        (
            builder().image_input_type(ImageInputType::ImageFeatures).image_input_shape([1, 3, 32, 32]),
            &format!("by config.json image_features have {shape:?}"),
        ),
    ] {
        let error = builder.open().err().unwrap();
        assert!(matches!(error, Error::Request(_)), "{error}");
        assert!(error.to_string().contains(says), "{error} does not say {says:?}");
    }
}

fn kwargs(json: &str) -> ProcessorKwargs {
    processor_kwargs(json).unwrap()
}

/// Options of a request give what a checkpoint gives whose preprocessor_config.json says the same.
#[test]
fn processor_options_act_as_if_the_checkpoint_said_so() {
    let engine = open(Options { max_num_seqs: Some(1), ..Options::default() });
    let plain = bits(&answer(&engine, &request(LOOK, vec![pixels("wide")])));
    let mut seen = vec![plain.2.clone()];
    for json in [
        r#"{"resample": 2}"#,
        r#"{"size": {"shortest_edge": 20}}"#,
        r#"{"size": 50, "resample": 2}"#,
        r#"{"do_resize": false}"#,
        r#"{"do_center_crop": false, "size": {"height": 32, "width": 32}}"#,
    ] {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(MHA).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let file = dir.path().join("preprocessor_config.json");
        let mut settings: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        kwargs(json).into_iter().for_each(|(key, value)| settings[key] = value);
        fs::write(&file, settings.to_string()).unwrap();
        let rewritten = Engine::open(dir.path(), &Options::default(), |_, _| ()).unwrap();
        let expected = bits(&answer(&rewritten, &request(LOOK, vec![pixels("wide")])));
        assert!(!seen.contains(&expected.2), "{json} changes something");
        seen.push(expected.2.clone());

        let asked = Request { mm_processor_kwargs: kwargs(json), ..request(LOOK, vec![pixels("wide")]) };
        let before = counts(&engine).misses;
        assert_eq!(bits(&answer(&engine, &asked)), expected, "{json} in a request");
        assert_eq!(bits(&answer(&engine, &asked)), expected, "{json} in a request again");
        assert_eq!(counts(&engine).misses - before, 1, "{json} is part of what a picture is");
        let loaded = Engine::builder(MHA).mm_processor_kwargs(kwargs(json)).open().unwrap();
        assert_eq!(bits(&answer(&loaded, &request(LOOK, vec![pixels("wide")]))), expected, "{json} at load");
    }
    // What says no more than the checkpoint changes nothing, and finds what is there.
    let before = counts(&engine).misses;
    let same =
        kwargs(r#"{"resample": 3, "do_pad": false, "crop_size": {"height": 32, "width": 32}, "do_rescale": null}"#);
    let asked = Request { mm_processor_kwargs: same, ..request(LOOK, vec![pixels("wide")]) };
    assert_eq!(bits(&answer(&engine, &asked)), plain);
    assert_eq!(counts(&engine).misses, before);
    // What is a table on the device can be chosen when it is loaded.
    let raw = Engine::builder(MHA).mm_processor_kwargs(kwargs(r#"{"do_normalize": false}"#)).open().unwrap();
    assert!(!seen.contains(&bits(&answer(&raw, &request(LOOK, vec![pixels("wide")]))).2));
}

#[test]
fn processor_options_that_do_not_exist_are_refused() {
    let engine = open(Options::default());
    let bad = [
        (
            r#"{"num_crops": 4}"#,
            "mm_processor_kwargs: num_crops = 4 is no option of this model's picture processor; it has do_convert_rgb, do_pad",
        ),
        (
            r#"{"crop_size": 64}"#,
            "mm_processor_kwargs: crop_size = 64x64 must be config.json: vision_config.image_size = 32",
        ),
        (r#"{"do_pad": true}"#, "mm_processor_kwargs: do_pad = true contradicts image_processor_type"),
        (r#"{"resample": 7}"#, "mm_processor_kwargs: resample = 7; expected 2 (bilinear) or 3 (bicubic)"),
        (r#"{"size": "large"}"#, "mm_processor_kwargs: size = \"large\"; expected"),
        (r#"{"do_center_crop": false}"#, "does not make every picture 32x32"),
    ];
    let fixed =
        [(r#"{"image_mean": [0.5, 0.5, 0.5]}"#, "image_mean and image_std: they are fixed when the model is loaded")];
    for (json, says) in bad.iter().chain(&fixed) {
        // With pictures and without.
        for (text, images) in [(LOOK, vec![pixels("wide")]), ("a", vec![])] {
            let message = refusal(&engine, &Request { mm_processor_kwargs: kwargs(json), ..request(text, images) });
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
    for (json, says) in bad {
        let error = Engine::builder(MHA).mm_processor_kwargs(kwargs(json)).open().err().unwrap();
        assert!(matches!(error, Error::Request(_)) && error.to_string().contains(says), "{error}");
    }
    Engine::builder(MHA).mm_processor_kwargs(kwargs(fixed[0].0)).open().unwrap();
    for (json, says) in [("[1]", "not an object"), ("{", "not valid JSON"), (r#"{"size": 1, "size": 2}"#, "size")] {
        let message = format!("{:#}", processor_kwargs(json).unwrap_err());
        assert!(message.contains("mm_processor_kwargs") && message.contains(says), "{message}");
    }
}

fn saved(tensors: &[(&str, Dtype, &[usize])]) -> tempfile::NamedTempFile {
    let data: Vec<_> = tensors.iter().map(|(.., shape)| vec![0u8; 8 * shape.iter().product::<usize>()]).collect();
    let views = tensors.iter().zip(&data).map(|(&(name, dtype, shape), data)| {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorView::new(dtype, shape.to_vec(), &data[..len]).unwrap())
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
    file
}

#[test]
fn arrays_come_from_safetensors_files() {
    let one = saved(&[("embeds", Dtype::F16, &[1, 16, 96])]);
    let array = ImageArray::read(one.path(), None).unwrap();
    assert_eq!((array.shape, array.data.dtype(), array.data.len()), (vec![1, 16, 96], DType::F16, 16 * 96));
    let several = saved(&[("a", Dtype::F32, &[2, 3]), ("b", Dtype::BF16, &[4]), ("c", Dtype::F64, &[1])]);
    let b = ImageArray::read(several.path(), Some("b")).unwrap();
    assert_eq!((b.shape, b.data.dtype()), (vec![4], DType::Bf16));
    let junk = tempfile::NamedTempFile::new().unwrap();
    fs::write(junk.path(), [0u8; 7]).unwrap();
    let empty = saved(&[]);
    for (file, name, says) in [
        (several.path(), None, "it holds 3 tensors, \"a\", \"b\", \"c\"; say which, behind a colon: FILE:NAME"),
        (several.path(), Some("d"), "it holds no tensor \"d\"; it has \"a\", \"b\", \"c\""),
        (several.path(), Some("c"), "tensor \"c\" is stored as F64; save it as F32, F16 or BF16"),
        (empty.path(), None, "it holds no tensor"),
        (junk.path(), None, "the file has 7 bytes"),
        (Path::new("no/such.safetensors"), None, "No such file"),
    ] {
        let message = format!("{:#}", ImageArray::read(file, name).unwrap_err());
        assert!(message.starts_with(&file.display().to_string()) && message.contains(says), "{message}");
    }
}

/// A conversation shows its pictures in whatever way they are given.
#[test]
fn messages_show_arrays() {
    let e = rows(MHA, DType::F32, &["wide", "tall"]).embeddings;
    let engine = open(alone(DType::F32));
    let chat = |images: Vec<ImageInput>| {
        let prompt = Prompt::Chat(vec![Message::with_images(Role::User, 2, "compare")]);
        bits(&answer(&engine, &Request { prompt, ..request("", images) }))
    };
    assert_eq!(chat(vec![embeddings(&e)]), chat(vec![pixels("wide"), pixels("tall")]));
}
