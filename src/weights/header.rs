//! The header of one safetensors file, held to the letter of the format and to limits that every honest file keeps.
//!
//! A file is a little-endian u64 length, a JSON object of that length, and the tensors' bytes. The safetensors crate
//! checks that the tensors tile the data exactly; it lets pass names that occur twice, unknown keys, and absurd ranks
//! and dimensions. Here those are errors too, and every error names the tensor and the numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::json::{Object, Unique, insert};
use super::names::quoted;

/// Longest JSON header, in bytes: what the safetensors crate allows.
pub const MAX_HEADER: u64 = 100_000_000;
/// Most tensors in one file.
pub const MAX_TENSORS: usize = 1 << 17;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Largest dimension of a tensor.
pub const MAX_DIM: u64 = 1 << 32;
/// Longest tensor name, in bytes.
pub const MAX_NAME: usize = 512;

/// Bytes of the header length that opens a file.
const PREFIX: usize = 8;

/// What a header says about one tensor, after every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type of an element; not every one can be computed with.
    pub dtype: Dtype,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Where the elements lie, in bytes from the start of the file.
    pub range: Range<usize>,
}

/// The tensors of the file whose whole content is `file`, by name.
///
/// # Errors
/// Whatever makes the file anything but one header and exactly the data that the header describes.
pub fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>> {
    let json = json(file)?;
    ensure!(
        json.starts_with(b"{"),
        "the header must begin with '{{'; it begins with byte {:#04x}",
        json.first().copied().unwrap_or(0)
    );
    let raw: Header = serde_json::from_slice(json).context("the header is not valid")?;
    let start = PREFIX + json.len();
    let mut entries = BTreeMap::new();
    for (name, raw) in raw.0 {
        let entry = check(&raw, start).with_context(|| format!("tensor {}", quoted(&name)))?;
        entries.insert(name, entry);
    }
    tile(&entries, start..file.len())?;
    // The crate that defines the format has the last word; nothing it refuses may pass here.
    SafeTensors::read_metadata(file).context("the safetensors crate refuses the file")?;
    Ok(entries)
}

/// The JSON part of a file.
fn json(file: &[u8]) -> Result<&[u8]> {
    ensure!(!file.is_empty(), "the file is empty; was its download cut off?");
    let Some((prefix, rest)) = file.split_first_chunk::<PREFIX>() else {
        bail!("the file has {} bytes; the header length alone takes {PREFIX}", file.len());
    };
    let length = u64::from_le_bytes(*prefix);
    ensure!(length > 0, "the header length is 0");
    ensure!(length <= MAX_HEADER, "{}the header length is {length}; the limit is {MAX_HEADER} bytes", disguise(file));
    match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
        Some(json) => Ok(json),
        None => bail!(
            "{}the header length is {length}, but only {} bytes follow it; was the download cut off?",
            disguise(file),
            rest.len()
        ),
    }
}

/// What a file without a plausible header really is, as the start of a sentence.
fn disguise(file: &[u8]) -> &'static str {
    let start = file.trim_ascii_start();
    let is = |magic: &[u8]| start.get(..magic.len()).is_some_and(|s| s.eq_ignore_ascii_case(magic));
    if is(b"version https://git-lfs") {
        "this is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` or from the hub: "
    } else if is(b"<!doctype") || is(b"<html") || is(b"<?xml") {
        "this is a web page, not a checkpoint (a failed download or a login page): "
    } else if is(b"PK\x03\x04") || is(b"\x80\x02") {
        "this is a PyTorch pickle under another name; convert it to safetensors: "
    } else if is(b"GGUF") {
        "this is a GGUF file; the Hugging Face safetensors checkpoint is needed: "
    } else {
        ""
    }
}

/// One entry's own numbers: type, dimensions, and a byte range of the size that they make.
fn check(raw: &RawEntry, start: usize) -> Result<Entry> {
    let dtype = Dtype::deserialize(StrDeserializer::<serde::de::value::Error>::new(&raw.dtype))
        .ok()
        .with_context(|| format!("dtype {} is none of the format's types", quoted(&raw.dtype)))?;
    if let Some(dim) = raw.shape.0.iter().find(|&&dim| dim > MAX_DIM) {
        bail!("shape {:?}: dimension {dim} is over the limit of {MAX_DIM}", raw.shape.0);
    }
    let shape = raw.shape.0.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>()?;
    let bits = shape
        .iter()
        .try_fold(1usize, |n, &dim| n.checked_mul(dim))
        .and_then(|n| n.checked_mul(dtype.bitsize()))
        .with_context(|| format!("shape {shape:?}: the size of {dtype} elements overflows"))?;
    ensure!(bits.is_multiple_of(8), "shape {shape:?} of {dtype} is not a whole number of bytes");
    let (begin, end) = raw.data_offsets;
    ensure!(begin <= end, "data_offsets [{begin}, {end}] end before they begin");
    ensure!(
        end - begin == (bits / 8) as u64,
        "shape {shape:?} of {dtype} takes {} bytes, but data_offsets [{begin}, {end}] span {}",
        bits / 8,
        end - begin
    );
    let at = |offset: u64| usize::try_from(offset).ok().and_then(|offset| offset.checked_add(start));
    let range = at(begin).zip(at(end)).with_context(|| format!("data_offsets [{begin}, {end}] overflow"))?;
    Ok(Entry { dtype, shape, range: range.0..range.1 })
}

/// The tensors must cover `data` without hole, overlap or rest.
fn tile(entries: &BTreeMap<String, Entry>, data: Range<usize>) -> Result<()> {
    let mut order: Vec<_> = entries.iter().map(|(name, entry)| (entry.range.start, entry.range.end, name)).collect();
    order.sort_unstable();
    let mut next = data.start;
    let mut last = None;
    let after = |last: Option<&String>| last.map_or("the header".into(), |name| format!("tensor {}", quoted(name)));
    for &(begin, end, name) in &order {
        let (offset, expected) = (begin - data.start, next - data.start);
        ensure!(
            begin <= next,
            "the data from offset {expected} to {offset}, between {} and tensor {}, belongs to no tensor",
            after(last),
            quoted(name)
        );
        ensure!(
            begin == next,
            "{} and tensor {} overlap: one ends at data offset {expected}, the other begins at {offset}",
            after(last),
            quoted(name)
        );
        (next, last) = (end, Some(name));
    }
    if next > data.end {
        let cut = order.iter().find(|&&(_, end, _)| end > data.end).map_or("", |&(_, _, name)| name);
        bail!(
            "the data is cut off: the header describes {} bytes of data, but {} follow it (first cut: tensor {}); \
             download the file again",
            next - data.start,
            data.len(),
            quoted(cut)
        );
    }
    ensure!(
        next == data.end,
        "the header describes {} bytes of data, but {} follow it; what comes after the last tensor belongs to none",
        next - data.start,
        data.len()
    );
    Ok(())
}

/// The header as written, with nothing that occurs twice.
struct Header(BTreeMap<String, RawEntry>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Dimensions, read no further than [`MAX_RANK`].
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = BTreeMap::new();
        let mut metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<Unique<String>>().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                if std::mem::replace(&mut metadata, true) {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                continue;
            }
            legal(&name).map_err(A::Error::custom)?;
            let entry = map.next_value::<Object<RawEntry>>();
            let entry = entry.map_err(|e| A::Error::custom(format!("tensor {}: {e}", quoted(&name))))?;
            insert(&mut entries, name, entry.0)?;
            if entries.len() > MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors in one file")));
            }
        }
        Ok(Header(entries))
    }
}

/// Whether a name can be a tensor's.
fn legal(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("a tensor's name is empty".into())
    } else if name.len() > MAX_NAME {
        Err(format!("tensor {}: the name has {} bytes; the limit is {MAX_NAME}", quoted(name), name.len()))
    } else if name.chars().any(char::is_control) {
        Err(format!("tensor {}: the name has control characters", quoted(name)))
    } else {
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if shape.len() == MAX_RANK {
                return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
            }
            shape.push(dim);
        }
        Ok(Shape(shape))
    }
}
