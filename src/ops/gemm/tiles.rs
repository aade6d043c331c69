//! Which kernel of `cuda/gemm.cu` computes a product: arithmetic over the size and the device.
//!
//! The family decides in which order an element's products are added up; which tile of a family it is changes no bit.

/// How a kernel goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Few rows: bound by reading `b` once.
    Stream,
    /// Many rows, with the tensor cores of any device.
    Tile,
    /// Many rows, with those and the copy engine of `sm_90a`.
    Wgmma,
}

/// One kernel: what a block computes at a time, and how it is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How it goes about it.
    pub family: Family,
    /// Rows of `a`.
    pub rows: usize,
    /// Places: rows of `b`, or with SwiGLU eight gate rows and the eight up rows that belong to them in turn.
    pub places: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub smem: u32,
    /// Entry points for f16 and bf16.
    pub symbols: [&'static str; 2],
}

/// A kernel for a product of a certain size.
pub struct Choice {
    /// The kernel.
    pub shape: &'static Shape,
    /// Its grid.
    pub grid: [u32; 3],
}

macro_rules! symbols {
    ($name:literal) => {
        [concat!("gemm_f16_", $name), concat!("gemm_bf16_", $name)]
    };
}

/// For few rows.
const STREAM: Shape =
    Shape { family: Family::Stream, rows: 16, places: 16, threads: 256, smem: 0, symbols: symbols!("stream16") };

/// From this many rows of `b` on, tiles occupy the device well enough to be faster than [`STREAM`] for more than
/// eight rows of `a`.
const WIDE: usize = 16384;

/// For many rows on any device.
const TILES: [Tile; 4] = [
    Tile::new(128, 128, 3, symbols!("tile128x128"), 2, [45, 30]),
    Tile::new(128, 64, 3, symbols!("tile128x64"), 3, [30, 20]),
    Tile::new(64, 64, 3, symbols!("tile64x64"), 4, [22, 12]),
    Tile::new(64, 32, 6, symbols!("tile64x32"), 3, [18, 7]),
];

/// A kernel of [`Family::Tile`] and what it costs.
struct Tile {
    shape: Shape,
    /// Blocks that a multiprocessor holds.
    resident: usize,
    /// Microseconds on an H200 at `k = 4096`: of a wave, and more for each block of it on a multiprocessor.
    time: [usize; 2],
}

impl Tile {
    /// Shared memory holds `stages` slices of 64 two-byte elements of every row.
    const fn new(
        rows: usize,
        places: usize,
        stages: usize,
        symbols: [&'static str; 2],
        resident: usize,
        time: [usize; 2],
    ) -> Tile {
        let smem = (stages * (rows + places) * 64 * 2) as u32;
        Tile { shape: Shape { family: Family::Tile, rows, places, threads: 128, smem, symbols }, resident, time }
    }

    /// What `blocks` blocks take: whole waves, then what is left over. Good to a tenth; `k` would scale all alike.
    fn cost(&self, blocks: usize, sms: usize) -> usize {
        let [wave, each] = self.time;
        let (waves, rest) = (blocks / (self.resident * sms), blocks % (self.resident * sms));
        let last = if rest == 0 { 0 } else { wave + each * rest.div_ceil(sms) };
        waves * (wave + each * self.resident) + last
    }
}

/// For many rows on `sm_90a`. A ring has as many stages as fit beside the tile of `c`, 16 at most.
const WGMMA: [Shape; 11] = [
    wgmma(256, 128, 3, symbols!("wgmma256x128")),
    wgmma(216, 128, 4, symbols!("wgmma216x128")),
    wgmma(184, 128, 4, symbols!("wgmma184x128")),
    wgmma(168, 128, 4, symbols!("wgmma168x128")),
    wgmma(152, 128, 5, symbols!("wgmma152x128")),
    wgmma(128, 128, 5, symbols!("wgmma128x128")),
    wgmma(96, 128, 6, symbols!("wgmma96x128")),
    wgmma(64, 128, 8, symbols!("wgmma64x128")),
    wgmma(80, 64, 10, symbols!("wgmma80x64")),
    wgmma(64, 64, 11, symbols!("wgmma64x64")),
    wgmma(32, 64, 16, symbols!("wgmma32x64")),
];

/// A warpgroup of 128 threads for every 64 places and one for the copies; shared memory as `WgmmaLayout` in
/// `cuda/gemm_sm90.cuh` divides it: the ring, the tile of `c`, and barriers of eight bytes.
const fn wgmma(rows: usize, places: usize, stages: usize, symbols: [&'static str; 2]) -> Shape {
    let warpgroups = places / 64;
    let smem = stages * (rows + places) * 128 + rows * places * 2 + (2 * stages + warpgroups) * 8;
    Shape { family: Family::Wgmma, rows, places, threads: (128 * (warpgroups + 1)) as u32, smem: smem as u32, symbols }
}

/// Picoseconds that a kernel of [`WGMMA`] takes on an H200: for each slice of 64 `k` what the tensor cores need, or the
/// L2 cache for as many blocks, whichever is slower, and for each tile its start and its end.
///
/// Fitted to measurements at 17 to 2048 rows. Over the layers of LLaVA-1.5-7B the tile of least cost took 1.6% more than
/// the fastest on average, and 12% at worst, where reading `b` from memory is what takes the time.
fn wgmma_cost(shape: &Shape, tiles: usize, k: usize, sms: usize) -> usize {
    let Shape { rows, places, .. } = *shape;
    let tensor_cores = rows * places * 18 + 100_000;
    let l2_cache = (rows + places) * tiles.min(sms) * 10;
    tiles.div_ceil(sms) * (k.div_ceil(64) * tensor_cores.max(l2_cache) + 2_000_000)
}

/// The kernel that is done first, of the family for this size. `pairs` is the number of gate rows with SwiGLU; `wgmma` says
/// whether that family can compute it.
pub fn choose(m: usize, n: usize, k: usize, pairs: Option<usize>, sms: u32, wgmma: bool) -> Choice {
    let places = pairs.map_or(n, |pairs| pairs.div_ceil(8) * 16);
    let sms = sms.max(1) as usize;
    let tiles = |shape: &Shape| m.div_ceil(shape.rows) * places.div_ceil(shape.places);
    if m <= 8 || (m <= STREAM.rows && n < WIDE) {
        return Choice { shape: &STREAM, grid: [places.div_ceil(STREAM.places) as u32, 1, 1] };
    }
    if wgmma && pairs.is_none_or(|pairs| pairs.is_multiple_of(8)) {
        let shape = first_least(&WGMMA, |shape| wgmma_cost(shape, tiles(shape), k, sms));
        return Choice { shape, grid: [tiles(shape).min(sms) as u32, 1, 1] };
    }
    let shape = &first_least(&TILES, |tile| tile.cost(tiles(&tile.shape), sms)).shape;
    // Rows of `a` along x, so that blocks which run together share rows of `b`, the larger operand.
    Choice { shape, grid: [m.div_ceil(shape.rows) as u32, places.div_ceil(shape.places) as u32, 1] }
}

/// The first of those that cost least.
fn first_least<T, const N: usize>(all: &'static [T; N], cost: impl Fn(&T) -> usize) -> &'static T {
    const { assert!(N > 0, "there is a kernel to choose") };
    all.iter().fold(&all[0], |best, other| if cost(other) < cost(best) { other } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_and_a_tile_of_c_fit_a_multiprocessor() {
        for shape in &WGMMA {
            assert!(shape.smem <= 232_448, "{shape:?}");
        }
    }

    #[test]
    fn a_tile_is_as_wide_as_the_waves_allow() {
        // 645 rows are four times 168 with little left over, and 4096 places then fill 128 multiprocessors once.
        let cost = |i: usize| wgmma_cost(&WGMMA[i], 645usize.div_ceil(WGMMA[i].rows) * 32, 4096, 132);
        let [wide, fitting, narrow] = [0, 3, 6].map(cost);
        assert!(fitting < wide && fitting < narrow, "{wide} {fitting} {narrow}");
    }
}
