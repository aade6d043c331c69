//! The engine's thread: it owns the backend, the scheduler and the caches, and does one step after another.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use anyhow::anyhow;

use super::job::Job;
use super::output::{FinishReason, fnv1a};
use super::runner::{LogitRows, Runner, Sampled, SequenceLists, SequenceStep};
use super::scheduler::{Row, Scheduler, Step};
use super::stats::{Stats, milliseconds};
use super::{Sequence, SequenceId, Shared};
use crate::models::RowMove;
use crate::ops::SamplingRow;
use crate::plan::Backend;
use crate::{DeviceLost, Error};

/// A request on its way to the engine's thread.
pub(super) type Arrival = Box<(Sequence, Job)>;

pub(super) struct Worker<B: Backend> {
    shared: Arc<Shared>,
    runner: Runner<B>,
    scheduler: Scheduler,
    jobs: HashMap<SequenceId, Job>,
    arrivals: Receiver<Arrival>,
    /// Number of the latest request.
    latest: SequenceId,
    stats: Stats,
}

impl<B: Backend> Worker<B> {
    pub fn new(shared: Arc<Shared>, runner: Runner<B>, scheduler: Scheduler, arrivals: Receiver<Arrival>) -> Worker<B> {
        let jobs = HashMap::new();
        Worker { shared, runner, scheduler, jobs, arrivals, latest: 0, stats: Stats::default() }
    }

    /// Work until nobody can ask for anything any more and everything that was asked is answered, or the device is lost.
    pub fn run(mut self) {
        self.publish();
        while self.receive() {
            self.drop_unwanted();
            if !self.scheduler.is_idle()
                && let Err(lost) = self.step()
            {
                return self.end(&lost);
            }
            self.publish();
        }
    }

    /// Take in what has arrived, and wait for it if there is nothing else to do. False when that will never be again.
    fn receive(&mut self) -> bool {
        if self.scheduler.is_idle() {
            match self.arrivals.recv() {
                Ok(arrival) => self.take(arrival),
                Err(_) => return false,
            }
        }
        loop {
            match self.arrivals.try_recv() {
                Ok(arrival) => self.take(arrival),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        let (mut sequence, job) = *arrival;
        self.latest += 1;
        sequence.id = self.latest;
        match self.scheduler.add(sequence) {
            Ok(()) => {
                self.jobs.insert(self.latest, job);
            }
            Err(error) => {
                self.stats.failed += 1;
                job.fail(Error::Capacity(error));
            }
        }
    }

    /// Give up requests whose receiver has gone.
    fn drop_unwanted(&mut self) {
        let unwanted: Vec<_> = self.jobs.iter().filter(|(_, job)| job.is_unwanted()).map(|(&id, _)| id).collect();
        for id in unwanted {
            self.scheduler.finish(id);
            self.stats.cancelled += 1;
            if let Some(job) = self.jobs.remove(&id) {
                job.cancel();
            }
        }
    }

    /// One step of the model. Only the loss of the device is an error here; every other failure is that of its requests.
    fn step(&mut self) -> Result<(), DeviceLost> {
        let start = Instant::now();
        let step = self.scheduler.schedule();
        self.stats.schedule_ms += milliseconds(start);
        self.note(&step);
        match self.compute(&step) {
            Ok(sampled) => {
                let start = Instant::now();
                let lost = self.deliver(&step, sampled);
                self.stats.deliver_ms += milliseconds(start);
                lost
            }
            Err(error) => self.give_up(&step, &error),
        }
    }

    fn note(&mut self, step: &Step) {
        self.stats.steps += 1;
        for row in &step.rows {
            let prompt = self.scheduler.sequence(row.id).map_or(0, |s| s.prompt);
            self.stats.prompt_tokens += prompt.saturating_sub(row.start).min(row.ids.len()) as u64;
        }
        for id in &step.admitted {
            let cached = self.scheduler.sequence(*id).filter(|s| s.preemptions == 0).map(Sequence::cached);
            if let (Some(cached), Some(job)) = (cached, self.jobs.get_mut(id)) {
                job.set_cached(cached);
            }
        }
    }

    /// Encode the pictures of a step, run it, and read its rows of logits: for each of its rows, what it reports of the
    /// prompt, and then its last.
    fn compute(&mut self, step: &Step) -> anyhow::Result<Vec<Sampled>> {
        self.encode(step)?;
        for &id in &step.admitted {
            if let (Some(sequence), Some(job)) = (self.scheduler.sequence(id), self.jobs.get(&id))
                && job.counts_tokens()
            {
                let (prompt, answer) = sequence.ids().split_at(sequence.prompt);
                self.runner.reset_counts(sequence.state, prompt, answer)?;
            }
        }
        let mut biases = vec![Vec::new(); step.rows.len()];
        let (mut sequences, mut alternatives, mut rows) = (Vec::with_capacity(step.rows.len()), 0, 0);
        for (row, biases) in step.rows.iter().zip(&mut biases) {
            let sampling = self.jobs.get(&row.id).and_then(|job| match (row.samples, row.reports) {
                (true, _) => Some(job.sampling(row.state, biases)),
                (false, true) => job.prompt_row(self.after(row)),
                (false, false) => None,
            });
            if let Some(job) = self.jobs.get(&row.id).filter(|_| row.samples || row.reports) {
                alternatives = alternatives.max(job.alternatives());
            }
            // What a row amid a prompt samples is not used, nor counted.
            let sampling = sampling.unwrap_or(SamplingRow::GREEDY);
            rows += reported(row) + 1;
            sequences.push(SequenceStep { ids: &row.ids, cached: row.start, blocks: &row.blocks, sampling });
        }
        let asked = |row: &Row| self.jobs.get(&row.id).filter(|_| row.reports).and_then(Job::prompt_logprobs);
        let lists = step.rows.iter().zip(&biases);
        let lists: Vec<_> = lists.map(|(row, biases)| SequenceLists { biases, prompt_logprobs: asked(row) }).collect();
        self.runner.step_with(&sequences, LogitRows::Last, &lists, None)?;
        self.runner.sampled(rows, alternatives)
    }

    /// The id that follows a row amid a prompt.
    fn after(&self, row: &Row) -> i32 {
        let next = self.scheduler.sequence(row.id).and_then(|s| s.ids().get(row.start + row.ids.len()));
        next.copied().unwrap_or(-1)
    }

    /// Encode pictures together, and copy their rows to their pages.
    fn encode(&mut self, step: &Step) -> anyhow::Result<()> {
        let tile_rows = self.runner.model().tile_rows();
        let first_kept = self.shared.memory.first_kept_row(tile_rows);
        let (mut pictures, mut moves, mut first) = (Vec::new(), Vec::new(), 0);
        for encode in &step.encode {
            let Some(picture) = self.jobs.get(&encode.id).and_then(|job| job.pictures.get(encode.place)) else {
                continue;
            };
            for (i, &page) in encode.pages.iter().enumerate() {
                let rows = tile_rows.min(picture.tokens - i * tile_rows);
                moves.push(RowMove { from: first + i * tile_rows, to: first_kept + page * tile_rows, rows });
            }
            first += picture.tokens;
            pictures.push(picture);
        }
        self.runner.encode(&pictures, None)?;
        self.runner.keep(&moves)
    }

    /// Hand every sampled token to its request.
    fn deliver(&mut self, step: &Step, sampled: Vec<Sampled>) -> Result<(), DeviceLost> {
        let mut sampled = sampled.into_iter();
        let mut tokens = Vec::with_capacity(step.rows.len());
        let mut logits = 0;
        for row in &step.rows {
            let own: Vec<_> = sampled.by_ref().take(reported(row) + 1).collect();
            logits += own.len();
            let used = if row.samples || row.reports { &own[..] } else { &[] };
            if used.iter().any(|s| s.token.is_none()) {
                // Whatever holds a NaN must not be found again.
                self.scheduler.discard(row.id);
                self.fail(row.id, Job::no_number);
            }
            if let Some(last) = self.report(row, own) {
                tokens.push((row.id, last, logits - 1));
            }
        }
        self.scheduler.ran(step);
        for (id, sampled, row) in tokens {
            let (Some(token), Some(job)) = (sampled.token, self.jobs.get_mut(&id)) else { continue };
            self.stats.generation_tokens += 1;
            self.scheduler.push(id, token as i32);
            let (ended, others) = (job.push(token, sampled), job.take_others());
            match ended {
                Ok(None) => {}
                Ok(Some(reason)) => self.finish(id, reason, row)?,
                Err(error) => {
                    self.scheduler.finish(id);
                    self.fail(id, |_| Error::Model(error));
                }
            }
            others.into_iter().for_each(|other| self.take(Box::new(other)));
        }
        Ok(())
    }

    /// Tell a request what a row reports of its prompt, and return what it sampled, if it does.
    fn report(&mut self, row: &Row, mut own: Vec<Sampled>) -> Option<Sampled> {
        let next = self.after(row);
        let last = if row.samples { own.pop() } else { None };
        if row.reports
            && let Some(job) = self.jobs.get_mut(&row.id)
        {
            let inner = (1..row.ids.len()).filter(|&i| row.ids[i] >= 0);
            let end = (!row.samples && next >= 0).then_some(row.ids.len());
            for (i, sampled) in inner.chain(end).zip(own) {
                job.report(row.start + i, sampled);
            }
        }
        last
    }

    /// An answer is complete; its last logits are row `row` of the step's.
    fn finish(&mut self, id: SequenceId, reason: FinishReason, row: usize) -> Result<(), DeviceLost> {
        self.scheduler.finish(id);
        match self.runner.logits_of(row) {
            Ok(logits) => {
                self.stats.finished += 1;
                if let Some(job) = self.jobs.remove(&id) {
                    job.finish(reason, fnv1a(&logits));
                }
            }
            Err(error) => {
                self.fail(id, |_| copy(&error));
                if let Some(lost) = error.downcast_ref::<DeviceLost>() {
                    return Err(lost.clone());
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, id: SequenceId, error: impl FnOnce(&Job) -> Error) {
        if let Some(job) = self.jobs.remove(&id) {
            self.stats.failed += 1;
            let error = error(&job);
            job.fail(error);
        }
    }

    /// A step failed: so have its requests. Those that were not in it go on, if the device does.
    fn give_up(&mut self, step: &Step, error: &anyhow::Error) -> Result<(), DeviceLost> {
        if let Some(lost) = error.downcast_ref::<DeviceLost>() {
            return Err(lost.clone());
        }
        for id in self.scheduler.failed(step) {
            self.fail(id, |_| copy(error));
        }
        Ok(())
    }

    /// Nothing will be computed any more.
    fn end(mut self, lost: &DeviceLost) {
        self.shared.lost.set(lost);
        let error = || Error::Device(anyhow::Error::new(lost.clone()));
        for (id, job) in std::mem::take(&mut self.jobs) {
            self.scheduler.discard(id);
            self.stats.failed += 1;
            job.fail(error());
        }
        // Those that were sent before anyone could know.
        while let Ok(arrival) = self.arrivals.try_recv() {
            self.stats.failed += 1;
            arrival.1.fail(error());
        }
        self.publish();
    }

    /// Let others see how things stand.
    fn publish(&mut self) {
        self.stats.running = self.scheduler.running().len();
        self.stats.waiting = self.scheduler.waiting().count();
        self.stats.blocks = self.scheduler.blocks();
        self.stats.pictures = self.scheduler.pictures();
        self.stats.scheduler = self.scheduler.counts();
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats;
    }
}

/// Rows of logits that a row takes beside its last: for its ids that follow another and are of the vocabulary.
fn reported(row: &Row) -> usize {
    if row.reports { row.ids[1..].iter().filter(|&&id| id >= 0).count() } else { 0 }
}

/// The error of a step for one of several requests.
fn copy(error: &anyhow::Error) -> Error {
    Error::Device(match error.downcast_ref::<DeviceLost>() {
        Some(lost) => anyhow::Error::new(lost.clone()),
        None => anyhow!("{error:#}"),
    })
}

#[cfg(test)]
mod tests;
