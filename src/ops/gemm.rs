//! Matrix product with what follows it.

use super::math::{gelu, matmul_nt, quick_gelu, silu};
use crate::host::HostMem;
use crate::kernel::{Cost, Kernel};
use crate::mem::{Act, Buf, Spans};

/// `c = epilogue(a * b^T)`: a linear layer over the rows of `a`, with `b` as checkpoints store it.
///
/// Products are summed in f32, the epilogue is in f32, and the result is rounded once, to the type of `c`.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// `[m, n]`, or `[m, n / 2]` with [`Epilogue::SwiGlu`]; f32 for logits.
    pub c: Buf<Act>,
    /// `[m, k]`
    pub a: Buf<Act>,
    /// `[n, k]`
    pub b: Buf<Act>,
    /// Rows of `a`.
    pub m: usize,
    /// Rows of `b`.
    pub n: usize,
    /// Length of a row of either.
    pub k: usize,
    /// `[n]`, added to every row of the product.
    pub bias: Option<Buf<Act>>,
    /// What happens to the sum.
    pub epilogue: Epilogue,
}

/// What happens to `p = a * b^T + bias` before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `p`
    Store,
    /// `c + p`: the residual connection; `c` is read and written.
    AddResidual,
    /// `quick_gelu(p)`, CLIP's activation.
    QuickGelu,
    /// `gelu(p)`, the exact one.
    Gelu,
    /// `silu(gate) * up`, where the first `n / 2` columns of `p` are gate and the others up.
    SwiGlu,
}

impl Kernel for Gemm {
    const NAME: &'static str = "gemm";

    fn cost(&self) -> Cost {
        let Gemm { m, n, k, .. } = *self;
        let inputs = m * k + n * k + self.bias.map_or(0, |_| n);
        let touched = if self.epilogue == Epilogue::AddResidual { 2 * self.c.len() } else { self.c.len() };
        Cost {
            bytes: (inputs * self.a.dtype().size() + touched * self.c.dtype().size()) as u64,
            flops: 2 * (m * n * k) as u64,
        }
    }

    fn writes(&self) -> Spans {
        vec![self.c.span()]
    }

    fn reference(&self, m: &HostMem) {
        let a = m.load(self.a);
        let mut p = m.with_floats(self.b, |b| matmul_nt(&a, b, self.m, self.n, self.k));
        if let Some(bias) = self.bias {
            let bias = m.load(bias);
            for row in p.chunks_exact_mut(self.n) {
                row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b);
            }
        }
        match self.epilogue {
            Epilogue::Store => {}
            Epilogue::AddResidual => {
                p.iter_mut().zip(m.load(self.c)).for_each(|(v, c)| *v += c);
            }
            Epilogue::QuickGelu => p.iter_mut().for_each(|v| *v = quick_gelu(*v)),
            Epilogue::Gelu => p.iter_mut().for_each(|v| *v = gelu(*v)),
            Epilogue::SwiGlu => {
                let half = self.n / 2;
                p = p.chunks_exact(self.n).flat_map(|row| (0..half).map(|j| silu(row[j]) * row[half + j])).collect();
            }
        }
        m.store(self.c, &p);
    }
}
