//! The inverse DCT, in the integers of libjpeg's accurate method (`jidctint.c`, after Loeffler, Ligtenberg and Moschytz):
//! the same roundings, so the same samples.
//!
//! Eight columns go through a pass side by side, and every product is one of 16-bit numbers: in this form compilers use
//! vector instructions that every x86-64 has. What a wild file overflows is clamped or wraps, as it does there.

use super::huffman::Block;

/// Fraction bits of the constants, and those that the first pass keeps.
const FRACTION: u32 = 13;
const KEPT: u32 = 2;

/// `round(x * 2^13)`.
const C0_298: i32 = 2446;
const C0_390: i32 = 3196;
const C0_541: i32 = 4433;
const C0_765: i32 = 6270;
const C0_899: i32 = 7373;
const C1_175: i32 = 9633;
const C1_501: i32 = 12_299;
const C1_847: i32 = 15_137;
const C1_961: i32 = 16_069;
const C2_053: i32 = 16_819;
const C2_562: i32 = 20_995;
const C3_072: i32 = 25_172;

/// Eight rows of eight.
type Rows = [[i16; 8]; 8];

/// The samples of a block, from its coefficients and their quantisation, both in natural order: eight rows of eight from
/// `at` on, `stride` bytes apart.
pub(super) fn idct(block: &Block, quant: &[i16; 64], samples: &mut [u8], at: usize, stride: usize) {
    let mut values = [[0; 8]; 8];
    let coefficients = block.as_chunks::<8>().0.iter().zip(quant.as_chunks::<8>().0);
    for (row, (block, quant)) in values.iter_mut().zip(coefficients) {
        *row = std::array::from_fn(|x| block[x].wrapping_mul(quant[x]));
    }
    let rows = if is_flat(block) {
        [[(i32::from(values[0][0]) + 4) >> 3; 8].map(|v| v as i16); 8]
    } else {
        transposed(&pass::<{ FRACTION + KEPT + 3 }>(&transposed(&pass::<{ FRACTION - KEPT }>(&values))))
    };
    for (y, row) in rows.iter().enumerate() {
        let to = &mut samples[at + y * stride..][..8];
        to.iter_mut().zip(row).for_each(|(to, v)| *to = (v.saturating_add(128)).clamp(0, 255) as u8);
    }
}

/// Whether a block has its first coefficient alone.
fn is_flat(block: &Block) -> bool {
    block[1..].iter().fold(0, |all, v| all | v) == 0
}

fn transposed(rows: &Rows) -> Rows {
    std::array::from_fn(|y| std::array::from_fn(|x| rows[x][y]))
}

/// The transform of every column, scaled by the square root of eight, of which `BITS` bits are dropped.
fn pass<const BITS: u32>(v: &Rows) -> Rows {
    let mut out = [[0; 8]; 8];
    for x in 0..8 {
        let at = |y: usize| i32::from(v[y][x]);
        let sum = |a: usize, b: usize| i32::from(v[a][x].wrapping_add(v[b][x]));

        let [a, b] = [(at(0) + at(4)) << FRACTION, (at(0) - at(4)) << FRACTION];
        let c = at(2) * C0_541 + at(6) * (C0_541 - C1_847);
        let d = at(2) * (C0_541 + C0_765) + at(6) * C0_541;
        let even = [a.wrapping_add(d), b.wrapping_add(c), b.wrapping_sub(c), a.wrapping_sub(d)];

        let (z3, z4) = (sum(7, 3), sum(5, 1));
        let z = [z3 * (C1_175 - C1_961) + z4 * C1_175, z3 * C1_175 + z4 * (C1_175 - C0_390)];
        let odd = [
            (at(1) * (C1_501 - C0_899) - at(7) * C0_899).wrapping_add(z[1]),
            (at(3) * (C3_072 - C2_562) - at(5) * C2_562).wrapping_add(z[0]),
            (at(5) * (C2_053 - C2_562) - at(3) * C2_562).wrapping_add(z[1]),
            (at(7) * (C0_298 - C0_899) - at(1) * C0_899).wrapping_add(z[0]),
        ];
        let half = 1 << (BITS - 1);
        let narrow = |sum: i32| (sum.wrapping_add(half) >> BITS).clamp(-32_768, 32_767) as i16;
        for i in 0..4 {
            out[i][x] = narrow(even[i].wrapping_add(odd[i]));
            out[7 - i][x] = narrow(even[i].wrapping_sub(odd[i]));
        }
    }
    out
}
