//! Small files that claim, or hold, much.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::image_fixtures::{crc32, fixture};

fn chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat()
}

/// A PNG of 8-bit RGB with one part between its head and its pixels.
fn png(width: u32, height: u32, part: &[u8], pixels: &[u8]) -> Vec<u8> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let parts = [&chunk(b"IHDR", &head)[..], part, &chunk(b"IDAT", pixels), &chunk(b"IEND", &[])].concat();
    [b"\x89PNG\r\n\x1a\n", &parts[..]].concat()
}

/// Bits of DEFLATE, the lowest of a byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    /// The bits of a Huffman code, the first of which is the highest.
    fn code(&mut self, code: u32, length: u32) {
        for i in (0..length).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((code >> i & 1) as u8) << (self.used % 8);
            self.used += 1;
        }
    }
}

/// At least `length` zeros as zlib packs them: one, and copies of 258 of it in 13 bits each.
pub fn packed_zeros(length: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    // The last block, with the fixed codes.
    bits.code(0b110, 3);
    bits.code(0x30, 8);
    let copies = length.div_ceil(258);
    for _ in 0..copies {
        bits.code(0xc5, 8);
        bits.code(0, 5);
    }
    bits.code(0, 7);
    let (a, b) = (1u32, (copies * 258 + 1) as u32 % 65521);
    [&[0x78, 0x01][..], &bits.bytes, &(b << 16 | a).to_be_bytes()].concat()
}

/// A picture of one pixel with a colour profile of `length` zeros.
pub fn profile_bomb(length: usize) -> Vec<u8> {
    let profile = [&b"profile\0\0"[..], &packed_zeros(length)].concat();
    png(1, 1, &chunk(b"iCCP", &profile), &[0x78, 1, 1, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 4, 0, 1])
}

/// A JPEG of a few hundred bytes whose head claims another size.
fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = fixture("baseline_420.jpg");
    let at = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    bytes[at..at + 4].copy_from_slice(&[height.to_be_bytes(), width.to_be_bytes()].concat());
    bytes
}

fn gif(screen: u16, picture: u16) -> Vec<u8> {
    let (screen, picture) = (screen.to_le_bytes(), picture.to_le_bytes());
    let head = [b"GIF89a", &screen[..], &screen, &[0x80, 0, 0, 0, 0, 0, 255, 255, 255]].concat();
    let frame = [&[0x2c, 0, 0, 0, 0][..], &picture, &picture, &[0, 2, 2, 0x44, 1, 0, 0x3b]].concat();
    [head, frame].concat()
}

fn riff(kind: &[u8], data: &[u8]) -> Vec<u8> {
    let body = [b"WEBP", kind, &(data.len() as u32).to_le_bytes(), data].concat();
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

fn bmp(width: i32, height: i32) -> Vec<u8> {
    let head = [b"BM", &62u32.to_le_bytes()[..], &[0; 4], &54u32.to_le_bytes(), &40u32.to_le_bytes()].concat();
    let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
    [&head[..], &size, &[1, 0, 24, 0], &[0; 24], &[0; 8]].concat()
}

/// Files that claim more than is decoded, and files that are no pictures. All of a few kilobytes.
pub fn claims() -> Vec<(&'static str, Vec<u8>)> {
    let zeros = packed_zeros(1 << 16);
    // 16384 x 16384 in the 14 bits that each side has.
    let lossless = [&[0x2f][..], &0x0fff_ffffu32.to_le_bytes(), &[0; 16]].concat();
    let lossy = [&[0x10, 0, 0, 0x9d, 1, 0x2a][..], &[0xff, 0x3f, 0xff, 0x3f], &[0; 16]].concat();
    vec![
        ("a PNG of 20000x20000", png(20_000, 20_000, &[], &zeros)),
        ("a PNG of 2^31 - 1 twice", png(i32::MAX as u32, i32::MAX as u32, &[], &zeros)),
        ("a PNG of 1x60000", png(1, 60_000, &[], &zeros)),
        ("a PNG of 60000x1", png(60_000, 1, &[], &zeros)),
        ("a PNG of no width", png(0, 5, &[], &zeros)),
        ("a PNG of more pixels than it has", png(5000, 5000, &[], &packed_zeros(1000))),
        ("a JPEG of 13000x13000", jpeg(13_000, 13_000)),
        ("a JPEG of 65535x65535", jpeg(65_535, 65_535)),
        ("a JPEG of 2000x2000 that ends early", jpeg(2000, 2000)),
        ("a GIF on a screen of 65535x65535", gif(65_535, 1)),
        ("a GIF of 65535x65535", gif(1, 65_535)),
        ("a lossless WebP of 16384x16384", riff(b"VP8L", &lossless)),
        ("a lossy WebP of 16383x16383", riff(b"VP8 ", &lossy)),
        ("a WebP with a canvas of 2^24 twice", riff(b"VP8X", &[0, 0, 0, 0, 255, 255, 255, 255, 255, 255])),
        ("a BMP of 30000x30000", bmp(30_000, 30_000)),
        ("a BMP upside down", bmp(i32::MAX, i32::MIN)),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>".to_vec()),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n".to_vec()),
        ("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n".to_vec()),
        ("TIFF", b"II*\0\x08\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        ("ICO", b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0\0\0\0\0\x16\0\0\0".to_vec()),
        ("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf".to_vec()),
        ("nothing", Vec::new()),
    ]
}

/// A URL of any type: the bytes say what they are.
pub fn url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}
