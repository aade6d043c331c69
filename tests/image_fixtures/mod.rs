//! The fixtures that tools/make_image_fixtures.py writes, for the tests of pictures.

// Each test binary uses its own part.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// The bytes of a fixture.
pub fn fixture(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A group of manifest.json: `decode`, `resize` or `clip`.
pub fn manifest(group: &str) -> Vec<Value> {
    let all: Value = serde_json::from_slice(&fixture("manifest.json")).unwrap();
    all[group].as_array().unwrap().clone()
}

/// CRC-32 as in zlib and PNG.
pub fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> =
        (0..256u32).map(|n| (0..8).fold(n, |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })).collect();
    !bytes.iter().fold(u32::MAX, |c, b| table[((c ^ u32::from(*b)) & 0xff) as usize] ^ (c >> 8))
}
