//! Resize on a GPU: every byte is Pillow's, so every byte is that of the host's resizing.

use std::fs;
use std::path::Path;

use ocelli::backend::cuda::Cuda;
use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, Options, Runner};
use ocelli::image::{Alpha, ClipProcessor, Filter, Limits as DecodeLimits, Rgb, Size, decode};
use ocelli::mem::{Buf, DType, Layout, Region};
use ocelli::models::{Content, Limits, Picture, PictureArea};
use ocelli::plan::{Backend, Plan};

use crate::{gpu, timing};

const LLAVA: ClipProcessor = ClipProcessor {
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
};

/// A device with room for a picture and a tile.
struct Bench {
    cuda: Cuda,
    area: PictureArea,
    tile: Buf<u8>,
}

impl Bench {
    fn new() -> Bench {
        let mut io = Layout::new(Region::Io, DType::F16);
        let (area, tile) = (PictureArea::new(&mut io, true), io.take(1 << 20));
        Bench { cuda: Cuda::new(0, [0, 0, 0, io.bytes()], 0xff).unwrap(), area, tile }
    }

    /// Write the picture and its tables.
    fn load(&self, picture: &Picture) {
        self.cuda.write(picture.resize.x, picture.rgb.data()).unwrap();
        self.cuda.write(self.area.tables, &picture.tables).unwrap();
    }

    /// Hold the device's tile to the host's; `false` if the picture is one for the host.
    fn check(&self, what: &str, processor: &ClipProcessor, rgb: Rgb) -> bool {
        let tile = processor.tile(rgb.width(), rgb.height()).unwrap();
        let expected = tile.apply(&rgb).unwrap();
        let y = self.tile.slice(0..expected.data().len());
        let Ok(picture) = self.area.picture(rgb, &tile, y) else { return false };
        self.load(&picture);
        self.cuda.write(y, &vec![0xa5; y.len()]).unwrap();
        let mut plan = Plan::new(DType::F16);
        plan.push(picture.resize);
        self.cuda.run(&mut self.cuda.link(&plan).unwrap(), None).unwrap();
        let mut found = vec![0; y.len()];
        self.cuda.read(y, &mut found).unwrap();
        let wrong = found.iter().zip(expected.data()).position(|(a, b)| a != b);
        assert!(wrong.is_none(), "{what}, {:?} to {expected:?}: byte {wrong:?} is wrong", picture.rgb);
        true
    }
}

/// Every bit of a byte counts somewhere, and edges are hard.
fn noise(width: u32, height: u32) -> Rgb {
    let mut state = u64::from(width) << 32 | u64::from(height);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let byte = (state >> 56) as u8;
        if byte < 64 {
            0
        } else if byte > 192 {
            255
        } else {
            byte
        }
    };
    Rgb::new(width, height, (0..width * height * 3).map(|_| next()).collect()).unwrap()
}

#[test]
fn tiles_are_those_of_the_host_to_the_byte() {
    if gpu::device().is_none() {
        return;
    }
    let bench = Bench::new();
    let variants = [
        ("llava", LLAVA),
        ("padded", ClipProcessor { do_pad: true, ..LLAVA }),
        ("bilinear", ClipProcessor { resample: Filter::Bilinear, ..LLAVA }),
        ("squashed", ClipProcessor { size: Size::Exact { height: 70, width: 90 }, crop: (70, 90), ..LLAVA }),
        ("squashed and cut", ClipProcessor { size: Size::Exact { height: 70, width: 91 }, crop: (33, 44), ..LLAVA }),
        ("framed", ClipProcessor { size: Size::Exact { height: 33, width: 91 }, crop: (40, 44), ..LLAVA }),
        ("small", ClipProcessor { size: Size::ShortestEdge(28), crop: (28, 28), ..LLAVA }),
        ("not resized", ClipProcessor { do_resize: false, crop: (101, 64), ..LLAVA }),
    ];
    let sizes = [
        (1, 1),
        (1, 50),
        (50, 1),
        (2, 3),
        (7, 5),
        (28, 28),
        (64, 101),
        (100, 75),
        (224, 224),
        (335, 337),
        (336, 336),
        (336, 1000),
        (337, 335),
        (480, 640),
        (500, 333),
        (640, 480),
        (641, 479),
        (1000, 336),
        (1920, 1080),
        (30, 4000),
        (4000, 30),
        (2364, 2364),
    ];
    let mut checked = 0;
    for (what, processor) in &variants {
        for (width, height) in sizes {
            checked += usize::from(bench.check(what, processor, noise(width, height)));
        }
    }
    // A row of 70 or 33 is a sum of too many of 4000 rows, and so is one of 33 or 28 of 2364.
    assert_eq!(checked, variants.len() * sizes.len() - 5);
    println!("resize: {checked} pictures to the byte");
}

/// What does not fit is resized on the host instead.
#[test]
fn pictures_that_are_too_large_or_too_thin_are_left_to_the_host() {
    let mut io = Layout::new(Region::Io, DType::F16);
    let (area, y) = (PictureArea::new(&mut io, true), io.take(336 * 336 * 3));
    let taken = |processor: &ClipProcessor, rgb: Rgb| {
        let tile = processor.tile(rgb.width(), rgb.height()).unwrap();
        area.picture(rgb, &tile, y).is_ok()
    };
    let squash = ClipProcessor { size: Size::Exact { height: 336, width: 336 }, ..LLAVA };
    assert!(taken(&LLAVA, noise(2364, 2365)));
    assert!(!taken(&LLAVA, noise(2365, 2365)), "more than 16 MiB");
    assert!(taken(&squash, noise(1, 16_000)));
    assert!(!taken(&squash, noise(1, 20_000)), "too many rows a sum");
    assert!(!taken(&squash, noise(40_000, 1)), "too many weights");
    assert!(!taken(&ClipProcessor { crop: (336, 335), ..LLAVA }, noise(9, 9)), "another tile");
}

/// Through the runner: two pictures of different sizes, one after the other in the same place.
#[test]
fn a_runner_brings_every_picture_to_its_tile() {
    if gpu::device().is_none() {
        return;
    }
    let limits = Limits {
        max_model_len: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        max_logit_rows: 1,
        max_tiles: 3,
        kept_tiles: 0,
        kv_blocks: 4,
    };
    let options = Options { dtype: Some(DType::F16), ..Options::default() };
    let checkpoint = Checkpoint::open(Path::new("tests/goldens/llava-tiny-mha"), &options).unwrap();
    let model = checkpoint.build(limits).unwrap();
    let pictures = ["wide", "tall", "large"].map(|name| {
        let bytes = fs::read(format!("tests/goldens/pictures/{name}.png")).unwrap();
        decode(&bytes, Alpha::White, &DecodeLimits::default()).unwrap()
    });
    let processor = model.processor(&ProcessorKwargs::new()).unwrap();
    let host: Vec<_> = pictures.iter().map(|p| processor.prepare(p).unwrap()).collect();
    let device: Vec<_> = pictures.into_iter().map(|p| processor.prepare_for_device(p).unwrap()).collect();
    assert!(device.iter().all(|t| matches!(t.content, Content::Picture(_))));
    let cuda = Cuda::new(0, model.regions(), 0xff).unwrap();
    let mut runner = Runner::new(cuda, model, |_| ()).unwrap();
    let pixels = runner.model().areas().tiles.pixels.span();
    let mut encode = |tiles: &[_]| {
        runner.encode(tiles).unwrap();
        runner.backend().snapshot(pixels).unwrap()
    };
    let (expected, cleared) = (encode(&host), encode(&[host[1].clone(), host[2].clone(), host[0].clone()]));
    assert_ne!(expected, cleared);
    assert_eq!(encode(&device), expected);
}

#[test]
fn what_it_takes() {
    if gpu::device().is_none() {
        return;
    }
    let bench = Bench::new();
    for (width, height) in [(336, 336), (640, 480), (1920, 1080), (2364, 2364)] {
        let tile = LLAVA.tile(width, height).unwrap();
        let y = bench.tile.slice(0..336 * 336 * 3);
        let picture = bench.area.picture(noise(width, height), &tile, y).unwrap();
        bench.load(&picture);
        timing::print(&bench.cuda, DType::U8, &format!("{width}x{height}"), picture.resize);
    }
}
