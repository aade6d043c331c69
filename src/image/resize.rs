//! Pillow's 8-bit resampling, byte for byte: two passes, horizontal then vertical, with 22-bit fixed-point weights and
//! a rounding to 8 bits between them.
//!
//! The order of the passes is that of Pillow up to 12.1; Pillow 13 takes the vertical one first for many portraits, which
//! changes results, since two roundings do not commute. The filter is stretched by the scale when shrinking, so every
//! source pixel counts (no aliasing).
//!
//! Only what a crop keeps is computed: a [`Cut`] costs memory and time by its window, not by the full result. What it is
//! apart from pixels, two [`Axis`], serves a device as well.

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::Rgb;

/// Fraction bits of a weight.
const PRECISION: u32 = 22;
/// One half in that fixed point: rounds the sum to nearest.
const HALF: i32 = 1 << (PRECISION - 1);
/// Multiplications worth a job of their own.
const JOB: usize = 1 << 16;
/// Pixels of the longest side of a window.
const MAX_SIDE: u32 = 1 << 20;
/// Columns that the vertical pass sums at a time, so that the sums stay in the first-level cache.
const BLOCK: usize = 1536;

/// The interpolation kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1 (`PIL.Image.Resampling.BILINEAR`, 2).
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2 (`PIL.Image.Resampling.BICUBIC`, 3).
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    /// The kernel at `x`. The order of operations is Pillow's: weights are compared bit for bit.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Resizes `src` to `width` x `height`, as `PIL.Image.resize` does with `reducing_gap=None`.
///
/// # Errors
/// A zero side, or a result that does not fit into memory.
pub fn resize(src: &Rgb, width: u32, height: u32, filter: Filter) -> Result<Rgb> {
    let canvas = Canvas::of(src.width, src.height);
    Cut::new(canvas, (width, height), filter, Window { x: 0, y: 0, width, height })?.apply(src)
}

/// A rectangle of the resized picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
}

/// A canvas of one colour, never drawn, and where on it a picture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canvas {
    width: u32,
    height: u32,
    /// Of the picture: its size and its first column and row.
    picture: (u32, u32),
    left: u32,
    top: u32,
    colour: [u8; 3],
}

impl Canvas {
    /// A picture alone.
    pub fn of(width: u32, height: u32) -> Canvas {
        Canvas { width, height, picture: (width, height), left: 0, top: 0, colour: [0; 3] }
    }

    /// A picture in the middle of a square (above and left of it by half a pixel, if the sum is odd).
    pub fn square(width: u32, height: u32, colour: [u8; 3]) -> Canvas {
        let side = width.max(height);
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        Canvas { width: side, height: side, picture: (width, height), left, top, colour }
    }

    /// Pixels a row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// First column and row of the picture.
    pub fn picture_at(&self) -> (u32, u32) {
        (self.left, self.top)
    }

    /// Its colour, red first.
    pub fn colour(&self) -> [u8; 3] {
        self.colour
    }

    /// Row `y` if the picture `img` has a part in it.
    fn row<'s>(&self, img: &'s Rgb, y: usize, scratch: &'s mut Vec<u8>) -> Option<&'s [u8]> {
        let pixels = img.row(y.checked_sub(self.top as usize)?);
        if pixels.is_empty() || self.width == img.width {
            return Some(pixels).filter(|p| !p.is_empty());
        }
        scratch.clear();
        scratch.extend(self.colour.iter().cycle().take(self.left as usize * 3));
        scratch.extend_from_slice(pixels);
        let rest = self.width as usize * 3 - scratch.len();
        scratch.extend(self.colour.iter().cycle().take(rest));
        Some(scratch)
    }
}

/// A part of a resized canvas: everything about a resizing but the pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    canvas: Canvas,
    columns: Axis,
    rows: Axis,
}

impl Cut {
    /// The part `window` of `canvas` resized to `size` (width, height).
    ///
    /// # Errors
    /// A zero side, or a window that leaves the result.
    pub fn new(canvas: Canvas, size: (u32, u32), filter: Filter, window: Window) -> Result<Cut> {
        let (width, height) = size;
        let right = u64::from(window.x) + u64::from(window.width);
        let bottom = u64::from(window.y) + u64::from(window.height);
        let long = window.width.max(window.height);
        ensure!(window.width > 0 && window.height > 0, "resizing to {width}x{height}: both sides must be at least 1");
        ensure!(long <= MAX_SIDE, "resizing to {width}x{height}: the limit of a side is {MAX_SIDE} pixels");
        ensure!(
            right <= u64::from(width) && bottom <= u64::from(height),
            "{window:?} leaves a picture of {width}x{height}"
        );
        let columns = Axis::new(canvas.width, width, window.x, window.width, filter);
        let rows = Axis::new(canvas.height, height, window.y, window.height, filter);
        Ok(Cut { canvas, columns, rows })
    }

    /// The canvas that is resized.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// What the columns of the result are made of, and what its rows.
    pub fn axes(&self) -> [&Axis; 2] {
        [&self.columns, &self.rows]
    }

    /// The window of `img` on the canvas.
    ///
    /// # Errors
    /// A picture of another size than the canvas was made for, or a result that does not fit into memory.
    pub fn apply(&self, img: &Rgb) -> Result<Rgb> {
        let Cut { canvas, columns, rows } = self;
        let (width, height) = canvas.picture;
        ensure!(
            (width, height) == (img.width, img.height),
            "a cut of a {width}x{height} picture does not fit one of {}x{}",
            img.width,
            img.height
        );
        let needed = rows.source();
        let stride = columns.len() * 3;
        let mut squeezed = allocate(needed.len(), stride)?;
        horizontal(canvas, img, columns, needed.start, &mut squeezed, stride);
        if rows.identity {
            return Rgb::new(columns.len() as u32, rows.len() as u32, squeezed);
        }
        let mut out = allocate(rows.len(), stride)?;
        vertical(&squeezed, rows, needed.start, &mut out, stride);
        Rgb::new(columns.len() as u32, rows.len() as u32, out)
    }
}

fn allocate(rows: usize, stride: usize) -> Result<Vec<u8>> {
    let bytes = rows.checked_mul(stride).filter(|n| Vec::<u8>::new().try_reserve_exact(*n).is_ok());
    let Some(bytes) = bytes else { bail!("{rows} rows of {stride} bytes do not fit into memory") };
    // Zeros are the kernel's, page by page, as threads write there.
    Ok(vec![0; bytes])
}

/// The weights along one axis, for a range of outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Whether the axis keeps its size: its pass is skipped.
    identity: bool,
    /// First source index of each output, and how many weights it has.
    taps: Vec<(usize, usize)>,
    /// `weights[i * stride ..]` belong to output i.
    weights: Vec<i32>,
    stride: usize,
}

impl Axis {
    fn new(n_in: u32, n_out: u32, first: u32, count: u32, filter: Filter) -> Axis {
        if n_in == n_out {
            let taps = (first..first + count).map(|i| (i as usize, 1)).collect();
            return Axis { identity: true, taps, weights: Vec::new(), stride: 0 };
        }
        let scale = f64::from(n_in) / f64::from(n_out);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let inverse = 1.0 / stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut axis = Axis { identity: false, taps: Vec::new(), weights: vec![0; stride * count as usize], stride };
        let mut exact = Vec::with_capacity(stride);
        for (i, fixed) in (first..first + count).zip(axis.weights.chunks_mut(stride)) {
            let centre = (f64::from(i) + 0.5) * scale;
            let lo = (centre - support + 0.5).max(0.0) as u32;
            let hi = ((centre + support + 0.5) as u32).min(n_in);
            exact.clear();
            exact.extend((lo..hi).map(|j| filter.weight((f64::from(j) - centre + 0.5) * inverse)));
            let sum: f64 = exact.iter().sum();
            for (k, w) in fixed.iter_mut().zip(&exact) {
                *k = to_fixed(if sum == 0.0 { *w } else { w / sum });
            }
            axis.taps.push((lo as usize, exact.len()));
        }
        axis
    }

    /// Number of outputs.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.taps.len()
    }

    /// Most weights of an output.
    pub fn taps(&self) -> usize {
        self.taps.iter().map(|t| t.1).max().unwrap_or(1)
    }

    /// As a device takes it, `[1 + taps, len]`: the first source index of each output; then its weights with 22 fraction
    /// bits, and zeros where it has fewer than [`Axis::taps`]. An axis that keeps its size has one weight of 1, which
    /// changes nothing.
    pub fn table(&self) -> Vec<i32> {
        let mut table: Vec<i32> = self.taps.iter().map(|t| t.0 as i32).collect();
        if self.identity {
            table.resize(2 * self.len(), 1 << PRECISION);
            return table;
        }
        let weight = |k: usize| move |i: usize| if k < self.taps[i].1 { self.weights[i * self.stride + k] } else { 0 };
        table.extend((0..self.taps()).flat_map(|k| (0..self.len()).map(weight(k))));
        table
    }

    /// The source indices that any output needs. Windows grow with i at both ends.
    fn source(&self) -> std::ops::Range<usize> {
        let first = self.taps.first().map_or(0, |t| t.0);
        let end = self.taps.iter().map(|t| t.0 + t.1).max().unwrap_or(0);
        first..end
    }

    /// First source index and weights of output `i`.
    fn output(&self, i: usize) -> (usize, &[i32]) {
        let (first, len) = self.taps[i];
        (first, &self.weights[i * self.stride..][..len])
    }
}

/// Rounds half away from zero.
fn to_fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Rows `first ..` of `img` on the canvas, squeezed (or cropped) to the columns of `axis`.
fn horizontal(canvas: &Canvas, img: &Rgb, axis: &Axis, first: usize, out: &mut [u8], stride: usize) {
    let empty: Vec<u8> = canvas.colour.iter().copied().cycle().take(canvas.width as usize * 3).collect();
    let mut blank = vec![0; stride];
    squeeze(&empty, axis, &mut blank);
    let work = if axis.identity { stride } else { stride * axis.stride };
    let rows = (JOB / work).max(1);
    out.par_chunks_mut(stride * rows).enumerate().for_each_init(Vec::new, |scratch, (job, out)| {
        for (i, out) in out.chunks_mut(stride).enumerate() {
            match canvas.row(img, first + job * rows + i, scratch) {
                Some(row) => squeeze(row, axis, out),
                None => out.copy_from_slice(&blank),
            }
        }
    });
}

fn squeeze(row: &[u8], axis: &Axis, out: &mut [u8]) {
    if axis.identity {
        out.copy_from_slice(&row[axis.taps[0].0 * 3..][..out.len()]);
        return;
    }
    let pixels = row.as_chunks::<3>().0;
    for (i, px) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (first, weights) = axis.output(i);
        let (mut r, mut g, mut b) = (HALF, HALF, HALF);
        for (k, p) in weights.iter().zip(&pixels[first..]) {
            r += k * i32::from(p[0]);
            g += k * i32::from(p[1]);
            b += k * i32::from(p[2]);
        }
        *px = [to_u8(r), to_u8(g), to_u8(b)];
    }
}

/// `rows`, of which the first is number `first` of the source, squeezed to the rows of `axis`.
fn vertical(rows: &[u8], axis: &Axis, first: usize, out: &mut [u8], stride: usize) {
    let jobs = (JOB / (stride * axis.stride)).max(1);
    out.par_chunks_mut(stride * jobs).enumerate().for_each(|(job, out)| {
        let mut sums = [0; BLOCK];
        for (i, out) in out.chunks_mut(stride).enumerate() {
            let (top, weights) = axis.output(job * jobs + i);
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let sums = &mut sums[..out.len()];
                sums.fill(HALF);
                for (j, k) in weights.iter().enumerate() {
                    let row = &rows[(top - first + j) * stride + block * BLOCK..][..out.len()];
                    for (sum, p) in sums.iter_mut().zip(row) {
                        *sum += k * i32::from(*p);
                    }
                }
                for (o, sum) in out.iter_mut().zip(sums) {
                    *o = to_u8(*sum);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that Pillow 11.3 computes, read off its C source's arithmetic.
    #[test]
    fn weights_are_pillows() {
        let up = Axis::new(4, 8, 0, 8, Filter::Bicubic);
        assert_eq!(up.output(0), (0, [4_564_390, -370_086].as_slice()));
        assert_eq!(up.output(1), (0, [3_398_305, 887_845, -91_846].as_slice()));
        assert_eq!(up.output(2), (0, [928_510, 3_553_952, -288_158].as_slice()));
        let down = Axis::new(8, 4, 0, 4, Filter::Bilinear);
        assert_eq!(down.output(0), (0, [1_797_559, 1_797_559, 599_186].as_slice()));
        assert_eq!(down.output(1), (1, [524_288, 1_572_864, 1_572_864, 524_288].as_slice()));
    }

    #[test]
    fn a_table_lists_first_indices_and_then_weights_by_tap() {
        let up = Axis::new(4, 8, 0, 3, Filter::Bicubic);
        let taps = [[4_564_390, 3_398_305, 928_510], [-370_086, 887_845, 3_553_952], [0, -91_846, -288_158]];
        assert_eq!((up.taps(), up.table()), (3, [[0; 3], taps[0], taps[1], taps[2]].concat()));
        let same = Axis::new(9, 9, 4, 2, Filter::Bicubic);
        assert_eq!((same.taps(), same.table()), (1, vec![4, 5, 1 << 22, 1 << 22]));
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let data = (0..40 * 30 * 3u32).map(|i| (i * 37 % 251) as u8).collect();
        let img = Rgb::new(40, 30, data).unwrap();
        for (width, height) in [(90, 70), (17, 13), (40, 61), (80, 30), (40, 30)] {
            let whole = resize(&img, width, height, Filter::Bicubic).unwrap();
            let window = Window { x: 3, y: 5, width: 11, height: 7 };
            let cut = Cut::new(Canvas::of(40, 30), (width, height), Filter::Bicubic, window).unwrap();
            let part = cut.apply(&img).unwrap();
            for y in 0..7 {
                assert_eq!(part.row(y), &whole.row(y + 5)[9..42], "{width}x{height}, row {y}");
            }
        }
    }
}
