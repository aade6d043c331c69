//! The kernels that this build carries.

use std::collections::BTreeSet;
use std::fs;

use ocelli::backend::cuda::image::{self, Kind};

/// Without nvcc there is nothing to look at, unless the run is one that must have it.
fn embedded() -> &'static [image::Image<'static>] {
    let images = image::embedded();
    if images.is_empty() {
        assert!(
            std::env::var("OCELLI_REQUIRE_NVCC").as_deref() != Ok("1"),
            "OCELLI_REQUIRE_NVCC=1, but this build was made without nvcc: run tools/install-nvcc"
        );
        println!("skipped: built without nvcc");
    }
    images
}

#[test]
fn every_kernel_file_is_embedded_for_the_same_architectures() {
    let images = embedded();
    if images.is_empty() {
        return;
    }
    let files = fs::read_dir("cuda").expect("cuda/").filter_map(|f| f.ok()?.path().to_str().map(str::to_owned));
    let files: BTreeSet<String> =
        files.filter_map(|f| Some(f.strip_prefix("cuda/")?.strip_suffix(".cu")?.to_owned())).collect();
    let kernels: BTreeSet<String> = images.iter().map(|i| i.kernel.to_owned()).collect();
    assert_eq!(kernels, files);
    let archs = |kernel: &str| -> Vec<&str> { images.iter().filter(|i| i.kernel == kernel).map(|i| i.arch).collect() };
    let expected = archs(images[0].kernel);
    assert!(kernels.iter().all(|k| archs(k) == expected));
    assert!(image::nvcc_version().is_some_and(|v| v.split('.').count() == 3), "{:?}", image::nvcc_version());
}

#[test]
fn images_hold_what_the_table_says() {
    for image in embedded() {
        let (name, symbol) = (format!("{} {}", image.kernel, image.arch), format!("{}_params_size", image.kernel));
        let contains = |text: &str| image.bytes.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(contains(&symbol), "{name} does not export {symbol}: it lacks EXPORT_PARAMS");
        match image.kind {
            Kind::Ptx => {
                let target = format!(".target sm_{}", image.arch.trim_start_matches("compute_"));
                assert!(contains(&target), "{name} is not PTX for its target");
            }
            Kind::Cubin => assert!(image.bytes.starts_with(b"\x7fELF"), "{name} is no machine code"),
        }
        // Logits are f32 and pixels bytes, whatever a model computes in; a ceiling reads bytes.
        let dtypes: &[&str] = match image.kernel {
            "sample" => &["f32"],
            "resize" | "ceiling" => &["u8"],
            _ => &["f16", "bf16"],
        };
        for dtype in dtypes {
            assert!(contains(&format!("{}_{dtype}", image.kernel)), "{name} has no entry point for {dtype}");
        }
    }
}
