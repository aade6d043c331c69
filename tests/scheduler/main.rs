//! The scheduler against a model of what it must keep: no block owned twice, none lost, every request ended exactly
//! once, the oldest always served. 100,000 random operations from a fixed seed, with at most one step in flight and with
//! none.

#![allow(clippy::print_stdout, reason = "what the random walk came across is worth seeing")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use ocelli::engine::{PictureKey, Place, Row, Scheduler, SchedulerLimits, Sequence, SequenceId, Step};
use ocelli::ops::sampled_id;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// What may happen to the scheduler.
#[derive(Clone, Debug)]
enum Operation {
    /// A request: tokens of text before a picture, which picture if any, tokens after it, tokens of answer; the text is
    /// one of two, so that many begin alike. Some must know a token before the next one is sampled.
    Arrive { before: usize, picture: Option<u8>, after: usize, answer: usize, text: bool, looks_back: bool },
    /// Somebody loses interest in the n-th of those that are there.
    Abort(usize),
    /// A step, in which those whose number leaves no remainder by this find the end of their answer.
    Step { end: u64 },
    /// A step that cannot be enqueued.
    Fail,
    /// A step whose outcome cannot be read.
    Lose,
}

const PAGE_ROWS: usize = 16;
const FIRST_ROW: usize = 64;

fn operation() -> impl Strategy<Value = Operation> {
    let arrive = (0..40usize, prop::option::of(0..6u8), 1..40usize, 1..120usize, any::<bool>(), 0..5u8).prop_map(
        |(before, picture, after, answer, text, n)| {
            let looks_back = n == 0;
            Operation::Arrive { before, picture, after, answer, text, looks_back }
        },
    );
    prop_oneof![
        6 => arrive,
        1 => (0..100usize).prop_map(Operation::Abort),
        20 => (2..100u64).prop_map(|end| Operation::Step { end }),
        1 => Just(Operation::Fail),
        1 => Just(Operation::Lose),
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
    lost: usize,
    steps: usize,
    /// Tokens that were handed on from one step to the next.
    unknown: usize,
    /// Rows of requests that ended with the step before.
    dropped: usize,
    /// Steps that had to wait for the outcome of another.
    put_off: usize,
    preemptions: u64,
    prefix_hits: u64,
    encoded: u64,
    shared: u64,
}

/// A step in flight, and the blocks that its rows were given.
struct Flight {
    step: Step,
    blocks: HashMap<SequenceId, Vec<i32>>,
}

/// A scheduler, and what should be true of it.
struct Walk {
    scheduler: Scheduler,
    limits: SchedulerLimits,
    /// Whether a step is planned before the outcome of the one before it is known.
    ahead: bool,
    in_flight: Option<Flight>,
    next: SequenceId,
    /// Answers still allowed to those that are there.
    live: BTreeMap<SequenceId, usize>,
    looks_back: HashSet<SequenceId>,
    ended: HashSet<SequenceId>,
}

impl Walk {
    fn new(limits: SchedulerLimits, ahead: bool) -> Walk {
        Walk {
            scheduler: Scheduler::new(limits).unwrap(),
            limits,
            ahead,
            in_flight: None,
            next: 0,
            live: BTreeMap::new(),
            looks_back: HashSet::new(),
            ended: HashSet::new(),
        }
    }

    fn arrive(&mut self, operation: Operation, seen: &mut Seen) {
        let Operation::Arrive { before, picture, after, answer, text, looks_back } = operation else { return };
        let word = i32::from(text);
        // Pictures of one, two or three pages.
        let rows = picture.map_or(0, |p| 10 + 14 * usize::from(p % 3));
        let ids = vec![word; before + rows + after];
        let place = picture.map(|p| Place { start: before, len: rows, tiles: 1, key: PictureKey([p; 32]) });
        let limit = ids.len() + answer;
        self.next += 1;
        seen.arrived += 1;
        let mut sequence = Sequence::new(self.next, ids, place.into_iter().collect(), limit, "");
        if looks_back {
            sequence.look_back();
            self.looks_back.insert(self.next);
        }
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
    fn hold(&self, step: &Step, seen: &mut Seen) {
        let tokens: usize = step.rows.iter().map(|r| r.ids.len()).sum();
        assert!(tokens <= self.limits.max_num_batched_tokens && step.rows.len() <= self.limits.max_num_seqs);
        assert!(step.rows.iter().is_sorted_by_key(|r| r.ids.len() > 1), "single tokens come first");
        let ids: HashSet<_> = step.rows.iter().map(|r| r.id).collect();
        assert_eq!(ids.len(), step.rows.len(), "one row a sequence");
        assert!(step.encode.len() <= self.limits.max_tiles);
        for row in &step.rows {
            seen.unknown += self.hold_row(row);
        }
        for encode in &step.encode {
            assert!(ids.contains(&encode.id), "a picture is encoded for a row of its step");
        }
        let flying = self.in_flight.as_ref().map(|f| &f.step);
        assert!(flying.is_none() || step.preempted.is_empty(), "blocks are taken from somebody in flight");
        if let (Some(oldest), None) = (self.live.keys().next(), flying) {
            // It may have to wait for a picture that others are in the middle of; then those move on.
            assert!(!step.rows.is_empty(), "{oldest} waits for nobody");
        }
    }

    /// Returns how many of the row's tokens are not known.
    fn hold_row(&self, row: &Row) -> usize {
        let sequence = self.scheduler.sequence(row.id).unwrap();
        assert!(sequence.blocks().len() * 16 >= row.start + row.ids.len());
        let before =
            self.in_flight.as_ref().and_then(|f| f.step.rows.iter().position(|r| r.id == row.id).map(|i| (f, i)));
        let computed = before.map_or(sequence.cached(), |(f, i)| f.step.rows[i].start + f.step.rows[i].ids.len());
        assert_eq!(row.start, computed, "a row begins where the one before it ends");
        let reading = |p: usize| sequence.reading().iter().any(|r| r.range().contains(&p));
        let mut unknown = 0;
        for (i, &id) in row.ids.iter().enumerate() {
            if row.start + i >= sequence.ids().len() {
                let (flight, at) = before.expect("a token is not known, and no step in flight samples it");
                let rows = &flight.step.rows;
                let place = rows[..=at].iter().map(Row::logit_rows).sum::<usize>() - 1;
                assert!(rows[at].samples && !self.looks_back.contains(&row.id) && row.ids.len() == 1);
                assert_eq!((id, row.ahead), (sampled_id(place), 1), "it is where that step samples it");
                unknown += 1;
                continue;
            }
            assert_eq!(id < 0, reading(row.start + i), "picture rows stand at the places of pictures");
            let row = usize::try_from(-1 - id).unwrap_or(FIRST_ROW);
            assert!((FIRST_ROW..FIRST_ROW + self.limits.pages * PAGE_ROWS).contains(&row));
        }
        unknown
    }

    /// What the rows in flight were given is nobody else's, unless it was shared before: a full block, of which only what
    /// stands there is read.
    fn hold_in_flight(&self, step: &Step) {
        let Some(Flight { step: before, blocks }) = &self.in_flight else { return };
        for old in &before.rows {
            // The blocks that the row writes.
            let written = &blocks[&old.id][old.start / 16..(old.start + old.ids.len()).div_ceil(16)];
            for new in step.rows.iter().filter(|new| new.id != old.id) {
                let taken = self.scheduler.sequence(new.id).unwrap().blocks();
                assert!(!taken.iter().any(|b| written.contains(b)), "{} got what {} still writes", new.id, old.id);
            }
        }
    }

    fn step(&mut self, end: u64, seen: &mut Seen) {
        let reading = |scheduler: &Scheduler, id| scheduler.sequence(id).map_or(0, |s| s.reading().len());
        let readers: Vec<_> = self.live.keys().map(|&id| (id, reading(&self.scheduler, id))).collect();
        let step = self.scheduler.schedule();
        self.scheduler.check().unwrap();
        // Or it would stay one when the step that was to encode the picture fails.
        for (id, before) in readers.into_iter().filter(|(id, _)| step.rows.iter().all(|row| row.id != *id)) {
            assert!(reading(&self.scheduler, id) <= before, "{id} reads a picture in a step without a row of it");
        }
        self.hold(&step, seen);
        self.hold_in_flight(&step);
        seen.put_off += usize::from(step.rows.is_empty() && !self.scheduler.is_idle());
        let blocks = |row: &Row| (row.id, self.scheduler.sequence(row.id).unwrap().blocks().to_vec());
        let blocks = step.rows.iter().map(blocks).collect();
        let next = (!step.rows.is_empty()).then_some(Flight { step, blocks });
        let before = std::mem::replace(&mut self.in_flight, next);
        self.land(before, end, seen);
        if !self.ahead {
            let step = self.in_flight.take();
            self.land(step, end, seen);
        }
    }

    /// The outcome of a step: those whose number leaves no remainder by `end` find the end of their answer.
    fn land(&mut self, flight: Option<Flight>, end: u64, seen: &mut Seen) {
        let Some(Flight { step, .. }) = flight else { return };
        self.scheduler.ran(&step);
        seen.steps += 1;
        for row in step.rows.iter().filter(|r| r.samples) {
            let Some(left) = self.live.get_mut(&row.id) else {
                seen.dropped += 1;
                continue;
            };
            self.scheduler.push(row.id, (row.id % 7) as i32);
            *left -= 1;
            if *left == 0 || (row.id + row.start as u64).is_multiple_of(end) {
                assert!(self.scheduler.finish(row.id));
                self.end(row.id);
                seen.finished += 1;
            }
        }
    }

    /// A step that cannot be enqueued: the one before it is not spoilt.
    fn fail(&mut self, seen: &mut Seen) {
        let step = self.scheduler.schedule();
        let before = self.in_flight.take();
        self.land(before, u64::MAX, seen);
        let mut ids: HashSet<_> = step.rows.iter().map(|r| r.id).chain(step.admitted.iter().copied()).collect();
        ids.retain(|id| self.live.contains_key(id));
        let gone = self.scheduler.failed(&step);
        assert_eq!(gone.iter().copied().collect::<HashSet<_>>(), ids);
        seen.failed += gone.len();
        gone.into_iter().for_each(|id| self.end(id));
    }

    /// The device loses the outcome of what is in flight, and of the step that was enqueued behind it.
    fn lose(&mut self, seen: &mut Seen) {
        let later = self.scheduler.schedule();
        let steps = [Some(later), self.in_flight.take().map(|f| f.step)];
        for step in steps.into_iter().flatten() {
            let gone = self.scheduler.failed(&step);
            seen.lost += gone.len();
            gone.into_iter().for_each(|id| self.end(id));
        }
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
        // Every step computes a token at least, or the one after it does; a preempted sequence computes its own again, at
        // most once for every block that an older one takes.
        let bound = 2 * (tokens + answers) * (2 + answers / 16) + 1;
        for _ in 0..=bound {
            if self.scheduler.is_idle() && self.in_flight.is_none() {
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
    let walks = (limits(), prop::collection::vec(operation(), OPERATIONS), 0..4u8);
    TestRunner::new_with_rng(config, rng)
        .run(&walks, |(limits, operations, n)| {
            let seen = &mut *seen.borrow_mut();
            let mut walk = Walk::new(limits, n > 0);
            for operation in operations {
                seen.operations += 1;
                match operation {
                    Operation::Arrive { .. } => walk.arrive(operation, seen),
                    Operation::Abort(n) => walk.abort(n, seen),
                    Operation::Step { end } => walk.step(end, seen),
                    Operation::Fail => walk.fail(seen),
                    Operation::Lose => walk.lose(seen),
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
    let ended = seen.refused + seen.finished + seen.aborted + seen.failed + seen.lost;
    assert_eq!(seen.arrived, ended, "every request ends once");
    for (what, times) in [
        ("preemptions", seen.preemptions),
        ("prefix hits", seen.prefix_hits),
        ("pictures encoded", seen.encoded),
        ("pictures shared", seen.shared),
        ("refusals", seen.refused as u64),
        ("aborts", seen.aborted as u64),
        ("requests of steps that were lost", seen.lost as u64),
        ("tokens handed on", seen.unknown as u64),
        ("rows for nobody", seen.dropped as u64),
        ("steps put off", seen.put_off as u64),
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

/// The older of two that wait for the same picture takes the whole step, and the other was found in the cache as far as the
/// middle of it. Were it a reader already, it would stay one if that step failed, of rows that nobody computed.
#[test]
fn nobody_reads_a_picture_in_a_step_without_a_row_of_it() {
    let limits = SchedulerLimits {
        max_num_batched_tokens: 32,
        max_num_seqs: 4,
        pages: 1,
        page_rows: 16,
        encoder_caching: false,
        ..wide()
    };
    let mut s = Scheduler::new(limits).unwrap();
    let run = |s: &mut Scheduler| {
        let step = s.schedule();
        s.ran(&step);
        step.rows.iter().filter(|r| r.samples).for_each(|r| s.push(r.id, 0));
        step.rows.iter().map(|r| (r.id, r.ids.len())).collect::<Vec<_>>()
    };
    // 16 tokens of a picture from `before` on, among `len`.
    let shows = |id, picture: u8, before: usize, [first, after]: [i32; 2], len: usize| {
        let mut ids = vec![after; len];
        ids[..before].fill(first);
        ids[before..before + 16].fill(-1);
        let place = Place { start: before, len: 16, tiles: 1, key: PictureKey([picture; 32]) };
        Sequence::new(id, ids, vec![place], len + 9, "")
    };
    s.add(shows(1, b'p', 8, [7, 1], 32)).unwrap();
    assert_eq!(run(&mut s), [(1, 32)]);
    s.finish(1);
    // Holds the only page until it has passed its picture.
    s.add(shows(2, b'q', 24, [2, 2], 40)).unwrap();
    assert_eq!(run(&mut s), [(2, 32)]);
    s.add(shows(3, b'p', 8, [3, 3], 100)).unwrap();
    // Block 0 of the first, which ends amid the picture.
    s.add(shows(4, b'p', 8, [7, 4], 60)).unwrap();
    assert_eq!(run(&mut s), [(2, 8), (3, 8)]);
    assert_eq!(s.sequence(4).unwrap().cached(), 16);
    assert_eq!(run(&mut s), [(2, 1), (3, 31)]);
    assert!(s.sequence(4).unwrap().reading().is_empty());
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
