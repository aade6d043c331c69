//! Matrix products: what runs through the layers of a step, the vision tower and the projector.

use super::{Case, Size, Tolerance};
use crate::kernel::Kernel;
use crate::mem::{Act, Region};
use crate::ops::{Epilogue, Gemm};
use crate::workbench::Bed;
use Epilogue::{AddResidual, Gelu, QuickGelu, Store, SwiGlu};

/// `c = epilogue(a b^T)` with `a` of `[m, k]` and `b` of `[n, k]`.
#[derive(Clone, Copy)]
struct Product {
    what: &'static str,
    m: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
    bias: bool,
    /// Stored as f32, as logits are.
    wide: bool,
}

const fn product(what: &'static str, [m, n, k]: [usize; 3], epilogue: Epilogue) -> Product {
    Product { what, m, n, k, epilogue, bias: false, wide: false }
}

const fn biased(what: &'static str, size: [usize; 3], epilogue: Epilogue) -> Product {
    Product { bias: true, ..product(what, size, epilogue) }
}

const fn wide(what: &'static str, size: [usize; 3]) -> Product {
    Product { wide: true, ..product(what, size, Store) }
}

/// Odd lengths, a half group of gate and up, a tile and one row more or less; then what the copy engine can move, in
/// tiles that their matrices do not fill.
const EDGES: [Product; 21] = [
    product("one", [1, 1, 1], Store),
    product("odd", [3, 7, 9], Store),
    wide("odd logits", [2, 331, 72]),
    product("residual", [8, 96, 72], AddResidual),
    product("half group", [9, 40, 64], SwiGlu),
    product("odd half group", [1, 6, 136], SwiGlu),
    biased("odd k", [17, 64, 588], Gelu),
    biased("few rows", [32, 66, 200], QuickGelu),
    biased("more rows", [33, 130, 200], QuickGelu),
    product("tile and one", [65, 136, 136], SwiGlu),
    product("tile less one", [127, 127, 264], AddResidual),
    product("two tiles", [129, 130, 264], Store),
    biased("short k", [100, 257, 8], Store),
    wide("wide", [40, 72, 320]),
    product("even", [33, 64, 72], Store),
    product("even pairs", [70, 272, 136], SwiGlu),
    product("even residual", [153, 264, 200], AddResidual),
    biased("even bias", [100, 136, 64], Gelu),
    biased("even activation", [217, 136, 264], QuickGelu),
    wide("even logits", [70, 331, 64]),
    product("many tiles", [300, 1032, 136], Store),
];

/// One picture in CLIP-L/14 at 336 pixels, and its projector.
const VISION: [Product; 6] = [
    biased("vision qkv", [577, 3072, 1024], Store),
    biased("vision o", [577, 1024, 1024], AddResidual),
    biased("vision fc1", [577, 4096, 1024], QuickGelu),
    biased("vision fc2", [577, 1024, 4096], AddResidual),
    biased("projector 1", [576, 4096, 1024], Gelu),
    biased("projector 2", [576, 4096, 4096], Store),
];

/// A layer of the 7B language model for `m` rows.
const fn layer(m: usize) -> [Product; 4] {
    [
        product("qkv", [m, 12288, 4096], Store),
        product("o", [m, 4096, 4096], AddResidual),
        product("gate_up", [m, 22016, 4096], SwiGlu),
        product("down", [m, 4096, 11008], AddResidual),
    ]
}

/// A layer of Phi-3-mini for a picture of five tiles and a question, and the projector of the picture.
const PHI: [Product; 6] = [
    product("phi qkv", [830, 9216, 3072], Store),
    product("phi o", [830, 3072, 3072], AddResidual),
    product("phi gate_up", [830, 16384, 3072], SwiGlu),
    product("phi down", [830, 3072, 8192], AddResidual),
    biased("phi projector 1", [720, 3072, 4096], Gelu),
    biased("phi projector 2", [720, 3072, 3072], Store),
];

/// Large enough to keep every multiprocessor busy, small enough for the clocks to stay up: the ceiling of the matrix
/// units is measured on it.
pub const CEILING: &str = "ceiling 4096x8192x4096";

impl Product {
    /// Sums are exact in f32 in any order, so an output without an activation has the reference's bits. A fast
    /// exponential is off by less than 2^-16 of the result, 2^-5 of a unit in the last place even in f16; the exact GELU
    /// by the cancellation in `1 + erf`, 1e-6.
    fn tolerance(&self) -> Tolerance {
        match self.epilogue {
            Store | AddResidual => Tolerance::BITS,
            QuickGelu | SwiGlu => Tolerance { ulps: 1.0 + 1.0 / 32.0, ..Tolerance::BITS },
            Gelu => Tolerance { ulps: 1.0, arithmetic: 1e-6, ..Tolerance::BITS },
        }
    }

    fn op(&self, bed: &mut Bed) -> Gemm {
        let Product { m, n, k, epilogue, .. } = *self;
        let cols = if epilogue == SwiGlu { n / 2 } else { n };
        Gemm {
            a: bed.factors(Region::Scratch, m * k, 1.0),
            b: bed.factors(Region::Weights, n * k, 1.0 / 32.0),
            bias: self.bias.then(|| bed.factors(Region::Weights, n, 0.5)),
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
        let name = if what == CEILING { what.to_owned() } else { format!("{what} {m}x{n}x{k}") };
        Case::new(Gemm::NAME, name, size, self.tolerance(), move |bed| self.op(bed))
    }
}

/// A product of any size.
pub(super) fn case(size: [usize; 3], epilogue: Epilogue) -> Case {
    product("asked", size, epilogue).case(Size::Real)
}

pub(super) fn cases() -> Vec<Case> {
    let head = |m| wide("lm_head", [m, 32064, 4096]);
    let real = [1, 8, 645].into_iter().flat_map(layer).chain([head(1), head(8)]).chain(VISION).chain(PHI);
    let edges = EDGES.into_iter().map(|p| p.case(Size::Edge));
    let ceiling = product(CEILING, [4096, 8192, 4096], Store).case(Size::Timed);
    edges.chain(real.map(|p| p.case(Size::Real))).chain([ceiling]).collect()
}
