//! How many values a text of JSON has, before it is read.

/// Most values of a request, which take some 100 bytes each when they are read.
pub(in crate::server) const MAX_VALUES: usize = 100_000;

/// Values of a text of JSON, or a few more: each but the first of its list or object stands behind a comma, and that one
/// behind a bracket. Read, every one of them takes many times the bytes that it takes in the text.
pub(in crate::server) fn values(text: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}
