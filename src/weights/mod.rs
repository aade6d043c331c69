//! A checkpoint's tensors, checked strictly and mapped into memory.
//!
//! [`Weights::open`] finds `model.safetensors` or the shards of `model.safetensors.index.json`, holds every header to
//! the format ([`header`]), and maps the data without reading it. [`Wants`] then matches what is stored against what a
//! model needs. No other format is ever opened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

use crate::mem::{DType, Source};

mod files;
pub mod header;
mod json;
mod names;
mod wants;

pub use files::{INDEX, SINGLE};
pub use names::{canonical_llava, canonical_phi3v};
pub use wants::Wants;

use files::{Found, Index, Shard};
use names::quoted;

/// The tensors of a checkpoint directory.
///
/// The files are mapped, so a tensor's bytes are read from disk when they are first touched. Do not change a file while
/// it is mapped: overwritten bytes are seen as they are, and if the file becomes shorter, touching what is gone ends
/// the process with SIGBUS. Replacing a file by renaming another over it is safe; the map keeps the old one.
/// [`Weights::check_unchanged`] notices a file that was rewritten in place.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Tensor>,
    warnings: Vec<String>,
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Type of an element as the file says; not every one can be computed with.
    pub stored: Dtype,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Index of its file in [`Weights::files`].
    pub file: usize,
    /// Its bytes in that file.
    pub range: Range<usize>,
}

impl Tensor {
    /// The stored type where this crate knows it.
    pub fn dtype(&self) -> Option<DType> {
        match self.stored {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::I32 => Some(DType::I32),
            Dtype::U8 => Some(DType::U8),
            _ => None,
        }
    }
}

impl Weights {
    /// Opens the checkpoint in `dir`. When both `model.safetensors` and an index are there, the first is read, as
    /// transformers does, and a warning says so.
    ///
    /// # Errors
    /// When no checkpoint is there, when a file leads out of the directory or cannot be read, when a header breaks the
    /// format or a limit of [`header`], and when shards and index contradict each other.
    pub fn open(dir: &Path) -> Result<Weights> {
        let Found { shards: names, index, warnings } = files::find(dir)?;
        let mut weights = Weights { shards: Vec::new(), tensors: BTreeMap::new(), warnings };
        for name in &names {
            let named = if index.is_some() { " (named by the index)" } else { "" };
            weights.add(dir, name).with_context(|| format!("{}{named}", dir.join(name).display()))?;
        }
        if let Some(index) = index {
            weights.compare(&index).with_context(|| format!("{}", dir.join(INDEX).display()))?;
        }
        Ok(weights)
    }

    /// Maps one file and takes up its tensors.
    fn add(&mut self, dir: &Path, name: &str) -> Result<()> {
        let shard = Shard::open(dir, name)?;
        let file = self.shards.len();
        for (tensor, header::Entry { dtype, shape, range }) in header::parse(&shard.map)? {
            if let Some(first) = self.tensors.get(&tensor) {
                let first = self.shards.get(first.file).map_or("", |shard| &shard.name);
                bail!("tensor {} is also in {}", quoted(&tensor), quoted(first));
            }
            self.tensors.insert(tensor, Tensor { stored: dtype, shape, file, range });
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Holds the index against what the shards contain.
    fn compare(&mut self, index: &Index) -> Result<()> {
        for (name, file) in &index.weight_map {
            let found = self.tensors.get(name).and_then(|tensor| self.shards.get(tensor.file)).map(|shard| &shard.name);
            match found {
                None => bail!("weight_map puts tensor {} into {}, which lacks it", quoted(name), quoted(file)),
                Some(found) => ensure!(
                    found == file,
                    "weight_map puts tensor {} into {}, but it is in {}",
                    quoted(name),
                    quoted(file),
                    quoted(found)
                ),
            }
        }
        let mut unmapped = self.tensors.keys().filter(|name| !index.weight_map.contains_key(*name));
        if let Some(name) = unmapped.next() {
            let rest = unmapped.count();
            self.warnings.push(format!("{INDEX} does not list tensor {} and {rest} more in its shards", quoted(name)));
        }
        let total = self.bytes_total();
        if let Some(size) = index.total_size.filter(|&size| size != total as f64) {
            self.warnings.push(format!("{INDEX} says total_size = {size}; the tensors have {total} bytes"));
        }
        Ok(())
    }

    /// The tensor stored under exactly this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Bytes of all tensors together.
    pub fn bytes_total(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.range.len() as u64).sum()
    }

    /// The float type that holds the most bytes: what the checkpoint really is, whatever config.json says. `None` when
    /// no tensor has a type that a model can compute in.
    pub fn float_dtype(&self) -> Option<DType> {
        let bytes = |dtype| {
            let of_type = self.tensors.values().filter(|tensor| tensor.dtype() == Some(dtype));
            of_type.map(|tensor| tensor.range.len() as u64).sum::<u64>()
        };
        let sizes = [DType::F32, DType::Bf16, DType::F16].map(|dtype| (bytes(dtype), dtype));
        sizes.into_iter().max_by_key(|&(bytes, _)| bytes).filter(|&(bytes, _)| bytes > 0).map(|(_, dtype)| dtype)
    }

    /// Names and sizes of the mapped files, in the order of [`Tensor::file`].
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.shards.iter().map(|shard| (shard.name.as_str(), shard.map.len() as u64))
    }

    /// What is odd about the files but does not change a result.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The bytes of `tensor`, which share the map; `None` when its type is none of [`DType`] or it is of another
    /// checkpoint.
    pub fn source(&self, tensor: &Tensor) -> Option<Source> {
        let shard = self.shards.get(tensor.file)?;
        let source = Source::new(shard.map.clone(), tensor.range.clone(), tensor.dtype()?)?;
        Some(source.in_file(shard.file.clone()))
    }

    /// Call it after the tensors were copied or converted: a file that was rewritten meanwhile is an error.
    ///
    /// # Errors
    /// When a file's length or time of change is no longer what it was when [`Weights::open`] mapped it.
    pub fn check_unchanged(&self) -> Result<()> {
        match self.shards.iter().find(|shard| !shard.unchanged()) {
            Some(shard) => bail!("{} was changed while it was being read; load the model again", quoted(&shard.name)),
            None => Ok(()),
        }
    }
}
