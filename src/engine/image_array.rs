//! Arrays that stand for pictures: what the vision tower or the projector made of them elsewhere.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytemuck::NoUninit;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::mem::{DType, Element, Source};
use crate::models::{ImageTokens, PictureFacts};
use crate::weights::header;

/// Bytes of the largest file that is read for an array: 200 pictures of LLaVA-1.5-7B in f32.
const MAX_FILE: u64 = 2 << 30;
/// Tensors that an error names.
const MAX_NAMED: usize = 8;

/// Numbers of one or several pictures: `[pictures, rows, columns]`, or `[rows, columns]` for one. Cloning shares them.
///
/// Nothing is checked before the array is part of a request: which rows and columns it must have depends on the model.
#[derive(Clone, Debug)]
pub struct ImageArray {
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// The elements, little-endian, of f32, f16 or bf16. A model that computes in another of these converts them.
    pub data: Source,
}

/// What an [`ImageArray`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArrayKind {
    Features,
    Embeddings,
}

impl ArrayKind {
    /// How to give it on the command line.
    fn flag(self) -> &'static str {
        match self {
            ArrayKind::Features => "--image-features",
            ArrayKind::Embeddings => "--image-embeds",
        }
    }

    /// The part of the model that makes it.
    fn maker(self) -> &'static str {
        match self {
            ArrayKind::Features => "vision tower",
            ArrayKind::Embeddings => "projector",
        }
    }
}

impl fmt::Display for ArrayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArrayKind::Features => "image features",
            ArrayKind::Embeddings => "image embeddings",
        })
    }
}

/// The arrays that a model takes.
pub(super) struct ArrayShapes {
    /// Rows and columns of features, in a model that takes them.
    features: Option<(ImageTokens, usize)>,
    embeddings: (ImageTokens, usize),
}

impl ArrayShapes {
    /// For pictures that cost so much, in a model of width `hidden`.
    pub fn new(pictures: &PictureFacts, hidden: usize) -> ArrayShapes {
        let rows = ImageTokens::Always(pictures.tile_rows);
        ArrayShapes {
            features: pictures.feature_columns.map(|columns| (rows, columns)),
            embeddings: (pictures.tokens, hidden),
        }
    }

    fn of_kind(&self, kind: ArrayKind) -> Result<(ImageTokens, usize)> {
        match (kind, self.features) {
            (ArrayKind::Embeddings, _) => Ok(self.embeddings),
            (ArrayKind::Features, Some(shape)) => Ok(shape),
            (ArrayKind::Features, None) => bail!(
                "this model takes no image features, because how those of a picture are put together depends on its size; \
                 give pixels, or image embeddings (--image-embeds)"
            ),
        }
    }
}

impl ImageArray {
    /// An array of a safetensors file: the tensor called `name`, or the only one.
    ///
    /// # Errors
    /// When the file cannot be read, breaks the format or is larger than 2 GiB; when there is no such tensor, or several
    /// and no name; when the tensor has a type other than f32, f16 and bf16.
    pub fn read(path: &Path, name: Option<&str>) -> Result<ImageArray> {
        ImageArray::from_file(path, name).with_context(|| format!("{}", path.display()))
    }

    fn from_file(path: &Path, name: Option<&str>) -> Result<ImageArray> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MAX_FILE, "it has more than the {MAX_FILE} bytes that an array's file may have");
        let mut tensors = header::parse(&bytes)?;
        let names = || {
            let named: Vec<_> = tensors.keys().take(MAX_NAMED).map(|name| format!("{name:?}")).collect();
            let more = if tensors.len() > MAX_NAMED { ", ..." } else { "" };
            format!("{}{more}", named.join(", "))
        };
        let name = match (name, tensors.len()) {
            (_, 0) => bail!("it holds no tensor"),
            (Some(name), _) => match tensors.contains_key(name) {
                true => name.to_owned(),
                false => bail!("it holds no tensor {name:?}; it has {}", names()),
            },
            (None, 1) => tensors.keys().next().cloned().unwrap_or_default(),
            (None, n) => bail!("it holds {n} tensors, {}; say which, behind a colon: FILE:NAME", names()),
        };
        let entry = tensors.remove(&name).context("the tensor is gone")?;
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => bail!("tensor {name:?} is stored as {other}; save it as F32, F16 or BF16"),
        };
        let data = Source::new(Arc::new(bytes), entry.range, dtype).context("the tensor leaves the file")?;
        Ok(ImageArray { shape: entry.shape, data })
    }

    /// How many pictures it stands for, as far as its shape says.
    pub(super) fn pictures(&self) -> usize {
        if self.shape.len() == 3 { self.shape[0] } else { 1 }
    }

    /// Rows and columns of one picture, as far as its shape says.
    pub(super) fn picture_shape(&self) -> [usize; 2] {
        match self.shape[..] {
            [.., rows, columns] => [rows, columns],
            _ => [0, 0],
        }
    }

    /// The pictures one by one, for a model that takes arrays of `wanted` shapes. Every element is finite, and of type
    /// `dtype`.
    ///
    /// # Errors
    /// Names what is wrong with the array, what it should be, and what to do.
    pub(super) fn split(&self, kind: ArrayKind, wanted: &ArrayShapes, dtype: DType) -> Result<Vec<Source>> {
        self.check(kind, wanted)?;
        let data = self.converted(kind, dtype)?;
        let len = self.picture_shape().iter().product::<usize>();
        Ok((0..self.pictures()).map(|i| data.slice(i * len..(i + 1) * len)).collect())
    }

    /// The picture `i` of an array that [`ImageArray::split`] took, as it came.
    pub(super) fn picture(&self, i: usize) -> Source {
        let len = self.data.len() / self.pictures();
        self.data.slice(i * len..(i + 1) * len)
    }

    fn check(&self, kind: ArrayKind, wanted: &ArrayShapes) -> Result<()> {
        let (shape, dtype) = (&self.shape, self.data.dtype());
        ensure!(dtype.is_float(), "{kind} are {dtype}; give f32, f16 or bf16");
        let (rows, cols) = wanted.of_kind(kind)?;
        let shown = match rows {
            ImageTokens::Always(rows) => rows.to_string(),
            ImageTokens::UpTo(_) => "rows".to_owned(),
        };
        let give = format!("give [pictures, {shown}, {cols}], or [{shown}, {cols}] for one");
        ensure!(
            matches!(shape.len(), 2 | 3),
            "{kind} of shape {shape:?} have {} dimension{}, and 3 or 2 are expected; {give}",
            shape.len(),
            if shape.len() == 1 { "" } else { "s" }
        );
        ensure!(self.pictures() > 0, "{kind} of shape {shape:?} are of no picture; {give}");
        let [.., found_rows, found_cols] = shape[..] else { bail!("{kind} have no dimensions; {give}") };
        if found_cols != cols {
            let other_kind = match kind {
                ArrayKind::Features => ArrayKind::Embeddings,
                ArrayKind::Embeddings => ArrayKind::Features,
            };
            let remedy = match wanted.of_kind(other_kind) {
                Ok((_, other)) if other == found_cols => format!(
                    "what its {} gives is {other}: give it as {other_kind} ({})",
                    other_kind.maker(),
                    other_kind.flag()
                ),
                _ => give,
            };
            bail!(
                "{kind} of shape {shape:?} are {found_cols} wide, and what this model's {} gives is {cols}; {remedy}",
                kind.maker()
            );
        }
        match rows {
            ImageTokens::Always(rows) => ensure!(
                found_rows == rows,
                "{kind} of shape {shape:?} have {found_rows} rows a picture, and this model's pictures have {rows}; {give}"
            ),
            ImageTokens::UpTo(most) => ensure!(
                (1..=most).contains(&found_rows),
                "{kind} of shape {shape:?} have {found_rows} rows a picture, and this model's pictures have 1 to {most}; \
                 {give}"
            ),
        }
        let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        ensure!(
            elements == Some(self.data.len()),
            "{kind} of shape {shape:?} hold {} elements; give as many as the shape has",
            self.data.len()
        );
        Ok(())
    }

    /// The elements in `dtype`, each finite.
    fn converted(&self, kind: ArrayKind, dtype: DType) -> Result<Source> {
        let values = self.values();
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            bail!("{kind} hold {} at {:?}; every number must be finite", values[i], self.index(i));
        }
        if dtype == self.data.dtype() {
            return Ok(self.data.clone());
        }
        let (data, odd) = match dtype {
            DType::F16 => narrowed(&values, f16::from_f32, |x| x.is_finite()),
            DType::Bf16 => narrowed(&values, bf16::from_f32, |x| x.is_finite()),
            _ => return Ok(Source::from_vec(values)),
        };
        match odd {
            Some(i) => bail!(
                "{kind} hold {} at {:?}, which is beyond {dtype}, the type that this model is computed in; scale them, or \
                 load the model in a wider type (--dtype bf16 or f32)",
                values[i],
                self.index(i)
            ),
            None => Ok(data),
        }
    }

    fn values(&self) -> Vec<f32> {
        let bytes = self.data.bytes();
        match self.data.dtype() {
            DType::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            DType::F16 => bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
        }
    }

    /// Where element `i` stands.
    fn index(&self, mut i: usize) -> Vec<usize> {
        let mut index: Vec<_> = self.shape.iter().rev().map(|dim| (i % dim, i /= dim).0).collect();
        index.reverse();
        index
    }
}

/// Numbers in a type with a smaller range or precision, and the first that is beyond its range.
fn narrowed<T>(values: &[f32], narrow: fn(f32) -> T, fits: fn(&T) -> bool) -> (Source, Option<usize>)
where
    T: Element + NoUninit + Send + Sync,
{
    let narrow: Vec<T> = values.iter().map(|x| narrow(*x)).collect();
    let odd = narrow.iter().position(|x| !fits(x));
    (Source::from_vec(narrow), odd)
}
