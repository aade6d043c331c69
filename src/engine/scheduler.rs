//! Who computes what in the next step. Pure: it knows no backend and no clock.
//!
//! Sequences are served in the order of their arrival, and that order is never broken: all that run arrived before all
//! that wait. A step gives every sequence that only needs its next token one row, and what is left of the token budget
//! to prompts, cut where it ends. A sequence runs once the cache has room for all of its tokens so far, and a block for
//! each that runs already; when one needs a block and there is none, the latest arrival gives up its own and waits
//! again, with its tokens so far for a prompt. So the oldest sequence always moves on, and nothing starves.
//!
//! A step may be planned while the one before it is *in flight*: planned, and its outcome not known. A row whose token that
//! step samples refers to it by its place among the sampled ones. A sequence that ends meanwhile keeps what it has until the
//! last step that holds a row of it has run, and blocks are taken from nobody while a step is in flight: a step that would
//! have to is put off until the outcome is known.
//!
//! Some models turn their positions by other angles once a sequence is longer than [`SchedulerLimits::rope_switch`]: by the
//! long ones at all positions, also at those that were computed before. What the cache holds of a sequence that grows
//! past it is of no use to it then. It gives its blocks back, keeps its place, and is computed from its start.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

use anyhow::{Result, ensure};

use super::blocks::{BlockCounts, BlockPool};
use super::encoder_cache::{Acquired, CacheCounts, EncoderCache, PictureKey};
use super::sequence::{Sequence, SequenceId};
use crate::models::ImageRow;
use crate::ops::{KV_BLOCK, sampled_id};

/// What a step and the caches may hold.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Sequences that run.
    pub max_num_seqs: usize,
    /// Tokens of a step; at least as many as sequences.
    pub max_num_batched_tokens: usize,
    /// Rows of logits of a step beyond one for every sequence: for prompts that are reported.
    pub max_reports: usize,
    /// Blocks of the paged cache.
    pub kv_blocks: usize,
    /// Tiles that are encoded for a step.
    pub max_tiles: usize,
    /// Pages of the encoder cache.
    pub pages: usize,
    /// Image rows of a page.
    pub page_rows: usize,
    /// Image row at which the first page begins.
    pub first_row: usize,
    /// Image row of the first constant one: see [`ImageRow::Constant`].
    pub constant_row: usize,
    /// Tokens up to which a sequence has the short rotary angles, if the model has two kinds.
    pub rope_switch: Option<usize>,
    /// Whether blocks are found again by what they hold.
    pub prefix_caching: bool,
    /// Whether image rows are kept when no running request needs them.
    pub encoder_caching: bool,
}

/// A picture to encode before the rows of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encode {
    /// A sequence that has it.
    pub id: SequenceId,
    /// Which of its places, in the order of their positions.
    pub place: usize,
    /// What it is.
    pub key: PictureKey,
    /// Pages that its rows go to, in their order.
    pub pages: Vec<usize>,
}

/// What one sequence brings to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose tokens.
    pub id: SequenceId,
    /// Position of the first.
    pub start: usize,
    /// The tokens; at places of pictures, `-1 - row` of the image rows; for one that is not known yet,
    /// [`sampled_id`] of its row in the step before.
    pub ids: Vec<i32>,
    /// Tokens of the answer before the next one that are not known yet.
    pub ahead: usize,
    /// Row of the sampler's counts.
    pub state: usize,
    /// Whether these are the last that the model must see before the next token is sampled.
    pub samples: bool,
    /// Whether the log-probabilities of its tokens are reported.
    pub reports: bool,
    /// Whether its positions have the long rotary angles.
    pub long: bool,
}

impl Row {
    /// Rows of logits that it takes: one for its last token and, if they are reported, one for each id of the vocabulary
    /// that follows another.
    pub fn logit_rows(&self) -> usize {
        1 + if self.reports { self.ids[1..].iter().filter(|&&id| id >= 0).count() } else { 0 }
    }
}

/// One step of the model.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Pictures to encode first.
    pub encode: Vec<Encode>,
    /// Single tokens first, each kind in the order of arrival.
    pub rows: Vec<Row>,
    /// Sequences that run from this step on, some of them again: their rows of the sampler's counts hold another's.
    pub admitted: Vec<SequenceId>,
    /// Sequences that had to give up their blocks.
    pub preempted: Vec<SequenceId>,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerCounts {
    /// Tokens of prompts that were looked for in the prefix cache.
    pub prefix_queries: u64,
    /// Those found.
    pub prefix_hits: u64,
    /// Sequences that gave up their blocks.
    pub preemptions: u64,
    /// Sequences that are computed again because they have grown past [`SchedulerLimits::rope_switch`].
    pub rope_switches: u64,
}

/// The sequences that run and wait, and who owns which part of the caches.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    waiting: VecDeque<Sequence>,
    /// In the order of arrival, which is that of their numbers.
    running: Vec<Sequence>,
    /// Have ended, and have rows in steps in flight.
    leaving: Vec<Sequence>,
    blocks: BlockPool,
    pictures: EncoderCache,
    /// Rows of the sampler's counts that are free.
    states: Vec<usize>,
    counts: SchedulerCounts,
}

/// What is left for the prompts of a step.
struct Budget {
    tokens: usize,
    reports: usize,
    tiles: usize,
    /// Somebody waits for room for a picture, so nobody after it may take any.
    pictures_full: bool,
}

impl Scheduler {
    /// Nothing runs, nothing waits.
    ///
    /// # Errors
    /// If a step cannot hold a token of every sequence.
    pub fn new(limits: SchedulerLimits) -> Result<Scheduler> {
        let SchedulerLimits { max_num_seqs, max_num_batched_tokens, .. } = limits;
        ensure!(
            (1..=max_num_batched_tokens).contains(&max_num_seqs),
            "max_num_seqs is {max_num_seqs} and max_num_batched_tokens is {max_num_batched_tokens}; a step must hold a \
             token of every sequence (--max-num-seqs, --max-num-batched-tokens)"
        );
        Ok(Scheduler {
            limits,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(max_num_seqs),
            leaving: Vec::new(),
            blocks: BlockPool::new(limits.kv_blocks),
            pictures: EncoderCache::new(limits.pages, limits.encoder_caching),
            states: (0..max_num_seqs).rev().collect(),
            counts: SchedulerCounts::default(),
        })
    }

    /// Let a sequence wait for its turn.
    ///
    /// # Errors
    /// If it would not fit were it alone, has nothing to say or nothing to compute, or a number that is not larger than
    /// those of all that are here.
    pub fn add(&mut self, mut sequence: Sequence) -> Result<()> {
        let l = &self.limits;
        let latest = self.waiting.back().or(self.running.last()).map(|s| s.id);
        ensure!(latest < Some(sequence.id), "sequence {} comes after {latest:?}", sequence.id);
        ensure!(
            sequence.prompt > 0 && sequence.limit > sequence.prompt,
            "a sequence of {} tokens may grow to {}",
            sequence.prompt,
            sequence.limit
        );
        // The last token is sampled and never seen by the model.
        let tokens = sequence.limit - 1;
        let blocks = tokens.div_ceil(KV_BLOCK);
        ensure!(
            blocks <= l.kv_blocks,
            "a prompt of {} tokens and an answer of up to {} need {blocks} cache blocks of {KV_BLOCK} tokens, and there are \
             {}; ask for fewer tokens, or give the cache more room (--gpu-memory-utilization, --num-gpu-blocks-override)",
            sequence.prompt,
            sequence.limit - sequence.prompt,
            l.kv_blocks
        );
        for place in &sequence.places {
            ensure!(
                !place.rows.is_empty() && place.range().end <= sequence.prompt,
                "a picture at {:?} of a prompt of {} tokens",
                place.range(),
                sequence.prompt
            );
            ensure!(
                (1..=l.pages).contains(&place.pages(l.page_rows)) && place.tiles <= l.max_tiles,
                "a picture of {} tiles and {} image rows; the encoder has room for {} tiles and {} image rows at once",
                place.tiles,
                place.rows.encoded(),
                l.max_tiles,
                l.pages * l.page_rows
            );
        }
        sequence.switch = l.rope_switch.unwrap_or(usize::MAX);
        if sequence.outgrows() {
            sequence.lengthen();
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Plan a step. Until [`Scheduler::ran`] or [`Scheduler::failed`] is told of it, nothing counts as computed. One step
    /// may be in flight, with the tokens that it samples yet to be [pushed](Scheduler::push): then this one may turn out
    /// empty although there is something to do, and must be planned again when the other has ended.
    pub fn schedule(&mut self) -> Step {
        let mut step = Step::default();
        self.switch_angles();
        if self.is_in_flight() && self.missing_blocks() > self.blocks.available() {
            return step;
        }
        let decoding = self.running.iter().filter(|s| s.left() == 1).count();
        let mut budget = Budget {
            tokens: self.limits.max_num_batched_tokens - decoding,
            reports: self.limits.max_reports,
            tiles: self.limits.max_tiles,
            pictures_full: false,
        };
        let mut i = 0;
        while i < self.running.len() {
            if self.make_room(i, &mut step) {
                // What was set aside for a sequence that needs one token.
                budget.tokens += usize::from(self.running[i].left() == 1);
                self.take_row(i, &mut budget, &mut step);
                i += 1;
            }
        }
        while step.preempted.is_empty() && budget.tokens > 0 && self.admit(&mut step) {
            self.take_row(self.running.len() - 1, &mut budget, &mut step);
        }
        // Stable: the order of arrival is kept.
        step.rows.sort_by_key(|r| Reverse(r.ids.len() == 1));
        self.depart(&step);
        step
    }

    /// Let those that have grown past [`SchedulerLimits::rope_switch`] begin again, with what long sequences have left in
    /// the cache. No step reads the blocks that they give back: the last that had a row of one has run.
    fn switch_angles(&mut self) {
        let mut running = std::mem::take(&mut self.running);
        for sequence in running.iter_mut().filter(|s| s.outgrows() && s.unknown == 0 && s.in_flight == 0) {
            self.let_go(sequence);
            sequence.lengthen();
            let found = self.find(sequence);
            self.blocks.share(&found);
            sequence.begin(found);
            self.counts.rope_switches += 1;
        }
        self.running = running;
    }

    /// Blocks that hold what a sequence begins with. The last token must be seen by the model, or there would be nothing to
    /// sample from.
    fn find(&self, sequence: &Sequence) -> Vec<i32> {
        let known =
            if self.limits.prefix_caching && !sequence.reporting() { (sequence.ids.len() - 1) / KV_BLOCK } else { 0 };
        self.blocks.find(&sequence.keys[..known.min(sequence.keys.len())])
    }

    /// A step is in flight from now on: what its rows sample is known by its place alone.
    fn depart(&mut self, step: &Step) {
        let mut logits = 0;
        for row in &step.rows {
            logits += row.logit_rows();
            let Ok(i) = self.running.binary_search_by_key(&row.id, |s| s.id) else { continue };
            let sequence = &mut self.running[i];
            sequence.in_flight += 1;
            sequence.planned = row.start + row.ids.len();
            if row.samples {
                sequence.unknown += 1;
                sequence.sampled_at = logits - 1;
            }
        }
    }

    /// Whether a step has been planned whose outcome is not known.
    fn is_in_flight(&self) -> bool {
        !self.leaving.is_empty() || self.running.iter().any(|s| s.in_flight > 0)
    }

    /// Blocks that those which run need for the next step and do not have.
    fn missing_blocks(&self) -> usize {
        self.running.iter().map(|s| s.needed_blocks().saturating_sub(s.blocks.len())).sum()
    }

    /// Blocks for all tokens of running sequence `i`, at the cost of later ones, or in the end its own; then it does not
    /// run any more.
    fn make_room(&mut self, i: usize, step: &mut Step) -> bool {
        while self.running[i].blocks.len() < self.running[i].needed_blocks() {
            if let Some(block) = self.blocks.take(1) {
                self.running[i].blocks.extend(block);
                continue;
            }
            let last = self.running.len() - 1;
            let mut victim = self.running.remove(last);
            step.preempted.push(victim.id);
            self.counts.preemptions += 1;
            self.take_away(&mut victim);
            victim.preemptions += 1;
            self.waiting.push_front(victim);
            if last == i {
                return false;
            }
        }
        true
    }

    /// Let the first sequence that waits run, if there is room for all its tokens.
    fn admit(&mut self, step: &mut Step) -> bool {
        if self.running.len() + self.leaving.len() == self.limits.max_num_seqs {
            return false;
        }
        let Some(sequence) = self.waiting.front() else { return false };
        let found = self.find(sequence);
        let needed = sequence.needed_blocks() - found.len();
        // So that those which run can go on for a while before they have to take a block from somebody.
        let reserve = self.running.len();
        if needed + reserve > self.blocks.available() - self.blocks.cached_among(&found) {
            return false;
        }
        self.blocks.share(&found);
        let (Some(new), Some(mut sequence)) = (self.blocks.take(needed), self.waiting.pop_front()) else {
            self.blocks.give(&found);
            return false;
        };
        if sequence.preemptions == 0 && self.limits.prefix_caching {
            self.counts.prefix_queries += sequence.ids.len() as u64;
            self.counts.prefix_hits += (found.len() * KV_BLOCK) as u64;
        }
        sequence.begin(found);
        sequence.blocks.extend(new);
        // As many as sequences may run.
        sequence.state = self.states.pop().unwrap_or(0);
        step.admitted.push(sequence.id);
        self.running.push(sequence);
        true
    }

    /// The next tokens of running sequence `i`, within the budget and up to a picture that there is no room for now.
    fn take_row(&mut self, i: usize, budget: &mut Budget, step: &mut Step) {
        let sequence = &mut self.running[i];
        let start = sequence.planned;
        // A row is there for the last token; each before it takes one.
        let most = if sequence.reporting() { budget.reports + 1 } else { usize::MAX };
        let mut end = start + sequence.left().min(budget.tokens).min(most);
        if end == start {
            // Nor does it become a reader: if the step fails, it is not one of those that go.
            return;
        }
        while let Some(place) = sequence.places.get(sequence.reading).filter(|p| p.start < end) {
            let pages = place.pages(self.limits.page_rows);
            let known = !self.pictures.pages(place.key).is_empty();
            let allowed = !budget.pictures_full && (known || place.tiles <= budget.tiles);
            match allowed.then(|| self.pictures.acquire(place.key, pages)).flatten() {
                Some(Acquired::Hit) => {}
                Some(Acquired::Miss) => {
                    budget.tiles -= place.tiles;
                    let pages = self.pictures.pages(place.key).to_vec();
                    step.encode.push(Encode { id: sequence.id, place: sequence.reading, key: place.key, pages });
                }
                None => {
                    budget.pictures_full = true;
                    end = end.min(place.start).max(start);
                    break;
                }
            }
            sequence.reading += 1;
        }
        if end > start {
            budget.tokens -= end - start;
            budget.reports -= if sequence.reporting() { end - start - 1 } else { 0 };
            step.rows.push(self.row(i, end));
        }
    }

    fn row(&self, i: usize, end: usize) -> Row {
        let sequence = &self.running[i];
        let (start, known) = (sequence.planned, sequence.ids.len());
        let mut ids = sequence.ids[start.min(known)..end.min(known)].to_vec();
        // At most one is not known: there is one step in flight.
        ids.extend((known.max(start)..end).map(|_| sampled_id(sequence.sampled_at)));
        let SchedulerLimits { page_rows, first_row, constant_row, .. } = self.limits;
        for place in sequence.reading() {
            let pages = self.pictures.pages(place.key);
            for position in place.start.max(start)..place.range().end.min(end) {
                let row = match place.rows.at(position - place.start) {
                    ImageRow::Encoded(row) => first_row + pages[row / page_rows] * page_rows + row % page_rows,
                    ImageRow::Constant(row) => constant_row + row,
                };
                ids[position - start] = -1 - row as i32;
            }
        }
        Row {
            id: sequence.id,
            start,
            ids,
            ahead: sequence.unknown,
            state: sequence.state,
            samples: end == sequence.len(),
            reports: sequence.reporting(),
            long: sequence.long,
        }
    }

    /// The rows of a step are computed, as far as their sequences still run.
    pub fn ran(&mut self, step: &Step) {
        for row in &step.rows {
            let Ok(i) = self.running.binary_search_by_key(&row.id, |s| s.id) else {
                self.landed(row.id);
                continue;
            };
            let sequence = &mut self.running[i];
            sequence.in_flight -= 1;
            sequence.cached = row.start + row.ids.len();
            while sequence.passed < sequence.reading && sequence.places[sequence.passed].range().end <= sequence.cached
            {
                self.pictures.release(sequence.places[sequence.passed].key);
                sequence.passed += 1;
            }
            let full = (sequence.cached / KV_BLOCK).min(sequence.keys.len());
            if self.limits.prefix_caching {
                for b in sequence.registered..full {
                    self.blocks.register(sequence.blocks[b], sequence.keys[b]);
                }
            }
            sequence.registered = sequence.registered.max(full);
        }
    }

    /// Nothing of a step is computed. Its sequences are gone, those that were to run from it on among them, and its pictures
    /// are not in the cache. Of several steps in flight, the latest fails first. Returns the sequences.
    pub fn failed(&mut self, step: &Step) -> Vec<SequenceId> {
        let ids = step.rows.iter().map(|r| r.id).chain(step.admitted.iter().copied());
        let gone: Vec<_> = ids.filter(|&id| self.discard(id)).collect();
        step.rows.iter().for_each(|r| self.landed(r.id));
        step.encode.iter().for_each(|e| self.pictures.forget(e.key));
        gone
    }

    /// A row of a sequence that has ended will not be in flight any more: with the last of them, all that it has is free.
    fn landed(&mut self, id: SequenceId) {
        let Some(i) = self.leaving.iter().position(|s| s.id == id) else { return };
        self.leaving[i].in_flight -= 1;
        if self.leaving[i].in_flight == 0 {
            let mut sequence = self.leaving.swap_remove(i);
            self.take_away(&mut sequence);
        }
    }

    /// A token was sampled for a sequence that runs, by the earliest step whose tokens were not known.
    pub fn push(&mut self, id: SequenceId, token: i32) {
        if let Ok(i) = self.running.binary_search_by_key(&id, |s| s.id) {
            self.running[i].unknown -= 1;
            self.running[i].ids.push(token);
            self.running[i].extend_keys();
        }
    }

    /// A sequence has ended or is not wanted any more; its blocks can be taken in the next step, or once no step in flight
    /// has a row of it, and be found again until then. Returns whether it was there.
    pub fn finish(&mut self, id: SequenceId) -> bool {
        if let Ok(i) = self.running.binary_search_by_key(&id, |s| s.id) {
            let mut sequence = self.running.remove(i);
            if sequence.in_flight > 0 {
                self.leaving.push(sequence);
            } else {
                self.take_away(&mut sequence);
            }
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|s| s.id != id);
        self.waiting.len() < before
    }

    /// [`Scheduler::finish`] for a sequence whose numbers are not to be trusted: its blocks are not found again.
    pub fn discard(&mut self, id: SequenceId) -> bool {
        if let Ok(i) = self.running.binary_search_by_key(&id, |s| s.id) {
            self.running[i].blocks.iter().for_each(|&b| self.blocks.forget(b));
        }
        self.finish(id)
    }

    /// Give back all that a running sequence has.
    fn take_away(&mut self, sequence: &mut Sequence) {
        self.let_go(sequence);
        self.states.push(sequence.state);
    }

    /// Give back a sequence's blocks, and the pictures that it is about to read.
    fn let_go(&mut self, sequence: &mut Sequence) {
        sequence.reading().iter().for_each(|p| self.pictures.release(p.key));
        self.blocks.give(&sequence.forget_cache());
    }

    /// A sequence that runs or waits.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        let running = self.running.binary_search_by_key(&id, |s| s.id).ok().map(|i| &self.running[i]);
        running.or_else(|| self.waiting.iter().find(|s| s.id == id))
    }

    /// Whether there is nothing to do, but to wait for what is in flight.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that run, in the order of arrival.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences that wait, in the order of arrival.
    pub fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// Blocks by their state.
    pub fn blocks(&self) -> BlockCounts {
        self.blocks.counts()
    }

    /// Hits and misses of the encoder cache.
    pub fn pictures(&self) -> CacheCounts {
        self.pictures.counts()
    }

    /// What happened so far.
    pub fn counts(&self) -> SchedulerCounts {
        self.counts
    }

    /// Everything that must hold between two steps: no block, page or row of counts has two owners or none, and nobody
    /// has overtaken anybody.
    ///
    /// # Errors
    /// Names what does not.
    pub fn check(&self) -> Result<()> {
        let here = || self.running.iter().chain(&self.leaving);
        self.blocks.check(here().map(|s| s.blocks.as_slice()))?;
        let BlockCounts { free, used, cached, total } = self.blocks.counts();
        ensure!(free + used + cached == total, "{free} free, {used} used and {cached} cached blocks are not {total}");
        let mut readers = HashMap::new();
        for place in here().flat_map(Sequence::reading) {
            *readers.entry(place.key).or_insert(0) += 1;
        }
        self.pictures.check(&readers)?;
        let mut states: Vec<_> = self.states.iter().copied().chain(here().map(|s| s.state)).collect();
        states.sort_unstable();
        ensure!(states == (0..self.limits.max_num_seqs).collect::<Vec<_>>(), "rows of counts are shared or lost");
        let order: Vec<_> = self.running.iter().chain(&self.waiting).map(|s| s.id).collect();
        ensure!(order.is_sorted(), "the order of arrival is broken: {order:?}");
        ensure!(self.leaving.iter().all(|s| s.in_flight > 0), "a sequence has ended, and nothing will free its blocks");
        let idle = |s: &Sequence| s.in_flight == 0 && s.unknown == 0 && s.planned == 0 && s.blocks.is_empty();
        ensure!(self.waiting.iter().all(idle), "a sequence waits that has something in flight");
        ensure!(!self.waiting.iter().any(Sequence::outgrows), "a sequence waits with the wrong rotary angles");
        Ok(())
    }
}
