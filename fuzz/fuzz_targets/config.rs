//! The settings of a checkpoint: the input is a config.json.

#![no_main]

use ocelli::config::{Config, Files};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Config::parse(&Files { config: data, generation: None, preprocessor: None, processor: None });
});
