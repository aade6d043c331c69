//! Phi-3-vision's "HD transform": the picture at the size that makes the most of a number of crops, with white above and
//! below, cut into tiles; and all of it once more, squashed to one tile. As Microsoft's processor does it on Pillow and
//! torch.
//!
//! The tiles are bytes, equal to the bit. The view of everything is an interpolation of normalised floats, of which the
//! order of additions is not torch's: they differ by 1e-6.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::resize::Filter;
use super::{MAX_TILE_BYTES, Rgb, resize};

/// Most crops that may be asked for: 64 tiles of 336 pixels are 22 MB.
pub const MAX_CROPS: u32 = 64;

/// Rows of a view that are one job: their sums take a tenth of a millisecond.
const BAND: usize = 16;

/// The settings of preprocessor_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Hd {
    /// `num_crops`: most tiles, without the view of everything.
    pub num_crops: u32,
    /// Side of a tile in pixels.
    pub tile: u32,
    /// `image_mean`, by channel.
    pub mean: [f64; 3],
    /// `image_std`, by channel; must not be zero.
    pub std: [f64; 3],
}

/// How pictures of one size are cut. Sizes are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HdShape {
    /// Whether rows and columns change places before and after, as they do in a picture that is taller than wide.
    pub transposed: bool,
    /// Size to which the picture, wider than tall, is resized.
    pub resized: (u32, u32),
    /// Tiles in a column and in a row of the result.
    pub grid: (u32, u32),
}

impl Hd {
    /// How pictures of one size are cut.
    ///
    /// # Errors
    /// A picture so thin that nothing is left of its height, or settings out of range.
    pub fn shape(&self, width: u32, height: u32) -> Result<HdShape> {
        ensure!(width > 0 && height > 0, "a picture of {width}x{height}: both sides must be at least 1");
        ensure!(
            (1..=MAX_CROPS).contains(&self.num_crops),
            "num_crops is {}; it must be from 1 to {MAX_CROPS}",
            self.num_crops
        );
        ensure!(self.tile > 0, "tiles of 0 pixels");
        let transposed = width < height;
        // Quotients in f64, as the original has them: exact fractions give another height for a few sizes.
        let ratio = f64::from(width.max(height)) / f64::from(width.min(height));
        let fits = |tiles: u32| f64::from(tiles) * (f64::from(tiles) / ratio).ceil() <= f64::from(self.num_crops);
        let across = (2..).take_while(|&tiles| fits(tiles)).last().unwrap_or(1);
        let wide = self.tile * across;
        let tall = (f64::from(wide) / ratio).trunc() as u32;
        ensure!(
            tall > 0,
            "a picture of {width}x{height} would be {wide}x{tall} with num_crops {}; it is too thin",
            self.num_crops
        );
        let down = tall.div_ceil(self.tile);
        let bytes = 3 * u64::from(down) * u64::from(across) * u64::from(self.tile).pow(2);
        ensure!(
            bytes <= MAX_TILE_BYTES,
            "the {} tiles of a picture take {bytes} bytes; the limit is {MAX_TILE_BYTES} (num_crops {})",
            down * across,
            self.num_crops
        );
        let grid = if transposed { (across, down) } else { (down, across) };
        Ok(HdShape { transposed, resized: (tall, wide), grid })
    }

    /// The picture, resized, on white: [`HdShape::grid`] tiles.
    ///
    /// # Errors
    /// As [`Hd::shape`], or if the result does not fit into memory.
    pub fn canvas(&self, img: &Rgb) -> Result<Rgb> {
        let shape = self.shape(img.width(), img.height())?;
        let (tall, wide) = shape.resized;
        let resized = if shape.transposed {
            resize(&transpose(img)?, wide, tall, Filter::Bilinear)?
        } else {
            resize(img, wide, tall, Filter::Bilinear)?
        };
        let full = tall.div_ceil(self.tile) * self.tile;
        let canvas = resized.framed(wide, full, (0, (full - tall) / 2), [255; 3])?;
        if shape.transposed { transpose(&canvas) } else { Ok(canvas) }
    }

    /// The tiles of a canvas, row by row: `[grid rows * grid columns, tile, tile, 3]` bytes.
    pub fn tiles(&self, canvas: &Rgb) -> Vec<u8> {
        let mut tiles = vec![0; canvas.data.len()];
        canvas.cut(self.tile, &mut tiles);
        tiles
    }

    /// What every byte becomes: `[3, 256]`, channel by channel. `(byte / 255 - mean) / std`, all in f32.
    pub fn table(&self) -> Vec<f32> {
        let channels = self.mean.into_iter().zip(self.std);
        let values =
            |(mean, std): (f64, f64)| (0..=255u8).map(move |b| (f32::from(b) / 255.0 - mean as f32) / std as f32);
        channels.flat_map(values).collect()
    }

    /// All of a canvas in one tile: `[3, tile, tile]`, normalised.
    pub fn overview(&self, canvas: &Rgb) -> Vec<f32> {
        let (side, table) = (self.tile as usize, self.table());
        let columns = taps(canvas.width as usize, side);
        let rows = taps(canvas.height as usize, side);
        let mut view = vec![0.0; 3 * side * side];
        // The same rows of all three channels belong together.
        let (red, others) = view.split_at_mut(side * side);
        let (green, blue) = others.split_at_mut(side * side);
        let [red, green, blue] = [red, green, blue].map(|plane| plane.par_chunks_mut(BAND * side));
        let bands = red.zip_eq(green).zip_eq(blue).zip_eq(rows.par_chunks(BAND));
        bands.for_each(|(((red, green), blue), rows)| {
            shrink(canvas, &table, &columns, rows, [red, green, blue]);
        });
        view
    }
}

impl HdShape {
    /// Tiles without the view of everything.
    pub fn tiles(&self) -> usize {
        self.grid.0 as usize * self.grid.1 as usize
    }

    /// Places of the picture in a sequence, where 2 x 2 features of a tile's `side` x `side` become one: tiles and view
    /// with a separator at the end of every row, and one between them.
    pub fn tokens(&self, side: usize) -> usize {
        let (rows, columns) = (self.grid.0 as usize * (side / 2), self.grid.1 as usize * (side / 2));
        rows * (columns + 1) + 1 + side / 2 * (side / 2 + 1)
    }
}

/// Rows of a view, `rows.len()` of each channel, from the rows of the canvas that they are interpolated from.
fn shrink(canvas: &Rgb, table: &[f32], columns: &[Tap], rows: &[Tap], planes: [&mut [f32]; 3]) {
    let side = columns.len();
    // Four neighbouring rows are needed at a time; row `y` is held in place `y % 4`.
    let mut held = [(); 4].map(|()| (usize::MAX, vec![0.0; 3 * side]));
    let mut lines = planes.map(|plane| plane.chunks_exact_mut(side));
    for (ys, down) in rows {
        for at in *ys {
            let (row, line) = &mut held[at % 4];
            if *row != at {
                *row = at;
                narrow(canvas.row(at), table, columns, line);
            }
        }
        let from = ys.map(|at| &held[at % 4].1);
        for (c, to) in lines.iter_mut().filter_map(Iterator::next).enumerate() {
            let from = from.map(|line| &line[c * side..][..side]);
            for (x, value) in to.iter_mut().enumerate() {
                *value = sum(from.map(|line| line[x]), down);
            }
        }
    }
}

/// A row of a canvas, each byte looked up, interpolated to `columns`: `[3, columns]` to `line`.
fn narrow(row: &[u8], table: &[f32], columns: &[Tap], line: &mut [f32]) {
    for (c, (values, line)) in table.chunks_exact(256).zip(line.chunks_exact_mut(columns.len())).enumerate() {
        for (value, (xs, across)) in line.iter_mut().zip(columns) {
            *value = sum(xs.map(|x| values[usize::from(row[3 * x + c])]), across);
        }
    }
}

fn sum(values: [f32; 4], weights: &[f32; 4]) -> f32 {
    values.iter().zip(weights).map(|(v, w)| v * w).sum()
}

/// The four positions that one is interpolated from, ascending, and their weights.
type Tap = ([usize; 4], [f32; 4]);

/// For each of `n_out` positions, those of `n_in` that it is interpolated from: Keys' cubic with
/// a = -0.75, positions at the middle of their pixels, nothing smoothed where it shrinks (`torch.nn.functional.interpolate`
/// with `mode="bicubic"`).
fn taps(n_in: usize, n_out: usize) -> Vec<Tap> {
    const A: f32 = -0.75;
    let near = |u: f32| ((A + 2.0) * u - (A + 3.0)) * u * u + 1.0;
    let far = |u: f32| ((A * u - 5.0 * A) * u + 8.0 * A) * u - 4.0 * A;
    let scale = n_in as f32 / n_out as f32;
    let tap = |i: usize| {
        let centre = scale * (i as f32 + 0.5) - 0.5;
        let (first, t) = (centre.floor(), centre - centre.floor());
        let at = |j: i64| (first as i64 + j).clamp(0, n_in as i64 - 1) as usize;
        ([-1, 0, 1, 2].map(at), [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
    };
    (0..n_out).map(tap).collect()
}

/// Rows for columns: a mirror image about the main diagonal, no rotation.
fn transpose(img: &Rgb) -> Result<Rgb> {
    /// Rows that are read side by side: so few stay in the cache from one column to the next.
    const BAND: usize = 16;
    let (width, height) = (img.width as usize, img.height as usize);
    let mut data = vec![0; img.data.len()];
    let (from, to) = (img.data.as_chunks::<3>().0, data.as_chunks_mut::<3>().0);
    for top in (0..height).step_by(BAND) {
        for x in 0..width {
            let rows = top..height.min(top + BAND);
            for (pixel, y) in to[x * height..][rows.clone()].iter_mut().zip(rows) {
                *pixel = from[y * width + x];
            }
        }
    }
    Rgb::new(img.height, img.width, data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hd(num_crops: u32) -> Hd {
        let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
        Hd { num_crops, tile: 336, mean, std }
    }

    #[test]
    fn shapes_and_counts_are_those_of_the_original() {
        // Width, height; with 4 crops and with 16: height and width of the canvas, tokens.
        let cases = [
            (336, 336, (672, 672, 757), (1344, 1344, 2509)),
            (1, 1, (672, 672, 757), (1344, 1344, 2509)),
            (640, 480, (672, 672, 757), (1008, 1344, 1921)),
            (480, 640, (672, 672, 757), (1344, 1008, 1933)),
            (1920, 1080, (672, 672, 757), (1008, 1680, 2353)),
            (1080, 1920, (672, 672, 757), (1680, 1008, 2377)),
            (1000, 200, (336, 1344, 745), (672, 2688, 2485)),
            (200, 1000, (1344, 336, 781), (2688, 672, 2557)),
            (3000, 100, (336, 1344, 745), (336, 5376, 2473)),
            (100, 3000, (1344, 336, 781), (5376, 336, 2653)),
            (333, 777, (672, 336, 469), (1680, 1008, 2377)),
        ];
        for (width, height, four, sixteen) in cases {
            for (crops, expected) in [(4, four), (16, sixteen)] {
                let shape = hd(crops).shape(width, height).unwrap();
                let found = (336 * shape.grid.0, 336 * shape.grid.1, shape.tokens(24));
                assert_eq!(found, expected, "{width}x{height} with {crops}");
            }
        }
        // 56 / 41 in f64: exactly it would be 492.
        assert_eq!(hd(4).shape(56, 41).unwrap().resized, (491, 672));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(hd(4).shape(3000, 1).unwrap_err().to_string().contains("too thin"));
        assert!(hd(0).shape(8, 8).unwrap_err().to_string().contains("num_crops is 0"));
        assert!(hd(1000).shape(8, 8).unwrap_err().to_string().contains("num_crops is 1000"));
    }

    #[test]
    fn half_the_size_has_torchs_weights() {
        let (at, weights) = taps(672, 336)[1];
        assert_eq!((at, weights), ([1, 2, 3, 4], [-0.09375, 0.59375, 0.59375, -0.09375]));
        assert_eq!(taps(672, 336)[0].0, [0, 0, 1, 2]);
    }

    /// Four terms a sum and two sums one in the other: every term is rounded eight times at most.
    #[test]
    fn the_view_of_everything_is_the_sum_over_sixteen_pixels() {
        let small = Hd { tile: 4, ..hd(4) };
        for (width, height) in [(4, 4), (3, 2), (1, 1), (8, 12), (13, 7), (64, 4), (5, 90)] {
            let bytes: Vec<u8> = (0..width * height * 3).map(|i| (i * i * 7 % 251) as u8).collect();
            let canvas = Rgb::new(width, height, bytes).unwrap();
            let (table, found) = (small.table(), small.overview(&canvas));
            let (rows, columns) = (taps(height as usize, 4), taps(width as usize, 4));
            for (i, &found) in found.iter().enumerate() {
                let (c, (ys, down), (xs, across)) = (i / 16, rows[i / 4 % 4], columns[i % 4]);
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for (j, k) in (0..4).flat_map(|j| (0..4).map(move |k| (j, k))) {
                    let value = table[c * 256 + usize::from(canvas.row(ys[j])[3 * xs[k] + c])];
                    let term = f64::from(down[j]) * f64::from(across[k]) * f64::from(value);
                    (sum, magnitude) = (sum + term, magnitude + term.abs());
                }
                let bound = 8.01 * f64::from(f32::EPSILON) / 2.0 * magnitude;
                assert!((f64::from(found) - sum).abs() <= bound, "{width}x{height}, {i}: {found} instead of {sum}");
            }
        }
    }

    #[test]
    fn the_border_is_white_and_tall_pictures_are_not_turned() {
        let small = Hd { tile: 4, ..hd(4) };
        // Two rows of red over one of blue, wide enough for one row of two tiles.
        let img = Rgb::new(8, 2, [[255, 0, 0].repeat(8), [0, 0, 255].repeat(8)].concat()).unwrap();
        let canvas = small.canvas(&img).unwrap();
        assert_eq!((canvas.height(), canvas.width()), (4, 16));
        assert_eq!((&canvas.row(0)[..3], &canvas.row(3)[..3]), (&[255, 0, 0][..], &[0, 0, 255][..]));
        let tall = small.canvas(&transpose(&img).unwrap()).unwrap();
        assert_eq!(tall, transpose(&canvas).unwrap());
        let wide = small.canvas(&Rgb::filled(16, 3, [0; 3]).unwrap()).unwrap();
        assert_eq!((wide.row(0), wide.row(3)), (&[0; 48][..], &[255; 48][..]));
        assert_eq!(small.tiles(&wide).len(), 4 * 4 * 4 * 3);
    }

    proptest! {
        #[test]
        fn the_tiles_never_exceed_what_was_asked_for(width in 1u32..3000, height in 1u32..3000, crops in 1u32..20) {
            if let Ok(shape) = hd(crops).shape(width, height) {
                prop_assert!(shape.tiles() >= 1 && shape.tiles() <= crops as usize);
                let (rows, columns) = shape.grid;
                prop_assert_eq!(shape.tokens(24), (shape.tiles() + 1) * 144 + 1 + (rows as usize + 1) * 12);
                prop_assert!(columns > 0);
            }
        }
    }
}
