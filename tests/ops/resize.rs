//! Resize: to the byte what the host's resizing gives, which is held to Pillow's.

use ocelli::image::{ClipProcessor, Filter, Rgb, Size};
use ocelli::mem::{DType, Region};
use ocelli::ops::{Resize, ResizeAxis};

use crate::bed::Bed;

const LLAVA: ClipProcessor = ClipProcessor {
    do_pad: false,
    do_resize: true,
    size: Size::ShortestEdge(24),
    resample: Filter::Bicubic,
    do_center_crop: true,
    crop: (24, 24),
    do_rescale: true,
    rescale_factor: 1.0 / 255.0,
    do_normalize: true,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
};

fn check(processor: &ClipProcessor, width: u32, height: u32) {
    let mut bed = Bed::new(DType::F32, 61);
    let pixels: Vec<u8> = (0..width * height * 3).map(|_| bed.rng.next() as u8).collect();
    let rgb = Rgb::new(width, height, pixels.clone()).unwrap();
    let tile = processor.tile(width, height).unwrap();
    let expected = tile.apply(&rgb).unwrap();

    let [columns, rows] = tile.cut.axes();
    let (left, top) = tile.cut.canvas().picture_at();
    let reach = Resize::reach(&rows.table(), rows.taps(), rows.len());
    let (across, down) = (bed.ints(&columns.table()), bed.ints(&rows.table()));
    let size = |n: u32| n as usize;
    let op = Resize {
        y: bed.bytes(&vec![77; expected.data().len()]),
        x: bed.bytes(&pixels),
        columns: ResizeAxis {
            table: across,
            taps: columns.taps(),
            picture: size(width),
            offset: size(left),
            tile: size(tile.across.size),
            first: size(tile.across.to),
            kept: columns.len(),
        },
        rows: ResizeAxis {
            table: down,
            taps: rows.taps(),
            picture: size(height),
            offset: size(top),
            tile: size(tile.down.size),
            first: size(tile.down.to),
            kept: rows.len(),
        },
        colour: tile.cut.canvas().colour(),
        reach,
    };
    let ran = bed.run(op);
    assert_eq!(op.y.region(), Region::Io);
    assert!(ran.bits(op.y) == expected.data(), "{width}x{height} with {processor:?}");
}

#[test]
fn tiles_are_those_of_the_host_to_the_byte() {
    let variants = [
        LLAVA,
        ClipProcessor { do_pad: true, ..LLAVA },
        ClipProcessor { resample: Filter::Bilinear, ..LLAVA },
        ClipProcessor { size: Size::Exact { height: 30, width: 17 }, crop: (30, 17), ..LLAVA },
        // Narrower than the tile one way and wider the other.
        ClipProcessor { size: Size::Exact { height: 20, width: 31 }, ..LLAVA },
        ClipProcessor { do_resize: false, crop: (33, 29), ..LLAVA },
        ClipProcessor { do_resize: false, do_pad: true, do_center_crop: false, ..LLAVA },
    ];
    for processor in &variants {
        for (width, height) in [(1, 1), (2, 3), (24, 24), (23, 25), (40, 30), (31, 47), (100, 7), (3, 90), (24, 60)] {
            check(processor, width, height);
        }
    }
}
