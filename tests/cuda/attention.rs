//! What the tests of the attention kernels share: memory on the device, the oracle and its bound, and a paged cache.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ocelli::backend::cuda::driver::{Device, Memory, Module};
use ocelli::backend::cuda::image;
use ocelli::kernel::Launch;
use ocelli::mem::{Act, Bases, Buf, DType, Element, Layout, Region};
use ocelli::ops::{KV_BLOCK, PagedKv, rope_table};
use rayon::prelude::*;

use crate::parity;
pub use crate::parity::normal;

pub const DTYPES: [DType; 2] = [DType::F16, DType::Bf16];

/// The images of a kernel that the device can run: machine code and PTX must both be right.
pub fn modules<K: Launch>(device: &Device) -> Vec<(&'static str, Arc<Module>)> {
    let capability = device.properties().gpu.compute_capability;
    let usable = image::embedded().iter().filter(|i| i.kernel == K::NAME && i.runs_on(capability));
    usable.map(|i| (i.arch, device.load_image(i, size_of::<K::Params>()).expect(i.arch))).collect()
}

/// The bits of `values`, rounded to `dtype`.
pub fn bits(dtype: DType, values: &[f32]) -> Vec<u16> {
    bytemuck::pod_collect_to_vec(&parity::encode(dtype, values))
}

/// `values` rounded to `dtype`.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    parity::decode(dtype, &parity::encode(dtype, values))
}

/// Buffers, and what to write to them before a run. What is not written is NaN.
pub struct Bed {
    pub dtype: DType,
    layouts: [Layout; 4],
    contents: Vec<(Region, usize, Vec<u8>)>,
}

impl Bed {
    pub fn new(dtype: DType) -> Bed {
        Bed { dtype, layouts: Region::ALL.map(|region| Layout::new(region, dtype)), contents: Vec::new() }
    }

    pub fn take<T: Element>(&mut self, region: Region, len: usize) -> Buf<T> {
        self.layouts[region as usize].take(len)
    }

    pub fn floats(&mut self, region: Region, values: &[f32]) -> Buf<Act> {
        let buf: Buf<Act> = self.take(region, values.len());
        self.contents.push((region, buf.span().range().start, parity::encode(self.dtype, values)));
        buf
    }

    pub fn table(&mut self, values: &[f32]) -> Buf<f32> {
        let buf: Buf<f32> = self.take(Region::Weights, values.len());
        self.contents.push((Region::Weights, buf.span().range().start, bytemuck::cast_slice(values).to_vec()));
        buf
    }

    pub fn ints(&mut self, values: &[i32]) -> Buf<i32> {
        let buf: Buf<i32> = self.take(Region::Io, values.len());
        self.contents.push((Region::Io, buf.span().range().start, bytemuck::cast_slice(values).to_vec()));
        buf
    }

    /// What a buffer of floats holds before a run.
    pub fn before(&self, buf: Buf<Act>) -> Vec<u16> {
        let is_it =
            |&&(region, at, _): &&(Region, usize, Vec<u8>)| region == buf.region() && at == buf.span().range().start;
        let (_, _, bytes) = self.contents.iter().find(is_it).expect("contents");
        bytemuck::pod_collect_to_vec(bytes)
    }

    /// Memory for the buffers, every byte `fill`, then the contents.
    pub fn open<'a>(&self, device: &'a Device, fill: u8) -> Ready<'a> {
        let memory = Region::ALL.map(|r| device.alloc(self.layouts[r as usize].bytes(), fill).expect("device memory"));
        for (region, at, bytes) in &self.contents {
            device.write(&memory[*region as usize], *at, bytes).expect("contents");
        }
        let bases = Bases::new([0, 1, 2, 3].map(|i| memory[i].address()));
        Ready { device, memory, bases }
    }

    /// Run `op` in fresh memory and return the bits of `o`.
    pub fn run<K: Launch>(&self, device: &Device, module: &Arc<Module>, op: &K, o: Buf<Act>) -> Vec<u16> {
        let [bits] = self.run_for(device, module, op, [o]);
        bits
    }

    /// Run `op` in fresh memory and return the bits of some buffers.
    pub fn run_for<K: Launch, const N: usize>(
        &self,
        device: &Device,
        module: &Arc<Module>,
        op: &K,
        wanted: [Buf<Act>; N],
    ) -> [Vec<u16>; N] {
        let ready = self.open(device, 0xff);
        ready.launch(module, op, 1);
        wanted.map(|buf| {
            let mut bits = vec![0u16; buf.len()];
            let memory = &ready.memory[buf.region() as usize];
            device.read(memory, buf.span().range().start, bytemuck::cast_slice_mut(&mut bits)).expect("a buffer");
            bits
        })
    }

    /// Microseconds of one of many launches in a row.
    pub fn time<K: Launch>(&self, device: &Device, module: &Arc<Module>, op: &K, fill: u8) -> f64 {
        const LAUNCHES: u32 = 200;
        let ready = self.open(device, fill);
        ready.launch(module, op, 20);
        device.synchronize().expect("warmed up");
        let start = Instant::now();
        ready.launch(module, op, LAUNCHES);
        device.synchronize().expect("measured");
        start.elapsed().as_secs_f64() * 1e6 / f64::from(LAUNCHES)
    }
}

/// A bed in the memory of a device.
pub struct Ready<'a> {
    device: &'a Device,
    memory: [Memory; 4],
    bases: Bases,
}

impl Ready<'_> {
    fn launch<K: Launch>(&self, module: &Arc<Module>, op: &K, times: u32) {
        let geometry = op.geometry(&self.device.properties().gpu);
        let function = module.function(geometry.symbol, geometry.smem).expect("entry point");
        let params = op.params(&self.bases);
        for _ in 0..times {
            self.device.launch(&function, &geometry, bytemuck::bytes_of(&params)).expect("launch");
        }
    }
}

/// An element of an oracle and how far a kernel may be from it.
#[derive(Clone, Copy)]
pub struct Exact {
    value: f64,
    bound: f64,
}

/// `softmax(q k^T / sqrt(d)) v` of one query over `keys` and `values`, both `[n, d]`, in f64.
///
/// The bound, with `u = 2^-24`: a tensor core adds 16 products to an f32 and may truncate, `4u` of the magnitudes; a
/// score is `d / 16` such steps and a scale. The exponent is a product and a difference, off by `2u` of the largest
/// score and of its distance to it, and the exponential by `4u`. Partial results are scaled when the maximum grows, once
/// for every 16 keys at worst (`6u`), and put together in at most 12 more steps. That is the relative error `r` of a
/// weight; numerator and denominator have it, and are sums of `n / 16` steps. The weights of the numerator are rounded
/// to the storage type: `h`, 2^-11 or 2^-8, of each, and where f16 has no smaller exponent, 2^-25 absolutely. All this
/// is relative to the sum of `weight * |value|`; half a unit in the last place is for storing the result.
fn attend(dtype: DType, query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<Exact> {
    let u = 2f64.powi(-24);
    let (d, n) = (query.len(), keys.len() as f64);
    let scale = 1.0 / (d as f64).sqrt();
    let dot = |key: &[f32]| {
        let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
        products.fold((0.0, 0.0), |(sum, magnitude), p| (sum + p, magnitude + p.abs()))
    };
    let scores: Vec<(f64, f64)> = keys.iter().map(|key| dot(key)).map(|(s, m)| (s * scale, m * scale)).collect();
    let largest = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s.0 - largest).exp()).collect();
    let total: f64 = weights.iter().sum();

    let of_weight = |&(score, magnitude): &(f64, f64)| {
        (magnitude * (d as f64 / 4.0 + 2.0) + 2.0 * largest.abs() + 2.0 * (score - largest).abs() + 4.0) * u
    };
    // A weight of less than 2^-40 of the sum may be off by as much as it is.
    let counted = scores.iter().zip(&weights).filter(|(_, w)| **w > total * 2f64.powi(-40));
    let r = counted.map(|(s, _)| of_weight(s)).fold(0.0, f64::max) + (n / 16.0 + 12.0) * 6.0 * u;
    let (h, smallest) = if dtype == DType::F16 { (2f64.powi(-11), 2f64.powi(-25)) } else { (2f64.powi(-8), 0.0) };
    let relative = 2.0 * r + (n / 16.0 + 12.0) * 8.0 * u + h;

    let column = |c: usize| {
        let (mut value, mut magnitude, mut sum) = (0.0, 0.0, 0.0);
        for (weight, v) in weights.iter().zip(values) {
            let v = f64::from(v[c]);
            value += weight * v;
            magnitude += weight * v.abs();
            sum += v.abs();
        }
        let error = (magnitude * relative + sum * (smallest + 2f64.powi(-40))) / total;
        let value = value / total;
        Exact { value, bound: error + f64::from(parity::ulp(dtype, (value.abs() + error) as f32)) / 2.0 }
    };
    (0..d).map(column).collect()
}

/// Attention of some queries of some heads, each over the first `seen` rows of its keys.
pub struct Query<'a> {
    pub q: &'a [f32],
    pub keys: Vec<&'a [f32]>,
    pub values: Vec<&'a [f32]>,
}

pub fn oracle<'a>(dtype: DType, n: usize, query: impl Fn(usize) -> Query<'a> + Sync) -> Vec<Exact> {
    let one = |i| {
        let Query { q, keys, values } = query(i);
        attend(dtype, q, &keys, &values)
    };
    (0..n).into_par_iter().flat_map_iter(one).collect()
}

/// Hold `found` to the oracle; print the largest part of the bound that was used.
pub fn check(what: &str, dtype: DType, found: &[u16], exact: &[Exact]) {
    let found = parity::decode(dtype, bytemuck::cast_slice(found));
    assert_eq!(found.len(), exact.len(), "{what}");
    let mut used = 0f64;
    for (i, (&found, e)) in found.iter().zip(exact).enumerate() {
        let share = (f64::from(found) - e.value).abs() / e.bound;
        // A NaN is not within the bound either.
        assert!(share <= 1.0, "{what}: element {i} is {found}, exactly {}, with {:e} allowed", e.value, e.bound);
        used = used.max(share);
    }
    println!("{what}: {:.0} % of the bound used in {} elements", 100.0 * used, exact.len());
}

/// Heads of a model.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Queries, keys and values of all tokens of a sequence, rounded: `[len, heads, head_dim]` each.
pub struct Sequence {
    h: Heads,
    pub len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Query and key of the last token as they are after its rotation, `[heads, head_dim]`.
    turned_q: Vec<f32>,
    turned_k: Vec<f32>,
}

/// The angles of all tests.
const THETA: f64 = 10000.0;

/// Heads rotated by one row of a table of angles and rounded, with the roundings of the op: cosine and sine are rounded
/// first, which makes products exact in f32, and a sum is rounded once in f32 and once to be stored.
fn turned(dtype: DType, heads: &[f32], angles: &[f32]) -> Vec<f32> {
    let (d, half) = (angles.len(), angles.len() / 2);
    let angles = rounded(dtype, angles);
    let element = |(i, _): (usize, &f32)| {
        let (head, j) = (&heads[i / d * d..][..d], i % half);
        let (low, high, cos, sin) = (head[j], head[j + half], angles[j], angles[j + half]);
        if i % d < half { low * cos - high * sin } else { high * cos + low * sin }
    };
    rounded(dtype, &heads.iter().enumerate().map(element).collect::<Vec<_>>())
}

impl Sequence {
    /// Scores have a standard deviation of `sharpness`.
    pub fn new(dtype: DType, h: Heads, len: usize, sharpness: f32) -> Sequence {
        let numbers = |heads: usize, seed: u64, scale: f32| {
            let values: Vec<f32> = normal(len * heads * h.head_dim, seed + 97 * len as u64);
            rounded(dtype, &values.iter().map(|x| x * scale).collect::<Vec<_>>())
        };
        let (q, k, v) = (numbers(h.heads, 1, sharpness), numbers(h.kv_heads, 2, 1.0), numbers(h.kv_heads, 3, 1.0));
        let table = rope_table(THETA, h.head_dim, len.max(1));
        let angles = &table[table.len() - h.head_dim..];
        let last = |rows: &[f32], heads| turned(dtype, &rows[rows.len().saturating_sub(heads * h.head_dim)..], angles);
        Sequence { h, len, turned_q: last(&q, h.heads), turned_k: last(&k, h.kv_heads), q, k, v }
    }

    /// The last token's query of `head`, and what it sees if that token is new: its own key is the rotated one, those of
    /// earlier tokens are cached and were rotated when they were new.
    pub fn newest<'a>(&'a self, head: usize) -> Query<'a> {
        let d = self.h.head_dim;
        let mut query = self.query(self.len - 1, head);
        query.q = &self.turned_q[head * d..][..d];
        query.keys[self.len - 1] = &self.turned_k[head / (self.h.heads / self.h.kv_heads) * d..][..d];
        query
    }

    /// Key and value of the last token as they are cached, of one head.
    pub fn cached(&self, kv_head: usize) -> (&[f32], &[f32]) {
        let (d, v) = (self.h.head_dim, &self.v[(self.len - 1) * self.h.kv_heads * self.h.head_dim..]);
        (&self.turned_k[kv_head * d..][..d], &v[kv_head * d..][..d])
    }

    fn queries(&self, token: usize) -> &[f32] {
        let width = self.h.heads * self.h.head_dim;
        &self.q[token * width..][..width]
    }

    /// The query of `token` in `head`, and what it sees.
    pub fn query<'a>(&'a self, token: usize, head: usize) -> Query<'a> {
        let (d, kv_head) = (self.h.head_dim, head / (self.h.heads / self.h.kv_heads));
        let rows = |which: &'a [f32]| -> Vec<&'a [f32]> {
            (0..=token).map(|t| &which[(t * self.h.kv_heads + kv_head) * d..][..d]).collect()
        };
        Query { q: &self.queries(token)[head * d..][..d], keys: rows(&self.k), values: rows(&self.v) }
    }
}

/// Where the keys and values of the new tokens are before a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NewKv {
    /// In the cache; what the step's rows have in their place is NaN, and queries are rotated.
    Cached,
    /// In the step's rows; the cache has NaN there. Queries and keys are not rotated yet. One new token a sequence, its
    /// last.
    InRows,
}

/// A step on the device: some of the tokens of some sequences, whose blocks lie scrambled in a cache that is NaN where
/// it is nobody's; table entries of nobody are -1.
pub struct Step {
    pub bed: Bed,
    pub qkv: Buf<Act>,
    pub o: Buf<Act>,
    pub kv: PagedKv,
    pub table: Buf<f32>,
    pub positions: Buf<i32>,
    pub slot_mapping: Buf<i32>,
    /// What `slot_mapping` holds.
    pub slots: Vec<i32>,
    pub block_table: Buf<i32>,
    pub seq_lens: Buf<i32>,
    pub query_start: Buf<i32>,
    pub max_blocks: usize,
    /// New tokens.
    pub tokens: usize,
}

/// Rows of nobody before and behind those of a step.
pub const SPARE: usize = 3;

/// `parts` are sequences and their new tokens.
pub fn step(dtype: DType, h: Heads, parts: &[(&Sequence, Range<usize>)], before: usize, new_kv: NewKv) -> Step {
    let (d, width) = (h.head_dim, h.heads * h.head_dim);
    let mut bed = Bed::new(dtype);
    let blocks: Vec<usize> = parts.iter().map(|(_, new)| new.end.div_ceil(KV_BLOCK)).collect();
    let max_blocks = blocks.iter().max().map_or(1, |most| most + 1);
    // Seven is no factor of the pool's size, so this is a permutation of it.
    let needed = blocks.iter().sum::<usize>() + 2;
    let pool = needed + usize::from(needed.is_multiple_of(7));
    let mut free = (0..pool).map(|i| (i * 7 + 3) % pool);

    let mut table = vec![-1; parts.len() * max_blocks];
    let cache = pool * h.kv_heads * KV_BLOCK * d;
    let (mut k, mut v) = (vec![f32::NAN; cache], vec![f32::NAN; cache]);
    let (mut slots, mut positions) = (Vec::new(), Vec::new());
    for (s, (sequence, new)) in parts.iter().enumerate() {
        for (i, entry) in table[s * max_blocks..][..blocks[s]].iter_mut().enumerate() {
            let block = free.next().expect("a free block");
            *entry = block as i32;
            for token in i * KV_BLOCK..new.end.min((i + 1) * KV_BLOCK) {
                if new.contains(&token) {
                    slots.push((block * KV_BLOCK + token % KV_BLOCK) as i32);
                    positions.push(token as i32);
                    if new_kv == NewKv::InRows {
                        continue;
                    }
                }
                for head in 0..h.kv_heads {
                    let to = ((block * h.kv_heads + head) * KV_BLOCK + token % KV_BLOCK) * d;
                    let from = (token * h.kv_heads + head) * d;
                    k[to..to + d].copy_from_slice(&sequence.k[from..from + d]);
                    v[to..to + d].copy_from_slice(&sequence.v[from..from + d]);
                }
            }
        }
    }

    let row = width + 2 * h.kv_heads * d;
    let mut rows = vec![f32::NAN; before * row];
    let mut query_start = vec![before as i32];
    for (sequence, new) in parts {
        for token in new.clone() {
            rows.extend(sequence.queries(token));
            let kv = token * h.kv_heads * d..(token + 1) * h.kv_heads * d;
            match new_kv {
                NewKv::Cached => rows.extend(vec![f32::NAN; 2 * kv.len()]),
                NewKv::InRows => rows.extend(sequence.k[kv.clone()].iter().chain(&sequence.v[kv])),
            }
        }
        query_start.push(query_start[query_start.len() - 1] + new.len() as i32);
    }
    let tokens = rows.len() / row - before;
    rows.extend(vec![f32::NAN; SPARE * row]);
    let lens: Vec<i32> = parts.iter().map(|(_, new)| new.end as i32).collect();
    Step {
        kv: PagedKv { k: bed.floats(Region::Kv, &k), v: bed.floats(Region::Kv, &v), kv_heads: h.kv_heads, head_dim: d },
        qkv: bed.floats(Region::Scratch, &rows),
        o: bed.take(Region::Scratch, (before + tokens + SPARE) * width),
        table: bed.table(&rope_table(THETA, d, lens.iter().copied().max().unwrap_or(1) as usize)),
        positions: bed.ints(&positions),
        slot_mapping: bed.ints(&slots),
        slots,
        block_table: bed.ints(&table),
        seq_lens: bed.ints(&lens),
        query_start: bed.ints(&query_start),
        max_blocks,
        tokens,
        bed,
    }
}
