//! What the engine has done and holds.

use std::time::Instant;

use super::blocks::BlockCounts;
use super::encoder_cache::CacheCounts;
use super::scheduler::SchedulerCounts;

/// A look at the engine between two steps. Counters count from its start. A request for several answers counts as so many
/// from its first token on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Blocks of the cache by their state.
    pub blocks: BlockCounts,
    /// Requests for image rows, and how many were there already.
    pub pictures: CacheCounts,
    /// Tokens looked for and found in the prefix cache, and preemptions.
    pub scheduler: SchedulerCounts,
    /// Steps of the model.
    pub steps: u64,
    /// Tokens of prompts whose keys and values were computed, those of preempted requests again.
    pub prompt_tokens: u64,
    /// Tokens that were sampled.
    pub generation_tokens: u64,
    /// Requests that got their whole answer.
    pub finished: u64,
    /// Of those, the ones that ended at a stop token or a stop string, and not at their length.
    pub stopped: u64,
    /// Requests that nobody wanted any more.
    pub cancelled: u64,
    /// Requests that failed after they had been accepted.
    pub failed: u64,
    /// Milliseconds in which the engine planned steps, without computing them.
    pub schedule_ms: f64,
    /// Milliseconds in which it wrote the inputs of steps and enqueued them; on the host, computed them too.
    pub enqueue_ms: f64,
    /// Milliseconds in which it waited for what steps sampled.
    pub wait_ms: f64,
    /// Milliseconds in which it turned tokens to text and handed them on.
    pub deliver_ms: f64,
}

pub(super) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
