//! The closed list of ops. One file an op: its fields, what it costs, what it writes, and a plain f32 reference.
//!
//! An op enters with a reference, a shape table and a test against an independent oracle, or not at all; there is no generic
//! element-wise op, no broadcast and no transpose, because those belong into the op that produces the data.

/// The entry point of a kernel for a stored type. None is compiled for f32, and linking says so by this name.
macro_rules! symbol {
    ($op:literal, $dtype:expr) => {
        match $dtype {
            crate::mem::DType::F16 => concat!($op, "_f16"),
            crate::mem::DType::Bf16 => concat!($op, "_bf16"),
            _ => concat!($op, "_f32"),
        }
    };
}

mod attention;
mod dense_attention;
mod embed_splice;
mod gather;
mod gemm;
mod gemv;
mod layer_norm;
mod math;
mod paged_decode;
mod paged_prefill;
mod patch_embed;
mod philox;
mod random_fill;
mod resize;
mod rmsnorm;
mod rope_kv;
mod sample;

pub use attention::{KV_BLOCK, PagedKv};
pub use dense_attention::{DenseAttention, DenseAttentionParams};
pub use embed_splice::{EmbedSplice, EmbedSpliceParams, sampled_id};
pub use gather::{Gather, GatherParams};
pub use gemm::{Epilogue, Gemm, GemmParams};
pub use gemv::{Gemv, GemvParams, Norm};
pub use layer_norm::{LayerNorm, LayerNormParams};
pub use paged_decode::{PagedDecode, PagedDecodeParams};
pub use paged_prefill::{PagedPrefill, PagedPrefillParams};
pub use patch_embed::{PatchEmbed, PatchEmbedParams};
pub use random_fill::{RandomFill, RandomFillParams};
pub use resize::{Resize, ResizeAxis, ResizeAxisParams, ResizeParams};
pub use rmsnorm::{RmsNorm, RmsNormParams};
pub use rope_kv::{RopeKv, RopeKvParams, long_rope_table, rope_table};
pub use sample::{
    IN_PROMPT, MAX_TOP_LOGPROBS, ONLY_LISTED, REPORT_GIVEN, Sample, SampleParams, SamplingRow, TokenBias, logits_hash,
};

use crate::host::HostMem;
use crate::kernel::{Cost, GpuInfo, Kernel, Launched};
use crate::mem::{Bases, Spans};

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        /// Any op of the list.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)]
        pub enum Op { $($op($op)),* }

        impl Op {
            /// Names of every op of the list, in order.
            pub const NAMES: &'static [&'static str] = &[$(<$op as Kernel>::NAME),*];

            /// Symbol stem, trace label and bench id.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$op(_) => <$op as Kernel>::NAME),* }
            }

            /// See [`Kernel::cost`].
            pub fn cost(&self) -> Cost {
                match self { $(Op::$op(op) => op.cost()),* }
            }

            /// See [`Kernel::writes`].
            pub fn writes(&self) -> Spans {
                match self { $(Op::$op(op) => op.writes()),* }
            }

            /// The op as a launch of its device kernel.
            pub fn launched(&self, at: &Bases, gpu: &GpuInfo) -> Launched {
                match self { $(Op::$op(op) => Launched::new(op, at, gpu)),* }
            }

            /// See [`Kernel::reference`].
            pub fn reference(&self, m: &HostMem) {
                match self { $(Op::$op(op) => op.reference(m)),* }
            }
        }

        $(impl From<$op> for Op {
            fn from(op: $op) -> Op {
                Op::$op(op)
            }
        })*
    };
}

ops! {
    PatchEmbed, LayerNorm, RmsNorm, Gemm, Gemv, DenseAttention, RopeKv, PagedPrefill, PagedDecode, EmbedSplice, Gather,
    Sample, RandomFill, Resize,
}
