//! Decoding against Pillow, and hostile files against the limits.
//!
//! The fixtures and the expected values come from tools/make_image_fixtures.py.

mod image_fixtures;

use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use image_fixtures::{crc32, fixture, manifest};
use ocelli::image::{Alpha, DecodeError, Limits, Rgb, decode};
use proptest::prelude::*;
use serde_json::Value;

// ---- helpers ----

fn open(bytes: &[u8]) -> Result<Rgb, DecodeError> {
    decode(bytes, Alpha::White, &Limits::default())
}

/// Largest and mean difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let all = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    (all().max().unwrap(), all().map(f64::from).sum::<f64>() / a.len() as f64)
}

/// The message of an error of the kind that `kind` picks.
fn refusal(result: Result<Rgb, DecodeError>, kind: fn(&DecodeError) -> bool) -> String {
    let e = result.expect_err("the picture should be refused");
    assert!(kind(&e), "another kind of refusal: {e:?}");
    e.to_string()
}

fn is_invalid(e: &DecodeError) -> bool {
    matches!(e, DecodeError::Invalid(_))
}

fn is_unsupported(e: &DecodeError) -> bool {
    matches!(e, DecodeError::Unsupported(_))
}

fn is_too_large(e: &DecodeError) -> bool {
    matches!(e, DecodeError::TooLarge(_))
}

fn assert_within(limit: Duration, what: &str, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    let took = start.elapsed();
    assert!(took < limit, "{what} took {took:?}, the limit is {limit:?}");
}

// ---- decoding as Pillow does ----

/// Holds every fixture whose name contains `part` to the exact bytes; returns how many there are.
fn decodes_exactly(part: &str) -> usize {
    let cases: Vec<Value> = manifest("decode")
        .into_iter()
        .filter(|c| c["file"].as_str().unwrap().contains(part) && c["reference"].is_null())
        .collect();
    for case in &cases {
        let name = case["file"].as_str().unwrap();
        for (rule, alpha) in [("white", Alpha::White), ("drop", Alpha::Drop)] {
            let img = decode(&fixture(name), alpha, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let size = (u64::from(img.width()), u64::from(img.height()));
            assert_eq!(size, (case["width"].as_u64().unwrap(), case["height"].as_u64().unwrap()), "{name}");
            assert_eq!(u64::from(crc32(img.data())), case[rule].as_u64().unwrap(), "{name}, transparency: {rule}");
        }
    }
    cases.len()
}

/// Holds a lossy fixture to Pillow's pixels within `max` levels and `mean` on average.
fn decodes_closely(name: &str, max: u8, mean: f64) {
    let case =
        manifest("decode").into_iter().find(|c| c["file"] == name).unwrap_or_else(|| panic!("no fixture {name}"));
    let expected = open(&fixture(case["reference"].as_str().unwrap())).unwrap();
    assert_eq!(u64::from(crc32(expected.data())), case["white"].as_u64().unwrap(), "{name}: the reference itself");
    let img = open(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!((img.width(), img.height()), (expected.width(), expected.height()), "{name}");
    let (worst, average) = difference(img.data(), expected.data());
    assert!(
        worst <= max && average <= mean,
        "{name}: off by {worst} (limit {max}), {average:.3} on average (limit {mean})"
    );
}

#[test]
fn png_grey_palette_alpha_and_16_bit_are_pillows_to_the_byte() {
    assert_eq!(decodes_exactly(".png"), 34);
}

#[test]
fn gif_first_frame_is_pillows_to_the_byte() {
    assert_eq!(decodes_exactly(".gif"), 7);
}

#[test]
fn bmp_is_pillows_to_the_byte() {
    assert_eq!(decodes_exactly(".bmp"), 6);
    // Pillow rounds 5 and 6 bits down to 8, we to nearest.
    decodes_closely("rgb_565.bmp", 1, 0.5);
}

#[test]
fn webp_lossy_lossless_and_first_frames_are_pillows_to_the_byte() {
    assert_eq!(decodes_exactly(".webp"), 13);
}

#[test]
fn all_eight_exif_orientations_are_applied_and_a_broken_block_is_ignored() {
    assert_eq!(decodes_exactly("orientation_"), 24);
    assert_eq!(decodes_exactly("broken_exif.jpg"), 1);
}

#[test]
fn jpeg_is_pillows_to_the_byte_however_many_threads_read_it() {
    for threads in [1, 2, 3, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| decodes_exactly(".jpg")), 42, "{threads} threads");
    }
}

#[test]
fn a_damaged_jpeg_is_the_same_error_or_picture_however_many_threads_read_it() {
    let pools = [1, 16].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    let mut refused = 0;
    for name in ["large_444.jpg", "large_420.jpg", "large_grey.jpg", "large_restarts.jpg"] {
        let bytes = fixture(name);
        for i in 0..60 {
            let at = 700 + i * (bytes.len() - 700) / 60;
            let mut damaged = bytes.clone();
            match i % 3 {
                0 => damaged.truncate(at),
                1 => damaged[at] ^= 0x10,
                _ => drop(damaged.splice(at..at + 40, [0xff, 0xd9])),
            }
            let [one, many] = pools.each_ref().map(|pool| pool.install(|| open(&damaged)).map_err(|e| e.to_string()));
            assert_eq!(one, many, "{name}, damaged at {at}");
            refused += usize::from(one.is_err());
        }
    }
    assert!((160..240).contains(&refused), "{refused} refused");
}

#[test]
fn full_transparency_is_white_and_not_the_colour_under_it() {
    let bytes = fixture("red_fully_transparent.png");
    assert!(open(&bytes).unwrap().data().iter().all(|b| *b == 255));
    let dropped = decode(&bytes, Alpha::Drop, &Limits::default()).unwrap();
    assert!(dropped.data().chunks(3).all(|px| px == [255, 0, 0]));
}

#[test]
fn sixteen_bit_grey_keeps_its_high_byte_where_pillow_would_clip() {
    let img = open(&fixture("grey_16bit.png")).unwrap();
    let white = img.data().iter().filter(|b| **b == 255).count();
    assert!(white * 10 < img.data().len(), "{white} of {} bytes are 255", img.data().len());
}

#[test]
fn later_frames_are_not_even_looked_at() {
    let mut gif = fixture("animated.gif");
    let first = open(&gif).unwrap();
    // A second frame that claims 65535x65535 and has no data.
    let second = gif.windows(4).rposition(|w| w == [0x2c, 0, 0, 0]).unwrap();
    gif.truncate(second);
    gif.extend_from_slice(&[0x2c, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 2]);
    assert_eq!(open(&gif).unwrap(), first);
}

#[test]
fn bytes_after_the_end_are_ignored() {
    for name in ["rgb.png", "baseline_420.jpg", "progressive_420.jpg", "lossless.webp", "plain.gif", "rgb.bmp"] {
        let whole = fixture(name);
        let zipped = [whole.as_slice(), b"PK\x03\x04 and the rest of an archive \xff\xd8\xff"].concat();
        assert_eq!(open(&zipped).unwrap(), open(&whole).unwrap(), "{name}");
    }
}

// ---- what is no picture ----

#[test]
fn bytes_between_the_last_code_of_a_jpeg_and_its_end_marker_are_ignored() {
    for name in ["baseline_444.jpg", "baseline_420.jpg", "grey.jpg"] {
        let jpeg = fixture(name);
        let expected = open(&jpeg).unwrap();
        let end = jpeg.len() - 2;
        assert_eq!(jpeg[end..], [0xff, 0xd9], "{name} ends with its end marker");
        for filler in [vec![0; 3], vec![0x55; 1000], vec![0xff; 7]] {
            let filled = [&jpeg[..end], &filler, &jpeg[end..]].concat();
            assert_eq!(open(&filled).unwrap(), expected, "{name} with {} bytes of {:#04x}", filler.len(), filler[0]);
        }
    }
}

#[test]
fn empty_short_and_meaningless_bytes_are_refused() {
    assert!(refusal(open(b""), is_invalid).contains("0 bytes"));
    let message = refusal(open(b"AAAA"), is_invalid);
    assert!(message.contains("41 41 41 41") && message.contains("PNG, JPEG, WebP, GIF and BMP"), "{message}");
    for magic in
        [b"\x89PNG\r\n\x1a\n".as_slice(), b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM0000000000\x28\0\0\0\0"]
    {
        for extra in 0..40 {
            refusal(open(&[magic, &vec![0; extra]].concat()), |e| is_invalid(e) || is_unsupported(e));
        }
    }
}

#[test]
fn other_formats_are_named() {
    let cases: [(&[u8], &str); 17] = [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", "SVG"),
        (b"<!DOCTYPE HTML><title>404</title>", "HTML"),
        (b"\n <html><body>", "HTML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"%PDF-1.7", "PDF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x20ftypisom", "MP4"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"PK\x03\x04", "ZIP"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    ];
    for (bytes, name) in cases {
        let message = refusal(open(bytes), is_unsupported);
        assert!(message.contains(name) && message.contains("PNG, JPEG, WebP, GIF and BMP"), "{message}");
    }
}

#[test]
fn the_first_bytes_decide_and_text_that_begins_with_bm_is_no_bitmap() {
    refusal(open(b"BMW is a maker of cars, of motorcycles and of engines."), is_invalid);
    // A PNG by its magic, a JPEG behind it: no other decoder is tried.
    let mixed = [b"\x89PNG\r\n\x1a\n".as_slice(), &fixture("baseline_420.jpg")].concat();
    assert!(refusal(open(&mixed), is_invalid).contains("PNG"));
}

#[test]
fn kinds_of_jpeg_that_are_not_decoded_are_named() {
    let jpeg = fixture("baseline_444.jpg");
    let sof = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = jpeg.clone();
        bytes[at] = byte;
        refusal(open(&bytes), is_unsupported)
    };
    assert!(with(sof + 1, 0xc9).contains("arithmetic"));
    assert!(with(sof + 1, 0xc3).contains("lossless"));
    assert!(with(sof + 4, 12).contains("12 bits"));
    assert!(with(sof + 9, 2).contains("2 colour components"));
}

// ---- limits ----

#[test]
fn limits_name_the_value_the_limit_and_the_remedy() {
    let png = fixture("rgb.png");
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        refusal(decode(&png, Alpha::White, &limits), |e| !is_invalid(e))
    };
    assert!(with(|l| l.max_bytes = 100).contains("the limit is 100 (send a smaller file, or raise max_bytes)"));
    assert!(with(|l| l.max_side = 36).contains("37x29 has a side of 37 pixels; the limit is 36"));
    assert!(
        with(|l| l.max_pixels = 1000)
            .contains("37x29 is 1073 pixels; the limit is 1000 (shrink it, or raise max_pixels)")
    );
    assert!(with(|l| l.max_aspect = 1).contains("37x29 is longer than 1 times its shorter side"));
    assert!(with(|l| l.max_decode_bytes = 3000).contains("the limit is 3000 (shrink it, or raise max_decode_bytes)"));
}

#[test]
fn a_png_that_claims_too_much_is_refused_by_its_header() {
    for (width, height) in
        [(65_535, 65_535), (i32::MAX as u32, i32::MAX as u32), (13_000, 13_000), (1, 20_000), (20_000, 1)]
    {
        let result = open(&png(width, height, 2, &[0; 100]));
        let message = refusal(result, |e| is_too_large(e) || matches!(e, DecodeError::AspectRatio(_)));
        assert!(message.contains(&format!("{width}x{height}")), "{message}");
    }
    for (width, height) in [(0, 10), (10, 0)] {
        refusal(open(&png(width, height, 2, &[0; 100])), is_invalid);
    }
}

#[test]
fn a_valid_bomb_is_refused_at_once_and_memory_counts_the_converted_picture() {
    let zeros = zlib_zeros(20_000 * 20_001);
    let grey = png(20_000, 20_000, 0, &zeros);
    assert_within(Duration::from_secs(1), "refusing a bomb", || {
        let message = refusal(open(&grey), is_too_large);
        assert!(message.contains("20000x20000 is 400000000 pixels; the limit is 50000000"), "{message}");
    });
    // 400 MB as grey, 1.2 GB more as RGB.
    let limits = Limits { max_pixels: u64::MAX, max_decode_bytes: 1_500_000_000, ..Limits::default() };
    refusal(decode(&grey, Alpha::White, &limits), is_too_large);
}

#[test]
fn a_thin_picture_is_refused_and_one_at_the_limit_is_not() {
    assert!(open(&png(200, 1, 0, &zlib_zeros(201))).is_ok());
    let message = refusal(open(&png(201, 1, 0, &zlib_zeros(202))), |e| matches!(e, DecodeError::AspectRatio(_)));
    assert!(message.contains("201x1 is longer than 200 times its shorter side"), "{message}");
}

#[test]
fn a_gif_screen_and_a_gif_frame_of_65535_squared_are_refused() {
    let mut screen = fixture("plain.gif");
    screen[6..10].fill(0xff);
    refusal(open(&screen), is_too_large);
    let mut frame = fixture("plain.gif");
    let at = frame.windows(9).position(|w| w == [0x2c, 0, 0, 0, 0, 20, 0, 14, 0]).unwrap();
    frame[at + 5..at + 9].fill(0xff);
    refusal(open(&frame), is_too_large);
    frame[at + 1..at + 5].fill(0xff);
    assert!(refusal(open(&frame), is_invalid).contains("131070x131070"));
}

#[test]
fn a_large_gif_decodes() {
    // 20 million pixels, one LZW clear code and nothing else would be cut; so a canvas around a small frame.
    let mut gif = fixture("plain.gif");
    gif[6..10].copy_from_slice(&[0x88, 0x13, 0xa0, 0x0f]);
    let img = open(&gif).unwrap();
    assert_eq!((img.width(), img.height()), (5000, 4000));
}

#[test]
fn a_webp_whose_bitstream_is_larger_than_its_canvas_is_refused() {
    for name in ["lossy.webp", "lossy_alpha.webp", "lossless_alpha.webp", "animated.webp"] {
        let mut bytes = fixture(name);
        let keyframe = bytes.windows(3).position(|w| w == [0x9d, 0x01, 0x2a]);
        let at = keyframe.map_or_else(|| bytes.windows(4).position(|w| w == b"VP8L").unwrap() + 9, |at| at + 3);
        bytes[at..at + 4].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
        refusal(open(&bytes), |e| is_too_large(e) || is_invalid(e));
    }
}

#[test]
fn a_million_empty_chunks_and_data_in_a_hundred_thousand_pieces_take_no_time() {
    let empty: Vec<u8> = chunk(b"teSt", &[]).repeat(1_000_000);
    let nothing: Vec<u8> = chunk(b"IDAT", &[]).repeat(1_000_000);
    let image = zlib_zeros(3000 * (1 + 3000));
    // Stored blocks of one byte would be larger still: the stream is cut into single bytes.
    let pieces: Vec<u8> = image.iter().flat_map(|b| chunk(b"IDAT", &[*b])).collect();
    let file = [head(3000, 3000, 0).as_slice(), &empty, &nothing, &pieces, &chunk(b"IEND", &[])].concat();
    assert_within(Duration::from_secs(3), "decoding it", || assert_eq!(open(&file).unwrap().width(), 3000));
}

#[test]
fn a_webp_full_of_code_tables_is_refused_at_once() {
    let bomb = webp_of_code_tables();
    assert_within(Duration::from_secs(2), "refusing it", || {
        let message = refusal(open(&bomb), is_too_large);
        assert!(message.contains("raise max_decode_bytes"), "{message}");
    });
}

// ---- damaged and cut off ----

#[test]
fn a_png_cut_anywhere_is_refused() {
    let bytes = fixture("rgb.png");
    for len in 0..bytes.len() {
        refusal(open(&bytes[..len]), is_invalid);
    }
}

#[test]
fn a_png_with_too_few_rows_or_a_bad_checksum_is_refused() {
    refusal(open(&png(64, 64, 0, &zlib_zeros(63 * 65))), is_invalid);
    let good = fixture("rgb.png");
    let idat = good.windows(4).position(|w| w == b"IDAT").unwrap();
    for at in [30, idat + 30] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refusal(open(&bad), is_invalid);
    }
}

#[test]
fn a_png_with_an_unknown_critical_chunk_is_refused() {
    let bytes = fixture("rgb.png");
    let apple = [&bytes[..33], &chunk(b"CgBI", &[0; 4]), &bytes[33..]].concat();
    refusal(open(&apple), is_invalid);
}

#[test]
fn a_webp_gif_or_bmp_cut_anywhere_is_refused() {
    for name in ["lossy.webp", "lossless.webp", "lossy_alpha.webp", "animated.webp", "plain.gif", "rgb.bmp"] {
        let bytes = fixture(name);
        // A GIF may lose its trailer, which follows the only frame.
        let end = if name.ends_with("gif") { bytes.len() - 1 } else { bytes.len() };
        for len in (0..end).step_by(7).chain([end - 1]) {
            refusal(open(&bytes[..len]), is_invalid);
        }
    }
}

#[test]
fn a_gif_whose_data_ends_before_its_frame_is_refused() {
    let mut gif = fixture("plain.gif");
    let at = gif.windows(9).position(|w| w == [0x2c, 0, 0, 0, 0, 20, 0, 14, 0]).unwrap();
    gif[at + 7] = 15;
    refusal(open(&gif), is_invalid);
}

#[test]
fn a_jpeg_cut_anywhere_is_refused() {
    for name in ["baseline_420.jpg", "progressive_420.jpg", "scan_a_component_422.jpg", "progressive_restarts.jpg"] {
        let bytes = fixture(name);
        for len in 0..bytes.len() {
            refusal(open(&bytes[..len]), is_invalid);
        }
    }
}

#[test]
fn a_jpeg_without_its_end_marker_is_refused_even_if_all_data_is_there() {
    let bytes = fixture("baseline_444.jpg");
    assert!(refusal(open(&bytes[..bytes.len() - 2]), is_invalid).contains("without an end marker (EOI)"));
}

/// Where the entropy-coded data of each scan begins and ends (at the marker behind it).
fn scan_data(jpeg: &[u8]) -> Vec<Range<usize>> {
    let is_end = |w: &[u8]| w[0] == 0xff && w[1] != 0 && !(0xd0..=0xd7).contains(&w[1]);
    let headers = jpeg.windows(2).enumerate().filter(|(_, w)| *w == [0xff, 0xda]).map(|(i, _)| i + 2);
    let starts = headers.map(|h| h + usize::from(u16::from_be_bytes([jpeg[h], jpeg[h + 1]])));
    starts.map(|s| s..s + jpeg[s..].windows(2).position(is_end).unwrap()).collect()
}

#[test]
fn a_jpeg_cut_inside_a_scan_is_refused_though_an_end_marker_follows() {
    for name in
        ["baseline_420.jpg", "baseline_444.jpg", "restarts.jpg", "progressive_420.jpg", "progressive_restarts.jpg"]
    {
        let bytes = fixture(name);
        let scans = scan_data(&bytes);
        // Between two scans it may be cut: a progressive file without its last scans is a whole picture, if a rougher one.
        for len in (2..scans[0].start).chain(scans.iter().flat_map(|s| s.start..s.end)) {
            let result = open(&[&bytes[..len], &[0xff, 0xd9]].concat());
            assert!(result.is_err(), "{name}: accepted when cut to {len} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn a_jpeg_that_claims_more_pixels_than_it_codes_is_refused() {
    for name in ["baseline_420.jpg", "baseline_444.jpg", "progressive_420.jpg", "grey.jpg", "scan_a_component_444.jpg"]
    {
        let original = fixture(name);
        let at = original.windows(2).position(|w| w == [0xff, 0xc0] || w == [0xff, 0xc2]).unwrap() + 5;
        for (width, height) in [(61, 64 + 1), (80 + 1, 47), (300, 300), (5000, 5000), (6000, 8000)] {
            let mut bytes = original.clone();
            bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(height));
            bytes[at + 2..at + 4].copy_from_slice(&u16::to_be_bytes(width));
            let message = refusal(open(&bytes), is_invalid);
            assert!(
                name.starts_with("progressive") || message.contains("smaller than its header claims"),
                "{name}: {message}"
            );
        }
        for side in [13_000u16, 65_535] {
            let mut bytes = original.clone();
            bytes[at..at + 2].copy_from_slice(&side.to_be_bytes());
            bytes[at + 2..at + 4].copy_from_slice(&side.to_be_bytes());
            refusal(open(&bytes), is_too_large);
        }
    }
}

#[test]
fn a_jpeg_with_lost_bytes_or_restart_markers_is_refused() {
    let bytes = fixture("restarts.jpg");
    let restart = bytes.windows(2).position(|w| w == [0xff, 0xd1]).unwrap();
    let mut without = bytes.clone();
    without.drain(restart..restart + 2);
    refusal(open(&without), is_invalid);
    let mut wrong = bytes.clone();
    wrong[restart + 1] = 0xd5;
    assert!(refusal(open(&wrong), is_invalid).contains("restart marker"));
    let mut short = bytes;
    short.drain(restart - 6..restart - 1);
    refusal(open(&short), is_invalid);
}

#[test]
fn a_progressive_jpeg_with_thousands_of_scans_is_refused_at_once() {
    let bytes = fixture("progressive_420.jpg");
    let start = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    let end = scan_data(&bytes)[0].end;
    let bomb = [&bytes[..end], &bytes[start..end].repeat(5000), &bytes[end..]].concat();
    assert_within(Duration::from_secs(1), "refusing it", || {
        let message = refusal(open(&bomb), is_too_large);
        assert!(message.contains("more than 100 scans"), "{message}");
    });
    let few = [&bytes[..end], &bytes[start..end].repeat(50), &bytes[end..]].concat();
    assert!(open(&few).is_ok());
}

#[test]
fn a_jpeg_full_of_tables_and_metadata_takes_no_time() {
    let bytes = fixture("baseline_420.jpg");
    let table = bytes.windows(2).position(|w| w == [0xff, 0xc4]).unwrap();
    let len = 2 + usize::from(u16::from_be_bytes([bytes[table + 2], bytes[table + 3]]));
    let xmp = [b"\xff\xe1\0\x52http://ns.adobe.com/xmp/extension/\0".as_slice(), &[b'G'; 45]].concat();
    let bomb =
        [&bytes[..table], &bytes[table..table + len].repeat(100_000), &xmp.repeat(100_000), &bytes[table..]].concat();
    assert_within(Duration::from_secs(2), "decoding it", || assert_eq!(open(&bomb).unwrap(), open(&bytes).unwrap()));
}

// ---- memory ----

/// Not a test by itself: decodes the file in OCELLI_TEST_PICTURE and writes by how many KiB the peak of resident memory
/// grew. A process of its own, because a peak never falls again.
#[test]
#[cfg(target_os = "linux")]
fn child_process_that_measures_memory() {
    let (Ok(picture), Ok(answer)) = (std::env::var("OCELLI_TEST_PICTURE"), std::env::var("OCELLI_TEST_ANSWER")) else {
        return;
    };
    let peak = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok()).unwrap()
    };
    let bytes = fs::read(picture).unwrap();
    let before = peak();
    let _ = open(&bytes);
    fs::write(answer, (peak() - before).to_string()).unwrap();
}

#[cfg(target_os = "linux")]
fn kib_to_decode(bytes: &[u8]) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (picture, answer) = (dir.path().join("picture"), dir.path().join("answer"));
    fs::write(&picture, bytes).unwrap();
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process_that_measures_memory"])
        .env("OCELLI_TEST_PICTURE", &picture)
        .env("OCELLI_TEST_ANSWER", &answer)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    fs::read_to_string(answer).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn profiles_and_compressed_text_are_not_inflated() {
    let zeros = zlib_zeros(290 << 20);
    let bombs = [
        chunk(b"iCCP", &[b"profile\0\0".as_slice(), &zeros].concat()),
        chunk(b"zTXt", &[b"Comment\0\0".as_slice(), &zeros].concat()),
        chunk(b"iTXt", &[b"XML:com.adobe.xmp\0\x01\0\0\0".as_slice(), &zeros].concat()),
    ];
    for bomb in bombs {
        let file = [head(1, 1, 2).as_slice(), &bomb, &chunk(b"IDAT", &zlib_zeros(4)), &chunk(b"IEND", &[])].concat();
        assert!(open(&file).is_ok());
        let grew = kib_to_decode(&file);
        assert!(grew < 32 << 10, "a 290 MiB profile grew the process by {grew} KiB");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn refused_bombs_cost_no_memory_and_accepted_pictures_what_was_estimated() {
    let grew = kib_to_decode(&png(13_000, 13_000, 0, &zlib_zeros(13_000 * 13_001)));
    assert!(grew < 8 << 10, "a refused bomb grew the process by {grew} KiB");
    // 7000x7000 grey: 49 MB as grey, 147 MB as RGB, and the compressed stream.
    let grew = kib_to_decode(&png(7000, 7000, 0, &zlib_zeros(7000 * 7001)));
    assert!(grew < ((7000 * 7000 * 4) >> 10) + (8 << 10), "a 49-megapixel picture grew the process by {grew} KiB");
}

// ---- nothing panics ----

/// Limits under which any file is quick.
fn tight() -> Limits {
    Limits { max_pixels: 200_000, max_decode_bytes: 4 << 20, ..Limits::default() }
}

fn any_fixture() -> impl Strategy<Value = String> {
    let names: Vec<String> = manifest("decode").iter().map(|c| c["file"].as_str().unwrap().to_owned()).collect();
    prop::sample::select(names)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_pictures_are_errors_or_pictures(
        name in any_fixture(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = fixture(&name);
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(img) = decode(&bytes, Alpha::White, &tight()) {
            prop_assert_eq!(img.data().len(), img.width() as usize * img.height() as usize * 3);
        }
    }

    #[test]
    fn random_bytes_behind_a_magic_are_errors_or_pictures(
        magic in prop::sample::select(vec![&b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x40\0\0\0WEBP", b"BM"]),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(&[magic, &body].concat(), Alpha::White, &tight());
    }
}

// ---- making files ----

fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let named = [kind.as_slice(), body].concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), named.as_slice(), &crc32(&named).to_be_bytes()].concat()
}

/// Signature and header; colour 0 is grey, 2 RGB, both of 8 bits.
fn head(width: u32, height: u32, colour: u8) -> Vec<u8> {
    let body = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, colour, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(b"IHDR", &body)].concat()
}

fn png(width: u32, height: u32, colour: u8, data: &[u8]) -> Vec<u8> {
    [head(width, height, colour), chunk(b"IDAT", data), chunk(b"IEND", &[])].concat()
}

/// Bits from the lowest of each byte up, as in deflate and in WebP.
#[derive(Default)]
struct BitWriter {
    out: Vec<u8>,
    buffer: u64,
    filled: u32,
}

impl BitWriter {
    fn put(&mut self, value: u32, bits: u32) {
        self.buffer |= u64::from(value) << self.filled;
        self.filled += bits;
        while self.filled >= 8 {
            self.out.push(self.buffer as u8);
            self.buffer >>= 8;
            self.filled -= 8;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.put(0, 7);
        self.out
    }
}

/// A zlib stream of `n` zeros, about n / 159 bytes: one literal, then repeats of 258 with the fixed Huffman codes.
fn zlib_zeros(n: u64) -> Vec<u8> {
    let mut bits = BitWriter { out: vec![0x78, 0x01], ..BitWriter::default() };
    // Codes stand with their first bit lowest: literal 0, length 258 with distance 1, end of block.
    let (literal, repeat, end) = ((0b0000_1100, 8), (0b0_1010_0011, 13), (0, 7));
    bits.put(0b011, 3);
    (0..n.min(1)).for_each(|_| bits.put(literal.0, literal.1));
    (0..n.saturating_sub(1) / 258).for_each(|_| bits.put(repeat.0, repeat.1));
    (0..n.saturating_sub(1) % 258).for_each(|_| bits.put(literal.0, literal.1));
    bits.put(end.0, end.1);
    let adler = (u32::try_from(n % 65_521).unwrap() << 16) | 1;
    [bits.finish().as_slice(), &adler.to_be_bytes()].concat()
}

/// A 1x1 lossless WebP of 3.8 MB whose 65536 groups of five prefix codes, all of eleven symbols with up to ten bits, take
/// 1.3 GiB as look-up tables.
fn webp_of_code_tables() -> Vec<u8> {
    let mut bits = BitWriter::default();
    // 1x1, no alpha, version 0; no transform, no cache; a picture of groups, 4x4 pixels a block, without a cache.
    [(0, 14), (0, 14), (0, 1), (0, 3), (0, 1), (0, 1), (1, 1), (0, 3), (0, 1)]
        .iter()
        .for_each(|(v, n)| bits.put(*v, *n));
    // Its one pixel: green 255, red 255 is group 65535.
    for symbol in [255, 255, 0, 0, 0] {
        [(1, 1), (0, 1), (1, 1), (symbol, 8)].iter().for_each(|(v, n)| bits.put(*v, *n));
    }
    // Code lengths 1 to 6 are coded in three bits, 7 to 10 in four; here by value, first bit lowest.
    let codes = [
        (0, 0),
        (0b000, 3),
        (0b100, 3),
        (0b010, 3),
        (0b110, 3),
        (0b001, 3),
        (0b101, 3),
        (0b0011, 4),
        (0b1011, 4),
        (0b0111, 4),
        (0b1111, 4),
    ];
    for _ in 0..65_536 * 5 {
        // No simple code; 14 lengths in the order 17 18 0 1 2 3 4 5 16 6 7 8 9 10; eleven symbols follow.
        [(0, 1), (10, 4)].iter().for_each(|(v, n)| bits.put(*v, *n));
        [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4].iter().for_each(|v| bits.put(*v, 3));
        [(1, 1), (1, 3), (9, 4)].iter().for_each(|(v, n)| bits.put(*v, *n));
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10].iter().for_each(|len: &usize| bits.put(codes[*len].0, codes[*len].1));
    }
    let mut data = [&[0x2f], bits.finish().as_slice(), &[0; 8]].concat();
    data.resize(data.len().next_multiple_of(2), 0);
    let len = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    [b"RIFF".as_slice(), &len(data.len() + 12), b"WEBPVP8L", &len(data.len()), &data].concat()
}
