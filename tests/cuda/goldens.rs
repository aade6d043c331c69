//! The whole model against transformers, on a GPU: the same bounds as `golden_models` holds the references to.

use ocelli::backend::cuda::Cuda;
use ocelli::mem::DType;

use crate::golden::Golden;
use crate::gpu;

/// In memory of NaNs, so that what nobody wrote would show.
#[test]
fn half_precision_is_as_close_as_transformers_is() {
    if gpu::device().is_none() {
        return;
    }
    for (folder, dtype) in [
        ("llava-tiny-gqa-f16", None),
        ("llava-tiny-gqa-bf16", None),
        ("next-tiny-llama", None),
        ("next-tiny-mistral", None),
        ("phi3-tiny", None),
        ("phi35-tiny", None),
        // The same weights, rounded on their way to the device.
        ("llava-tiny-gqa", Some(DType::F16)),
        ("llava-tiny-gqa", Some(DType::Bf16)),
    ] {
        let mut g = Golden::open(folder, dtype, |regions| Cuda::new(0, regions, 0xff).unwrap());
        if dtype.is_none() {
            g.is_as_close_as_transformers(folder);
            continue;
        }
        let stored = format!("{folder}-{}", g.checkpoint.dtype);
        let mut stored = Golden::open(&stored, None, |regions| Cuda::new(0, regions, 0).unwrap());
        for case in stored.case_names() {
            let prompt = stored.prompt(&case);
            assert_eq!(prompt, g.prompt(&case));
            assert!(stored.logits(&prompt, prompt.len()) == g.logits(&prompt, prompt.len()), "{case}: other bits");
        }
    }
}
