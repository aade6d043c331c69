//! The settings of a checkpoint: the input is a config.json.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ocelli::config::fuzz(data);
});
