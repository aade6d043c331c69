//! Pictures that are resized on the device: the tiles, and so every number behind them, are those of the host's resizing.
//! Here the device is the reference; tests/cuda/resize.rs has the kernel.

use std::fs;
use std::path::Path;

use ocelli::backend::Cpu;
use ocelli::config::ProcessorKwargs;
use ocelli::engine::{Checkpoint, Options, Runner};
use ocelli::image::{Alpha, Rgb, decode};
use ocelli::models::{Content, Limits, Tiles, Vlm};
use ocelli::plan::Backend;

fn model(max_tiles: usize) -> Box<dyn Vlm> {
    let limits = Limits {
        max_model_len: 64,
        max_num_seqs: 1,
        max_num_batched_tokens: 64,
        max_logit_rows: 1,
        max_tiles,
        kept_tiles: 0,
        kv_blocks: 4,
    };
    let checkpoint = Checkpoint::open(Path::new("tests/goldens/llava-tiny-mha"), &Options::default()).unwrap();
    checkpoint.build(limits).unwrap()
}

fn picture(name: &str) -> Rgb {
    let bytes = fs::read(format!("tests/goldens/pictures/{name}.png")).unwrap();
    decode(&bytes, Alpha::White, &ocelli::image::Limits::default()).unwrap()
}

/// What encoding leaves of pictures: the tiles, and all of scratch, where their rows are.
fn encoded(pictures: &[Tiles]) -> (Vec<u8>, Vec<u8>) {
    let model = model(3);
    let mut runner = Runner::new(Cpu::new(model.regions()).unwrap(), model, |_| ()).unwrap();
    runner.encode(pictures).unwrap();
    let plan = runner.model().encode_plan(pictures.len());
    let rows = plan.steps().last().unwrap().op.writes()[0];
    let snapshot = |span| runner.backend().snapshot(span).unwrap();
    (snapshot(runner.model().areas().tiles.pixels.span()), snapshot(rows))
}

#[test]
fn it_does_not_matter_where_a_picture_is_resized() {
    let model = model(3);
    let processor = model.processor(&ProcessorKwargs::new()).unwrap();
    let host = ["wide", "tall", "large"].map(|name| processor.prepare(&picture(name)).unwrap());
    let device = ["wide", "tall", "large"].map(|name| processor.prepare_for_device(picture(name)).unwrap());
    for (host, device) in host.iter().zip(&device) {
        assert!(matches!((&host.content, &device.content), (Content::Pixels(_), Content::Picture(_))));
        assert_eq!((host.tiles, &host.rows), (device.tiles, &device.rows));
    }
    let expected = encoded(&host);
    assert!(encoded(&device) == expected);
    let [a, _, c] = host;
    let [_, b, _] = device;
    assert!(encoded(&[a, b, c]) == expected, "some here and some there");
}

/// Wide or square.
#[test]
fn pictures_that_there_is_no_room_for_are_resized_on_the_host() {
    let model = model(1);
    let processor = model.processor(&ProcessorKwargs::new()).unwrap();
    for (width, height) in [(2400, 2400), (16 << 20, 1)] {
        let picture = Rgb::filled(width, height, [1, 2, 3]).unwrap();
        let (device, host) =
            (processor.prepare_for_device(picture.clone()).unwrap(), processor.prepare(&picture).unwrap());
        match (device.content, host.content) {
            (Content::Pixels(device), Content::Pixels(host)) => assert!(device == host),
            other => panic!("{width}x{height}: {other:?}"),
        }
    }
}

/// Room for pictures is taken only where there can be some.
#[test]
fn a_model_for_text_alone_has_no_room_for_pictures() {
    let io = |tiles| model(tiles).regions()[3];
    assert!(io(1) > 16 << 20 && io(0) < 1 << 20);
}
