//! A component's samples, and its rows at the picture's size: libjpeg's "fancy" upsampling, in which a sample weighs three
//! times what its farther neighbour does, with the same roundings.

use std::ops::Range;

use rayon::prelude::*;

use super::huffman::Block;
use super::idct::idct;

/// Samples of one component.
pub(super) struct Plane {
    /// `[rows of blocks * 8, stride]`
    data: Vec<u8>,
    stride: usize,
    /// Samples that belong to the picture.
    width: usize,
    height: usize,
    /// How many times fewer they are across and down than pixels.
    fewer: (usize, usize),
}

impl Plane {
    /// Of `size` samples (width, height) in `blocks` (across, down), where a sample stands for `fewer` pixels.
    pub(super) fn new(size: (usize, usize), fewer: (usize, usize), blocks: (usize, usize)) -> Plane {
        let stride = 8 * blocks.0;
        Plane { data: vec![0; stride * 8 * blocks.1], stride, width: size.0, height: size.1, fewer }
    }

    /// Compute the samples of whole rows of blocks, from row `first` on.
    pub(super) fn fill(&mut self, first: usize, blocks: &[Block], quant: &[i16; 64]) {
        let stride = self.stride;
        let rows = self.data[8 * first * stride..].par_chunks_mut(8 * stride).zip(blocks.par_chunks(stride / 8));
        rows.for_each(|(samples, blocks)| {
            blocks.iter().enumerate().for_each(|(x, block)| idct(block, quant, samples, 8 * x, stride));
        });
    }

    /// The samples of some rows of MCUs, each `blocks` rows of blocks: which row, its samples, and how many follow one another.
    pub(super) fn rows(
        &mut self,
        rows: Range<usize>,
        blocks: usize,
    ) -> impl ParallelIterator<Item = (usize, &mut [u8], usize)> {
        let stride = self.stride;
        let each = 8 * blocks * stride;
        let samples = self.data[rows.start * each..rows.end * each].par_chunks_mut(each);
        samples.zip(rows).map(move |(samples, y)| (y, samples, stride))
    }

    /// Row `y`, the last one where there are no more.
    fn samples(&self, y: usize) -> &[u8] {
        &self.data[y.min(self.height - 1) * self.stride..][..self.width]
    }

    /// Row `y` of the picture, as many samples as it has pixels or more; `scratch` is room for it.
    pub(super) fn row<'a>(&'a self, y: usize, scratch: &'a mut Scratch) -> &'a [u8] {
        let (across, down) = self.fewer;
        let near = self.samples(y / down);
        // The row on the other side of this one: above the upper half of a sample, below the lower.
        let far = || self.samples(if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { y / 2 + 1 });
        let Scratch { sums, row } = scratch;
        match (across, down) {
            (1, 1) => return near,
            (1, 2) => {
                let half = 1 + (y % 2) as u16;
                row.clear();
                row.extend(
                    near.iter().zip(far()).map(|(n, f)| ((3 * u16::from(*n) + u16::from(*f) + half) >> 2) as u8),
                );
            }
            (2, 1) if self.width > 2 => {
                sums.clear();
                sums.extend(near.iter().map(|n| u16::from(*n)));
                widen(sums, 2, [1, 2], row);
            }
            (2, 2) if self.width > 2 => {
                sums.clear();
                sums.extend(near.iter().zip(far()).map(|(n, f)| 3 * u16::from(*n) + u16::from(*f)));
                widen(sums, 4, [8, 7], row);
            }
            _ => {
                row.clear();
                row.extend(near.iter().flat_map(|n| std::iter::repeat_n(*n, across)));
            }
        }
        row
    }
}

/// Room for a row of one component.
#[derive(Default)]
pub(super) struct Scratch {
    sums: Vec<u16>,
    row: Vec<u8>,
}

/// Two samples for one: three times itself and once its neighbour on that side, itself at the edges. The sum has `bits`
/// bits too many; what is added before they are dropped takes turns.
fn widen(sums: &[u16], bits: u32, half: [u16; 2], row: &mut Vec<u8>) {
    let mix = |own: u16, other: u16, side: usize| ((3 * own + other + half[side]) >> bits) as u8;
    row.clear();
    row.resize(2 * sums.len(), 0);
    let last = sums.len() - 1;
    let pairs = row.as_chunks_mut::<2>().0;
    for (pair, three) in pairs[1..last].iter_mut().zip(sums.array_windows::<3>()) {
        *pair = [mix(three[1], three[0], 0), mix(three[1], three[2], 1)];
    }
    pairs[0] = [mix(sums[0], sums[0], 0), mix(sums[0], sums[1], 1)];
    pairs[last] = [mix(sums[last], sums[last - 1], 0), mix(sums[last], sums[last], 1)];
}
