//! The ways to give a picture, on a GPU: what its own vision tower and projector made of a picture gives the same bits.

use std::ops::ControlFlow;
use std::path::Path;

use ocelli::backend::cuda::Cuda;
use ocelli::engine::{Device, Engine, ImageInput, ImageInputType, Options, Prompt, Request, Sampling};
use ocelli::mem::DType;

use crate::{gpu, inputs};

#[test]
fn every_way_to_give_a_picture_gives_the_same_bits() {
    if gpu::device().is_none() {
        return;
    }
    for (dir, picture) in [
        ("demo/llava-shapes", "demo/images/shapes.jpg"),
        ("tests/goldens/llava-tiny-mha", "tests/goldens/pictures/wide.png"),
        ("tests/goldens/llava-tiny-gqa", "tests/goldens/pictures/wide.png"),
    ] {
        for dtype in [DType::F16, DType::Bf16] {
            let cuda = |sizes| Cuda::new(0, sizes, 0).unwrap();
            let rows = inputs::rows(Path::new(dir), dtype, cuda, &[picture.into()]);
            let options = Options {
                device: Device::Cuda(0),
                dtype: Some(dtype),
                prefix_caching: false,
                encoder_caching: false,
                // There are two engines at once.
                num_kv_blocks: Some(256),
                ..Options::default()
            };
            let whole = Engine::open(Path::new(dir), &options, |_, _| ()).unwrap();
            let expected = answer(&whole, Path::new(picture).into());
            let options = Options { image_input_type: ImageInputType::ImageFeatures, ..options };
            let without_tower = Engine::open(Path::new(dir), &options, |_, _| ()).unwrap();
            for engine in [&whole, &without_tower] {
                for array in [&rows.features, &rows.embeddings] {
                    let one = inputs::one(array, 0);
                    let kind =
                        if std::ptr::eq(array, &rows.features) { ImageInput::Features } else { ImageInput::Embeddings };
                    assert_eq!(answer(engine, kind(array.clone())), expected, "{dir} in {dtype}");
                    assert_eq!(answer(engine, kind(one)), expected, "{dir} in {dtype}");
                }
            }
            println!("{dir} in {dtype}: pixels, features and embeddings give the same bits");
        }
    }
}

/// Tokens and the hash of the last logits.
fn answer(engine: &Engine, input: ImageInput) -> (Vec<u32>, String) {
    let request = Request {
        prompt: Prompt::Raw("USER: <image>\nwhat is this? ASSISTANT:".into()),
        images: vec![input],
        sampling: Sampling { temperature: 0.0, max_tokens: Some(16), ignore_eos: true, ..Sampling::default() },
        ..Request::default()
    };
    let output = engine.answer(&request, |_| ControlFlow::Continue(())).unwrap();
    let [answer] = output.outputs.try_into().unwrap();
    (answer.token_ids, answer.logits_hash)
}
