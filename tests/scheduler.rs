//! The scheduler against a model of what it must keep: no block owned twice, none lost, every request ended exactly
//! once, the oldest always served. 100,000 random operations from a fixed seed.

#![allow(clippy::print_stdout, reason = "what the random walk came across is worth seeing")]

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use ocelli::engine::{PictureKey, Place, Scheduler, SchedulerLimits, Sequence, SequenceId, Step};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// What may happen to the scheduler.
#[derive(Clone, Debug)]
enum Operation {
    /// A request: tokens of text before a picture, which picture if any, tokens after it, tokens of answer; the text is
    /// one of two, so that many begin alike.
    Arrive { before: usize, picture: Option<u8>, after: usize, answer: usize, text: bool },
    /// Somebody loses interest in the n-th of those that are there.
    Abort(usize),
    /// A step, in which those whose number leaves no remainder by this find the end of their answer.
    Step { end: u64 },
    /// A step that the device does not survive computing.
    Fail,
}

const PAGE_ROWS: usize = 16;
const FIRST_ROW: usize = 64;

fn operation() -> impl Strategy<Value = Operation> {
    let arrive = (0..40usize, prop::option::of(0..6u8), 1..40usize, 1..120usize, any::<bool>())
        .prop_map(|(before, picture, after, answer, text)| Operation::Arrive { before, picture, after, answer, text });
    prop_oneof![
        6 => arrive,
        1 => (0..100usize).prop_map(Operation::Abort),
        20 => (2..100u64).prop_map(|end| Operation::Step { end }),
        1 => Just(Operation::Fail),
    ]
}

fn limits() -> impl Strategy<Value = SchedulerLimits> {
    (1..9usize, 0..40usize, 4..24usize, 3..8usize, any::<bool>(), any::<bool>()).prop_map(
        |(max_num_seqs, more, kv_blocks, pages, prefix_caching, encoder_caching)| SchedulerLimits {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + more,
            max_reports: 64,
            kv_blocks,
            max_tiles: 3,
            pages,
            page_rows: PAGE_ROWS,
            first_row: FIRST_ROW,
            prefix_caching,
            encoder_caching,
        },
    )
}

/// What the walks came across, all together.
#[derive(Debug, Default)]
struct Seen {
    operations: usize,
    arrived: usize,
    refused: usize,
    finished: usize,
    aborted: usize,
    failed: usize,
    steps: usize,
    preemptions: u64,
    prefix_hits: u64,
    encoded: u64,
    shared: u64,
}

/// A scheduler, and what should be true of it.
struct Walk {
    scheduler: Scheduler,
    limits: SchedulerLimits,
    next: SequenceId,
    /// Answers still allowed to those that are there.
    live: BTreeMap<SequenceId, usize>,
    ended: HashSet<SequenceId>,
}

impl Walk {
    fn new(limits: SchedulerLimits) -> Walk {
        let scheduler = Scheduler::new(limits).unwrap();
        Walk { scheduler, limits, next: 0, live: BTreeMap::new(), ended: HashSet::new() }
    }

    fn arrive(&mut self, before: usize, picture: Option<u8>, after: usize, answer: usize, text: bool, seen: &mut Seen) {
        let word = i32::from(text);
        // Pictures of one, two or three pages.
        let rows = picture.map_or(0, |p| 10 + 14 * usize::from(p % 3));
        let ids = vec![word; before + rows + after];
        let place = picture.map(|p| Place { start: before, len: rows, tiles: 1, key: PictureKey([p; 32]) });
        let limit = ids.len() + answer;
        self.next += 1;
        seen.arrived += 1;
        let sequence = Sequence::new(self.next, ids, place.into_iter().collect(), limit, "");
        match self.scheduler.add(sequence) {
            Ok(()) => {
                assert!((limit - 1).div_ceil(16) <= self.limits.kv_blocks);
                self.live.insert(self.next, answer);
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("need") && (limit - 1).div_ceil(16) > self.limits.kv_blocks, "{message}");
                seen.refused += 1;
            }
        }
    }

    fn end(&mut self, id: SequenceId) {
        assert!(self.live.remove(&id).is_some(), "{id} was not there");
        assert!(self.ended.insert(id), "{id} ended twice");
    }

    /// What a step may hold, whatever happened before.
    fn hold(&self, step: &Step) {
        let tokens: usize = step.rows.iter().map(|r| r.ids.len()).sum();
        assert!(tokens <= self.limits.max_num_batched_tokens && step.rows.len() <= self.limits.max_num_seqs);
        assert!(step.rows.iter().is_sorted_by_key(|r| r.ids.len() > 1), "single tokens come first");
        let ids: HashSet<_> = step.rows.iter().map(|r| r.id).collect();
        assert_eq!(ids.len(), step.rows.len(), "one row a sequence");
        assert!(step.encode.len() <= self.limits.max_tiles);
        for row in &step.rows {
            assert!(row.blocks.len() * 16 >= row.start + row.ids.len());
            let sequence = self.scheduler.sequence(row.id).unwrap();
            assert_eq!(row.start, sequence.cached());
            let reading = |p: usize| sequence.reading().iter().any(|r| r.range().contains(&p));
            for (i, &id) in row.ids.iter().enumerate() {
                assert_eq!(id < 0, reading(row.start + i), "picture rows stand at the places of pictures");
                let row = usize::try_from(-1 - id).unwrap_or(FIRST_ROW);
                assert!((FIRST_ROW..FIRST_ROW + self.limits.pages * PAGE_ROWS).contains(&row));
            }
        }
        for encode in &step.encode {
            assert!(ids.contains(&encode.id), "a picture is encoded for a row of its step");
        }
        if let Some(oldest) = self.live.keys().next() {
            // It may have to wait for a picture that others are in the middle of; then those move on.
            assert!(!step.rows.is_empty(), "{oldest} waits for nobody");
        }
    }

    fn step(&mut self, end: u64, seen: &mut Seen) {
        let step = self.scheduler.schedule();
        self.scheduler.check().unwrap();
        self.hold(&step);
        self.scheduler.ran(&step);
        seen.steps += 1;
        for row in step.rows.iter().filter(|r| r.samples) {
            self.scheduler.push(row.id, (row.id % 7) as i32);
            let left = self.live.get_mut(&row.id).unwrap();
            *left -= 1;
            if *left == 0 || (row.id + row.start as u64).is_multiple_of(end) {
                assert!(self.scheduler.finish(row.id));
                self.end(row.id);
                seen.finished += 1;
            }
        }
    }

    fn fail(&mut self, seen: &mut Seen) {
        let step = self.scheduler.schedule();
        let gone = self.scheduler.failed(&step);
        assert_eq!(gone.len(), step.rows.len());
        seen.failed += gone.len();
        gone.into_iter().for_each(|id| self.end(id));
    }

    fn abort(&mut self, n: usize, seen: &mut Seen) {
        if let Some(&id) = self.live.keys().nth(n % self.live.len().max(1)) {
            assert!(self.scheduler.finish(id));
            assert!(!self.scheduler.finish(id), "it is gone");
            self.end(id);
            seen.aborted += 1;
        }
    }

    /// Nobody new comes, so everybody must end, in a number of steps that their tokens bound.
    fn drain(mut self, seen: &mut Seen) {
        let tokens: usize = self.live.keys().map(|&id| self.scheduler.sequence(id).unwrap().ids().len()).sum();
        let answers: usize = self.live.values().sum();
        // Every step computes a token at least; a preempted sequence computes its own again, at most once for every block
        // that an older one takes.
        let bound = (tokens + answers) * (2 + answers / 16);
        for _ in 0..=bound {
            if self.scheduler.is_idle() {
                break;
            }
            self.step(u64::MAX, seen);
            self.scheduler.check().unwrap();
        }
        assert!(self.live.is_empty(), "{:?} did not end in {bound} steps", self.live);
        assert_eq!(self.scheduler.blocks().used, 0);
        seen.preemptions += self.scheduler.counts().preemptions;
        seen.prefix_hits += self.scheduler.counts().prefix_hits;
        seen.encoded += self.scheduler.pictures().misses;
        seen.shared += self.scheduler.pictures().hits;
    }
}

#[test]
fn a_hundred_thousand_operations_lose_nothing_and_starve_nobody() {
    const WALKS: u32 = 400;
    const OPERATIONS: usize = 250;
    let start = Instant::now();
    let seen = std::cell::RefCell::new(Seen::default());
    let config = Config { cases: WALKS, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let walks = (limits(), prop::collection::vec(operation(), OPERATIONS));
    TestRunner::new_with_rng(config, rng)
        .run(&walks, |(limits, operations)| {
            let seen = &mut *seen.borrow_mut();
            let mut walk = Walk::new(limits);
            for operation in operations {
                seen.operations += 1;
                match operation {
                    Operation::Arrive { before, picture, after, answer, text } => {
                        walk.arrive(before, picture, after, answer, text, seen);
                    }
                    Operation::Abort(n) => walk.abort(n, seen),
                    Operation::Step { end } => walk.step(end, seen),
                    Operation::Fail => walk.fail(seen),
                }
                walk.scheduler.check().unwrap();
            }
            walk.drain(seen);
            Ok(())
        })
        .unwrap();
    let seen = seen.into_inner();
    println!("{seen:?} in {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(seen.operations, 100_000);
    assert_eq!(seen.arrived, seen.refused + seen.finished + seen.aborted + seen.failed, "every request ends once");
    for (what, times) in [
        ("preemptions", seen.preemptions),
        ("prefix hits", seen.prefix_hits),
        ("pictures encoded", seen.encoded),
        ("pictures shared", seen.shared),
        ("refusals", seen.refused as u64),
        ("aborts", seen.aborted as u64),
    ] {
        assert!(times > 100, "the walks came across {times} {what}");
    }
}

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
        prefix_caching: true,
        encoder_caching: true,
    }
}

fn text(id: SequenceId, tokens: usize, answer: usize) -> Sequence {
    let ids = (0..tokens as i32).map(|i| i * 1000 + id as i32).collect();
    Sequence::new(id, ids, vec![], tokens + answer, "")
}

#[test]
fn decode_rows_come_first_and_prompts_share_what_is_left_in_the_order_of_arrival() {
    let mut s = Scheduler::new(SchedulerLimits { max_num_seqs: 4, max_num_batched_tokens: 20, ..wide() }).unwrap();
    let run = |s: &mut Scheduler| {
        let step = s.schedule();
        s.ran(&step);
        step.rows.iter().filter(|r| r.samples).for_each(|r| s.push(r.id, 0));
        step.rows.iter().map(|r| (r.id, r.start, r.ids.len())).collect::<Vec<_>>()
    };
    s.add(text(1, 30, 9)).unwrap();
    s.add(text(2, 25, 9)).unwrap();
    assert_eq!(run(&mut s), [(1, 0, 20)]);
    assert_eq!(run(&mut s), [(1, 20, 10), (2, 0, 10)]);
    s.add(text(3, 5, 9)).unwrap();
    assert_eq!(run(&mut s), [(1, 30, 1), (2, 10, 15), (3, 0, 4)]);
    // The last token of a prompt is a single token as well.
    assert_eq!(run(&mut s), [(1, 31, 1), (2, 25, 1), (3, 4, 1)]);
}

#[test]
fn the_latest_arrival_gives_way_and_comes_back_first() {
    let limits = SchedulerLimits { kv_blocks: 3, prefix_caching: false, ..wide() };
    let mut s = Scheduler::new(limits).unwrap();
    s.add(text(1, 15, 20)).unwrap();
    s.add(text(2, 16, 10)).unwrap();
    s.add(text(3, 4, 2)).unwrap();
    let mut preempted = Vec::new();
    let mut order = Vec::new();
    for _ in 0..60 {
        let step = s.schedule();
        s.ran(&step);
        preempted.extend(step.preempted.clone());
        for row in step.rows.iter().filter(|r| r.samples) {
            s.push(row.id, 0);
            let sequence = s.sequence(row.id).unwrap();
            if sequence.ids().len() == [35, 26, 6][row.id as usize - 1] {
                s.finish(row.id);
                order.push(row.id);
            }
        }
    }
    assert_eq!(preempted.first(), Some(&2));
    assert_eq!(order, [1, 2, 3], "nobody is overtaken");
    assert!(s.is_idle() && s.blocks().free == 3);
}

#[test]
fn what_fits_nowhere_is_refused_with_the_numbers_and_the_flags() {
    let mut s = Scheduler::new(SchedulerLimits { kv_blocks: 2, ..wide() }).unwrap();
    let error = s.add(text(1, 30, 4)).unwrap_err().to_string();
    assert!(error.contains("30 tokens") && error.contains("up to 4 need 3 cache blocks") && error.contains("are 2"));
    assert!(error.contains("--gpu-memory-utilization") && error.contains("--num-gpu-blocks-override"), "{error}");
    s.add(text(2, 30, 3)).unwrap();
    let narrow = SchedulerLimits { max_num_seqs: 8, max_num_batched_tokens: 7, ..wide() };
    assert!(Scheduler::new(narrow).unwrap_err().to_string().contains("max_num_seqs is 8"));
}

/// A figure, not a promise: what the scheduler adds to a step of 256 sequences.
#[test]
fn what_a_step_of_256_sequences_takes() {
    let mut s = Scheduler::new(wide()).unwrap();
    (1..=256).for_each(|id| s.add(text(id, 645, 200)).unwrap());
    let (mut times, mut tokens) = (Vec::new(), 0);
    while tokens < 256 * 150 {
        let start = Instant::now();
        let step = s.schedule();
        s.ran(&step);
        step.rows.iter().filter(|r| r.samples).for_each(|r| s.push(r.id, 0));
        tokens += step.rows.iter().filter(|r| r.samples).count();
        if step.rows.iter().all(|r| r.ids.len() == 1) && step.rows.len() == 256 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("256 decode rows: median {:.0} us, largest {:.0} us", times[times.len() / 2], times[times.len() - 1]);
}
