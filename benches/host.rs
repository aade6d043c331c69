//! What the host does for a request before and beside the device, each part by itself on real sizes.
//!
//! ```sh
//! cargo bench --bench host                           # all, in about a minute
//! cargo bench --bench host -- resize                 # those whose name holds a word
//! cargo bench --bench host -- --save-baseline old    # keep the figures, and later
//! cargo bench --bench host -- --baseline old         # compare with them
//! ```
//!
//! Pictures are made here from fixed numbers, the settings of the 7B model are written out below, and the tokenizer and the
//! chat template are the demo's, so nothing has to be downloaded.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use ocelli::config::Files;
use ocelli::engine::{Scheduler, SchedulerLimits, Sequence, SequenceId};
use ocelli::image::{Alpha, Filter, Hd, Limits as PictureLimits, Rgb, decode, resize};
use ocelli::mem::DType;
use ocelli::models::{self, Architecture, ImageInputType, Limits, StepShape, Tensors, Vlm};
use ocelli::text::{ChatTemplate, Detokenizer, Message, Placeholder, Role, Special, Tokenizer};
use ocelli::weights::{INDEX, Weights};
use serde_json::{Map, Value, json};

/// The checkpoint whose tokenizer and chat template are used.
const DEMO: &str = "demo/llava-shapes";

fn main() {
    let short = Criterion::default().sample_size(50);
    let short = short.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut criterion = short.configure_from_args();
    pictures(&mut criterion);
    text(&mut criterion);
    plans(&mut criterion);
    scheduler(&mut criterion);
    checkpoint(&mut criterion);
    criterion.final_summary();
}

/// From the bytes of a camera's picture to what the vision tower reads.
fn pictures(criterion: &mut Criterion) {
    let pixels = photo(640, 480);
    let jpeg = encoded(&pixels);
    let processor = llava().processor(&Map::new()).expect("the processor of the model");
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    let hd = Hd { num_crops: 4, tile: 336, mean, std };
    let mut group = criterion.benchmark_group("picture");
    group.throughput(Throughput::Elements(640 * 480));
    group.bench_function("jpeg/640x480", |b| {
        b.iter(|| decode(black_box(&jpeg), Alpha::White, &PictureLimits::default()).expect("a picture"));
    });
    group.bench_function("resize/640x480-448x336", |b| {
        b.iter(|| resize(black_box(&pixels), 448, 336, Filter::Bicubic).expect("a picture"));
    });
    group.bench_function("prepare/llava-1.5", |b| {
        b.iter(|| processor.prepare(black_box(&pixels)).expect("a tile"));
    });
    group.bench_function("prepare/phi-3.5", |b| {
        b.iter(|| {
            hd.canvas(black_box(&pixels)).map(|canvas| (hd.tiles(&canvas), hd.overview(&canvas))).expect("tiles")
        });
    });
    group.finish();
}

/// Words to tokens, a conversation to a prompt, and tokens to words as they come.
fn text(criterion: &mut Criterion) {
    let dir = Path::new(DEMO);
    let tokenizer = Arc::new(Tokenizer::open(dir).expect("the demo's tokenizer"));
    let placeholder = Placeholder::Token(tokenizer.token_to_id("<image>").expect("the demo's placeholder"));
    let template = ChatTemplate::open(dir, None, None, tokenizer.clone(), Some(placeholder));
    let template = template.expect("the demo's chat template");
    let (words, ids) = words(&tokenizer, 600);
    let messages = [
        Message::with_images(Role::User, 1, "What is in this picture?"),
        Message::text(Role::Assistant, "Three yellow squares, two red stars and the word \"SUN\"."),
        Message::text(Role::User, "How many stars are there?"),
    ];
    let mut group = criterion.benchmark_group("text");
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("tokenize/600", |b| {
        b.iter(|| tokenizer.encode(black_box(&words), Special::AsText, true).expect("tokens"));
    });
    group.bench_function("detokenize/600", |b| {
        b.iter(|| {
            let mut stream = Detokenizer::new(tokenizer.clone(), true);
            let pieces = black_box(&ids).iter().map(|&id| stream.push(id).expect("text").len());
            pieces.sum::<usize>() + stream.finish().expect("text").len()
        });
    });
    group.throughput(Throughput::Elements(messages.len() as u64));
    group.bench_function("template/3-messages", |b| {
        b.iter(|| template.encode(black_box(&messages), true).expect("a prompt"));
    });
    group.finish();
}

/// The launch lists that a step with a prompt builds each time, and a decode step before it is recorded.
fn plans(criterion: &mut Criterion) {
    let model = llava();
    let decode = |decode| StepShape { decode, logit_rows: decode, context: 645, ..nothing() };
    let prefill = StepShape { prefill_seqs: 1, prefill_tokens: 645, logit_rows: 1, context: 645, ..nothing() };
    let mut group = criterion.benchmark_group("plan");
    for (name, shape) in [("decode/1", decode(1)), ("decode/256", decode(256)), ("prefill/645", prefill)] {
        group.bench_function(name, |b| b.iter(|| model.step_plan(black_box(shape))));
    }
    group.bench_function("encode/1", |b| b.iter(|| model.encode_plan(black_box(1))));
    group.finish();
}

fn nothing() -> StepShape {
    StepShape { decode: 0, prefill_seqs: 0, prefill_tokens: 0, logit_rows: 0, context: 0 }
}

/// A step of 256 answers: planned, and told what came of it.
fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    group.throughput(Throughput::Elements(Crowd::SIZE as u64));
    group.bench_function("step/256", |b| {
        b.iter_custom(|steps| {
            let (mut crowd, mut left, mut took) = (Crowd::new(), Crowd::STEPS, Duration::ZERO);
            for _ in 0..steps {
                if left == 0 {
                    (crowd, left) = (Crowd::new(), Crowd::STEPS);
                }
                let start = Instant::now();
                black_box(crowd.step());
                took += start.elapsed();
                left -= 1;
            }
            took
        });
    });
    group.finish();
}

/// Sequences of which each is amid its answer.
struct Crowd {
    scheduler: Scheduler,
}

impl Crowd {
    const SIZE: usize = 256;
    const PROMPT: usize = 645;
    /// Before an answer is at its end.
    const STEPS: usize = 2048;

    fn new() -> Crowd {
        let longest = Crowd::PROMPT + Crowd::STEPS + 64;
        let scheduler = Scheduler::new(SchedulerLimits {
            max_num_seqs: Crowd::SIZE,
            max_num_batched_tokens: 8192,
            max_reports: 64,
            kv_blocks: Crowd::SIZE * longest.div_ceil(16),
            max_tiles: 0,
            pages: 0,
            page_rows: 576,
            first_row: 0,
            constant_row: 0,
            rope_switch: None,
            prefix_caching: true,
            encoder_caching: true,
        });
        let mut crowd = Crowd { scheduler: scheduler.expect("limits that agree") };
        for id in 1..=Crowd::SIZE as SequenceId {
            // No two prompts share a block.
            let prompt = (0..Crowd::PROMPT).map(|i| ((id as usize * 7919 + i * 104_729) % 32_000) as i32).collect();
            crowd.scheduler.add(Sequence::new(id, prompt, Vec::new(), longest, "")).expect("room for it");
        }
        while crowd.step() < Crowd::SIZE {}
        crowd
    }

    /// One step; how many tokens it sampled.
    fn step(&mut self) -> usize {
        let step = self.scheduler.schedule();
        self.scheduler.ran(&step);
        let sampled = step.rows.iter().filter(|row| row.samples);
        sampled.map(|row| self.scheduler.push(row.id, (row.id % 32_000) as i32)).count()
    }
}

/// The tensors of a 7B model found in three files and their index: 686 names, each checked against the others.
fn checkpoint(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let tensors = shards(dir.path()).expect("files without content");
    let mut group = criterion.benchmark_group("checkpoint");
    group.throughput(Throughput::Elements(tensors as u64));
    group.bench_function("open/3-shards", |b| b.iter(|| Weights::open(black_box(dir.path())).expect("a checkpoint")));
    group.finish();
}

/// Three files with true headers over holes, and the index. Returns the number of tensors.
fn shards(dir: &Path) -> std::io::Result<usize> {
    let shapes = tensors();
    let (mut map, mut total) = (Map::new(), 0);
    for (i, some) in shapes.chunks(shapes.len().div_ceil(3)).enumerate() {
        let name = format!("model-0000{}-of-00003.safetensors", i + 1);
        let (mut header, mut end) = (Map::new(), 0);
        for (tensor, shape) in some {
            let start = end;
            end += 2 * shape.iter().product::<u64>();
            header.insert(tensor.clone(), json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] }));
            map.insert(tensor.clone(), name.clone().into());
        }
        let header = Value::Object(header).to_string();
        let mut file = File::create(dir.join(name))?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        // A hole: no disk is taken, and nobody reads it.
        file.set_len(8 + header.len() as u64 + end)?;
        total += end;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    std::fs::write(dir.join(INDEX), index.to_string())?;
    Ok(shapes.len())
}

/// Names and shapes of llava-1.5-7b-hf.
fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all: Vec<(String, Vec<u64>)> = Vec::new();
    let mut linear = |name: String, out: u64, of: u64| {
        all.push((format!("{name}.bias"), vec![out]));
        all.push((format!("{name}.weight"), vec![out, of]));
    };
    for layer in 0..24 {
        let at = format!("vision_tower.vision_model.encoder.layers.{layer}");
        ["q", "k", "v", "out"].iter().for_each(|p| linear(format!("{at}.self_attn.{p}_proj"), 1024, 1024));
        linear(format!("{at}.mlp.fc1"), 4096, 1024);
        linear(format!("{at}.mlp.fc2"), 1024, 4096);
    }
    linear("multi_modal_projector.linear_1".into(), 4096, 1024);
    linear("multi_modal_projector.linear_2".into(), 4096, 4096);
    let mut one = |name: String, shape: &[u64]| all.push((name, shape.to_vec()));
    let norms = (0..24).flat_map(|i| [1, 2].map(|n| format!("encoder.layers.{i}.layer_norm{n}")));
    for norm in norms.chain(["pre_layrnorm".into(), "post_layernorm".into()]) {
        ["bias", "weight"].iter().for_each(|p| one(format!("vision_tower.vision_model.{norm}.{p}"), &[1024]));
    }
    let embeddings = "vision_tower.vision_model.embeddings";
    one(format!("{embeddings}.class_embedding"), &[1024]);
    one(format!("{embeddings}.patch_embedding.weight"), &[1024, 3, 14, 14]);
    one(format!("{embeddings}.position_embedding.weight"), &[577, 1024]);
    for layer in 0..32 {
        let at = format!("language_model.model.layers.{layer}");
        ["q", "k", "v", "o"].iter().for_each(|p| one(format!("{at}.self_attn.{p}_proj.weight"), &[4096, 4096]));
        ["gate", "up"].iter().for_each(|p| one(format!("{at}.mlp.{p}_proj.weight"), &[11008, 4096]));
        one(format!("{at}.mlp.down_proj.weight"), &[4096, 11008]);
        ["input", "post_attention"].iter().for_each(|p| one(format!("{at}.{p}_layernorm.weight"), &[4096]));
    }
    one("language_model.model.embed_tokens.weight".into(), &[32064, 4096]);
    one("language_model.model.norm.weight".into(), &[4096]);
    one("language_model.lm_head.weight".into(), &[32064, 4096]);
    all
}

/// LLaVA-1.5-7B as a GPU would have it, laid out and without memory.
fn llava() -> Box<dyn Vlm> {
    let config = json!({
        "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000, "model_type": "llava",
        "projector_hidden_act": "gelu", "tie_word_embeddings": false, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "vocab_size": 32064,
        "text_config": {
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "torch_dtype": "float16",
            "vocab_size": 32064
        },
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768
        }
    });
    let preprocessor = json!({
        "crop_size": { "height": 336, "width": 336 }, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
        "do_rescale": true, "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": { "shortest_edge": 336 }
    });
    let (config, preprocessor) = (config.to_string(), preprocessor.to_string());
    let files = Files {
        config: config.as_bytes(),
        generation: Some(br#"{"eos_token_id": 2}"#),
        preprocessor: Some(preprocessor.as_bytes()),
        processor: None,
    };
    let limits = Limits {
        max_model_len: 4096,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_logit_rows: 320,
        max_tiles: 14,
        kept_tiles: 64,
        kv_blocks: 4096,
    };
    let family = models::find("LlavaForConditionalGeneration", &[]).expect("a family of this crate");
    let architecture: Box<dyn Architecture> = (family.read)(&files).expect("settings that agree");
    let pixels = ImageInputType::PixelValues;
    architecture.build(Tensors::Random, DType::Bf16, limits, pixels).expect("a layout")
}

/// A grainy gradient: neither flat, which is quick to decode, nor noise, which no camera gives.
fn photo(width: u32, height: u32) -> Rgb {
    let mut state = 1u64;
    let mut grain = move || {
        // Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 60) as u32
    };
    let mut data = Vec::with_capacity(3 * (width * height) as usize);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let (right, down) = (200 * x / width, 200 * y / height);
        data.extend([right, down, 200 - (right + down) / 2].map(|c| (c + grain()) as u8));
    }
    Rgb::new(width, height, data).expect("as many bytes as it says")
}

fn encoded(pixels: &Rgb) -> Vec<u8> {
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 90);
    let (width, height) = (pixels.width(), pixels.height());
    encoder.encode(pixels.data(), width, height, ExtendedColorType::Rgb8).expect("a JPEG in memory");
    jpeg
}

/// Words of a text that has so many tokens, and those.
fn words(tokenizer: &Tokenizer, tokens: usize) -> (String, Vec<u32>) {
    let sentences = ["Three yellow squares, two red stars.", "The word is \"SUN\".", "How many blue rings do you see?"];
    let mut text = String::new();
    for sentence in sentences.iter().cycle() {
        text = text + sentence + " ";
        let ids = tokenizer.encode(&text, Special::AsText, true).expect("tokens");
        if ids.len() >= tokens {
            return (text, ids);
        }
    }
    unreachable!("the sentences go on for ever")
}
