//! What a request took.

use serde_json::{Value, json};

use crate::engine::Output;

/// Tokens read and written, of all the prompts of a request. Those of pictures count as they were expanded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    prompt: usize,
    completion: usize,
    cached: usize,
    image: usize,
}

impl Usage {
    /// Of one prompt.
    pub fn of(output: &Output) -> Usage {
        let mut usage = Usage::default();
        usage.add(output);
        usage
    }

    /// And of one more.
    pub fn add(&mut self, output: &Output) {
        self.prompt += output.prompt_token_ids.len();
        self.completion += output.outputs.iter().map(|o| o.token_ids.len()).sum::<usize>();
        self.cached += output.cached_tokens;
        self.image += output.image_tokens.iter().sum::<usize>();
    }

    pub fn json(&self) -> Value {
        let mut usage = so_far(self.prompt, self.completion);
        usage["prompt_tokens_details"] =
            json!({ "cached_tokens": self.cached, "multimodal_tokens": { "image": self.image } });
        usage
    }
}

/// What is known amid an answer.
pub(super) fn so_far(prompt: usize, completion: usize) -> Value {
    json!({ "prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion })
}

/// Where the time went, in milliseconds.
pub(super) fn timings(output: &Output) -> Value {
    let t = &output.timings;
    json!({
        "prepare_ms": t.prepare_ms,
        "queue_ms": t.queue_ms,
        "prefill_ms": t.prefill_ms,
        "ttft_ms": t.ttft_ms,
        "decode_ms": t.decode_ms,
        "tokens_per_s": t.tokens_per_s,
    })
}
