//! The test bed: lays buffers out, runs ops, and watches every byte of the four regions.

use std::ops::Range;

use half::{bf16, f16};
use ocelli::host::HostMem;
use ocelli::mem::{Buf, DType, Element, Layout, Region, Span};
use ocelli::ops::Op;

use crate::bound::round;

/// Numbers that look random and are the same every time (SplitMix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in `-1 .. 1`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-52) - 1.0
    }

    /// `n` numbers, uniform in `-scale .. scale`.
    pub fn numbers(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| self.unit() * scale).collect()
    }

    /// `0 .. n` in some order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Buffers and what they hold at the start. Every other byte of the regions is noise.
pub struct Bed {
    pub dtype: DType,
    layouts: [Layout; 4],
    contents: Vec<(Span, Vec<u8>)>,
    pub rng: Rng,
}

impl Bed {
    pub fn new(dtype: DType, seed: u64) -> Bed {
        let layouts = Region::ALL.map(|region| Layout::new(region, dtype));
        Bed { dtype, layouts, contents: Vec::new(), rng: Rng::new(seed) }
    }

    /// A float buffer holding `values`, each rounded to the stored type.
    pub fn put<T: Element>(&mut self, region: Region, values: &[f64]) -> Buf<T> {
        let buf = self.layouts[region as usize].take::<T>(values.len());
        self.contents.push((buf.span(), encode(buf.dtype(), values)));
        buf
    }

    /// A float buffer holding numbers in `-scale .. scale`: inputs, and outputs before they are written.
    pub fn random<T: Element>(&mut self, region: Region, len: usize, scale: f64) -> Buf<T> {
        let values = self.rng.numbers(len, scale);
        self.put(region, &values)
    }

    /// A buffer of integers in the io region.
    pub fn ints(&mut self, values: &[i32]) -> Buf<i32> {
        let buf = self.layouts[Region::Io as usize].take(values.len());
        self.contents.push((buf.span(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        buf
    }

    /// A buffer of bytes in the io region.
    pub fn bytes(&mut self, values: &[u8]) -> Buf<u8> {
        let buf = self.layouts[Region::Io as usize].take(values.len());
        self.contents.push((buf.span(), values.to_vec()));
        buf
    }

    /// Run one op on fresh memory.
    pub fn run(&self, op: impl Into<Op>) -> Ran {
        self.run_all(&[op.into()])
    }

    /// Run ops one after another on fresh memory. None may change a byte outside its `writes()`.
    pub fn run_all(&self, ops: &[Op]) -> Ran {
        let m = self.boot();
        let before = self.regions(&m);
        let mut after = before.clone();
        for op in ops {
            let start = after;
            op.reference(&m);
            after = self.regions(&m);
            if let Some((region, byte)) = undeclared(&start, &after, &op.writes()) {
                panic!("{} changed byte {byte} of {}, which is not in its writes", op.name(), region.name());
            }
        }
        Ran { before, after }
    }

    fn boot(&self) -> HostMem {
        let m = HostMem::new(std::array::from_fn(|i| self.layouts[i].bytes())).unwrap();
        let mut noise = Rng::new(99);
        for span in self.whole() {
            m.bytes_mut(span).fill_with(|| noise.next() as u8);
        }
        for (span, bytes) in &self.contents {
            m.bytes_mut(*span).copy_from_slice(bytes);
        }
        m
    }

    fn regions(&self, m: &HostMem) -> [Vec<u8>; 4] {
        self.whole().map(|span| m.bytes(span).to_vec())
    }

    fn whole(&self) -> [Span; 4] {
        Region::ALL.map(|region| {
            let len = self.layouts[region as usize].bytes() as u64;
            Span { region, dtype: DType::U8, byte: 0, len }
        })
    }
}

/// The regions before and after a run.
pub struct Ran {
    before: [Vec<u8>; 4],
    after: [Vec<u8>; 4],
}

impl Ran {
    /// What a float buffer held before the run.
    pub fn input<T>(&self, buf: Buf<T>) -> Vec<f64> {
        decode(buf.dtype(), at(&self.before, buf.span()))
    }

    /// What a float buffer holds after the run.
    pub fn output<T>(&self, buf: Buf<T>) -> Vec<f64> {
        decode(buf.dtype(), at(&self.after, buf.span()))
    }

    /// What a buffer of integers holds after the run.
    pub fn ints(&self, buf: Buf<i32>) -> Vec<i32> {
        at(&self.after, buf.span()).chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The bytes of a buffer after the run.
    pub fn bits<T>(&self, buf: Buf<T>) -> &[u8] {
        at(&self.after, buf.span())
    }

    /// Whether the run left every byte of the elements `range` of a buffer alone.
    pub fn untouched<T>(&self, buf: Buf<T>, range: Range<usize>) -> bool {
        let span = buf.slice(range).span();
        at(&self.before, span) == at(&self.after, span)
    }
}

fn at(regions: &[Vec<u8>; 4], span: Span) -> &[u8] {
    &regions[span.region as usize][span.range()]
}

/// The first byte that changed and is in none of `writes`.
fn undeclared(before: &[Vec<u8>; 4], after: &[Vec<u8>; 4], writes: &[Span]) -> Option<(Region, usize)> {
    let declared = |region, byte| writes.iter().any(|w| w.region == region && w.range().contains(&byte));
    Region::ALL.into_iter().find_map(|region| {
        let (before, after) = (&before[region as usize], &after[region as usize]);
        let changed = |&byte: &usize| before[byte] != after[byte] && !declared(region, byte);
        (0..before.len()).find(changed).map(|byte| (region, byte))
    })
}

fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    let stored = values.iter().map(|&v| if v.is_nan() { v } else { round(dtype, v) });
    match dtype {
        DType::F32 => stored.flat_map(|v| (v as f32).to_le_bytes()).collect(),
        DType::F16 => stored.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect(),
        DType::Bf16 => stored.flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect(),
        DType::I32 | DType::U8 => panic!("{dtype} is not a float type"),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let elements = bytes.chunks_exact(dtype.size());
    match dtype {
        DType::F32 => elements.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        DType::F16 => elements.map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        DType::Bf16 => elements.map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        DType::I32 | DType::U8 => panic!("{dtype} is not a float type"),
    }
}

#[test]
fn one_changed_byte_is_found_wherever_it_is() {
    let before: [Vec<u8>; 4] = std::array::from_fn(|_| vec![7; 512]);
    let writes = [Span { region: Region::Scratch, dtype: DType::F16, byte: 256, len: 8 }];
    assert_eq!(undeclared(&before, &before, &writes), None);
    for region in Region::ALL {
        for byte in [0, 255, 256, 271, 272, 511] {
            let mut after = before.clone();
            after[region as usize][byte] = 8;
            let declared = region == Region::Scratch && (256..272).contains(&byte);
            let expected = (!declared).then_some((region, byte));
            assert_eq!(undeclared(&before, &after, &writes), expected);
        }
    }
}
