//! Pictures written out in their URL.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::MediaError;

/// Missing padding is no doubt about the bytes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `data:TYPE;base64,BYTES`. The type is not looked at: the bytes say what they are.
pub(super) fn decode(url: &str, max_bytes: u64) -> Result<Vec<u8>, MediaError> {
    let rest = url.get("data:".len()..).unwrap_or_default();
    let (kind, payload) = rest
        .split_once(',')
        .ok_or_else(|| MediaError::invalid("the data: URL has no comma; write data:image/png;base64,..."))?;
    let (_, encoding) = kind.rsplit_once(';').unwrap_or(("", kind));
    if !encoding.eq_ignore_ascii_case("base64") {
        return Err(MediaError::invalid("the data: URL is not in base64; write data:image/png;base64,..."));
    }
    if payload.len() as u64 / 4 * 3 > max_bytes {
        return Err(MediaError::too_large(max_bytes));
    }
    BASE64.decode(payload).map_err(|error| MediaError::invalid(format!("the data: URL's base64 is broken: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_in_any_case_with_or_without_its_padding() {
        for url in
            ["data:image/png;base64,aGVsbG8=", "DATA:;BASE64,aGVsbG8", "data:text/x;charset=utf-8;base64,aGVsbG8="]
        {
            assert_eq!(decode(url, 9).unwrap(), b"hello", "{url}");
        }
        for (url, part) in [
            ("data:image/png;base64", "no comma"),
            ("data:,hello", "not in base64"),
            ("data:image/png,hello", "not in base64"),
            ("data:image/png;base64,aGV$bG8=", "broken"),
            ("data:image/png;base64,a", "broken"),
        ] {
            let error = decode(url, 99).unwrap_err();
            assert!(error.code == "invalid_image_url" && error.message.contains(part), "{url}: {error}");
        }
        assert_eq!(decode("data:;base64,aGVsbG9oZWxsbw==", 9).unwrap_err().code, "image_too_large");
    }
}
