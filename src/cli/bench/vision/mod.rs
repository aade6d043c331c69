//! Pictures alone: from the bytes of a file to the rows that prompts refer to.

mod bed;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::super::{EngineArgs, ModelArgs, progress, tell};
use super::machine::Setup;
use super::outcome::OutcomeArgs;
use super::pictures::{Bytes, Random, Size, read};
use super::record::Better::{Higher, Lower};
use super::record::{Bench, Better, Figure, Figures, Input};
use super::work::sizes;
use crate::engine::{Device, load_model};
use bed::{Bed, Times};

#[derive(Args)]
pub(crate) struct VisionArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where to run
    #[arg(long, env = "OCELLI_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    device: Device,
    /// Numbers of pictures that are encoded together
    #[arg(long, default_value = "1,2,4,8,16,32", value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    images: Vec<u32>,
    /// A picture file; of several, the pictures are one each in turn
    #[arg(long, value_name = "FILE", conflicts_with = "image_size")]
    image: Vec<PathBuf>,
    /// Width and height of pictures that are made from the seed
    #[arg(long, default_value = "640x480", value_name = "WxH")]
    image_size: Size,
    /// Another one makes other pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Times that each number is measured, in a repeat
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Times before those
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters_warmup: u32,
    /// Times that so many are measured; their medians are the spread
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[command(flatten)]
    outcome: OutcomeArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(args: &VisionArgs) -> Result<()> {
    let outcome = args.outcome.open(Bench::Vision)?;
    let pictures = pictures(args)?;
    let options = args.engine.apply(args.model.options(), args.device);
    let setup = Setup::measured(&args.model, &options)?;
    let bar = progress::loading(0);
    let loaded = load_model(&args.model.directory()?, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    loaded.warnings.iter().for_each(|warning| tell(format_args!("warning: {warning}")));
    let mut bed = Bed::new(loaded.runner, loaded.memory.max_tiles)?;

    let mut figures = Figures::default();
    for &count in &args.images {
        let pictures = &pictures[..count as usize];
        for _ in 0..args.num_iters_warmup {
            bed.measure(pictures)?;
        }
        let mut repeat = || (0..args.num_iters).map(|_| bed.measure(pictures)).collect::<Result<Vec<_>>>();
        let repeats = (0..args.repeats).map(|_| repeat()).collect::<Result<Vec<_>>>()?;
        push(&mut figures, count, &repeats, setup.matrix_ceiling());
    }
    let mut sizes = sizes(&pictures)?;
    sizes.sort_unstable();
    sizes.dedup();
    let input = Input {
        image_tokens: Some(bed.tokens(&pictures[0])? as u64),
        pictures: sizes,
        requests: args.num_iters.into(),
        concurrency: Some(1),
        seed: args.seed,
        repeats: args.repeats.into(),
        warmup: args.num_iters_warmup.into(),
        ..Input::default()
    };
    outcome.tell(&setup.record(Bench::Vision, input, figures))
}

/// As many as are ever encoded together.
fn pictures(args: &VisionArgs) -> Result<Vec<Bytes>> {
    let most = args.images.iter().copied().max().unwrap_or(1);
    if args.image.is_empty() {
        return args.image_size.pictures(most, &mut Random::new(args.seed, 0));
    }
    let files = args.image.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    Ok(files.into_iter().cycle().take(most as usize).collect())
}

/// A time of some pictures, by its name and in words. What a machine does not do has no time.
type Time = (&'static str, &'static str, Option<Better>, fn(&Times) -> Option<f64>);

const TIMES: [Time; 7] = [
    ("vision_ms", "from bytes to rows", Some(Lower), |t| Some(t.all)),
    ("patches_ms", "from bytes to patches", Some(Lower), |t| Some(t.patches)),
    ("decode_ms", "  decoded", None, |t| Some(t.decode)),
    ("resize_ms", "  resized on the host", None, |t| Some(t.resize)),
    ("upload_ms", "  brought to the device", None, |t| Some(t.upload)),
    ("device_resize_ms", "  resized on the device", None, |t| t.device_resize),
    ("encode_ms", "tower and projector", Some(Lower), |t| Some(t.encode)),
];

/// The figures of `count` pictures together: `NAME@COUNT`, times a picture.
fn push(figures: &mut Figures, count: u32, repeats: &[Vec<Times>], ceiling: Option<f64>) {
    let number = f64::from(count);
    let each = |of: &dyn Fn(&Times) -> Option<f64>| {
        repeats.iter().map(|r| r.iter().filter_map(of).collect()).collect::<Vec<_>>()
    };
    for (name, what, better, of) in TIMES {
        let times = each(&|t| of(t).map(|time| time / number));
        figures.push(format!("{name}@{count}"), Figure::of(&format!("{count}: {what}"), "ms", better, &times));
    }
    let mut rate = |name: &str, what: &str, unit: &str, better: Option<Better>, of: &dyn Fn(&Times) -> f64| {
        let rates = each(&|t| Some(of(t)));
        let figure = Figure::of(&format!("{count}: {what}"), unit, better, &rates);
        let ceiling = ceiling.filter(|_| unit == "TFLOP/s");
        figures.push(format!("{name}@{count}"), figure.map(|figure| figure.beside(ceiling)));
    };
    rate("picture_throughput", "pictures", "pictures/s", Some(Higher), &|t| 1e3 * number / t.all);
    // Bytes a millisecond are 10^-6 GB/s, operations a millisecond 10^-9 TFLOP/s.
    rate("upload_gb_s", "  brought to the device", "GB/s", None, &|t| t.bytes as f64 / t.upload / 1e6);
    rate("encode_tflop_s", "tower and projector", "TFLOP/s", Some(Higher), &|t| t.flops as f64 / t.encode / 1e9);
}
