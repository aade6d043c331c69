//! Find the first op that two backends compute differently.

use std::fmt;

use anyhow::Result;
use half::{bf16, f16};

use super::{Backend, Label, Plan};
use crate::mem::{DType, Span};

/// The first element that differs by more than the tolerance, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Index in the plan of the step that wrote it.
    pub step: usize,
    /// Its label.
    pub label: Label,
    /// The buffer that was compared.
    pub span: Span,
    /// Index of the element in the buffer.
    pub element: usize,
    /// What the reference wrote.
    pub expected: f64,
    /// What the backend under test wrote.
    pub found: f64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { step, label, span, element, expected, found } = self;
        write!(f, "step {step}, {label}: element {element} of {span:?} is {found}, the reference has {expected}")
    }
}

/// Run `plan` step by step on both backends, whose regions hold the same bytes at the start, and return the first step
/// whose [`writes`](crate::kernel::Kernel::writes) differ: floats by more than `tolerance` relative to
/// `max(1, |expected|)`, integers at all.
///
/// After each step that agrees, the reference's output is copied to the other side, so rounding does not pile up
/// and the step named is the one at fault.
///
/// # Errors
/// If a backend fails.
pub fn bisect<R: Backend, B: Backend>(
    plan: &Plan,
    reference: &R,
    tested: &B,
    tolerance: f64,
) -> Result<Option<Difference>> {
    for (i, step) in plan.steps().iter().enumerate() {
        let only = plan.only(i);
        reference.run(&mut reference.link(&only)?, None)?;
        tested.run(&mut tested.link(&only)?, None)?;
        for span in step.op.writes() {
            let expected = reference.snapshot(span)?;
            let found = tested.snapshot(span)?;
            if let Some((element, e, f)) = first_difference(span.dtype, &expected, &found, tolerance) {
                let label = step.label.clone();
                return Ok(Some(Difference { step: i, label, span, element, expected: e, found: f }));
            }
            tested.restore(span, &expected)?;
        }
    }
    Ok(None)
}

fn first_difference(dtype: DType, expected: &[u8], found: &[u8], tolerance: f64) -> Option<(usize, f64, f64)> {
    let size = dtype.size();
    let pairs = expected.chunks_exact(size).zip(found.chunks_exact(size)).enumerate();
    for (i, (e, f)) in pairs.filter(|(_, (e, f))| e != f) {
        let (e, f) = (value(dtype, e), value(dtype, f));
        // Ids and counts are right or wrong, an infinity tolerates nothing else, and one NaN is as good as another.
        let within = e.is_finite() && (e - f).abs() <= tolerance * e.abs().max(1.0);
        let close = dtype.is_float() && (within || (e.is_nan() && f.is_nan()));
        if !close {
            return Some((i, e, f));
        }
    }
    None
}

fn value(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F32 => f64::from(bytemuck::pod_read_unaligned::<f32>(bytes)),
        DType::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f64(),
        DType::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f64(),
        DType::I32 => f64::from(bytemuck::pod_read_unaligned::<i32>(bytes)),
        DType::U8 => f64::from(bytes[0]),
    }
}
