//! What a kernel takes, beside what memory and the matrix units give in the same run.
//!
//! A case is laid out several times, so that launches rotate over more than twice the L2 cache, and a launch finds nothing
//! of what it reads in there. Where that would take too many copies (a row of a few kilobytes), a batch goes round once,
//! behind a pass over an array that has driven everything else out (see [`super::timer`]). The launches of a batch are
//! recorded as one graph, as those of a decode step are, and carry the attributes that they have there.

use anyhow::{Context, Result};

use super::bed::{Bed, Numbers};
use super::cases::{self, Case, gemm};
use super::ceiling::Ceiling;
use super::cublaslt::{Library, Products};
use super::timer::{Spread, Timer};
use crate::backend::cuda::driver::{Device, Properties};
use crate::backend::cuda::kernels::Kernels;
use crate::backend::cuda::{Cuda, Exec};
use crate::kernel::Cost;
use crate::mem::{DType, Region, Span};
use crate::ops::Op;
use crate::plan::{Backend, Plan};

/// Launches of a batch, about.
const LAUNCHES: usize = 256;

/// A batch is to take this long, in seconds, so that a tick of the clock is nothing.
const BATCH: f64 = 500e-6;

/// Bytes that the copies of a case may take together.
const MEMORY: usize = 2 << 30;

/// Bytes that are written to the device at once.
const UPLOAD: usize = 64 << 20;

/// Samples of a ceiling.
const CEILING_SAMPLES: usize = 20;

/// A GPU with its ceilings.
pub struct Bench {
    device: Device,
    l2_bytes: usize,
    ceiling: Ceiling,
    /// cuBLASLt, or why it is not there; `None` if nobody asked.
    library: Option<Result<Library, String>>,
    /// Where the images of the cases come from.
    kernels: Kernels,
    /// What it reads and computes at best.
    pub ceilings: Ceilings,
}

/// The best that this GPU did in this run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceilings {
    /// Bytes a second, reading only.
    pub read: f64,
    /// Operations a second of our own GEMM at its best shape.
    pub matrix: f64,
    /// And of cuBLASLt's on that shape.
    pub matrix_library: Option<f64>,
}

impl Ceilings {
    /// Operations a second of the better one.
    pub fn best_matrix(&self) -> f64 {
        self.matrix_library.map_or(self.matrix, |library| library.max(self.matrix))
    }
}

/// What a case took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Seconds of a launch.
    pub seconds: Spread,
    /// What had to be moved and computed.
    pub cost: Cost,
    /// Launches of a sample, and sets of buffers that they rotate over.
    pub launches: usize,
    /// See `launches`.
    pub copies: usize,
    /// Seconds of the same product by cuBLASLt, without the epilogue.
    pub library: Option<Spread>,
}

impl Measured {
    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.cost.bytes as f64 / self.seconds.median
    }

    /// Floating-point operations a second.
    pub fn rate(&self) -> f64 {
        self.cost.flops as f64 / self.seconds.median
    }
}

impl Bench {
    /// Open GPU `ordinal` and measure its ceilings, in `dtype` where it matters; `against` loads cuBLASLt.
    ///
    /// # Errors
    /// No GPU, too little memory, a launch that fails. A missing cuBLASLt is none: see [`Bench::library`].
    pub fn new(ordinal: usize, dtype: DType, against: bool) -> Result<Bench> {
        let device = Device::open(ordinal)?;
        let ceiling = Ceiling::new(&device)?;
        let l2_bytes = device.l2_bytes()?;
        let library = against.then(|| Library::open(&device).map_err(|e| format!("{e:#}")));
        let mut bench =
            Bench { device, l2_bytes, ceiling, library, kernels: Kernels::default(), ceilings: Ceilings::default() };
        bench.ceilings.read = bench.read_ceiling()?;
        for case in cases::select(None, Some(gemm::CEILING)) {
            let m =
                bench.measure(&case, dtype, CEILING_SAMPLES).context("measuring the ceiling of the matrix units")?;
            bench.ceilings.matrix = m.rate();
            bench.ceilings.matrix_library = m.library.map(|l| m.cost.flops as f64 / l.median);
        }
        Ok(bench)
    }

    /// Time the cases with other images than the best that the build has for the device. The ceilings stay what they are.
    pub fn use_kernels(&mut self, kernels: Kernels) {
        self.kernels = kernels;
    }

    /// What is known about the GPU.
    pub fn properties(&self) -> &Properties {
        self.device.properties()
    }

    /// The version of cuBLASLt, or why it is not there; `None` if nobody asked.
    pub fn library(&self) -> Option<Result<String, &str>> {
        Some(self.library.as_ref()?.as_ref().map(Library::version).map_err(String::as_str))
    }

    fn read_ceiling(&self) -> Result<f64> {
        let mut timer = Timer::new(&self.device, &self.ceiling)?;
        let samples = (0..CEILING_SAMPLES).map(|_| timer.pass()).collect::<Result<Vec<_>>>()?;
        Ok(self.ceiling.bytes as f64 / Spread::of(samples).median)
    }

    /// Time `case` in `dtype`, `samples` times.
    ///
    /// # Errors
    /// Too little memory, or a launch that fails.
    pub fn measure(&self, case: &Case, dtype: DType, samples: usize) -> Result<Measured> {
        let staged = Staged::new(&self.device, self.kernels.clone(), case, dtype, self.l2_bytes)?;
        let mut timer = Timer::new(staged.cuda.device(), &self.ceiling)?;
        let mut exec = staged.link(dtype, 1)?;
        let rounds = staged.rounds(&mut timer, || staged.cuda.run(&mut exec, None))?;
        let mut exec = staged.link(dtype, rounds)?;
        staged.cuda.capture(&mut exec)?;
        let seconds = staged.time(&mut timer, samples, rounds, || staged.cuda.run(&mut exec, None))?;
        Ok(Measured {
            seconds,
            cost: staged.ops[0].cost(),
            launches: rounds * staged.ops.len(),
            copies: staged.ops.len(),
            library: self.measure_library(&mut timer, &staged, samples)?,
        })
    }

    /// The best of what the library proposes for the product of a case; `None` for other ops.
    fn measure_library(&self, timer: &mut Timer<'_>, staged: &Staged, samples: usize) -> Result<Option<Spread>> {
        let Some(Ok(library)) = &self.library else { return Ok(None) };
        let Some(products) = Products::of(library, &staged.cuda, &staged.ops)? else { return Ok(None) };
        let device = staged.cuda.device();
        let mut best: Option<Spread> = None;
        for algorithm in 0..products.algorithms() {
            let rounds = staged.rounds(timer, || products.enqueue(device, algorithm))?;
            let recorded = products.record(device, algorithm, rounds)?;
            let found = staged.time(timer, samples, rounds, || recorded.replay(device))?;
            if best.is_none_or(|best| found.median < best.median) {
                best = Some(found);
            }
        }
        Ok(best)
    }
}

/// A case on the device, several times.
struct Staged {
    cuda: Cuda,
    ops: Vec<Op>,
    /// The copies together are more than twice the L2 cache, so a batch may go round several times.
    rotates: bool,
}

/// Copies of what moves `cost` bytes and takes `room`, and whether they are more than twice the L2 cache together.
fn copies(cost: u64, room: usize, l2_bytes: usize) -> (usize, bool) {
    let wanted = (2 * l2_bytes) as u64 / cost.max(1) + 1;
    let limit = (MEMORY / room.max(1)).clamp(2, LAUNCHES);
    (wanted.clamp(2, limit as u64) as usize, wanted <= limit as u64)
}

impl Staged {
    fn new(device: &Device, kernels: Kernels, case: &Case, dtype: DType, l2_bytes: usize) -> Result<Staged> {
        let mut bed = Bed::new(dtype, Numbers::Random);
        let mut ops = vec![case.build(&mut bed)];
        let one = bed.bytes();
        let images = Region::ALL.map(|region| bed.image(region, 0));
        let (copies, rotates) = copies(ops[0].cost().bytes, one.iter().sum(), l2_bytes);
        ops.resize_with(copies, || case.build(&mut bed));
        let cuda = Cuda::on(Device::open_with(device.properties().ordinal, kernels)?, bed.bytes(), 0)?;
        for (region, image) in Region::ALL.into_iter().zip(&images) {
            upload(&cuda, region, image, copies)?;
        }
        Ok(Staged { cuda, ops, rotates })
    }

    /// One launch for every copy, `rounds` times over.
    fn link(&self, dtype: DType, rounds: usize) -> Result<Exec> {
        let mut plan = Plan::new(dtype);
        (0..rounds).flat_map(|_| &self.ops).for_each(|op| plan.push(*op));
        self.cuda.link(&plan)
    }

    /// How often a batch goes round, given what enqueues one launch for every copy.
    fn rounds(&self, timer: &mut Timer<'_>, mut round: impl FnMut() -> Result<()>) -> Result<usize> {
        // The first time code is loaded, for which the driver may wait until the device is idle.
        round()?;
        self.cuda.device().synchronize()?;
        let estimate = timer.sample(round)?;
        let most = if self.rotates { LAUNCHES.div_ceil(self.ops.len()) } else { 1 };
        Ok((BATCH / estimate).ceil().clamp(1.0, most as f64) as usize)
    }

    /// Seconds of a launch, given what enqueues a batch of `rounds`.
    fn time(
        &self,
        timer: &mut Timer<'_>,
        samples: usize,
        rounds: usize,
        mut batch: impl FnMut() -> Result<()>,
    ) -> Result<Spread> {
        let times = (0..samples).map(|_| timer.sample(&mut batch)).collect::<Result<Vec<_>>>()?;
        Ok(Spread::of(times).times(1.0 / (rounds * self.ops.len()) as f64))
    }
}

/// Write `image` to the start of `region` and behind itself, `copies` times.
fn upload(cuda: &Cuda, region: Region, image: &[u8], copies: usize) -> Result<()> {
    if image.is_empty() {
        return Ok(());
    }
    let together = (UPLOAD / image.len()).clamp(1, copies);
    let stack = image.repeat(together);
    for first in (0..copies).step_by(together) {
        let bytes = &stack[..together.min(copies - first) * image.len()];
        let byte = (first * image.len()) as u64;
        cuda.restore(Span { region, dtype: DType::U8, byte, len: bytes.len() as u64 }, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_exceed_the_cache_twice_or_go_round_once() {
        const MIB: usize = 1 << 20;
        let of = |cost: usize, room: usize| copies(cost as u64, room, 60 * MIB);
        // A weight that is larger than the cache still alternates.
        assert_eq!(of(180 * MIB, 180 * MIB), (2, true));
        assert_eq!(of(33 * MIB, 33 * MIB), (4, true));
        assert_eq!(of(MIB, MIB), (121, true));
        // A row: too many copies would be needed.
        assert_eq!(of(24 << 10, 32 << 10), (256, false));
        // A large table of which little is read.
        assert_eq!(of(MIB, 100 * MIB), (20, false));
        assert_eq!(of(0, 0), (256, false));
    }

    #[test]
    fn copies_of_a_case_have_one_layout() {
        for case in cases::all() {
            let mut bed = Bed::new(DType::F16, Numbers::Random);
            let first = case.build(&mut bed);
            let stride = bed.bytes();
            let second = case.build(&mut bed);
            for (a, b) in first.writes().into_iter().zip(second.writes()) {
                let moved = Span { byte: a.byte + stride[a.region as usize] as u64, ..a };
                assert_eq!(moved, b, "{} {}", case.op, case.name);
            }
        }
    }
}
