//! Reads the small text files of a checkpoint with a size limit and errors that say what to do.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Git LFS leaves this in place of a file that was not fetched.
const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/";

/// The text of `path`, or `None` when there is no such file. More than `limit` bytes is an error, as are a directory, a
/// Git LFS pointer and bytes that are not UTF-8.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<String>> {
    let shown = path.display();
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    };
    ensure!(metadata.is_file(), "{shown} is not a regular file");
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let taken = file
        .take(limit.saturating_add(1))
        .read_to_string(&mut text)
        .with_context(|| format!("{shown} is not readable as UTF-8 text"))?;
    if u64::try_from(taken).is_ok_and(|bytes| bytes > limit) {
        bail!("{shown} is larger than the limit of {limit} bytes for such a file");
    }
    if text.starts_with(LFS_POINTER) {
        bail!("{shown} is a Git LFS pointer, not the file itself: run `git lfs pull` in the checkpoint's directory");
    }
    Ok(Some(text))
}

/// The JSON object in `path`, or `None` when there is no such file.
pub(super) fn read_json(path: &Path, limit: u64) -> Result<Option<Value>> {
    let Some(text) = read(path, limit)? else { return Ok(None) };
    let shown = path.display();
    let value: Value = serde_json::from_str(&text).map_err(|error| {
        let hint = if error.is_eof() { " (the file is truncated: fetch it again)" } else { "" };
        anyhow::anyhow!("{shown} is not valid JSON: {error}{hint}")
    })?;
    ensure!(value.is_object(), "{shown} holds {}, expected a JSON object", kind(&value));
    Ok(Some(value))
}

/// What a JSON value is, in words, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
