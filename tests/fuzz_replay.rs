//! Every seed of the fuzz targets, and every input that fuzzing once found, through the same entry points: nothing may
//! panic, and nothing may take long.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli::config::{Config, Files};
use ocelli::image::{Alpha, Limits, decode};
use ocelli::text::{ChatTemplate, Placeholder, Tokenizer};
use ocelli::weights::header;

/// A chat template may run for ten seconds before it is stopped; nothing else takes a tenth of that.
const DEADLINE: Duration = Duration::from_secs(15);

fn replay(target: &str, entry: impl Fn(&[u8])) {
    let mut files: Vec<_> =
        fs::read_dir(Path::new("fuzz/seeds").join(target)).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{target} has {} seeds", files.len());
    for file in files {
        let data = fs::read(&file).unwrap();
        let start = Instant::now();
        entry(&data);
        assert!(start.elapsed() < DEADLINE, "{} took {:?}", file.display(), start.elapsed());
    }
}

#[test]
fn safetensors_headers() {
    replay("safetensors_header", |data| drop(header::parse(data)));
}

#[test]
fn configs() {
    replay("config", |config| {
        drop(Config::parse(&Files { config, generation: None, preprocessor: None, processor: None }));
    });
}

#[test]
fn pictures() {
    replay("image_decode", |data| drop(decode(data, Alpha::White, &Limits::default())));
}

#[test]
fn chat_templates() {
    let model = Path::new("tests/goldens/llava-tiny-mha");
    let tokenizer = Arc::new(Tokenizer::open(model).unwrap());
    replay("chat_template", |data| {
        if let Ok(source) = std::str::from_utf8(data) {
            drop(ChatTemplate::open(model, Some(source), None, tokenizer.clone(), Some(Placeholder::Token(323))));
        }
    });
}
