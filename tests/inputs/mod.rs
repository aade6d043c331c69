//! What a model's own vision tower and projector make of pictures, as a caller would bring it.

use std::fs;
use std::path::{Path, PathBuf};

use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, ImageArray, Options, Runner};
use ocelli::image::{Alpha, Limits as DecodeLimits, decode};
use ocelli::mem::{DType, Source, Span};
use ocelli::models::{Limits, Stage};
use ocelli::ops::Op;
use ocelli::plan::{Backend, Plan};

/// Features and embeddings of some pictures: `[pictures, rows, columns]` in the model's type.
pub struct Rows {
    pub features: ImageArray,
    pub embeddings: ImageArray,
}

/// Run the tower and the projector of the checkpoint in `dir` on the files `pictures`, together.
pub fn rows<B: Backend>(dir: &Path, dtype: DType, backend: impl Fn([usize; 4]) -> B, pictures: &[PathBuf]) -> Rows {
    let checkpoint = Checkpoint::open(dir, &Options { dtype: Some(dtype), ..Options::default() }).unwrap();
    let limits = Limits {
        max_model_len: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        max_logit_rows: 1,
        max_tiles: pictures.len(),
        kept_tiles: 0,
        kv_blocks: 4,
    };
    let model = checkpoint.build(limits).unwrap();
    let mut runner = Runner::new(backend(model.regions()), model, |_| ()).unwrap();
    let tiles: Vec<_> = pictures
        .iter()
        .map(|file| {
            let rgb = decode(&fs::read(file).unwrap(), Alpha::White, &DecodeLimits::default()).unwrap();
            runner.model().processor(&ProcessorKwargs::new()).unwrap().prepare(&rgb).unwrap()
        })
        .collect();
    assert!(tiles.iter().all(|t| t.content.stage() == Some(Stage::Tower)));
    runner.encode(&tiles).unwrap();
    let [first, last] = projector(&runner.model().encode_plan(tiles.len()));
    let array = |span: Span, columns: usize| {
        let bytes = runner.backend().snapshot(span).unwrap();
        let range = 0..bytes.len();
        let data = Source::new(std::sync::Arc::new(bytes), range, dtype).unwrap();
        ImageArray { shape: vec![tiles.len(), runner.model().tile_rows(), columns], data }
    };
    let model = runner.model();
    let columns = checkpoint.facts().pictures.feature_columns.unwrap();
    Rows { features: array(first, columns), embeddings: array(last, model.areas().hidden) }
}

/// What the projector reads and what it writes.
fn projector(plan: &Plan) -> [Span; 2] {
    let gemms: Vec<_> = plan
        .steps()
        .iter()
        .filter(|step| step.label.as_str().starts_with("projector/"))
        .map(|step| match &step.op {
            Op::Gemm(gemm) => *gemm,
            other => panic!("the projector has a {}", other.name()),
        })
        .collect();
    [gemms[0].a.span(), gemms[gemms.len() - 1].c.span()]
}

/// Picture `i` of an array as an array of its own: `[rows, columns]`.
pub fn one(array: &ImageArray, i: usize) -> ImageArray {
    let len = array.shape[1] * array.shape[2];
    ImageArray { shape: array.shape[1..].to_vec(), data: array.data.slice(i * len..(i + 1) * len) }
}
