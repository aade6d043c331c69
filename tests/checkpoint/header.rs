//! One safetensors file, right and wrong.

use std::time::Instant;

use ocelli::weights::header::{MAX_NAME, MAX_RANK, MAX_TENSORS, parse};

use crate::{fails, file, raw};

#[test]
fn a_good_file_gives_types_shapes_and_ranges() {
    let bytes = file(&[("a", "F32", &[2, 3]), ("b", "BF16", &[4]), ("scalar", "I64", &[])]);
    let entries = parse(&bytes).unwrap();
    let start = bytes.len() - 24 - 8 - 8;
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["a", "b", "scalar"]);
    assert_eq!((entries["a"].shape.as_slice(), entries["a"].range.clone()), (&[2, 3][..], start..start + 24));
    assert_eq!(entries["b"].dtype.to_string(), "BF16");
    assert_eq!(entries["scalar"].range, start + 32..start + 40);
}

#[test]
fn metadata_and_padding_are_allowed() {
    let entry = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert!(parse(&raw(&format!(r#"{{"__metadata__":{{"format":"pt"}},{entry}}}      "#), &[0])).is_ok());
    let long = "x".repeat(20 << 20);
    assert!(parse(&raw(&format!(r#"{{"__metadata__":{{"note":"{long}"}},{entry}}}"#), &[0])).is_ok());
}

#[test]
fn a_data_section_of_any_alignment_loads() {
    for pad in 0..8 {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},"b":{{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}}}{}"#,
            " ".repeat(pad)
        );
        assert_eq!(parse(&raw(&header, &[7, 0, 0, 128, 63])).unwrap()["b"].range.len(), 4);
    }
}

#[test]
fn short_files_and_absurd_header_lengths_are_refused_at_once() {
    let start = Instant::now();
    fails(parse(b""), &["the file is empty"]);
    fails(parse(&[1; 7]), &["the file has 7 bytes"]);
    fails(parse(&[0; 8]), &["the header length is 0"]);
    fails(parse(&[255; 64]), &["18446744073709551615", "the limit is 100000000"]);
    fails(parse(&100_000_001u64.to_le_bytes()), &["100000001", "the limit is 100000000"]);
    fails(parse(&raw("", b"")), &["the header length is 0"]);
    let mut beyond = 17u64.to_le_bytes().to_vec();
    beyond.extend(b"{}");
    fails(parse(&beyond), &["the header length is 17", "only 2 bytes follow"]);
    assert!(start.elapsed().as_secs() < 5, "no length may be believed before it is checked");
}

#[test]
fn a_file_that_is_something_else_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n";
    fails(parse(pointer), &["Git LFS pointer", "git lfs pull"]);
    fails(parse(b"<!DOCTYPE html><html><title>404</title></html>"), &["web page"]);
    fails(parse(b"\n <HTML><body>sign in</body></html>"), &["web page"]);
    fails(parse(b"PK\x03\x04\xff\xff\xff\xffarchive/data.pkl"), &["pickle", "convert it to safetensors"]);
    fails(parse(b"GGUF\x03\0\0\0\0\0\0\0"), &["GGUF"]);
}

#[test]
fn a_header_that_is_not_a_plain_object_is_refused() {
    fails(parse(&raw("[]", b"")), &["must begin with '{'"]);
    fails(parse(&raw("\u{feff}{}", b"")), &["must begin with '{'", "0xef"]);
    fails(parse(&raw(" {}", b"")), &["must begin with '{'", "0x20"]);
    fails(parse(&raw("{", b"")), &["the header is not valid"]);
    fails(parse(&raw("{}x", b"")), &["the header is not valid"]);
    let mut broken = raw(r#"{"a?":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]);
    broken[11] = 0xff;
    fails(parse(&broken), &["the header is not valid"]);
}

#[test]
fn deep_nesting_is_refused_without_using_up_the_stack() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(100_000);
        fails(parse(&raw(&format!("{{\"a\":{deep}"), b"")), &["the header is not valid"]);
        let shape = format!(r#"{{"a":{{"dtype":"U8","shape":{deep},"data_offsets":[0,0]}}}}"#);
        fails(parse(&raw(&shape, b"")), &["tensor \"a\""]);
        let metadata = format!(r#"{{"__metadata__":{{"a":{deep}}}}}"#);
        fails(parse(&raw(&metadata, b"")), &["__metadata__"]);
    }
}

#[test]
fn nothing_may_occur_twice() {
    let entry = |dtype| format!(r#""w":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,4]}}"#);
    fails(parse(&raw(&format!("{{{},{}}}", entry("U8"), entry("I8")), &[0; 4])), &["\"w\" occurs twice"]);
    let inside = r#"{"w":{"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]}}"#;
    fails(parse(&raw(inside, &[0; 4])), &["tensor \"w\"", "duplicate field `shape`"]);
    fails(parse(&raw(r#"{"__metadata__":{},"__metadata__":{}}"#, b"")), &["__metadata__ occurs twice"]);
    fails(parse(&raw(r#"{"__metadata__":{"k":"1","k":"2"}}"#, b"")), &["\"k\" occurs twice"]);
}

#[test]
fn an_entry_has_exactly_its_three_fields() {
    for (entry, part) in [
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}"#, "unknown field `strides`"),
        (r#"{"dtype":"U8","shape":[1]}"#, "missing field `data_offsets`"),
        (r#"["U8",[1],[0,1]]"#, "expected an object"),
        (r#"null"#, "expected an object"),
        (r#"{"dtype":8,"shape":[1],"data_offsets":[0,1]}"#, "expected a string"),
        (r#"{"dtype":"U8","shape":"1","data_offsets":[0,1]}"#, "expected a list of dimensions"),
        (r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#, "`-1`"),
        (r#"{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}"#, "`1.0`"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#, "`-1`"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0.0,1.0]}"#, "`0.0`"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":["0","1"]}"#, "string"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0]}"#, "expected a tuple of size 2"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#, "trailing"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}"#, "tensor \"w\""),
    ] {
        fails(parse(&raw(&format!(r#"{{"w":{entry}}}"#), &[0])), &["tensor \"w\"", part]);
    }
}

#[test]
fn metadata_holds_strings_only() {
    for value in ["1", "null", "{}", "[\"a\"]"] {
        fails(parse(&raw(&format!(r#"{{"__metadata__":{{"k":{value}}}}}"#), b"")), &["__metadata__", "a string"]);
    }
    fails(parse(&raw(r#"{"__metadata__":[]}"#, b"")), &["__metadata__", "an object"]);
}

#[test]
fn a_type_outside_the_format_is_named_with_its_tensor() {
    let header = r#"{"w":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}"#;
    fails(parse(&raw(header, &[0; 16])), &["tensor \"w\"", "\"F128\"", "none of the format's types"]);
}

fn shape(dims: &str, end: u64, data: &[u8]) -> anyhow::Result<()> {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":{dims},"data_offsets":[0,{end}]}}}}"#);
    parse(&raw(&header, data)).map(drop)
}

#[test]
fn absurd_shapes_are_refused_before_they_are_multiplied() {
    fails(shape("[4194305,4194305,211106198978564]", 4, &[0; 4]), &["211106198978564", "limit of 4294967296"]);
    fails(shape("[4294967296,4294967296,2]", 0, b""), &["tensor \"w\"", "overflows"]);
    fails(shape("[0,18446744073709551615,18446744073709551615]", 0, b""), &["tensor \"w\"", "18446744073709551615"]);
    fails(shape("[18446744073709551615,2,0]", 0, b""), &["18446744073709551615"]);
    fails(shape(&format!("{:?}", [1; 64]), 1, &[0]), &["tensor \"w\"", "more than 8 dimensions"]);
    fails(shape(&format!("{:?}", vec![1; 1 << 20]), 1, &[0]), &["more than 8 dimensions"]);
    assert!(shape(&format!("{:?}", [1; MAX_RANK]), 1, &[0]).is_ok());
    fails(shape(&format!("{:?}", [1; MAX_RANK + 1]), 1, &[0]), &["more than 8 dimensions"]);
    let half = r#"{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
    fails(parse(&raw(half, &[0])), &["tensor \"w\"", "whole number of bytes"]);
}

#[test]
fn names_that_could_hide_something_are_refused_and_escaped() {
    let named = |name: &str| {
        let key = serde_json::to_string(name).unwrap();
        parse(&raw(&format!(r#"{{{key}:{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), &[0])).map(drop)
    };
    fails(named(""), &["name is empty"]);
    fails(named("a\0b"), &[r#""a\0b""#, "control characters"]);
    fails(named("a\n\u{1b}[31mb"), &[r"\n\u{1b}[31m", "control characters"]);
    fails(named(&"n".repeat(1 << 20)), &["1048576 bytes", "\"..."]);
    assert!(named(&"n".repeat(MAX_NAME)).is_ok());
    for odd in ["../../etc/passwd", "a\u{202e}b", "/"] {
        assert!(named(odd).is_ok(), "a name is never a path; {odd:?} is merely unexpected");
    }
}

/// Two tensors of 4 bytes with these offsets over `data` bytes.
fn two(first: [u64; 2], second: [u64; 2], data: usize) -> anyhow::Result<()> {
    let header = format!(
        r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{first:?}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{second:?}}}}}"#
    );
    parse(&raw(&header, &vec![0; data])).map(drop)
}

#[test]
fn the_tensors_must_tile_the_data() {
    assert!(two([0, 4], [4, 8], 8).is_ok());
    assert!(two([4, 8], [0, 4], 8).is_ok(), "their order in the header is free");
    fails(two([1, 5], [5, 9], 9), &["from offset 0 to 1, between the header and tensor \"a\""]);
    fails(two([0, 4], [6, 10], 10), &["from offset 4 to 6, between tensor \"a\" and tensor \"b\""]);
    fails(two([0, 4], [3, 7], 7), &["tensor \"a\" and tensor \"b\" overlap", "ends at data offset 4", "begins at 3"]);
    fails(two([0, 4], [0, 4], 4), &["overlap"]);
    fails(two([4, 0], [4, 8], 8), &["tensor \"a\"", "end before they begin"]);
    fails(two([0, 5], [5, 9], 9), &["tensor \"a\"", "takes 4 bytes", "span 5"]);
    fails(two([0, 4], [u64::MAX - 4, u64::MAX], 8), &["tensor \"b\"", "overflow"]);
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let mut polyglot = file(&[("a", "F32", &[2])]);
    polyglot.extend([b"PK\x05\x06".as_slice(), &[0; 18]].concat());
    fails(parse(&polyglot), &["describes 8 bytes of data, but 30 follow", "after the last tensor"]);
    fails(parse(&raw("{}", &[0])), &["describes 0 bytes of data, but 1 follow"]);
}

#[test]
fn a_file_cut_anywhere_is_refused_with_expected_and_found_sizes() {
    let tensors: [(&str, &str, &[usize]); 3] = [("a", "F32", &[3]), ("b", "F16", &[5]), ("c", "BF16", &[1, 7])];
    let whole = file(&tensors);
    let start = whole.len() - 36;
    assert!(parse(&whole).is_ok());
    for cut in 0..whole.len() {
        assert!(parse(&whole[..cut]).is_err(), "cut to {cut} bytes");
    }
    for (at, first) in [(0, "a"), (11, "a"), (12, "b"), (21, "b"), (22, "c"), (35, "c")] {
        let name = format!("first cut: tensor \"{first}\"");
        fails(parse(&whole[..start + at]), &["describes 36 bytes of data", &format!("but {at} follow"), &name]);
    }
}

#[test]
fn empty_tensors_are_listed_but_harmless() {
    let entries = parse(&file(&[("none", "F32", &[0, 7]), ("w", "U8", &[2]), ("nothing", "F16", &[0])])).unwrap();
    assert!(entries["none"].range.is_empty() && entries["nothing"].range.is_empty());
    assert!(parse(&raw("{}", b"")).unwrap().is_empty());
}

#[test]
fn the_number_of_tensors_is_bounded() {
    let entry = |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = |n: usize| format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","));
    assert_eq!(parse(&raw(&header(1000), b"")).unwrap().len(), 1000);
    fails(parse(&raw(&header(MAX_TENSORS + 1), b"")), &["more than 131072 tensors"]);
}
