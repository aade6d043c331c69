//! Matrix products of few rows, normalised before: the layers of a decode step.

use super::{Case, Size, Tolerance};
use crate::kernel::Kernel;
use crate::mem::{Act, Region};
use crate::ops::{Epilogue, Gemv, Norm};
use crate::workbench::Bed;
use Epilogue::{AddResidual, Store, SwiGlu};

/// `c = epilogue(norm(a) b^T)` with `a` of `[m, k]` and `b` of `[n, k]`.
#[derive(Clone, Copy)]
struct Product {
    what: &'static str,
    m: usize,
    n: usize,
    k: usize,
    norm: bool,
    epilogue: Epilogue,
    /// Stored as f32, as logits are.
    wide: bool,
}

const fn product(what: &'static str, [m, n, k]: [usize; 3], epilogue: Epilogue) -> Product {
    Product { what, m, n, k, norm: false, epilogue, wide: false }
}

const fn normed(what: &'static str, size: [usize; 3], epilogue: Epilogue) -> Product {
    Product { norm: true, ..product(what, size, epilogue) }
}

/// A column, odd lengths, a half group of gate and up, either side of the borders between kernels.
const EDGES: [Product; 12] = [
    product("one", [1, 1, 1], Store),
    normed("odd", [3, 7, 9], Store),
    normed("step", [8, 9, 32], Store),
    normed("odd half group", [1, 6, 136], SwiGlu),
    Product { wide: true, ..normed("logits", [2, 331, 96], Store) },
    product("residual", [8, 96, 72], AddResidual),
    normed("longest normalised", [2, 24, 4096], SwiGlu),
    product("longer", [5, 21, 4128], AddResidual),
    product("pairs of long rows", [3, 14, 8192], SwiGlu),
    product("longer still", [6, 19, 8224], Store),
    product("longest", [2, 18, 11520], Store),
    normed("streamed", [4, 18, 4128], AddResidual),
];

/// A layer of the 7B language model for `m` rows, and its head.
const fn layer(m: usize) -> [Product; 5] {
    [
        normed("qkv", [m, 12288, 4096], Store),
        product("o", [m, 4096, 4096], AddResidual),
        normed("gate_up", [m, 22016, 4096], SwiGlu),
        product("down", [m, 4096, 11008], AddResidual),
        Product { wide: true, ..normed("lm_head", [m, 32064, 4096], Store) },
    ]
}

/// A layer of Phi-3-mini for one row, and its head.
const PHI: [Product; 5] = [
    normed("phi qkv", [1, 9216, 3072], Store),
    product("phi o", [1, 3072, 3072], AddResidual),
    normed("phi gate_up", [1, 16384, 3072], SwiGlu),
    product("phi down", [1, 3072, 8192], AddResidual),
    Product { wide: true, ..normed("phi lm_head", [1, 32064, 3072], Store) },
];

/// Rows whose normalised elements are all zero or plus or minus sqrt(2): every other one is zero where a row has an even
/// number, the others have one magnitude. Both float types round sqrt(2) to 181/128, however the mean was added up.
fn of_one_magnitude(rows: usize, k: usize) -> Vec<f32> {
    let element = |i: usize| {
        let (row, col) = (i / k, i % k);
        let sign = if (i.wrapping_mul(0x9e37_79b9) >> 13).is_multiple_of(2) { 1.0 } else { -1.0 };
        let zero = k.is_multiple_of(2) && (row + col).is_multiple_of(2);
        if zero { 0.0 } else { sign * [1.0, 4.0, 0.5, 64.0][row % 4] }
    };
    (0..rows * k).map(element).collect()
}

impl Product {
    /// Sums are exact in f32 in any order, so an output without an activation has the reference's bits. A fast
    /// exponential is off by less than 2^-16 of the result, 2^-5 of a unit in the last place even in f16.
    fn tolerance(&self) -> Tolerance {
        match self.epilogue {
            SwiGlu => Tolerance { ulps: 1.0 + 1.0 / 32.0, ..Tolerance::BITS },
            _ => Tolerance::BITS,
        }
    }

    fn op(&self, bed: &mut Bed) -> Gemv {
        let Product { m, n, k, epilogue, .. } = *self;
        let cols = if epilogue == SwiGlu { n / 2 } else { n };
        Gemv {
            a: match self.norm {
                true => bed.floats(Region::Scratch, of_one_magnitude(m, k)),
                false => bed.factors(Region::Scratch, m * k, 1.0),
            },
            b: bed.factors(Region::Weights, n * k, 1.0 / 32.0),
            norm: self.norm.then(|| Norm { weight: bed.factors(Region::Weights, k, 0.5), eps: 1e-5 }),
            c: match (epilogue, self.wide) {
                (AddResidual, _) => bed.factors(Region::Scratch, m * cols, 0.25),
                (_, true) => bed.output::<f32>(Region::Io, m * cols).into(),
                (_, false) => bed.output::<Act>(Region::Scratch, m * cols),
            },
            m,
            n,
            k,
            epilogue,
        }
    }

    fn case(self, size: Size) -> Case {
        let Product { what, m, n, k, .. } = self;
        Case::new(Gemv::NAME, format!("{what} {m}x{n}x{k}"), size, self.tolerance(), move |bed| self.op(bed))
    }
}

/// A product of any size.
pub(super) fn case(size: [usize; 3], epilogue: Epilogue) -> Case {
    product("asked", size, epilogue).case(Size::Real)
}

pub(super) fn cases() -> Vec<Case> {
    let real = [1, 8].into_iter().flat_map(layer).chain(PHI).map(|p| p.case(Size::Real));
    EDGES.into_iter().map(|p| p.case(Size::Edge)).chain(real).collect()
}
