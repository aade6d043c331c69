//! PagedPrefill and PagedDecode.
//!
//! Caches are poisoned: every slot that no sequence owns is NaN, unused entries of the block tables are -1. Prompts read
//! keys and values from the cache alone, so the k and v parts of their rows are NaN; decoding rows bring theirs, and their
//! slots in the cache are NaN.
//!
//! Decoding rotates by quarter turns here: a token at position `p` by `p` of them, which changes signs and places and
//! rounds nothing. Any angles are held to those of RopeKv where steps that share a cache are compared.

use std::ops::Range;

use ocelli::mem::{Act, Buf, DType, Region};
use ocelli::ops::{Op, PagedDecode, PagedKv, PagedPrefill, RopeKv};

use crate::FLOATS;
use crate::attention::attend;
use crate::bed::{Bed, Ran, Rng};
use crate::bound::Account;

/// Tokens of a cache block, as the layout of the cache is documented.
const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

/// Everyone has keys of their own, groups, and one key for all; the widths of real models and odd ones.
const HEADS: [Heads; 7] = [
    heads(1, 1, 1),
    heads(2, 2, 64),
    heads(4, 1, 7),
    heads(4, 2, 96),
    heads(8, 2, 128),
    heads(3, 3, 20),
    heads(6, 3, 40),
];

/// Rotated queries and keys, and values, of all tokens of a sequence: `[len, heads, head_dim]` each.
struct Sequence {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Sequence {
    fn new(rng: &mut Rng, len: usize, h: Heads) -> Sequence {
        Sequence::with_queries(rng, len, h, 2.0)
    }

    /// With queries of this scale; from 100 on, scores are so large that their exponentials overflow f32.
    fn with_queries(rng: &mut Rng, len: usize, h: Heads, scale: f64) -> Sequence {
        let (q, kv) = (len * h.heads * h.head_dim, len * h.kv_heads * h.head_dim);
        Sequence { q: rng.numbers(q, scale), k: rng.numbers(kv, 2.0), v: rng.numbers(kv, 1.0) }
    }
}

/// Heads before the rotation that makes them `turned`.
fn unturned(turned: &[f64], head_dim: usize, position: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let mut heads = turned.to_vec();
    for head in heads.chunks_mut(head_dim) {
        for _ in 0..position % 4 {
            let (low, high) = head[..2 * half].split_at_mut(half);
            // Turned by a quarter, (low, high) was (-high, low).
            low.swap_with_slice(high);
            high.iter_mut().for_each(|x| *x = -*x);
        }
    }
    heads
}

/// Cosines, then sines, of quarter turns.
fn quarter_turns(head_dim: usize, positions: usize) -> Vec<f64> {
    const COS_SIN: [(f64, f64); 4] = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)];
    let row = |p: usize| [COS_SIN[p % 4].0, COS_SIN[p % 4].1].map(|x| vec![x; head_dim / 2]).concat();
    (0..positions).flat_map(row).collect()
}

/// A sequence in a step: the tokens whose rows the step holds; those before are cached.
#[derive(Clone)]
struct Part<'a> {
    sequence: &'a Sequence,
    new: Range<usize>,
}

fn part(sequence: &Sequence, new: Range<usize>) -> Part<'_> {
    Part { sequence, new }
}

/// A step laid out as the engine does it: rows of decoding sequences, then those of prompts, then `SPARE` of nobody.
struct Step {
    bed: Bed,
    decode: PagedDecode,
    prefill: PagedPrefill,
}

const SPARE: usize = 3;

/// A decoding part with no new token is an idle row.
fn step(dtype: DType, h: Heads, decoding: &[Part<'_>], prompts: &[Part<'_>]) -> Step {
    let Heads { heads, kv_heads, head_dim: d } = h;
    let mut bed = Bed::new(dtype, 21);
    let parts: Vec<Part<'_>> = decoding.iter().chain(prompts).cloned().collect();
    let lens: Vec<usize> = parts.iter().map(|p| p.new.end).collect();
    let max_blocks = lens.iter().map(|l| l.div_ceil(BLOCK)).max().unwrap_or(0) + 1;

    // Block tables in scrambled order, the pool larger than what is used.
    let pool = lens.iter().map(|l| l.div_ceil(BLOCK)).sum::<usize>() + 2;
    let mut free = bed.rng.permutation(pool).into_iter();
    let mut table = vec![-1; parts.len() * max_blocks];
    let mut slots = vec![-1; decoding.len()];
    let (mut k, mut v) = (vec![f64::NAN; pool * kv_heads * BLOCK * d], vec![f64::NAN; pool * kv_heads * BLOCK * d]);
    for (s, p) in parts.iter().enumerate() {
        for token in 0..p.new.end {
            if token % BLOCK == 0 {
                table[s * max_blocks + token / BLOCK] = free.next().unwrap() as i32;
            }
            let block = table[s * max_blocks + token / BLOCK] as usize;
            if s < decoding.len() && token + 1 == p.new.end {
                slots[s] = (block * BLOCK + token % BLOCK) as i32;
                continue;
            }
            for head in 0..kv_heads {
                let to = ((block * kv_heads + head) * BLOCK + token % BLOCK) * d;
                let from = (token * kv_heads + head) * d;
                k[to..to + d].copy_from_slice(&p.sequence.k[from..from + d]);
                v[to..to + d].copy_from_slice(&p.sequence.v[from..from + d]);
            }
        }
    }

    let mut rows: Vec<f64> = Vec::new();
    let mut query_start = vec![decoding.len() as i32];
    for p in decoding {
        let Some(t) = p.new.clone().last() else {
            rows.extend(vec![f64::NAN; (heads + 2 * kv_heads) * d]);
            continue;
        };
        let kv = t * kv_heads * d..(t + 1) * kv_heads * d;
        rows.extend(unturned(&p.sequence.q[t * heads * d..][..heads * d], d, t));
        rows.extend(unturned(&p.sequence.k[kv.clone()], d, t));
        rows.extend(&p.sequence.v[kv]);
    }
    let mut row = |q: &[f64]| {
        rows.extend(q);
        rows.extend(vec![f64::NAN; 2 * kv_heads * d]);
    };
    for p in prompts {
        p.new.clone().for_each(|t| row(&p.sequence.q[t * heads * d..][..heads * d]));
        query_start.push(query_start[query_start.len() - 1] + p.new.len() as i32);
    }
    let tokens = query_start[prompts.len()] as usize;
    (0..SPARE).for_each(|_| row(&vec![f64::NAN; heads * d]));

    let kv = PagedKv { k: bed.put(Region::Kv, &k), v: bed.put(Region::Kv, &v), kv_heads, head_dim: d };
    let qkv: Buf<Act> = bed.put(Region::Scratch, &rows);
    let o: Buf<Act> = bed.random(Region::Scratch, (tokens + SPARE) * heads * d, 1.0);
    let block_table = bed.ints(&table);
    let seq_lens = bed.ints(&lens.iter().map(|&l| l as i32).collect::<Vec<_>>());
    let query_start = bed.ints(&query_start);
    let n = decoding.len();
    let decode = PagedDecode {
        o,
        qkv,
        kv,
        table: bed.put(Region::Weights, &quarter_turns(d, max_blocks * BLOCK)),
        positions: bed.ints(&decoding.iter().map(|p| p.new.end.saturating_sub(1) as i32).collect::<Vec<_>>()),
        slot_mapping: bed.ints(&slots),
        block_table: block_table.slice(0..n * max_blocks),
        seq_lens: seq_lens.slice(0..n),
        seqs: n,
        heads,
        max_blocks,
        context: 64,
    };
    let prefill = PagedPrefill {
        o,
        qkv,
        kv,
        block_table: block_table.slice(n * max_blocks..parts.len() * max_blocks),
        seq_lens: seq_lens.slice(n..parts.len()),
        query_start,
        seqs: prompts.len(),
        heads,
        tokens: tokens - n,
        max_blocks,
        context: 64,
    };
    Step { bed, decode, prefill }
}

impl Step {
    /// The bytes of row `i` of the output.
    fn row<'a>(&self, ran: &'a Ran, i: usize) -> &'a [u8] {
        let width = self.decode.heads * self.decode.kv.head_dim;
        ran.bits(self.decode.o.slice(i * width..(i + 1) * width))
    }

    fn untouched(&self, ran: &Ran, rows: Range<usize>) -> bool {
        let width = self.decode.heads * self.decode.kv.head_dim;
        ran.untouched(self.decode.o, rows.start * width..rows.end * width)
    }

    /// Hold the cache to what it was and the new tokens of decoding sequences.
    fn check_cache(&self, ran: &Ran, parts: &[Part<'_>]) {
        let PagedKv { k, v, kv_heads, head_dim: d } = self.decode.kv;
        let stored = |x: f64| crate::bound::round(self.bed.dtype, x);
        let (slots, keys, values) = (ran.ints(self.decode.slot_mapping), ran.output(k), ran.output(v));
        let mut written = vec![false; keys.len()];
        for (p, &slot) in parts.iter().zip(&slots).filter(|(_, slot)| **slot >= 0) {
            let (block, place) = (slot as usize / BLOCK, slot as usize % BLOCK);
            for i in 0..kv_heads * d {
                let at = ((block * kv_heads + i / d) * BLOCK + place) * d + i % d;
                let from = (p.new.end - 1) * kv_heads * d + i;
                assert_eq!((keys[at], values[at]), (stored(p.sequence.k[from]), stored(p.sequence.v[from])));
                written[at] = true;
            }
        }
        for (i, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
            assert!(ran.untouched(k, i..i + 1) && ran.untouched(v, i..i + 1), "element {i} of another slot");
        }
    }

    /// Hold row `i` to the attention of token `token` of a sequence to itself and what is before it.
    fn check(&self, account: &mut Account, ran: &Ran, i: usize, seq: &Sequence, token: usize) {
        let Heads { heads: a, kv_heads: k, head_dim: d } =
            heads(self.decode.heads, self.decode.kv.kv_heads, self.decode.kv.head_dim);
        let stored =
            |values: &[f64]| values.iter().map(|&x| crate::bound::round(self.bed.dtype, x)).collect::<Vec<_>>();
        let found = ran.output(self.decode.o);
        for head in 0..a {
            let shared = head / (a / k);
            let cached = |which: &[f64]| {
                let tokens = (0..=token).flat_map(|t| &which[(t * k + shared) * d..][..d]);
                stored(&tokens.copied().collect::<Vec<f64>>())
            };
            let query = stored(&seq.q[(token * a + head) * d..][..d]);
            let exact = attend(&query, &cached(&seq.k), &cached(&seq.v));
            account.check(format_args!("row {i} head {head}"), &found[(i * a + head) * d..][..d], &exact);
        }
    }
}

/// Cached and new tokens of the sequences of a step.
const PROMPTS: [&[(usize, usize)]; 7] = [
    &[(0, 1)],
    &[(0, 15), (0, 16), (0, 17)],
    &[(0, 31), (0, 32), (0, 33)],
    &[(15, 1), (16, 1), (17, 1), (31, 2)],
    &[(1, 15), (16, 16), (30, 3), (0, 5)],
    &[(47, 2), (0, 1), (33, 31)],
    &[(5, 0), (0, 3)],
];

#[test]
fn prompts_attend_causally_to_their_own_cache() {
    for dtype in FLOATS {
        let mut account = Account::new("paged_prefill", dtype);
        for h in HEADS {
            for prompts in PROMPTS {
                prompts_case(&mut account, dtype, h, prompts);
            }
        }
    }
}

fn prompts_case(account: &mut Account, dtype: DType, h: Heads, prompts: &[(usize, usize)]) {
    let mut rng = Rng::new(31);
    let queries = [2.0, 100.0].into_iter().cycle();
    let sequences: Vec<Sequence> =
        prompts.iter().zip(queries).map(|((a, b), q)| Sequence::with_queries(&mut rng, a + b, h, q)).collect();
    let parts: Vec<Part<'_>> =
        sequences.iter().zip(prompts).map(|(s, &(cached, new))| part(s, cached..cached + new)).collect();
    // Two rows of decoding sequences stand before those of the prompts.
    let other = Sequence::new(&mut rng, 4, h);
    let step = step(dtype, h, &[part(&other, 3..4), part(&other, 2..3)], &parts);
    let ran = step.bed.run(step.prefill);
    let mut row = 2;
    for p in &parts {
        for token in p.new.clone() {
            step.check(account, &ran, row, p.sequence, token);
            row += 1;
        }
    }
    assert!(step.untouched(&ran, 0..2) && step.untouched(&ran, row..row + SPARE), "rows of others");
}

/// Tokens of decoding sequences, the new one included; 0 is an idle row.
const DECODING: [&[usize]; 5] = [&[1], &[0], &[15, 16, 17], &[0, 31, 0, 32, 33], &[64, 2, 0, 100]];

#[test]
fn decoding_attends_to_the_whole_cache_and_idle_rows_are_zero() {
    for dtype in FLOATS {
        let mut account = Account::new("paged_decode", dtype);
        for h in HEADS.into_iter().filter(|h| h.head_dim.is_multiple_of(2)) {
            for lens in DECODING {
                let mut rng = Rng::new(32);
                let queries = [2.0, 100.0].into_iter().cycle();
                let sequences: Vec<Sequence> =
                    lens.iter().zip(queries).map(|(&len, q)| Sequence::with_queries(&mut rng, len, h, q)).collect();
                let parts: Vec<Part<'_>> =
                    sequences.iter().zip(lens).map(|(s, &len)| part(s, len.saturating_sub(1)..len)).collect();
                let step = step(dtype, h, &parts, &[]);
                let ran = step.bed.run(step.decode);
                for (i, p) in parts.iter().enumerate() {
                    match p.new.end {
                        0 => assert!(step.row(&ran, i).iter().all(|&b| b == 0), "idle row {i} of {lens:?}"),
                        len => step.check(&mut account, &ran, i, p.sequence, len - 1),
                    }
                }
                assert!(step.untouched(&ran, lens.len()..lens.len() + SPARE), "rows of nobody");
                step.check_cache(&ran, &parts);
            }
        }
    }
}

/// A prompt may come in any pieces, down to single tokens and beside any others, and every row has the same bits.
#[test]
fn a_prompt_in_any_chunks_has_the_same_bits() {
    for dtype in FLOATS {
        for h in [heads(2, 2, 64), heads(4, 2, 24)] {
            let len = 49;
            let sequence = Sequence::new(&mut Rng::new(33), len, h);
            let other = Sequence::new(&mut Rng::new(34), 20, h);
            let whole = step(dtype, h, &[], &[part(&sequence, 0..len)]);
            let expected = whole.bed.run(whole.prefill);
            let same = |chunk: Range<usize>| {
                let step =
                    step(dtype, h, &[part(&other, 7..8)], &[part(&other, 3..20), part(&sequence, chunk.clone())]);
                let ran = step.bed.run(step.prefill);
                for (i, token) in chunk.clone().enumerate() {
                    let (found, expected) = (step.row(&ran, 1 + 17 + i), whole.row(&expected, token));
                    assert_eq!(found, expected, "{dtype} {h:?}: token {token} in the chunk {chunk:?}");
                }
            };
            for cut in 1..len {
                same(0..cut);
                same(cut..len);
            }
            for (first, last) in [(3, 19), (15, 16), (16, 32), (17, 33), (31, 48)] {
                same(first..last);
            }
        }
    }
}

#[test]
fn decoding_a_token_has_the_bits_of_its_row_in_the_prompt() {
    for dtype in FLOATS {
        for h in [heads(2, 2, 64), heads(8, 2, 40)] {
            let len = 35;
            let sequence = Sequence::new(&mut Rng::new(35), len, h);
            let whole = step(dtype, h, &[], &[part(&sequence, 0..len)]);
            let expected = whole.bed.run(whole.prefill);
            let all: Vec<Part<'_>> = (0..len).map(|t| part(&sequence, t..t + 1)).collect();
            let together = step(dtype, h, &all, &[]);
            let ran = together.bed.run(together.decode);
            for token in 0..len {
                assert_eq!(together.row(&ran, token), whole.row(&expected, token), "{dtype} {h:?} token {token}");
            }
        }
    }
}

/// A mixed step: decoding rows and prompts share `o`, and each op leaves the other's rows alone.
#[test]
fn the_two_ops_of_a_mixed_step_do_not_disturb_each_other() {
    for dtype in FLOATS {
        let h = heads(4, 2, 32);
        let mut rng = Rng::new(36);
        let sequences: Vec<Sequence> = (0..4).map(|_| Sequence::new(&mut rng, 40, h)).collect();
        let [a, b, c, d] = &sequences[..] else { unreachable!() };
        let step = step(dtype, h, &[part(a, 39..40), part(b, 0..0)], &[part(c, 8..27), part(d, 0..16)]);
        let (decode, prefill): (Op, Op) = (step.decode.into(), step.prefill.into());
        let ran = step.bed.run_all(&[decode, prefill]);
        let swapped = step.bed.run_all(&[prefill, decode]);
        assert_eq!(ran.bits(step.decode.o), swapped.bits(step.decode.o));
        let mut account = Account::new("mixed step", dtype);
        step.check(&mut account, &ran, 0, a, 39);
        for row in 0..19 {
            step.check(&mut account, &ran, 2 + row, c, 8 + row);
        }
        for row in 0..16 {
            step.check(&mut account, &ran, 2 + 19 + row, d, row);
        }
        assert!(step.row(&ran, 1).iter().all(|&b| b == 0));
    }
}

/// From projections to attention as a model does it: rotation and cache writes included, with one cache for all steps.
#[test]
fn steps_that_share_a_cache_give_the_bits_of_one_step() {
    let h = heads(4, 2, 16);
    let (len, width) = (37, (4 + 2 * 2) * 16);
    for dtype in FLOATS {
        let rows = Rng::new(37).numbers(len * width, 1.5);
        let run = |chunks: &[Range<usize>]| {
            let mut bed = Bed::new(dtype, 38);
            let kv = PagedKv {
                k: bed.put(Region::Kv, &[f64::NAN; 5 * 2 * BLOCK * 16]),
                v: bed.put(Region::Kv, &[f64::NAN; 5 * 2 * BLOCK * 16]),
                kv_heads: h.kv_heads,
                head_dim: h.head_dim,
            };
            let table = bed.random(Region::Weights, len * 16, 1.0);
            let blocks = [3, 0, 4];
            let block_table = bed.ints(&blocks);
            let mut ops: Vec<Op> = Vec::new();
            let mut outputs: Vec<Buf<Act>> = Vec::new();
            for chunk in chunks {
                let n = chunk.len();
                let qkv = bed.put(Region::Scratch, &rows[chunk.start * width..chunk.end * width]);
                let o = bed.random(Region::Scratch, n * 4 * 16, 1.0);
                let positions: Vec<i32> = chunk.clone().map(|t| t as i32).collect();
                let slots: Vec<i32> = positions.iter().map(|t| blocks[*t as usize / BLOCK] * 16 + t % 16).collect();
                let (positions, slot_mapping) = (bed.ints(&positions), bed.ints(&slots));
                let (seq_lens, query_start) = (bed.ints(&[chunk.end as i32]), bed.ints(&[0, n as i32]));
                let (seqs, heads, max_blocks, context) = (1, 4, 3, len);
                if n == 1 {
                    let decode = PagedDecode {
                        o,
                        qkv,
                        kv,
                        table,
                        positions,
                        slot_mapping,
                        block_table,
                        seq_lens,
                        seqs,
                        heads,
                        max_blocks,
                        context,
                    };
                    ops.push(decode.into());
                } else {
                    let tokens = n;
                    let prefill = PagedPrefill {
                        o,
                        qkv,
                        kv,
                        block_table,
                        seq_lens,
                        query_start,
                        seqs,
                        heads,
                        tokens,
                        max_blocks,
                        context,
                    };
                    ops.push(RopeKv { qkv, kv, table, positions, slot_mapping, tokens, heads }.into());
                    ops.push(prefill.into());
                }
                outputs.push(o);
            }
            let ran = bed.run_all(&ops);
            let o: Vec<u8> = outputs.iter().flat_map(|&o| ran.bits(o)).copied().collect();
            (o, ran.bits(kv.k).to_vec(), ran.bits(kv.v).to_vec())
        };
        let whole = run(std::slice::from_ref(&(0..len)));
        assert!(run(&[0..20, 20..21, 21..22, 22..len]) == whole, "{dtype}: a prompt in four steps");
        assert!(run(&(0..len).map(|t| t..t + 1).collect::<Vec<_>>()) == whole, "{dtype}: token by token");
    }
}
