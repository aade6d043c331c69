//! A chat template: the input is its text, tried as a checkpoint's is, with a question about a picture.

#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use ocelli::text::{ChatTemplate, Placeholder, Tokenizer};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/llava-tiny-mha");
const IMAGE_TOKEN: u32 = 323;
static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(Tokenizer::open(Path::new(MODEL)).unwrap()));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(source) = std::str::from_utf8(data) {
        let placeholder = Placeholder::Token(IMAGE_TOKEN);
        let _ = ChatTemplate::open(Path::new(MODEL), Some(source), None, TOKENIZER.clone(), Some(placeholder));
    }
});
