//! The table: for every op its edges, and the sizes that LLaVA-1.5-7B gives it.
//!
//! A case is data: a name, what the kernel may be off by, and how to lay the op out on a [`Bed`]. To add an op, write a
//! file beside these with its table and add a line to [`all`].
//!
//! The real sizes: a decode step of 1 and of 8 sequences, one picture (577 tokens in the vision tower, 576 in the
//! projector), and a prompt of one picture and 69 tokens of text (645).

mod attention;
pub mod gemm;
mod gemv;
mod rows;
mod sample;
mod vision;

use std::fmt::{self, Display};

use anyhow::{Result, bail, ensure};

use crate::kernel::Kernel;
use crate::mem::DType;
use crate::ops::{Epilogue, Gemm, Gemv, Op};

use super::Bed;

/// What a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// An edge: one row, a length that is no multiple of anything. Small enough for a tool that slows a GPU down a
    /// hundredfold.
    Edge,
    /// A size of the model; timed, too.
    Real,
    /// Only to be timed: its reference takes too long.
    Timed,
}

/// How far a kernel may be from its op's reference. Where an op's table says nothing else, outputs have the reference's
/// bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Absolute: what f32 sums in another order, or a fast exponential, may differ by.
    pub arithmetic: f64,
    /// Absolute, in unit roundoffs of the float type of the op: what rounding an intermediate result to it may cost.
    pub roundings: f64,
    /// Units in the last place of the output: one where the results before the last rounding may differ at all.
    pub ulps: f64,
}

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1 << 24) as f64;

impl Tolerance {
    /// The reference's bits.
    pub const BITS: Tolerance = Tolerance { arithmetic: 0.0, roundings: 0.0, ulps: 0.0 };

    /// What an output of type `stored` may be off by where the reference has `value`, in an op that computes in `dtype`.
    pub fn allowed(&self, dtype: DType, stored: DType, value: f64) -> f64 {
        let before = self.arithmetic + self.roundings * roundoff(dtype);
        before + self.ulps * ulp(stored, value.abs() + before)
    }
}

impl Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tolerance { arithmetic, roundings, ulps } = *self;
        if *self == Tolerance::BITS {
            return f.pad("bits");
        }
        let absolute = (arithmetic > 0.0).then(|| format!("{arithmetic:.1e}"));
        let roundings = (roundings > 0.0).then(|| format!("{roundings:.3} u"));
        let ulps = (ulps > 0.0).then(|| format!("{ulps:.3} ulp"));
        f.pad(&[absolute, roundings, ulps].into_iter().flatten().collect::<Vec<_>>().join(" + "))
    }
}

/// Half the distance from one to the next larger number.
fn roundoff(dtype: DType) -> f64 {
    ulp(dtype, 1.0) / 2.0
}

/// The distance from `x`, which is not negative, to the next larger number of a float type.
fn ulp(dtype: DType, x: f64) -> f64 {
    let (digits, smallest) = match dtype {
        DType::F16 => (10, -14),
        DType::Bf16 => (7, -126),
        _ => (23, -126),
    };
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(smallest) - digits)
}

/// One row of the table.
pub struct Case {
    /// Name of the op.
    pub op: &'static str,
    /// What is computed, with its sizes: unique among the cases of the op.
    pub name: String,
    /// What it is for.
    pub size: Size,
    /// What the kernel may be off by.
    pub tolerance: Tolerance,
    build: Box<dyn Fn(&mut Bed) -> Op + Send + Sync>,
}

impl Case {
    fn new<K: Into<Op>>(
        op: &'static str,
        name: String,
        size: Size,
        tolerance: Tolerance,
        build: impl Fn(&mut Bed) -> K + Send + Sync + 'static,
    ) -> Case {
        Case { op, name, size, tolerance, build: Box::new(move |bed| build(bed).into()) }
    }

    /// The op, its buffers taken from `bed`. Two calls on one bed give the op twice, on buffers of their own.
    pub fn build(&self, bed: &mut Bed) -> Op {
        (self.build)(bed)
    }
}

/// The whole table, in the order of [`Op::NAMES`].
pub fn all() -> Vec<Case> {
    let tables = [gemm::cases(), gemv::cases(), rows::cases(), attention::cases(), vision::cases(), sample::cases()];
    let mut cases: Vec<Case> = tables.into_iter().flatten().collect();
    cases.sort_by_key(|case| Op::NAMES.iter().position(|name| *name == case.op));
    cases
}

/// The cases of the op `name`, or of every op, whose own name contains `shape`.
pub fn select(name: Option<&str>, shape: Option<&str>) -> Vec<Case> {
    let mut cases = all();
    cases.retain(|case| name.is_none_or(|n| case.op == n) && shape.is_none_or(|s| case.name.contains(s)));
    cases
}

/// The case of a matrix product of any size: `MxNxK`, or `MxNxK,swiglu` and so on.
///
/// # Errors
/// Another op, no such size, or one that the op does not take.
pub fn product(op: &str, shape: &str) -> Result<Case> {
    let (size, epilogue) = shape.split_once(',').unwrap_or((shape, "store"));
    let epilogue = match epilogue {
        "store" => Epilogue::Store,
        "add_residual" => Epilogue::AddResidual,
        "swiglu" => Epilogue::SwiGlu,
        "gelu" if op == Gemm::NAME => Epilogue::Gelu,
        "quick_gelu" if op == Gemm::NAME => Epilogue::QuickGelu,
        other => bail!(
            "{op} has no epilogue `{other}`; there are store, add_residual and swiglu, of gemm gelu and quick_gelu, too"
        ),
    };
    let numbers: Option<Vec<usize>> = size.split('x').map(|n| n.parse().ok()).collect();
    let Some(&[m, n, k]) = numbers.as_deref() else {
        bail!("`{size}` is no shape of a matrix product; write MxNxK, for example 577x4096x1024")
    };
    let most = 1 << 20;
    ensure!([m, n, k].iter().all(|d| (1..=most).contains(d)), "{size}: each of M, N and K must be from 1 to {most}");
    let elements = [(m, k), (n, k), (m, n)].map(|(rows, cols)| rows * cols).into_iter().sum::<usize>();
    ensure!(elements <= 1 << 30, "{size} has {elements} elements in its three matrices; at most 2^30 are laid out");
    ensure!(epilogue != Epilogue::SwiGlu || n.is_multiple_of(2), "swiglu takes columns in pairs, and N is {n}");
    match op {
        Gemm::NAME => Ok(gemm::case([m, n, k], epilogue)),
        Gemv::NAME => {
            ensure!(m <= Gemv::MAX_ROWS, "gemv takes 1 to {} rows, and M is {m}; gemm takes more", Gemv::MAX_ROWS);
            Ok(gemv::case([m, n, k], epilogue))
        }
        _ => bail!("gemm and gemv take any shape; {op} has those of its table"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::workbench::Numbers;

    #[test]
    fn every_op_has_edges_and_real_sizes_under_names_of_their_own() {
        let cases = all();
        for op in Op::NAMES {
            let count = |size| cases.iter().filter(|c| c.op == *op && c.size == size).count();
            assert!(count(Size::Edge) >= 2 && count(Size::Real) >= 1, "{op} has too few cases");
        }
        let names: BTreeSet<_> = cases.iter().map(|c| (c.op, &c.name)).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn a_product_of_any_size_is_a_case_or_its_limit_is_named() {
        let case = |op, shape| {
            product(op, shape).map(|case| (case.op, case.build(&mut Bed::new(DType::Bf16, Numbers::Exact))))
        };
        let (op, built) = case("gemm", "33x48x40,swiglu").unwrap();
        assert_eq!((op, built.cost().flops), ("gemm", 2 * 33 * 48 * 40));
        assert_eq!(case("gemv", "8x7x13").unwrap().1.cost().flops, 2 * 8 * 7 * 13);
        for (op, shape, said) in [
            ("gemm", "33x48", "`33x48` is no shape of a matrix product; write MxNxK"),
            ("gemm", "33x48x40x2", "`33x48x40x2` is no shape"),
            ("gemm", "33x48x40xtwo", "`33x48x40xtwo` is no shape"),
            ("gemm", "33x0x40", "each of M, N and K must be from 1 to 1048576"),
            ("gemm", "1048576x1048576x1", "at most 2^30 are laid out"),
            ("gemm", "33x47x40,swiglu", "swiglu takes columns in pairs, and N is 47"),
            ("gemm", "33x48x40,relu", "gemm has no epilogue `relu`"),
            ("gemv", "1x48x40,gelu", "gemv has no epilogue `gelu`"),
            ("gemv", "9x48x40", "gemv takes 1 to 8 rows, and M is 9"),
            ("gather", "1x2x3", "gemm and gemv take any shape"),
        ] {
            let error = product(op, shape).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_tolerance_grows_with_the_value_and_the_coarseness_of_the_type() {
        let allowed = |t: Tolerance, value| t.allowed(DType::Bf16, DType::Bf16, value);
        assert_eq!(allowed(Tolerance::BITS, 3.0), 0.0);
        let ulps = Tolerance { ulps: 2.0, ..Tolerance::BITS };
        assert_eq!((allowed(ulps, 0.0), allowed(ulps, 1.99)), (2f64.powi(-132), 2f64.powi(-6)));
        assert_eq!(ulps.allowed(DType::Bf16, DType::F32, -2.5), 2f64.powi(-21));
        let roundings = Tolerance { roundings: 1.0, arithmetic: 1.0, ..Tolerance::BITS };
        assert_eq!(allowed(roundings, 100.0), 1.0 + 2f64.powi(-8));
        assert_eq!(roundings.allowed(DType::F16, DType::F32, 0.0), 1.0 + 2f64.powi(-11));
    }
}
