//! The memory of a case: buffers, and what they hold before a run.
//!
//! A bed takes buffers from four layouts and notes what goes into them; the numbers themselves are made when an image of
//! a region is asked for. Every number depends on its buffer and its index alone, so an image is the same every time.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::mem::{Buf, DType, Element, Layout, Region, Span};

/// Elements that one task makes.
const TASK: usize = 1 << 16;

/// Which numbers a matrix product is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Small multiples of a power of two, whose products and sums are exact in f32 in any order: a kernel must then have
    /// the reference's bits, and one lost product shows at any size.
    Exact,
    /// Whole mantissas in the same range. Matrix units draw less power, and run faster, on numbers with few bits set, so
    /// these are the ones to time.
    Random,
}

/// What a buffer holds before a run.
#[derive(Clone)]
enum Content {
    /// Uniform in `centre - scale .. centre + scale`.
    Uniform { centre: f32, scale: f32 },
    /// `-2, -1, 0, 1, 2` times `unit`, each as often.
    Steps { unit: f32 },
    /// As given, rounded to the stored type.
    Floats(Vec<f32>),
    /// As given.
    Bytes(Vec<u8>),
    /// Any byte.
    Noise,
}

/// Buffers and what they hold.
pub struct Bed {
    dtype: DType,
    numbers: Numbers,
    layouts: [Layout; 4],
    /// Where the first buffer of each region may lie.
    start: [usize; 4],
    contents: Vec<(Span, Content)>,
}

impl Bed {
    /// An empty bed for ops that compute in `dtype`.
    pub fn new(dtype: DType, numbers: Numbers) -> Bed {
        Bed::behind([0; 4], dtype, numbers)
    }

    /// An empty bed that leaves the first bytes of each region to others: `start` of them, a multiple of
    /// [`ALIGN`](crate::mem::ALIGN).
    pub fn behind(start: [usize; 4], dtype: DType, numbers: Numbers) -> Bed {
        let layouts = Region::ALL.map(|region| {
            let mut layout = Layout::new(region, dtype);
            layout.take::<u8>(start[region as usize]);
            layout
        });
        Bed { dtype, numbers, layouts, start, contents: Vec::new() }
    }

    /// The float type of the ops.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes that each region needs, in the order of [`Region::ALL`].
    pub fn bytes(&self) -> [usize; 4] {
        Region::ALL.map(|r| self.layouts[r as usize].bytes())
    }

    /// Everything of a region that belongs to this bed.
    pub fn whole(&self, region: Region) -> Span {
        let start = self.start[region as usize];
        let len = self.layouts[region as usize].bytes() - start;
        Span { region, dtype: DType::U8, byte: start as u64, len: len as u64 }
    }

    /// A buffer that holds nothing: what an op writes, all of it.
    pub fn output<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        self.layouts[region as usize].take(len)
    }

    fn with<T: Element>(&mut self, region: Region, len: usize, content: Content) -> Buf<T> {
        let buf = self.output(region, len);
        self.contents.push((buf.span(), content));
        buf
    }

    /// Numbers uniform in `-scale .. scale`.
    pub fn uniform<T: Element>(&mut self, region: Region, len: usize, scale: f32) -> Buf<T> {
        self.around(region, len, 0.0, scale)
    }

    /// Numbers uniform in `centre - scale .. centre + scale`.
    pub fn around<T: Element>(&mut self, region: Region, len: usize, centre: f32, scale: f32) -> Buf<T> {
        self.with(region, len, Content::Uniform { centre, scale })
    }

    /// Numbers for a matrix product, from `-2 unit` to `2 unit`: see [`Numbers`].
    pub fn factors<T: Element>(&mut self, region: Region, len: usize, unit: f32) -> Buf<T> {
        let content = match self.numbers {
            Numbers::Exact => Content::Steps { unit },
            Numbers::Random => Content::Uniform { centre: 0.0, scale: 2.0 * unit },
        };
        self.with(region, len, content)
    }

    /// These numbers, rounded to the type of the buffer.
    pub fn floats<T: Element>(&mut self, region: Region, values: Vec<f32>) -> Buf<T> {
        self.with(region, values.len(), Content::Floats(values))
    }

    /// These integers, in the io region.
    pub fn ints(&mut self, values: &[i32]) -> Buf<i32> {
        self.with(Region::Io, values.len(), Content::Bytes(bytemuck::cast_slice(values).to_vec()))
    }

    /// These bytes, in the io region.
    pub fn bytes_of(&mut self, values: &[u8]) -> Buf<u8> {
        self.with(Region::Io, values.len(), Content::Bytes(values.to_vec()))
    }

    /// Bytes like those of a picture, in the io region.
    pub fn noise(&mut self, len: usize) -> Buf<u8> {
        self.with(Region::Io, len, Content::Noise)
    }

    /// The buffers that hold something.
    pub fn contents(&self) -> impl Iterator<Item = Span> {
        self.contents.iter().map(|(span, _)| *span)
    }

    /// The bytes of [`Bed::whole`]: its contents, and `fill` wherever there is none.
    pub fn image(&self, region: Region, fill: u8) -> Vec<u8> {
        let mut image = vec![fill; self.whole(region).range().len()];
        for (i, (span, content)) in self.contents.iter().enumerate().filter(|(_, (span, _))| span.region == region) {
            write(content, i as u64, span.dtype, &mut image[self.place(*span)]);
        }
        image
    }

    /// Set every byte of the images of the four regions that holds nothing to `fill`.
    pub fn refill(&self, images: &mut [Vec<u8>; 4], fill: u8) {
        let mut held = Region::ALL.map(|_| 0);
        for (span, _) in &self.contents {
            let (region, place) = (span.region as usize, self.place(*span));
            images[region][held[region]..place.start].fill(fill);
            held[region] = place.end;
        }
        for (image, held) in images.iter_mut().zip(held) {
            image[held..].fill(fill);
        }
    }

    /// Where a span lies in the image of its region.
    pub fn place(&self, span: Span) -> Range<usize> {
        let (range, start) = (span.range(), self.start[span.region as usize]);
        range.start - start..range.end - start
    }
}

fn write(content: &Content, seed: u64, dtype: DType, out: &mut [u8]) {
    match content {
        Content::Uniform { centre, scale } => floats(dtype, out, |i| centre + scale * unit(seed, i)),
        Content::Steps { unit } => floats(dtype, out, |i| unit * ((word(seed, i) >> 33) % 5) as f32 - 2.0 * unit),
        Content::Floats(values) => floats(dtype, out, |i| values[i as usize]),
        Content::Bytes(bytes) => out.copy_from_slice(bytes),
        Content::Noise => out.iter_mut().zip(0..).for_each(|(b, i)| *b = word(seed, i) as u8),
    }
}

/// Element `i` is `value(i)`, rounded to `dtype`.
fn floats(dtype: DType, out: &mut [u8], value: impl Fn(u64) -> f32 + Sync) {
    out.par_chunks_mut(TASK * dtype.size()).enumerate().for_each(|(task, out)| {
        for (i, out) in (task as u64 * TASK as u64..).zip(out.chunks_exact_mut(dtype.size())) {
            let v = value(i);
            match dtype {
                DType::F16 => out.copy_from_slice(&f16::from_f32(v).to_le_bytes()),
                DType::Bf16 => out.copy_from_slice(&bf16::from_f32(v).to_le_bytes()),
                _ => out.copy_from_slice(&v.to_le_bytes()),
            }
        }
    });
}

/// Random bits number `i` of a buffer: the output function of SplitMix64.
fn word(seed: u64, i: u64) -> u64 {
    let mut z = (seed << 40).wrapping_add(i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform in `-1 .. 1`.
fn unit(seed: u64, i: u64) -> f32 {
    (word(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Act;

    fn halves(bed: &Bed, image: &[u8], buf: Buf<Act>) -> Vec<f32> {
        let halves: Vec<bf16> = bytemuck::pod_collect_to_vec(&image[bed.place(buf.span())]);
        halves.iter().map(|v| v.to_f32()).collect()
    }

    #[test]
    fn an_image_holds_the_contents_and_the_fill_between_them() {
        let mut bed = Bed::behind([256, 0, 0, 0], DType::Bf16, Numbers::Exact);
        let (a, _) = (bed.factors::<Act>(Region::Weights, 200_000, 0.5), bed.output::<Act>(Region::Weights, 4));
        let b: Buf<f32> = bed.floats(Region::Weights, vec![1.5, -2.5]);
        let image = bed.image(Region::Weights, 0xff);
        assert_eq!((image.len(), a.span().byte), (bed.bytes()[0] - 256, 256));
        assert_eq!(&image[bed.place(b.span())], bytemuck::cast_slice::<f32, u8>(&[1.5, -2.5]));
        let outside = |i: &usize| bed.contents().all(|s| !bed.place(s).contains(i));
        assert!((0..image.len()).filter(outside).all(|i| image[i] == 0xff));
        let values = halves(&bed, &image, a);
        for step in [-1.0, -0.5, 0.0, 0.5, 1.0] {
            let share = values.iter().filter(|&&v| v == step).count() as f64 / values.len() as f64;
            assert!((share - 0.2).abs() < 0.01, "{step}: {share}");
        }
        let mut images = Region::ALL.map(|region| bed.image(region, 0));
        assert_ne!(image, images[0]);
        bed.refill(&mut images, 0xff);
        assert_eq!(image, images[0]);
    }

    #[test]
    fn random_numbers_fill_their_range_and_differ_between_buffers() {
        let mut bed = Bed::new(DType::Bf16, Numbers::Random);
        let (a, b) = (bed.factors::<Act>(Region::Scratch, 5000, 0.5), bed.factors::<Act>(Region::Scratch, 5000, 0.5));
        let image = bed.image(Region::Scratch, 0);
        let (a, b) = (halves(&bed, &image, a), halves(&bed, &image, b));
        let mean = a.iter().sum::<f32>() / 5000.0;
        let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(mean.abs() < 0.03 && (0.99..=1.0).contains(&largest), "{mean} {largest}");
        assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 100);
    }
}
