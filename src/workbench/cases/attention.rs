//! Attention, and what puts keys and values into the cache.

use super::{Case, Size, Tolerance, U};
use crate::kernel::Kernel;
use crate::mem::{Act, Buf, Region};
use crate::ops::{DenseAttention, KV_BLOCK, PagedDecode, PagedKv, PagedPrefill, RopeKv, rope_table};
use crate::workbench::Bed;

/// Queries are up to this large and keys up to 1, so that scores have a standard deviation of 2: a few keys count, and
/// one that is missed or seen twice shows.
const SHARPNESS: f32 = 6.0;

/// Values are at most 1 and results are means of them, so everything here is absolute. A score of `d` products is off by
/// `d / 4` roundings of its magnitude, which is below `1.5 sqrt(d)`; the exponential by four of its own and those of its
/// argument, below 20; numerator and denominator are sums of `n` terms that are scaled and joined in at most 30 steps. A
/// weight is rounded to the float type before it meets its value, and f16 has no smaller exponent than 2^-24. Then the
/// result is rounded once.
fn tolerance(tokens: usize, head_dim: usize) -> Tolerance {
    let (n, d) = (tokens as f64, head_dim as f64);
    let weight = 1.5 * d.sqrt() * (d / 4.0 + 2.0) + 24.0;
    Tolerance { arithmetic: (2.0 * weight + 2.0 * n + 60.0) * U, roundings: 1.0, ulps: 1.0 }
}

/// Query heads, key heads, width.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

const LLAMA_7B: Heads = heads(32, 32, 128);
const MISTRAL_7B: Heads = heads(32, 8, 128);
const PHI_3: Heads = heads(32, 32, 96);

impl Heads {
    /// Elements of a row of queries, keys and values.
    fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

impl std::fmt::Display for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}x{}", self.heads, self.kv_heads, self.head_dim)
    }
}

/// [`tolerance`] where queries, keys and values have one scale, 2, rotated or not: scores have a standard deviation of 4/3,
/// and values are twice as large.
fn tolerance_of_twos(tokens: usize, head_dim: usize) -> Tolerance {
    let Tolerance { arithmetic, roundings, ulps } = tolerance(tokens, head_dim);
    Tolerance { arithmetic: 2.0 * arithmetic, roundings: 2.0 * roundings, ulps }
}

fn dense(size: Size, tiles: usize, tokens: usize, heads: usize, head_dim: usize) -> Case {
    let (name, width) = (format!("{tiles}x{tokens} heads {heads}x{head_dim}"), heads * head_dim);
    Case::new(DenseAttention::NAME, name, size, tolerance_of_twos(tokens, head_dim), move |bed: &mut Bed| {
        DenseAttention {
            o: bed.output(Region::Scratch, tiles * tokens * width),
            qkv: bed.uniform(Region::Scratch, tiles * tokens * 3 * width, 2.0),
            tiles,
            tokens,
            heads,
            head_dim,
        }
    })
}

/// A cache whose sequences own scrambled blocks.
struct Cache {
    kv: PagedKv,
    block_table: Buf<i32>,
    max_blocks: usize,
    /// Where the last token of each sequence lies, or -1.
    slots: Vec<i32>,
}

fn cache(bed: &mut Bed, h: Heads, lens: &[usize], scale: f32) -> Cache {
    let blocks = || lens.iter().map(|len| len.div_ceil(KV_BLOCK));
    let max_blocks = blocks().max().unwrap_or(0).max(1) + 1;
    // Seven is no factor of the pool's size, so this is a permutation of it.
    let needed = blocks().sum::<usize>() + 2;
    let pool = needed + usize::from(needed.is_multiple_of(7));
    let mut free = (0..pool).map(|i| (i * 7 + 3) % pool);
    let mut table = vec![-1; lens.len() * max_blocks];
    for (row, blocks) in table.chunks_exact_mut(max_blocks).zip(blocks()) {
        row.iter_mut().zip(free.by_ref().take(blocks)).for_each(|(entry, block)| *entry = block as i32);
    }
    let slot = |(row, &len): (&[i32], &usize)| match len.checked_sub(1) {
        Some(last) => row[last / KV_BLOCK] * KV_BLOCK as i32 + (last % KV_BLOCK) as i32,
        None => -1,
    };
    let slots = table.chunks_exact(max_blocks).zip(lens).map(slot).collect();
    let mut half = || bed.uniform(Region::Kv, pool * h.kv_heads * KV_BLOCK * h.head_dim, scale);
    let kv = PagedKv { k: half(), v: half(), kv_heads: h.kv_heads, head_dim: h.head_dim };
    Cache { kv, block_table: bed.ints(&table), max_blocks, slots }
}

fn ints(values: impl IntoIterator<Item = usize>) -> Vec<i32> {
    values.into_iter().map(|v| v as i32).collect()
}

fn decode(size: Size, h: Heads, lens: &'static [usize]) -> Case {
    let (seqs, longest) = (lens.len(), lens.iter().copied().max().unwrap_or(0));
    let all_equal = lens.iter().all(|len| *len == longest);
    let name = if all_equal { format!("{seqs}x{longest} heads {h}") } else { format!("{lens:?} heads {h}") };
    Case::new(PagedDecode::NAME, name, size, tolerance_of_twos(longest, h.head_dim), move |bed: &mut Bed| {
        let Cache { kv, block_table, max_blocks, slots } = cache(bed, h, lens, 2.0);
        let last = |len: usize| len.saturating_sub(1);
        PagedDecode {
            table: bed.floats(Region::Weights, rope_table(1e4, h.head_dim, longest.max(1))),
            positions: bed.ints(&ints(lens.iter().copied().map(last))),
            slot_mapping: bed.ints(&slots),
            o: bed.output(Region::Scratch, seqs * h.heads * h.head_dim),
            qkv: bed.uniform(Region::Scratch, seqs * h.row(), 2.0),
            kv,
            block_table,
            seq_lens: bed.ints(&ints(lens.iter().copied())),
            seqs,
            heads: h.heads,
            max_blocks,
            context: longest,
        }
    })
}

/// `parts` are the tokens in the cache of each sequence, and how many of them are new.
fn prefill(size: Size, h: Heads, parts: &'static [[usize; 2]]) -> Case {
    let seqs = parts.len();
    let (longest, tokens) = (parts.iter().map(|p| p[0]).max().unwrap_or(0), parts.iter().map(|p| p[1]).sum());
    let of = parts.iter().map(|[len, new]| format!("{new}/{len}")).collect::<Vec<_>>().join(" ");
    let name = format!("{of} heads {h}");
    Case::new(PagedPrefill::NAME, name, size, tolerance(longest, h.head_dim), move |bed: &mut Bed| {
        let lens: Vec<usize> = parts.iter().map(|p| p[0]).collect();
        let starts = parts.iter().scan(0, |row, p| {
            *row += p[1];
            Some(*row)
        });
        let Cache { kv, block_table, max_blocks, .. } = cache(bed, h, &lens, 1.0);
        PagedPrefill {
            o: bed.output(Region::Scratch, tokens * h.heads * h.head_dim),
            qkv: bed.uniform(Region::Scratch, tokens * h.row(), SHARPNESS),
            kv,
            block_table,
            query_start: bed.ints(&ints(std::iter::once(0).chain(starts))),
            seq_lens: bed.ints(&ints(lens)),
            seqs,
            heads: h.heads,
            tokens,
            max_blocks,
            context: longest,
        }
    })
}

/// Tokens `first ..` of one sequence; every fourth has no slot where `holes`. A product and a difference of numbers up to
/// 1, one of them perhaps fused, and one rounding.
fn rope(size: Size, h: Heads, first: usize, tokens: usize, holes: bool) -> Case {
    let tolerance = Tolerance { arithmetic: 4.0 * U, ulps: 1.0, ..Tolerance::BITS };
    let name = format!("{tokens} from {first} heads {h}");
    Case::new(RopeKv::NAME, name, size, tolerance, move |bed: &mut Bed| {
        let blocks = (first + tokens).div_ceil(KV_BLOCK);
        let mut half = || bed.uniform::<Act>(Region::Kv, blocks * h.kv_heads * KV_BLOCK * h.head_dim, 1.0);
        let kv = PagedKv { k: half(), v: half(), kv_heads: h.kv_heads, head_dim: h.head_dim };
        // The blocks of the sequence, backwards.
        let slot = |token: usize| ((blocks - 1 - token / KV_BLOCK) * KV_BLOCK + token % KV_BLOCK) as i32;
        let slots: Vec<i32> = (first..first + tokens).map(|t| if holes && t % 4 == 3 { -1 } else { slot(t) }).collect();
        RopeKv {
            qkv: bed.uniform(Region::Scratch, tokens * h.row(), 1.0),
            kv,
            table: bed.floats(Region::Weights, rope_table(1e4, h.head_dim, first + tokens)),
            positions: bed.ints(&ints(first..first + tokens)),
            slot_mapping: bed.ints(&slots),
            tokens,
            heads: h.heads,
        }
    })
}

pub(super) fn cases() -> Vec<Case> {
    use Size::{Edge, Real};
    vec![
        dense(Edge, 1, 1, 1, 64),
        dense(Edge, 2, 17, 3, 32),
        dense(Edge, 1, 65, 2, 64),
        dense(Real, 1, 577, 16, 64),
        dense(Real, 5, 577, 16, 64),
        decode(Edge, heads(1, 1, 64), &[1]),
        decode(Edge, heads(2, 1, 32), &[15, 16, 17, 0, 33]),
        decode(Edge, heads(8, 1, 128), &[5, 129]),
        decode(Edge, heads(12, 4, 96), &[64, 63]),
        decode(Real, LLAMA_7B, &[645]),
        decode(Real, LLAMA_7B, &[645; 8]),
        decode(Real, LLAMA_7B, &[4096]),
        decode(Real, PHI_3, &[830]),
        decode(Real, MISTRAL_7B, &[2400]),
        prefill(Edge, heads(1, 1, 64), &[[1, 1]]),
        prefill(Edge, heads(4, 2, 32), &[[17, 17], [40, 3], [16, 1]]),
        prefill(Edge, heads(4, 1, 96), &[[66, 65]]),
        prefill(Edge, heads(2, 2, 128), &[[130, 64], [5, 5]]),
        prefill(Real, LLAMA_7B, &[[645, 645]]),
        prefill(Real, LLAMA_7B, &[[645, 133]]),
        prefill(Real, PHI_3, &[[830, 830]]),
        prefill(Real, MISTRAL_7B, &[[2400, 2400]]),
        rope(Edge, heads(4, 2, 32), 0, 5, true),
        rope(Edge, heads(2, 1, 20), 30, 3, false),
        rope(Edge, heads(3, 3, 96), 15, 18, true),
        rope(Real, LLAMA_7B, 644, 1, false),
        rope(Real, LLAMA_7B, 637, 8, false),
        rope(Real, LLAMA_7B, 0, 645, false),
    ]
}
