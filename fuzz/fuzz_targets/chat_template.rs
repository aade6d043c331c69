//! A chat template: the input is its text, rendered over a fixed conversation.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ocelli::text::fuzz_template(data);
});
