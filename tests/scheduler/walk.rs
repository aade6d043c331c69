//! 100,000 random operations from a fixed seed, with at most one step in flight and with none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use ocelli::engine::{Row, Scheduler, SchedulerLimits, Sequence, SequenceId, Step};
use ocelli::ops::sampled_id;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::contents::{Contents, FIRST_ROW, PAGE_ROWS, token};
use super::rows::picture;

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
    let rope_switch = prop::option::of(10..160usize);
    (1..9usize, 0..40usize, 4..24usize, 3..8usize, rope_switch, any::<bool>(), any::<bool>()).prop_map(
        |(max_num_seqs, more, kv_blocks, pages, rope_switch, prefix_caching, encoder_caching)| SchedulerLimits {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + more,
            max_reports: 64,
            kv_blocks,
            max_tiles: 3,
            pages,
            page_rows: PAGE_ROWS,
            first_row: FIRST_ROW,
            constant_row: FIRST_ROW + pages * PAGE_ROWS,
            rope_switch,
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
    rope_switches: u64,
    /// Rows of prompts that are longer than the short rotary angles reach.
    long: usize,
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
    contents: Contents,
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
            contents: Contents::new(&limits),
            next: 0,
            live: BTreeMap::new(),
            looks_back: HashSet::new(),
            ended: HashSet::new(),
        }
    }

    fn arrive(&mut self, operation: Operation, seen: &mut Seen) {
        let Operation::Arrive { before, picture: shown, after, answer, text, looks_back } = operation else { return };
        let word = i32::from(text);
        let place = shown.map(|n| picture(n, before));
        let rows = place.as_ref().map_or(0, |place| place.rows.len());
        let mut ids = vec![word; before + rows + after];
        ids[before..before + rows].fill(-1);
        let limit = ids.len() + answer;
        self.next += 1;
        seen.arrived += 1;
        self.contents.arrive(self.next, place.clone());
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
    fn hold(&mut self, step: &Step, seen: &mut Seen) {
        let tokens: usize = step.rows.iter().map(|r| r.ids.len()).sum();
        assert!(tokens <= self.limits.max_num_batched_tokens && step.rows.len() <= self.limits.max_num_seqs);
        assert!(step.rows.iter().is_sorted_by_key(|r| r.ids.len() > 1), "single tokens come first");
        let ids: HashSet<_> = step.rows.iter().map(|r| r.id).collect();
        assert_eq!(ids.len(), step.rows.len(), "one row a sequence");
        for encode in &step.encode {
            assert!(ids.contains(&encode.id), "a picture is encoded for a row of its step");
        }
        let tiles = self.contents.encode(step);
        assert!(tiles <= self.limits.max_tiles, "{tiles} tiles in a step");
        for row in &step.rows {
            seen.unknown += self.hold_row(row);
            seen.long += usize::from(row.long && row.ids.len() > 1);
        }
        self.contents.compute(&self.scheduler, step);
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
        let tokens = sequence.ids().len() + row.ahead;
        assert_eq!(row.long, self.limits.rope_switch.is_some_and(|n| tokens > n), "the angles of {tokens} tokens");
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
            self.scheduler.push(row.id, token(row.id));
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
            self.contents.lose(&self.scheduler, &step);
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
        // most once for every block that an older one takes, and one that outgrows its angles all of them once more.
        let bound = 4 * (tokens + answers) * (2 + answers / 16) + 1;
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
        seen.rope_switches += self.scheduler.counts().rope_switches;
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
        ("sequences that outgrew their angles", seen.rope_switches),
        ("chunks of long sequences", seen.long as u64),
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
