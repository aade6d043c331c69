//! The scheduler against a model of what it must keep: no block owned twice, none lost, every request ended exactly
//! once, the oldest always served, and nothing read from the caches but what was computed for it.

#![allow(clippy::print_stdout, reason = "what the random walk came across is worth seeing")]

mod angles;
mod contents;
mod order;
mod rows;
mod walk;

use ocelli::engine::{Scheduler, SchedulerLimits, Sequence, SequenceId, Step};

/// More of everything than a test needs.
fn wide() -> SchedulerLimits {
    SchedulerLimits {
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_reports: 64,
        kv_blocks: 20_000,
        max_tiles: 14,
        pages: 64,
        page_rows: 576,
        first_row: 14 * 576,
        constant_row: (14 + 64) * 576,
        rope_switch: None,
        prefix_caching: true,
        encoder_caching: true,
    }
}

/// A sequence that shares no block with another.
fn text(id: SequenceId, tokens: usize, answer: usize) -> Sequence {
    let ids = (0..tokens as i32).map(|i| i * 1000 + id as i32).collect();
    Sequence::new(id, ids, vec![], tokens + answer, "")
}

/// Plan a step and say that it ran: every row that samples gets a 0.
fn run(s: &mut Scheduler) -> Step {
    let step = s.schedule();
    s.check().unwrap();
    land(s, &step);
    step
}

/// A step has run.
fn land(s: &mut Scheduler, step: &Step) {
    s.ran(step);
    step.rows.iter().filter(|r| r.samples).for_each(|r| s.push(r.id, 0));
}
