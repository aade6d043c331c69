//! Gemv, which promises the bits of RmsNorm and Gemm, each held to an oracle of its own.

use ocelli::mem::{Act, DType, Region};
use ocelli::ops::{Epilogue, Gemm, Gemv, Norm, Op, RmsNorm};

use crate::FLOATS;
use crate::bed::Bed;

/// Columns and depths: single ones, around the tiles of implementations, and lengths that are no multiple of anything.
const SHAPES: [(usize, usize); 8] = [(2, 1), (6, 7), (16, 8), (10, 15), (34, 33), (18, 64), (66, 100), (130, 1024)];
const EPILOGUES: [Epilogue; 3] = [Epilogue::Store, Epilogue::AddResidual, Epilogue::SwiGlu];
const EPS: f32 = 1e-5;

/// Compare one product of `m` rows with the ops that it stands for.
fn case(dtype: DType, m: usize, (n, k): (usize, usize), epilogue: Epilogue, normalise: bool, logits: bool) {
    let mut bed = Bed::new(dtype, (m * 1_000_000 + n * 1000 + k) as u64);
    let cols = if epilogue == Epilogue::SwiGlu { n / 2 } else { n };
    let a = bed.random(Region::Scratch, m * k, 2.0);
    let b = bed.random(Region::Weights, n * k, 0.5);
    let weight = bed.random(Region::Weights, k, 2.0);
    let h = bed.random::<Act>(Region::Scratch, m * k, 1.0);
    let c = match logits {
        true => bed.random::<f32>(Region::Scratch, m * cols, 2.0).into(),
        false => bed.random(Region::Scratch, m * cols, 2.0),
    };
    let norm = normalise.then_some(Norm { weight, eps: EPS });
    let fused = bed.run(Gemv { c, a, b, m, n, k, norm, epilogue });
    let product = |a| -> Op { Gemm { c, a, b, m, n, k, bias: None, epilogue }.into() };
    let apart = match normalise {
        true => bed.run_all(&[RmsNorm { y: h, x: a, weight, rows: m, cols: k, eps: EPS }.into(), product(h)]),
        false => bed.run_all(&[product(a)]),
    };
    let what = format!("{dtype} {m} x {n} x {k}, {epilogue:?}, norm {normalise}, logits {logits}");
    assert_eq!(fused.bits(c), apart.bits(c), "{what}");
}

#[test]
fn gemv_has_the_bits_of_the_ops_that_it_stands_for() {
    for dtype in FLOATS {
        for shape in SHAPES {
            for m in [1, 2, 7, 8] {
                for epilogue in EPILOGUES {
                    for normalise in [false, true] {
                        case(dtype, m, shape, epilogue, normalise, false);
                    }
                }
            }
            case(dtype, 3, shape, Epilogue::Store, true, true);
        }
    }
}
