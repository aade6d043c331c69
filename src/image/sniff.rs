//! What kind of file it is, from its first bytes. A name or a MIME type is never asked: they are the sender's claim.

use super::bytes::{array, le32};
use super::error::{Result, invalid, unsupported};

/// The formats that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Webp,
    Gif,
    Bmp,
}

const SUPPORTED: &str = "supported are PNG, JPEG, WebP, GIF and BMP";

/// Picks the decoder, or says what the bytes look like instead.
pub(super) fn sniff(bytes: &[u8]) -> Result<Format> {
    if bytes.is_empty() {
        return invalid(format!("the picture is empty (0 bytes); {SUPPORTED}"));
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if bytes.starts_with(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::Webp);
    }
    if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        return Ok(Format::Gif);
    }
    // Two letters are a weak magic: the size of the second header has to be one that exists.
    if bytes.starts_with(b"BM") && matches!(le32(bytes, 14), Some(12 | 40 | 52 | 56 | 64 | 108 | 124)) {
        return Ok(Format::Bmp);
    }
    match recognise(bytes) {
        Some(name) => unsupported(format!("the picture looks like {name}; {SUPPORTED}")),
        None => {
            let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            invalid(format!("the picture starts with {}, which is no known image format; {SUPPORTED}", head.join(" ")))
        }
    }
}

/// A name for the files that people send by mistake.
fn recognise(bytes: &[u8]) -> Option<&'static str> {
    let is = |magic: &[u8]| bytes.starts_with(magic);
    if array(bytes, 4) == Some(*b"ftyp") {
        return Some(match array(bytes, 8) {
            Some([b'a', b'v', b'i', b'f' | b's']) => "AVIF",
            Some([b'h', b'e', ..] | [b'm', b'i' | b's', b'f', b'1']) => "HEIC (HEIF)",
            _ => "an MP4 or QuickTime file",
        });
    }
    let name = match () {
        () if is(b"II*\0") || is(b"MM\0*") || is(b"II+\0") || is(b"MM\0+") => "TIFF",
        () if is(b"%PDF") => "PDF",
        () if is(b"%!PS") || is(b"\xc5\xd0\xd3\xc6") => "PostScript (EPS)",
        () if is(b"\xff\x0a") || is(b"\0\0\0\x0cJXL ") => "JPEG XL",
        () if is(b"\0\0\0\x0cjP  ") || is(b"\xff\x4f\xff\x51") => "JPEG 2000",
        () if is(b"\0\0\x01\0") => "an icon (ICO)",
        () if is(b"8BPS") => "Photoshop (PSD)",
        () if is(b"qoif") => "QOI",
        () if is(b"PK\x03\x04") => "a ZIP archive",
        () if is(b"\x1f\x8b") => "a gzip archive",
        () if is(b"version https://git-lfs") => "a Git LFS pointer (run `git lfs pull` to fetch the file itself)",
        () if is(b"data:") => "a data URL (pass the decoded bytes)",
        () if is(b"iVBORw0KGgo") || is(b"/9j/") || is(b"UklGR") || is(b"R0lGOD") => "base64 text (decode it first)",
        () => return recognise_markup(bytes),
    };
    Some(name)
}

/// SVG and HTML, which may begin with a byte-order mark, blanks, an XML declaration or a comment.
fn recognise_markup(bytes: &[u8]) -> Option<&'static str> {
    let head = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let head = head.get(..head.len().min(1024))?.to_ascii_lowercase();
    if !head.starts_with(b"<") {
        return None;
    }
    let has = |tag: &[u8]| head.windows(tag.len()).any(|w| w == tag);
    if has(b"<svg") {
        Some("SVG")
    } else if has(b"<html") || has(b"<!doctype html") {
        Some("an HTML page")
    } else {
        Some("XML or HTML text")
    }
}
