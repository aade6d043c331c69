//! The header of a safetensors file: the input is a whole file.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ocelli::weights::header::parse(data);
});
