//! A kernel against its op's reference.
//!
//! Both run the same case on the same bytes. On the device everything that the case does not hold is a fill, NaN for
//! example, so whatever a kernel reads without its having been written shows; two fills must give the same bits. The case
//! lies at the end of the device's memory, so that what a kernel touches behind it is an error of the driver, and after
//! the run every byte that the op does not claim to write must be what it was.

use anyhow::{Context, Result};
use half::{bf16, f16};

use super::bed::{Bed, Numbers};
use super::cases::{Case, Tolerance};
use crate::backend::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::cuda::driver::Device;
use crate::backend::cuda::kernels::Kernels;
use crate::mem::{DType, Region, Span};
use crate::plan::{Backend, Plan};

/// Memory on a device, large enough for some cases.
pub struct Checker {
    cuda: Cuda,
    room: [usize; 4],
}

/// How a case went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The largest part of the tolerance that an element used, from 0 to 1; above 1, or not a number, if it failed.
    pub used: f64,
    /// Of the bits that the kernel wrote: the same for every fill, or something was read that nobody had written.
    pub hash: u64,
    /// What is wrong.
    pub fault: Option<String>,
}

impl Checker {
    /// Room on GPU `ordinal` for each of `cases`.
    ///
    /// # Errors
    /// No GPU, or too little memory on it.
    pub fn new(ordinal: usize, cases: &[Case]) -> Result<Checker> {
        Checker::with(ordinal, Kernels::default(), cases)
    }

    /// [`Checker::new`] with other images than the best that the build has for the device.
    ///
    /// # Errors
    /// As there.
    pub fn with(ordinal: usize, kernels: Kernels, cases: &[Case]) -> Result<Checker> {
        let mut room = [0; 4];
        for case in cases {
            // Both float types that kernels are made for have the same size.
            let mut bed = Bed::new(DType::Bf16, Numbers::Exact);
            case.build(&mut bed);
            room = std::array::from_fn(|i| room[i].max(bed.bytes()[i]));
        }
        Ok(Checker { cuda: Cuda::on(Device::open_with(ordinal, kernels)?, room, 0)?, room })
    }

    /// The device that the kernels run on.
    pub fn device(&self) -> &Device {
        self.cuda.device()
    }

    /// Run the reference of `case` in `dtype`, and the kernel once for each of `fills`: what every byte of the device's
    /// memory is that the case does not hold. A verdict for each.
    ///
    /// # Errors
    /// The kernel cannot be launched, or its launch fails.
    pub fn check(&self, case: &Case, dtype: DType, fills: &[u8]) -> Result<Vec<Verdict>> {
        let mut bed = Bed::new(dtype, Numbers::Exact);
        case.build(&mut bed);
        let needed = bed.bytes();
        let mut bed = Bed::behind(std::array::from_fn(|i| self.room[i] - needed[i]), dtype, Numbers::Exact);
        let op = case.build(&mut bed);
        let mut plan = Plan::new(dtype);
        plan.push(op);
        let mut images = Region::ALL.map(|region| bed.image(region, 0));
        let expected = self.reference(&bed, &plan, &images)?;

        let mut verdicts = Vec::with_capacity(fills.len());
        for &fill in fills {
            bed.refill(&mut images, fill);
            for region in Region::ALL.into_iter().filter(|region| !images[*region as usize].is_empty()) {
                self.cuda.restore(bed.whole(region), &images[region as usize])?;
            }
            self.cuda.run(&mut self.cuda.link(&plan)?, None)?;
            self.device().synchronize().with_context(|| format!("{} {dtype} {}", case.op, case.name))?;
            verdicts.push(self.verdict(case, &bed, &expected, &images)?);
        }
        Ok(verdicts)
    }

    /// What the reference writes: the spans and their bytes.
    fn reference(&self, bed: &Bed, plan: &Plan, images: &[Vec<u8>; 4]) -> Result<Vec<(Span, Vec<u8>)>> {
        let cpu = Cpu::new(self.room)?;
        for span in bed.contents() {
            cpu.restore(span, &images[span.region as usize][bed.place(span)])?;
        }
        cpu.run(&mut cpu.link(plan)?, None)?;
        let written = plan.steps().iter().flat_map(|step| step.op.writes());
        written.map(|span| Ok((span, cpu.snapshot(span)?))).collect()
    }

    /// Compare what the device holds after the run with what it is to have written, and the rest with what was there.
    fn verdict(&self, case: &Case, bed: &Bed, expected: &[(Span, Vec<u8>)], before: &[Vec<u8>; 4]) -> Result<Verdict> {
        let mut verdict = Verdict { used: 0.0, hash: FNV_OFFSET, fault: None };
        let mut after: [Vec<u8>; 4] = Default::default();
        for region in Region::ALL {
            after[region as usize] = self.cuda.snapshot(bed.whole(region))?;
        }
        for (span, expected) in expected {
            let (region, place) = (span.region as usize, bed.place(*span));
            let found = &after[region][place.clone()];
            verdict.hash = fnv1a(verdict.hash, found);
            let (used, fault) = compare(&case.tolerance, bed.dtype(), *span, expected, found);
            // The worst so far; a NaN stays.
            if used > verdict.used || used.is_nan() {
                verdict.used = used;
            }
            verdict.fault = verdict.fault.or(fault);
            after[region][place.clone()].copy_from_slice(&before[region][place]);
        }
        for region in Region::ALL {
            let (after, before) = (&after[region as usize], &before[region as usize]);
            if after != before {
                let at = after.iter().zip(before).position(|(after, before)| after != before).unwrap_or(0);
                let byte = bed.whole(region).range().start + at;
                let fault =
                    format!("byte {byte} of {} was changed, which is in no span that the op writes", region.name());
                verdict.fault.get_or_insert(fault);
            }
        }
        Ok(verdict)
    }
}

/// The largest part of the tolerance that an element of `found` used, and what is to be said about the worst.
fn compare(t: &Tolerance, dtype: DType, span: Span, expected: &[u8], found: &[u8]) -> (f64, Option<String>) {
    if !span.dtype.is_float() {
        let differ = |&i: &usize| expected[i] != found[i];
        let Some(byte) = (0..found.len()).find(differ) else { return (0.0, None) };
        let element = byte / span.dtype.size();
        let [found, expected] = [found, expected].map(|bytes| {
            let bytes = &bytes[element * span.dtype.size()..][..span.dtype.size()];
            bytes.try_into().map_or(i32::from(bytes[0]), i32::from_le_bytes)
        });
        return (
            f64::INFINITY,
            Some(format!("element {element} of {span:?} is {found}, the reference has {expected}")),
        );
    }
    let (expected, found) = (decode(span.dtype, expected), decode(span.dtype, found));
    let (mut used, mut worst) = (0.0, 0);
    for (i, (&expected, &found)) in expected.iter().zip(&found).enumerate() {
        if expected == found {
            continue;
        }
        let allowed = t.allowed(dtype, span.dtype, f64::from(expected));
        let share = (f64::from(expected) - f64::from(found)).abs() / allowed;
        // Not a number is worse than anything.
        if share > used || share.is_nan() {
            (used, worst) = (share, i);
            if share.is_nan() {
                break;
            }
        }
    }
    let fault = (used > 1.0 || used.is_nan()).then(|| {
        let (expected, found) = (expected[worst], found[worst]);
        let allowed = t.allowed(dtype, span.dtype, f64::from(expected));
        format!("element {worst} of {span:?} is {found}, the reference has {expected} and {allowed:.2e} is allowed")
    });
    (used, fault)
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes).iter().map(|v| v.to_f32()).collect(),
        DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).collect(),
        _ => bytemuck::pod_collect_to_vec(bytes),
    }
}

/// Start of the 64-bit FNV-1a hash.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(dtype: DType, len: u64) -> Span {
        Span { region: Region::Scratch, dtype, byte: 0, len }
    }

    fn floats(expected: &[f32], found: &[f32]) -> (f64, Option<String>) {
        let t = Tolerance { arithmetic: 0.5, ..Tolerance::BITS };
        let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        compare(&t, DType::Bf16, span(DType::F32, found.len() as u64), &bytes(expected), &bytes(found))
    }

    #[test]
    fn the_worst_element_is_named_and_a_nan_is_worse_than_any() {
        assert_eq!(floats(&[1.0, 2.0], &[1.0, 2.25]), (0.5, None));
        let (used, fault) = floats(&[1.0, 2.0, 3.0], &[1.25, 4.0, 4.0]);
        assert_eq!(used, 4.0);
        let expected = "element 1 of scratch[0..+3 f32] is 4, the reference has 2 and 5.00e-1 is allowed";
        assert_eq!(fault.as_deref(), Some(expected));
        let (used, fault) = floats(&[1.0, 2.0, 3.0], &[9.0, f32::NAN, 3.0]);
        assert!(used.is_nan() && fault.is_some_and(|f| f.starts_with("element 1 of")));
    }

    #[test]
    fn without_a_tolerance_only_zeros_of_either_sign_are_equal() {
        let bits = |values: [f32; 2]| bytemuck::cast::<_, [u8; 8]>(values);
        let run = |e, f| compare(&Tolerance::BITS, DType::F16, span(DType::F32, 2), &bits(e), &bits(f));
        assert_eq!(run([0.0, 1.0], [-0.0, 1.0]), (0.0, None));
        let (used, fault) = run([0.0, 1.0], [0.0, 1.000_000_1]);
        assert!(used.is_infinite() && fault.is_some());
    }

    #[test]
    fn integers_are_exact() {
        let run = |found: [i32; 2]| {
            let bytes: [u8; 8] = bytemuck::cast(found);
            compare(
                &Tolerance::BITS,
                DType::F16,
                span(DType::I32, 2),
                &bytemuck::cast::<_, [u8; 8]>([7, 70_000]),
                &bytes,
            )
        };
        assert_eq!(run([7, 70_000]), (0.0, None));
        let fault = run([7, 70_256]).1;
        let expected = "element 1 of scratch[0..+2 i32] is 70256, the reference has 70000";
        assert_eq!(fault.as_deref(), Some(expected));
    }

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
    }
}
