//! Host memory for the four regions: what the references compute on.
//!
//! References read whole buffers as f32 and write whole buffers back, rounded once to the stored type, so a reference
//! is plain loops over `Vec<f32>`. Every access goes through a [`Buf`] and is bounds-checked.

use std::cell::{Ref, RefCell, RefMut};

use anyhow::{Result, bail, ensure};
use bytemuck::{Pod, Zeroable};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};

use crate::mem::{Buf, DType, Region, Source, Span};

/// The unit of an arena, so that every 256-byte-aligned offset is an aligned address.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(256))]
struct Line([u8; 256]);

impl Line {
    fn slab(bytes: usize) -> Result<Box<[Line]>> {
        let lines = bytes.div_ceil(256);
        // Zeroed by the allocator, so untouched pages of a large region cost nothing.
        bytemuck::try_zeroed_slice_box(lines)
            .map_err(|()| anyhow::anyhow!("out of host memory: {} MiB could not be reserved", bytes >> 20))
    }
}

/// One region: an arena, and for the weights the spans that are read in place from a mapped file.
struct Arena {
    lines: Box<[Line]>,
    mapped: Vec<(Span, Source)>,
}

impl Arena {
    /// Copy what is mapped under `span` into the arena, so that it can be written.
    fn own(&mut self, span: Span) {
        let overlaps = |s: &Span| s.byte < span.byte + span.bytes() && span.byte < s.byte + s.bytes();
        while let Some(i) = self.mapped.iter().position(|(s, _)| overlaps(s)) {
            let (at, source) = self.mapped.remove(i);
            bytemuck::cast_slice_mut(&mut self.lines)[at.range()].copy_from_slice(source.bytes());
        }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        let after = self.mapped.partition_point(|(s, _)| s.byte <= span.byte);
        if let Some((at, source)) = after.checked_sub(1).map(|i| &self.mapped[i])
            && span.byte + span.bytes() <= at.byte + at.bytes()
        {
            let start = (span.byte - at.byte) as usize;
            return &source.bytes()[start..start + span.bytes() as usize];
        }
        &bytemuck::cast_slice(&self.lines)[span.range()]
    }
}

/// Host memory behind the four regions.
pub struct HostMem {
    arenas: [RefCell<Arena>; 4],
}

/// A read-only run of floats in their stored type.
#[derive(Clone, Copy)]
pub enum Floats<'a> {
    /// binary32.
    F32(&'a [f32]),
    /// binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl<'a> Floats<'a> {
    fn cast(bytes: &'a [u8], dtype: DType) -> Floats<'a> {
        match dtype {
            DType::F32 => Floats::F32(bytemuck::cast_slice(bytes)),
            DType::F16 => Floats::F16(bytemuck::cast_slice(bytes)),
            DType::Bf16 => Floats::Bf16(bytemuck::cast_slice(bytes)),
            DType::I32 | DType::U8 => unreachable!("{dtype} is not a float type"),
        }
    }

    /// Elements `start .. start + out.len()`, widened to f32, which is exact.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Floats::F32(x) => out.copy_from_slice(&x[range]),
            Floats::F16(x) => x[range].convert_to_f32_slice(out),
            Floats::Bf16(x) => x[range].convert_to_f32_slice(out),
        }
    }
}

impl HostMem {
    /// Zeroed regions of the given sizes, in the order of [`Region::ALL`].
    ///
    /// # Errors
    /// If the memory cannot be reserved.
    pub fn new(bytes: [usize; 4]) -> Result<HostMem> {
        let arena = |i: usize| -> Result<RefCell<Arena>> {
            Ok(RefCell::new(Arena { lines: Line::slab(bytes[i])?, mapped: Vec::new() }))
        };
        Ok(HostMem { arenas: [arena(0)?, arena(1)?, arena(2)?, arena(3)?] })
    }

    fn arena(&self, region: Region) -> &RefCell<Arena> {
        &self.arenas[region as usize]
    }

    /// The bytes of `span`. Nothing may be written to its region while the borrow lives.
    pub fn bytes(&self, span: Span) -> Ref<'_, [u8]> {
        Ref::map(self.arena(span.region).borrow(), |a| a.bytes(span))
    }

    /// The bytes of `span`, writable.
    pub fn bytes_mut(&self, span: Span) -> RefMut<'_, [u8]> {
        RefMut::map(self.arena(span.region).borrow_mut(), |a| {
            a.own(span);
            &mut bytemuck::cast_slice_mut(&mut a.lines)[span.range()]
        })
    }

    /// A copy of a buffer of integers or bytes.
    pub fn read<T: Pod>(&self, b: Buf<T>) -> Vec<T> {
        bytemuck::pod_collect_to_vec(&self.bytes(b.span()))
    }

    /// A copy of a float buffer, widened to f32.
    pub fn load<T>(&self, b: Buf<T>) -> Vec<f32> {
        let mut out = vec![0.0; b.len()];
        Floats::cast(&self.bytes(b.span()), b.dtype()).widen(0, &mut out);
        out
    }

    /// Overwrite a float buffer with `values`, each rounded once to the stored type, to nearest with ties to even.
    pub fn store<T>(&self, b: Buf<T>, values: &[f32]) {
        let bytes = &mut *self.bytes_mut(b.span());
        match b.dtype() {
            DType::F32 => bytemuck::cast_slice_mut(bytes).copy_from_slice(values),
            DType::F16 => bytemuck::cast_slice_mut::<u8, f16>(bytes).convert_from_f32_slice(values),
            DType::Bf16 => bytemuck::cast_slice_mut::<u8, bf16>(bytes).convert_from_f32_slice(values),
            DType::I32 | DType::U8 => unreachable!("{} is not a float type", b.dtype()),
        }
    }

    /// Run `f` over a float buffer in its stored type, without copying it.
    pub fn with_floats<T, R>(&self, b: Buf<T>, f: impl FnOnce(Floats<'_>) -> R) -> R {
        let bytes = self.bytes(b.span());
        f(Floats::cast(&bytes, b.dtype()))
    }

    /// Put a tensor of a checkpoint at `dst`; a float type other than the wanted one is converted.
    ///
    /// With `in_place`, `dst` is a whole buffer, which only ever is read: a tensor of the wanted type whose bytes are
    /// aligned is then not copied, and reads of `dst` go to the mapped file.
    ///
    /// # Errors
    /// If the lengths differ or the types are not both floats.
    pub fn fill(&self, dst: Span, src: &Source, in_place: bool) -> Result<()> {
        let from = src.dtype();
        ensure!(src.len() as u64 == dst.len, "{dst:?} takes {} elements and the source is {src:?}", dst.len);
        let aligned = src.bytes().as_ptr().align_offset(from.size()) == 0;
        if in_place && aligned && from == dst.dtype {
            let mut arena = self.arena(dst.region).borrow_mut();
            arena.own(dst);
            let at = arena.mapped.partition_point(|(s, _)| s.byte < dst.byte);
            arena.mapped.insert(at, (dst, src.clone()));
            return Ok(());
        }
        if from == dst.dtype {
            self.bytes_mut(dst).copy_from_slice(src.bytes());
            return Ok(());
        }
        self.bytes_mut(dst).copy_from_slice(&convert(src.bytes(), from, dst.dtype)?);
        Ok(())
    }
}

/// The bytes of floats of one type in another, each element rounded once, to nearest with ties to even.
///
/// # Errors
/// If either type is not a float.
pub fn convert(bytes: &[u8], from: DType, to: DType) -> Result<Vec<u8>> {
    let values: Vec<f32> = match from {
        DType::F32 => bytemuck::pod_collect_to_vec(bytes),
        DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes).to_f32_vec(),
        DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes).to_f32_vec(),
        _ => bail!("{from} cannot be converted to {to}"),
    };
    Ok(match to {
        DType::F32 => bytemuck::pod_collect_to_vec(&values),
        DType::F16 => bytemuck::pod_collect_to_vec(&Vec::<f16>::from_f32_slice(&values)),
        DType::Bf16 => bytemuck::pod_collect_to_vec(&Vec::<bf16>::from_f32_slice(&values)),
        _ => bail!("{from} cannot be converted to {to}"),
    })
}

/// `x` rounded to `dtype` and widened again: one rounding of a computation that a kernel does in the stored type.
pub fn round_to(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Act, Layout};

    fn weights(dtype: DType, len: usize) -> (Buf<Act>, HostMem) {
        let mut layout = Layout::new(Region::Weights, dtype);
        layout.take::<u8>(1);
        let buf = layout.take(len);
        (buf, HostMem::new([layout.bytes(), 0, 0, 0]).unwrap())
    }

    #[test]
    fn a_tensor_of_the_wanted_type_is_read_where_it_lies() {
        let source = Source::from_vec(vec![1.0f32, 2.0, 3.0]);
        let (buf, m) = weights(DType::F32, 3);
        m.fill(buf.span(), &source, true).unwrap();
        assert_eq!(m.bytes(buf.span()).as_ptr(), source.bytes().as_ptr());
        assert_eq!((m.load(buf), m.load(buf.slice(1..2))), (vec![1.0, 2.0, 3.0], vec![2.0]));
        m.fill(buf.span(), &Source::from_vec(vec![4.0f32, 5.0, 6.0]), true).unwrap();
        assert_eq!(m.load(buf), [4.0, 5.0, 6.0]);
        m.store(buf.slice(0..1), &[9.0]);
        assert_eq!(m.load(buf), [9.0, 5.0, 6.0], "a write keeps the rest of what was mapped");
    }

    #[test]
    fn parts_of_a_fused_buffer_are_copied_beside_each_other() {
        let (buf, m) = weights(DType::F16, 4);
        m.fill(buf.slice(0..2).span(), &Source::from_vec(vec![f16::ONE; 2]), false).unwrap();
        m.fill(buf.slice(2..4).span(), &Source::from_vec(vec![bf16::ONE; 2]), false).unwrap();
        assert_eq!(m.load(buf), [1.0; 4]);
    }

    #[test]
    fn floats_are_converted_and_nothing_else_is() {
        let (buf, m) = weights(DType::Bf16, 2);
        m.fill(buf.span(), &Source::from_vec(vec![1.0f32, 1.001]), true).unwrap();
        assert_eq!(m.load(buf), [1.0, 1.0]);
        let error = m.fill(buf.span(), &Source::from_vec(vec![1i32, 2]), true).unwrap_err();
        assert_eq!(error.to_string(), "i32 cannot be converted to bf16");
        let error = m.fill(buf.span(), &Source::from_vec(vec![1.0f32]), true).unwrap_err();
        assert!(error.to_string().ends_with("takes 2 elements and the source is Source(1 x f32)"), "{error}");
    }

    #[test]
    fn a_tensor_at_an_odd_address_is_copied() {
        let mut bytes = vec![0u8];
        bytes.extend([1.5f32, 2.5].iter().flat_map(|v| v.to_le_bytes()));
        let owner = std::sync::Arc::new(bytes);
        let odd = (0..4).find(|i| !(owner.as_ptr() as usize + i).is_multiple_of(4)).unwrap();
        let (buf, m) = weights(DType::F32, 1);
        let source = Source::new(owner, odd..odd + 4, DType::F32).unwrap();
        m.fill(buf.span(), &source, true).unwrap();
        assert_eq!(bytemuck::bytes_of(&m.load(buf)[0]), source.bytes());
    }

    #[test]
    fn stores_round_to_nearest_even() {
        let (buf, m) = weights(DType::Bf16, 3);
        m.store(buf, &[1.0 + 0.00390625, 1.0 + 0.01171875, f32::INFINITY]);
        assert_eq!(m.load(buf), [1.0, 1.015625, f32::INFINITY]);
    }
}
