//! Opening a checkpoint: what is accepted, and that everything else is one clear error, never a panic.
//!
//! Every file is made here, byte by byte.

mod config;
mod files;
mod header;
mod index;
mod next;
mod phi3v;
mod preprocessor;
mod properties;
mod wants;

use std::fmt::Debug;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A safetensors file of this header text and data.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A safetensors file of `(name, dtype, shape)`; every data byte is 1.
pub fn file(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let size = match *dtype {
            "F64" | "I64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let begin = end;
        end += size * shape.iter().product::<usize>();
        header.insert(name.to_string(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
    }
    raw(&Value::Object(header).to_string(), &vec![1; end])
}

/// Puts a file into a directory.
pub fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), content).unwrap();
}

/// Checks that `result` is an error whose message contains every one of `parts`.
#[track_caller]
pub fn fails<T: Debug>(result: anyhow::Result<T>, parts: &[&str]) {
    let message = format!("{:#}", result.expect_err("it must be refused"));
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// `object` with the field at `path`, whose parts have dots between, set to `value`.
pub fn set(mut object: Value, path: &str, value: Value) -> Value {
    let place = path.split('.').fold(&mut object, |object, key| &mut object[key]);
    *place = value;
    object
}

/// `object` without the field at `path`.
pub fn unset(mut object: Value, path: &str) -> Value {
    let (parents, key) = path.rsplit_once('.').map_or(("", path), |(parents, key)| (parents, key));
    let parent = parents.split('.').filter(|key| !key.is_empty()).fold(&mut object, |object, key| &mut object[key]);
    parent.as_object_mut().unwrap().remove(key);
    object
}
