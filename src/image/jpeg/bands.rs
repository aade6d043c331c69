//! A picture that one scan codes, band by band: while the codes of one are read, the samples of the one before are computed.
//! So few coefficients are kept, and a small picture, which is a single band, takes all threads for both.

use std::ops::Range;

use rayon::prelude::*;

use super::huffman::{Block, Stop};
use super::idct::idct;
use super::planes::Plane;
use super::runs::{self, Run, Share};
use super::scan::{Break, Scan};

/// Blocks that one thread should read of a band: some tenths of a millisecond at most, and so many that those which it reads until
/// it is in step matter little.
const SHARE: Range<usize> = 256..2048;
/// The most threads that read: what a file holds them to is not more memory than this allows.
const THREADS: usize = 16;
/// How many times the blocks that were expected a thread reads at most, where they turn out smaller.
const MORE: usize = 4;
/// The most bytes of coefficients that are held: of the band that is read, and the one before.
pub(super) const HELD: u64 = (2 * THREADS * MORE * SHARE.end * size_of::<Block>()) as u64;

/// Reads all of `scan` into `planes`, where `quants` are the quantisation tables of the components.
pub(super) fn decode(scan: &mut Scan, quants: &[&[i16; 64]], planes: &mut [Plane]) -> Result<(), Break> {
    let (across, down) = scan.mcus();
    let mcus = across as usize * down as usize;
    let mut band = Band { across: across as usize, begin: 0, end: 0, runs: Vec::new() };
    // Bytes of so many MCUs.
    let mut pace = (scan.rest(), mcus);
    // In the pool from here on, where a pair of jobs costs next to nothing.
    rayon::scope(|_| {
        while band.end < mcus {
            let shares = shares(scan, mcus - band.end, pace);
            let (read, ()) = rayon::join(|| runs::read(scan, &shares), || band.transform(scan, quants, planes));
            let before = (scan.position(), band.end);
            let stop = band.add(read, scan);
            pace = (scan.position() - before.0, band.end - before.1);
            if let (Some(stop), true) = (stop, band.end < mcus) {
                return Err(Break { stop, mcu: band.end, mcus });
            }
        }
        band.transform(scan, quants, planes);
        Ok(())
    })
}

/// What each thread is to read of the next band, of which there are `left` MCUs at most. Where pace, so many bytes for so many
/// MCUs, misleads, a band is shorter or a thread has less to do.
fn shares(scan: &Scan, left: usize, pace: (usize, usize)) -> Vec<Share> {
    let blocks = scan.blocks();
    let threads = if scan.restarts() { 1 } else { rayon::current_num_threads().min(THREADS) };
    let count = threads.min(left * blocks / SHARE.start).max(1);
    let each = left.div_ceil(count).min(SHARE.end / blocks);
    let most = if count == 1 { each } else { left.min(MORE * each) };
    let at = |i: usize| scan.position() + i * each * pace.0 / pace.1.max(1);
    // Behind the last MCUs nothing has to be left over.
    let end = |i: usize| if i == count && (count == 1 || count * each >= left) { usize::MAX } else { at(i) };
    (0..count).map(|i| Share { bytes: at(i)..end(i + 1), most }).collect()
}

/// MCUs that are read and not yet samples.
struct Band<'a> {
    /// MCUs in a row of them.
    across: usize,
    /// The first of them, which begins a row, and the one behind the last.
    begin: usize,
    end: usize,
    runs: Vec<Placed<'a>>,
}

/// A run, the MCU that it begins with, and what its DC coefficients lack.
struct Placed<'a> {
    first: usize,
    lacking: [i32; 4],
    run: Run<'a>,
}

impl<'a> Band<'a> {
    /// Takes what was read on from `scan`, which then stands behind it. Returns why no more can be read, if that is known.
    fn add(&mut self, read: Vec<Run<'a>>, scan: &mut Scan<'a>) -> Option<Stop> {
        let mut stop = None;
        for run in read {
            let (before, counted) = (scan.predictions(), run.before());
            let lacking = std::array::from_fn(|i| before[i].wrapping_sub(counted[i]));
            let first = self.end;
            self.end += run.len();
            let (why, end) = run.end();
            stop = why;
            *scan = end.lacking(lacking);
            self.runs.push(Placed { first, lacking, run });
        }
        stop
    }

    /// Computes the samples of all rows that are whole.
    fn transform(&mut self, scan: &Scan, quants: &[&[i16; 64]], planes: &mut [Plane]) {
        let across = self.across;
        let rows = self.begin / across..(self.end / across).min(scan.mcus().1 as usize);
        self.begin = rows.end * across;
        let band = &*self;
        let part = |component| scan.parts().iter().position(|part| part.component == component);
        planes.par_iter_mut().enumerate().zip(quants).for_each(|((component, plane), quant)| {
            let Some(part) = part(component) else { return };
            let before: usize = scan.parts()[..part].iter().map(|part| part.h * part.v).sum();
            let (h, v) = (scan.parts()[part].h, scan.parts()[part].v);
            plane.rows(rows.clone(), v).for_each(|(y, samples, stride)| {
                for (x, (mcu, lacking)) in band.mcus(y * across..(y + 1) * across).enumerate() {
                    for (i, block) in mcu[before..before + h * v].iter().enumerate() {
                        let mut block = *block;
                        block[0] = block[0].wrapping_add(lacking[part] as i16);
                        idct(&block, quant, samples, i / h * 8 * stride + (x * h + i % h) * 8, stride);
                    }
                }
            });
        });
        let begin = self.begin;
        self.runs.retain(|placed| placed.first + placed.run.len() > begin);
    }

    /// Some of its MCUs, each with what its DC coefficients lack.
    fn mcus(&self, mcus: Range<usize>) -> impl Iterator<Item = (&[Block], &[i32; 4])> {
        self.runs.iter().flat_map(move |Placed { first, lacking, run }| {
            let of = |mcu: usize| mcu.clamp(*first, first + run.len()) - first;
            run.mcus(of(mcus.start)..of(mcus.end)).map(move |mcu| (mcu, lacking))
        })
    }
}
