//! Resizing against Pillow and preprocessing against Hugging Face's PIL image processors: to the byte, and to the bit.
//!
//! The expected values come from tools/make_image_fixtures.py.

mod image_fixtures;

use std::time::{Duration, Instant};

use image_fixtures::{crc32, manifest};
use ocelli::image::{Anyres, ClipProcessor, Filter, Hd, Rgb, Size, resize};
use proptest::prelude::*;

fn crc32_f32(values: &[f32]) -> u32 {
    crc32(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

/// The picture that tools/make_image_fixtures.py calls `pattern`.
fn pattern(width: u32, height: u32) -> Rgb {
    let value = |y: u32, x: u32, c: u32| ((37 * y + 101 * x + 53 * c + 7 * (x * y % 251)) % 256) as u8;
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(y, x, c))));
    Rgb::new(width, height, pixels.collect()).unwrap()
}

#[test]
fn resizing_is_pillows_to_the_byte() {
    let cases = manifest("resize");
    assert!(cases.len() >= 60);
    for case in &cases {
        let number = |i: usize| u32::try_from(case[i].as_u64().unwrap()).unwrap();
        let filter = if case[4] == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let out = resize(&pattern(number(0), number(1)), number(2), number(3), filter).unwrap();
        assert_eq!((out.width(), out.height()), (number(2), number(3)));
        assert_eq!(crc32(out.data()), number(5), "{case}");
    }
}

/// Pillow 11.3, by its values rather than a checksum.
#[test]
fn a_resized_picture_has_these_values() {
    let red = |img: &Rgb| img.data().iter().step_by(3).copied().collect::<Vec<u8>>();
    let small = resize(&pattern(8, 6), 5, 4, Filter::Bicubic).unwrap();
    assert_eq!(
        red(&small),
        [50, 175, 126, 170, 124, 113, 149, 117, 140, 142, 138, 129, 123, 125, 126, 119, 119, 125, 131, 130]
    );
    let small = resize(&pattern(8, 6), 5, 4, Filter::Bilinear).unwrap();
    assert_eq!(
        red(&small),
        [56, 166, 127, 164, 129, 112, 142, 122, 138, 139, 135, 129, 125, 128, 127, 121, 125, 126, 127, 131]
    );
}

#[test]
fn resizing_does_not_depend_on_the_number_of_threads() {
    let img = pattern(301, 227);
    let many = resize(&img, 97, 131, Filter::Bicubic).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| resize(&img, 97, 131, Filter::Bicubic).unwrap()), many);
}

#[test]
fn impossible_sizes_are_errors() {
    for (width, height) in [(0, 5), (5, 0), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
        assert!(resize(&pattern(3, 3), width, height, Filter::Bicubic).is_err());
    }
    assert!(Rgb::new(2, 2, vec![0; 11]).is_err());
    assert!(Rgb::new(0, 2, vec![]).is_err());
    assert!(Rgb::new(u32::MAX, u32::MAX, vec![0; 3]).is_err());
}

/// The settings of llava-hf/llava-1.5-*-hf.
fn llava() -> ClipProcessor {
    ClipProcessor {
        do_pad: false,
        do_resize: true,
        size: Size::ShortestEdge(336),
        resample: Filter::Bicubic,
        do_center_crop: true,
        crop: (336, 336),
        do_rescale: true,
        rescale_factor: 1.0 / 255.0,
        do_normalize: true,
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
    }
}

/// The settings that tools/make_image_fixtures.py calls `name`.
fn variant(name: &str) -> ClipProcessor {
    let base = ClipProcessor { size: Size::ShortestEdge(24), ..llava() };
    match name {
        "llava" => llava(),
        "pad" => ClipProcessor { do_pad: true, ..llava() },
        "bilinear" => ClipProcessor { resample: Filter::Bilinear, ..llava() },
        "exact" => ClipProcessor { size: Size::Exact { height: 70, width: 90 }, crop: (70, 90), ..llava() },
        "exact_then_cut" => ClipProcessor { size: Size::Exact { height: 70, width: 91 }, crop: (33, 44), ..llava() },
        "exact_then_widened" => {
            ClipProcessor { size: Size::Exact { height: 33, width: 91 }, crop: (40, 44), ..llava() }
        }
        "small" => ClipProcessor { size: Size::ShortestEdge(28), crop: (28, 28), ..llava() },
        "no_resize" => ClipProcessor { do_resize: false, crop: (101, 64), ..llava() },
        "no_crop" => ClipProcessor { do_center_crop: false, ..base },
        "no_rescale" => ClipProcessor { do_rescale: false, ..base },
        "no_normalize" => ClipProcessor { do_normalize: false, ..base },
        "half_range" => ClipProcessor { rescale_factor: 1.0 / 127.5, mean: [1.0; 3], std: [1.0; 3], ..base },
        other => panic!("no variant {other}"),
    }
}

/// Sizes from 1x1 on, around 336 and far from square; every switch of the settings.
#[test]
fn preprocessing_is_hugging_faces_pil_backend_to_the_bit() {
    let cases = manifest("clip");
    assert!(cases.len() >= 150);
    for case in &cases {
        let number = |i: usize| u32::try_from(case[i].as_u64().unwrap()).unwrap();
        let processor = variant(case[0].as_str().unwrap());
        let out = processor.apply(&pattern(number(1), number(2))).unwrap();
        assert_eq!((out.width(), out.height()), (number(3), number(4)), "{case}");
        assert_eq!(crc32_f32(&processor.normalise(&out)), number(5), "{case}");
    }
}

/// Checksums published for this pattern, computed once by Pillow 11.3 and transformers 5.17 and by hand-written NumPy.
#[test]
fn known_checksums() {
    let bytes = |w, h| crc32(pattern(w, h).data());
    assert_eq!((bytes(640, 480), bytes(480, 640), bytes(100, 80)), (0x0190_f72d, 0x2d1c_5279, 0x9946_4625));
    let resized = |(w, h), (to_w, to_h), filter| crc32(resize(&pattern(w, h), to_w, to_h, filter).unwrap().data());
    for (from, to, filter, expected) in [
        ((8, 6), (5, 4), Filter::Bicubic, 0x416b_1362),
        ((8, 6), (13, 9), Filter::Bicubic, 0x09a5_5b8b),
        ((8, 6), (5, 4), Filter::Bilinear, 0x8902_0f85),
        ((8, 6), (13, 9), Filter::Bilinear, 0xf79a_364b),
        ((640, 480), (448, 336), Filter::Bicubic, 0xdda2_97b5),
        ((480, 640), (336, 448), Filter::Bicubic, 0xa31f_6519),
        ((480, 640), (336, 336), Filter::Bicubic, 0xeae3_359e),
        ((1000, 700), (336, 336), Filter::Bicubic, 0x95c3_b6cd),
        ((100, 80), (420, 336), Filter::Bicubic, 0x1a80_56ab),
        ((640, 480), (1344, 1008), Filter::Bilinear, 0x38b7_4a96),
        ((1920, 1080), (672, 378), Filter::Bilinear, 0xafc6_706e),
    ] {
        assert_eq!(resized(from, to, filter), expected, "{from:?} to {to:?}");
    }
    for (do_pad, expected) in [
        (false, [0x1809_aebc, 0xdbd7_f815, 0x4b70_e4fe, 0x58f9_21ca]),
        (true, [0x9bd8_523e, 0x06cd_bb1d, 0xe170_3b56, 0x8d96_caa2]),
    ] {
        let processor = ClipProcessor { do_pad, ..llava() };
        let found = [(640, 480), (480, 640), (1000, 700), (100, 80)]
            .map(|(w, h)| crc32_f32(&processor.normalise(&processor.apply(&pattern(w, h)).unwrap())));
        assert_eq!(found, expected, "do_pad {do_pad}");
    }
}

#[test]
fn the_table_is_what_each_byte_becomes() {
    let processor = llava();
    let table = processor.table();
    assert_eq!(table.len(), 3 * 256);
    let bytes: Vec<u8> = (0..=255).flat_map(|v| [v; 3]).collect();
    assert_eq!(processor.normalise(&Rgb::new(256, 1, bytes).unwrap()), table);
    // (0 - 0.48145466) / 0.26862954 and (1 - 0.40821073) / 0.27577711.
    assert_eq!((table[0], table[767]), (-1.7922626, 2.145_897));
}

#[test]
fn a_thin_picture_costs_no_more_than_its_crop() {
    let thin = Rgb::filled(1, 20_000, [9, 8, 7]).unwrap();
    let start = Instant::now();
    let out = llava().apply(&thin).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "preprocessing a 1x20000 picture took {:?}", start.elapsed());
    assert!(out.data().chunks(3).all(|px| px == [9, 8, 7]) && (out.width(), out.height()) == (336, 336));
    let message = ClipProcessor { do_center_crop: false, ..llava() }.apply(&thin).unwrap_err().to_string();
    assert!(message.contains("1x20000") && message.contains("336x6720000"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_size_resizes(
        (w, h, width, height) in (1u32..40, 1u32..40, 1u32..90, 1u32..90),
        bicubic: bool,
    ) {
        let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
        // One colour stays one colour, whatever the weights.
        let out = resize(&Rgb::filled(w, h, [255, 0, 77]).unwrap(), width, height, filter).unwrap();
        prop_assert!(out.data().chunks(3).all(|px| px == [255, 0, 77]));
    }
}

/// Tiles of 336 pixels through a table of 3 x 256 floats: `[tiles, 3, 336, 336]`.
fn pixel_values(tiles: &[u8], table: &[f32]) -> Vec<f32> {
    let tiles = tiles.chunks_exact(336 * 336 * 3);
    let value = |tile: &[u8], c: usize, i: usize| table[256 * c + usize::from(tile[3 * i + c])];
    let planes = tiles.flat_map(|tile| (0..3).map(move |c| (tile, c)));
    planes.flat_map(|(tile, c)| (0..336 * 336).map(move |i| value(tile, c, i))).collect()
}

/// `LlavaNextImageProcessor` of transformers 5.17 on its PIL backend, Pillow 11.3, by checksums.
#[test]
fn the_tiles_of_llava_next_are_hugging_faces_to_the_bit() {
    let pinpoints = vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
    let anyres = Anyres { pinpoints, tile: 336, resample: Filter::Bicubic };
    let table = llava().table();
    for (width, height, expected) in
        [(640, 480, 0x9b0e_f99c), (480, 640, 0x4aa3_eb90), (300, 300, 0x3030_da96), (800, 200, 0xe8aa_4719)]
    {
        let tiles = anyres.apply(&pattern(width, height)).unwrap();
        assert_eq!(crc32_f32(&pixel_values(&tiles, &table)), expected, "{width}x{height}");
    }
}

/// Microsoft's processor of Phi-3-vision (16 crops) and Phi-3.5-vision (4), by checksums of its tiles and by values of its
/// view of everything, which torch interpolates in another order of additions.
#[test]
fn the_tiles_of_phi_3_vision_are_the_originals_to_the_bit() {
    let cases = [
        (
            4,
            [
                (640, 480, 0xe623_2702_u32, 0.35842893_f32),
                (480, 640, 0xc11f_625e, 0.6608706),
                (1000, 200, 0x68ec_f76a, 1.0749912),
            ],
        ),
        (
            16,
            [
                (640, 480, 0x508f_e55f, 1.1115726),
                (480, 640, 0x4ce9_55a7, 1.7071935),
                (1000, 200, 0x314d_981f, 0.8695432),
            ],
        ),
    ];
    let ClipProcessor { mean, std, .. } = llava();
    for (num_crops, pictures) in cases {
        let hd = Hd { num_crops, tile: 336, mean, std };
        for (width, height, tiles, overview) in pictures {
            let canvas = hd.canvas(&pattern(width, height)).unwrap();
            let what = format!("{width}x{height} with {num_crops} crops");
            assert_eq!(crc32_f32(&pixel_values(&hd.tiles(&canvas), &hd.table())), tiles, "{what}");
            let value = hd.overview(&canvas)[336 * 336 + 100 * 336 + 200];
            assert!((value - overview).abs() <= 2e-6, "{what}: {value} instead of {overview}");
        }
    }
}
