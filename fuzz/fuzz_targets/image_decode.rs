//! A picture of any format, under the default limits.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = ocelli::image::decode(data, ocelli::image::Alpha::default(), &ocelli::image::Limits::default());
});
