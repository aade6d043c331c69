//! What a step leaves for the host to read.

use bytemuck::{AnyBitPattern, pod_read_unaligned};

use crate::mem::Span;
use crate::models::StepIo;
use crate::ops::MAX_TOP_LOGPROBS;

/// What was sampled for a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token; `None` if the row held a NaN or its largest score was not finite.
    pub token: Option<u32>,
    /// Log-probability of the token under the logits as they came.
    pub logprob: f32,
    /// The most likely tokens with theirs, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What a step sampled, as the device left it.
pub struct Outputs {
    pub(super) bytes: Vec<u8>,
    pub(super) io: StepIo,
}

impl Outputs {
    /// Row `row` of the step's logits, with `top_logprobs` alternatives. A row that the step does not have holds no token.
    pub fn sampled(&self, row: usize, top_logprobs: usize) -> Sampled {
        let io = &self.io;
        let logprob = |i| self.at(io.logprobs.span(), row * (1 + MAX_TOP_LOGPROBS) + i).unwrap_or(f32::NAN);
        let id = |i| self.at::<i32>(io.top.span(), row * MAX_TOP_LOGPROBS + i);
        Sampled {
            token: self.at::<i32>(io.token.span(), row).and_then(|token| u32::try_from(token).ok()),
            logprob: logprob(0),
            top: (0..top_logprobs.min(MAX_TOP_LOGPROBS))
                .map_while(|i| Some((u32::try_from(id(i)?).ok()?, logprob(1 + i))))
                .collect(),
        }
    }

    /// [`logits_hash`](crate::ops::logits_hash) of the logits of row `row`.
    pub fn logits_hash(&self, row: usize) -> u64 {
        self.at(self.io.hash.span(), row).unwrap_or(0)
    }

    /// Element `i` of a buffer.
    fn at<T: AnyBitPattern>(&self, span: Span, i: usize) -> Option<T> {
        let size = size_of::<T>();
        let inside = ((i + 1) * size) as u64 <= span.bytes();
        let start = (span.byte - self.io.outputs.span().byte) as usize + i * size;
        self.bytes.get(start..start + size).filter(|_| inside).map(pod_read_unaligned)
    }
}
