//! Which files hold a checkpoint's tensors, and opening them without being led elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use memmap2::{Mmap, MmapOptions};

use super::json::{Object, Unique};
use super::names::quoted;

/// The file of a checkpoint in one piece.
pub const SINGLE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// Largest index, in bytes.
const MAX_INDEX: u64 = 64 << 20;
/// Most shards of a checkpoint.
const MAX_SHARDS: usize = 4096;

/// Formats that execute code when they are opened, or that hold other layouts: named in errors, never opened.
const REFUSED: [&str; 8] = ["bin", "pt", "pth", "ckpt", "pkl", "h5", "msgpack", "gguf"];

/// What a directory holds.
pub(super) struct Found {
    /// File names of the shards, each once.
    pub shards: Vec<String>,
    /// The index, where there is one.
    pub index: Option<Index>,
    /// What is odd but harmless.
    pub warnings: Vec<String>,
}

/// `model.safetensors.index.json`.
pub(super) struct Index {
    /// Tensor name to file name.
    pub weight_map: BTreeMap<String, String>,
    /// Bytes of all tensors, as far as the writer counted them.
    pub total_size: Option<f64>,
}

/// A mapped file.
pub(super) struct Shard {
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Its bytes.
    pub map: Arc<Mmap>,
    /// The file itself.
    pub file: Arc<File>,
    modified: Option<SystemTime>,
}

/// Looks for a checkpoint in `dir`. One file goes before an index, as in transformers.
pub(super) fn find(dir: &Path) -> Result<Found> {
    let kind = fs::metadata(dir).with_context(|| format!("{}: cannot open the model directory", dir.display()))?;
    ensure!(kind.is_dir(), "{} is not a directory; give the directory that holds config.json", dir.display());
    let there = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok();
    if there(SINGLE) {
        let warnings = match there(INDEX) {
            true => vec![format!("both {SINGLE} and {INDEX} are there; {SINGLE} is read and the index ignored")],
            false => Vec::new(),
        };
        return Ok(Found { shards: vec![SINGLE.into()], index: None, warnings });
    }
    if there(INDEX) {
        let index = read_index(dir).with_context(|| INDEX.to_string())?;
        let shards: BTreeSet<_> = index.weight_map.values().cloned().collect();
        return Ok(Found { shards: shards.into_iter().collect(), index: Some(index), warnings: Vec::new() });
    }
    bail!("{}: neither {SINGLE} nor {INDEX} is there{}", dir.display(), nearest(dir));
}

/// The end of the sentence "there is no checkpoint here": what is there instead, and what to do.
fn nearest(dir: &Path) -> String {
    let Ok(entries) = fs::read_dir(dir) else { return String::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let with = |extensions: &[&str]| {
        let extension = |name: &str| Path::new(name).extension().map(|e| e.to_ascii_lowercase());
        names.iter().find(|name| extension(name).is_some_and(|e| extensions.iter().any(|&x| e == x)))
    };
    if let Some(name) = with(&["safetensors"]) {
        format!(
            "; {} is, but a checkpoint in one file must be called {SINGLE}, and one in several needs their {INDEX}",
            quoted(name)
        )
    } else if let Some(name) = with(&REFUSED) {
        format!(
            "; {} is, but only safetensors are ever opened: convert it with transformers, \
             `model.save_pretrained(dir, safe_serialization=True)`",
            quoted(name)
        )
    } else {
        "; was the download finished?".into()
    }
}

#[derive(serde::Deserialize)]
struct RawIndex {
    metadata: Option<RawMetadata>,
    weight_map: Unique<String>,
}

#[derive(serde::Deserialize)]
struct RawMetadata {
    total_size: Option<f64>,
}

fn read_index(dir: &Path) -> Result<Index> {
    let path = resolve(dir, INDEX)?;
    let mut text = Vec::new();
    let mut file = open_regular(&path)?;
    (&mut file).take(MAX_INDEX + 1).read_to_end(&mut text).context("cannot be read")?;
    ensure!(text.len() as u64 <= MAX_INDEX, "it is over the limit of {MAX_INDEX} bytes");
    let raw: Object<RawIndex> = serde_json::from_slice(&text).context("the index is not valid")?;
    let weight_map = raw.0.weight_map.0;
    ensure!(!weight_map.is_empty(), "weight_map is empty");
    for (tensor, file) in &weight_map {
        plain(file).with_context(|| format!("weight_map[{}]", quoted(tensor)))?;
    }
    let shards = weight_map.values().collect::<BTreeSet<_>>().len();
    ensure!(shards <= MAX_SHARDS, "weight_map names {shards} shards; the limit is {MAX_SHARDS}");
    Ok(Index { weight_map, total_size: raw.0.metadata.and_then(|m| m.total_size) })
}

/// A shard's name must be one file of the directory, never a path.
fn plain(name: &str) -> Result<()> {
    let odd = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    ensure!(
        name.ends_with(".safetensors") && name.len() <= 255 && !name.contains(odd) && !name.starts_with('.'),
        "{} is not the plain name of a .safetensors file in the model directory",
        quoted(name)
    );
    Ok(())
}

/// The real path of a file in `dir`. A link may lead to a place in the same directory, or, from a snapshot of a Hugging
/// Face cache, to the blobs of the same repository; never anywhere else.
fn resolve(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let real = fs::canonicalize(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if fs::symlink_metadata(&path).is_ok() => {
            anyhow::anyhow!("it is a link to a file that is not there; download the model again")
        }
        std::io::ErrorKind::NotFound => anyhow::anyhow!("the file is not there; download it into {}", dir.display()),
        _ => anyhow::anyhow!("cannot be opened: {e}"),
    })?;
    let home = fs::canonicalize(dir).context("cannot resolve the model directory")?;
    let blobs = home.parent().filter(|up| up.ends_with("snapshots")).and_then(Path::parent).map(|up| up.join("blobs"));
    let allowed = real.starts_with(&home) || blobs.is_some_and(|blobs| real.parent() == Some(&blobs));
    ensure!(
        allowed,
        "it is a link out of the model directory; only links into the directory or into the blobs of its own \
         Hugging Face cache are followed. Copy the file instead"
    );
    Ok(real)
}

/// Opens a regular file; anything else (a directory, a pipe that would block) is an error.
fn open_regular(path: &Path) -> Result<File> {
    let regular = |kind: fs::Metadata| match kind.is_file() {
        true => Ok(()),
        false => bail!("it is {}, not a regular file", if kind.is_dir() { "a directory" } else { "a special file" }),
    };
    regular(fs::metadata(path).context("cannot be opened")?)?;
    let file = File::open(path).context("cannot be opened")?;
    regular(file.metadata().context("cannot be opened")?)?;
    Ok(file)
}

impl Shard {
    /// Maps the file `name` of `dir`.
    pub fn open(dir: &Path, name: &str) -> Result<Shard> {
        let file = open_regular(&resolve(dir, name)?)?;
        let kind = file.metadata().context("cannot be opened")?;
        let len = usize::try_from(kind.len()).context("the file is larger than the address space")?;
        let map = Arc::new(map(&file, len).context("cannot be mapped")?);
        Ok(Shard { name: name.into(), map, file: Arc::new(file), modified: kind.modified().ok() })
    }

    /// Whether the file still has the length and the time of change that it had when it was mapped.
    pub fn unchanged(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|kind| kind.len() == self.map.len() as u64 && kind.modified().ok() == self.modified)
    }
}

/// The first `len` bytes of `file`, read-only.
#[allow(unsafe_code)]
fn map(file: &File, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and only ever seen as bytes, so no value is invalid, and every range into it was
    // checked against `len`, the descriptor's own length. What no check can rule out is another process that changes
    // the file meanwhile: bytes may then differ between two reads, and reading past a new, earlier end raises SIGBUS.
    // `Weights` documents that, and `Weights::check_unchanged` turns the common case into an error.
    unsafe { MmapOptions::new().len(len).map(file) }
}
