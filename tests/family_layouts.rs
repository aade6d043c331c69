//! One checkpoint under every program's tensor names, in one file and in several: it loads to the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use ocelli::engine::{Checkpoint, Options};
use ocelli::mem::{DType, Span};
use ocelli::models::Limits;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

const NEXT: &str = "tests/goldens/next-tiny-mistral";
const PHI: &str = "tests/goldens/phi35-tiny";

/// What a program puts in front of the tower, the text model, the head, the projector's layers and the newline.
struct Layout {
    name: &'static str,
    tower: &'static str,
    text: &'static str,
    head: &'static str,
    projector: [&'static str; 2],
    newline: &'static str,
}

const LAYOUTS: [Layout; 5] = [
    Layout {
        name: "the hub's files",
        tower: "vision_tower.vision_model.",
        text: "language_model.model.",
        head: "language_model.lm_head.",
        projector: ["multi_modal_projector.linear_1.", "multi_modal_projector.linear_2."],
        newline: "image_newline",
    },
    Layout {
        name: "transformers 5 by default",
        tower: "vision_tower.",
        text: "language_model.model.",
        head: "language_model.lm_head.",
        projector: ["multi_modal_projector.linear_1.", "multi_modal_projector.linear_2."],
        newline: "image_newline",
    },
    Layout {
        name: "transformers 5 as in memory",
        tower: "model.vision_tower.",
        text: "model.language_model.",
        head: "lm_head.",
        projector: ["model.multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_2."],
        newline: "model.image_newline",
    },
    Layout {
        name: "transformers 4.52 as in memory",
        tower: "model.vision_tower.vision_model.",
        text: "model.language_model.",
        head: "lm_head.",
        projector: ["model.multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_2."],
        newline: "model.image_newline",
    },
    Layout {
        name: "the original repositories",
        tower: "model.vision_tower.vision_tower.vision_model.",
        text: "model.",
        head: "lm_head.",
        projector: ["model.mm_projector.0.", "model.mm_projector.2."],
        newline: "model.image_newline",
    },
];

impl Layout {
    /// The name under which this program stores what the hub's files call `name`.
    fn of(&self, name: &str) -> String {
        let [first, second] = self.projector;
        let hub = &LAYOUTS[0];
        let pairs = [
            (hub.tower, self.tower),
            (hub.text, self.text),
            (hub.head, self.head),
            (hub.projector[0], first),
            (hub.projector[1], second),
            (hub.newline, self.newline),
        ];
        let renamed = pairs.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        renamed.unwrap_or_else(|| panic!("{name} is in no part of the model"))
    }
}

/// Name, shape and bytes; all of one type.
type Stored = (String, safetensors::Dtype, Vec<usize>, Vec<u8>);

fn tensors(folder: &str) -> Vec<Stored> {
    let bytes = fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own =
        |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(own).collect()
}

fn write(path: &Path, tensors: &[&Stored]) {
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The settings of `folder` with these tensors: in one file, or every other one in a second.
fn checkpoint(folder: &str, tensors: &[Stored], shards: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    if shards == 1 {
        write(&dir.path().join("model.safetensors"), &tensors.iter().collect::<Vec<_>>());
        return dir;
    }
    let mut map = Map::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let part: Vec<_> = tensors.iter().skip(shard).step_by(shards).collect();
        map.extend(part.iter().map(|t| (t.0.clone(), Value::from(file.as_str()))));
        write(&dir.path().join(file), &part);
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    dir
}

/// Where every tensor goes and what goes there, or why it does not load.
fn load(dir: PathBuf) -> Result<Vec<(Span, Vec<u8>)>, String> {
    let options = Options { dtype: Some(DType::F32), ..Options::default() };
    let checkpoint = Checkpoint::open(&dir, &options).map_err(|e| e.to_string())?;
    let limits = Limits {
        max_model_len: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        max_logit_rows: 1,
        max_tiles: 1,
        kept_tiles: 0,
        kv_blocks: 4,
    };
    let model = checkpoint.build(limits).map_err(|e| e.to_string())?;
    assert_eq!(model.areas().warnings, [""; 0], "{}", dir.display());
    Ok(model.placements().iter().map(|p| (p.dst, p.source().unwrap().bytes().to_vec())).collect())
}

fn loaded(folder: &str, tensors: &[Stored], shards: usize) -> Result<Vec<(Span, Vec<u8>)>, String> {
    let dir = checkpoint(folder, tensors, shards);
    load(dir.path().to_owned())
}

#[track_caller]
fn refused(folder: &str, tensors: &[Stored], parts: &[&str]) {
    let message = loaded(folder, tensors, 1).expect_err("it must be refused");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn renamed(layout: &Layout) -> Vec<Stored> {
    tensors(NEXT).into_iter().map(|(name, dtype, shape, data)| (layout.of(&name), dtype, shape, data)).collect()
}

#[test]
fn every_layout_loads_to_the_same_bytes() {
    let expected = load(NEXT.into()).unwrap();
    let newline = tensors(NEXT).into_iter().find(|t| t.0 == "image_newline").unwrap();
    assert!(expected.iter().any(|(_, bytes)| *bytes == newline.3), "the newline is among the weights");
    for layout in &LAYOUTS {
        let names: Vec<_> = renamed(layout);
        assert!(names.iter().any(|t| t.0 == layout.newline), "{}", layout.name);
        for shards in [1, 2, 3] {
            let found = loaded(NEXT, &names, shards).unwrap_or_else(|e| panic!("{}: {e}", layout.name));
            assert!(found == expected, "{} in {shards} files", layout.name);
        }
    }
}

/// A tensor under two programs' names could have two contents.
#[test]
fn a_tensor_by_two_names_is_refused() {
    let hub = tensors(NEXT);
    for layout in &LAYOUTS[1..] {
        for (name, dtype, shape, data) in &hub {
            let other = layout.of(name);
            if other == *name
                || !["norm.weight", "class_embedding", "image_newline"].iter().any(|end| name.ends_with(end))
            {
                continue;
            }
            let both = [&hub[..], &[(other.clone(), *dtype, shape.clone(), data.clone())]].concat();
            refused(NEXT, &both, &[name, &other, "two spellings"]);
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let without = |end: &str| tensors(NEXT).into_iter().filter(|t| !t.0.ends_with(end)).collect::<Vec<_>>();
    refused(NEXT, &without("image_newline"), &["1 tensor missing from the checkpoint", "image_newline"]);
    refused(NEXT, &without("lm_head.weight"), &["lm_head.weight"]);
    let mut narrow = tensors(NEXT);
    let newline = narrow.iter_mut().find(|t| t.0 == "image_newline").unwrap();
    newline.2 = vec![1, 64];
    refused(NEXT, &narrow, &["is [1, 64], the model needs [64]"]);
    let without = |end: &str| tensors(PHI).into_iter().filter(|t| !t.0.ends_with(end)).collect::<Vec<_>>();
    refused(PHI, &without("sub_GN"), &["sub_GN"]);
    refused(PHI, &without("embed_tokens.weight"), &["1 tensor missing", "embed_tokens.weight"]);
}

/// Phi's embedding goes by two names. Where both are there, the first is read.
#[test]
fn phis_embedding_goes_by_either_name() {
    const EMBED: &str = "model.embed_tokens.weight";
    const WTE: &str = "model.vision_embed_tokens.wte.weight";
    let first = tensors(PHI);
    let expected = load(PHI.into()).unwrap();
    let embed = first.iter().find(|t| t.0 == EMBED).unwrap().clone();
    assert!(first.iter().all(|t| t.0 != WTE));
    let second: Vec<_> =
        first.iter().cloned().map(|t| if t.0 == EMBED { (WTE.to_owned(), t.1, t.2, t.3) } else { t }).collect();
    let other = (WTE.to_owned(), embed.1, embed.2.clone(), vec![0; embed.3.len()]);
    let both = [&first[..], &[other]].concat();
    for (how, tensors) in [("embed_tokens", first), ("wte", second), ("both", both)] {
        for shards in [1, 2] {
            let found = loaded(PHI, &tensors, shards).unwrap_or_else(|e| panic!("{how}: {e}"));
            assert!(found == expected, "{how} in {shards} files");
        }
    }
}
