//! The engine's thread: it owns the backend, the scheduler and the caches, and does one step after another. With a device
//! that works beside the host, a step is enqueued before the tokens of the one before it are read, so that the device does
//! not wait while those become text and the next step is planned.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use anyhow::anyhow;

use super::job::Job;
use super::output::FinishReason;
use super::runner::{InFlight, Runner};
use super::scheduler::{Encode, Row, Scheduler, Step};
use super::stats::{Stats, milliseconds};
use super::step_inputs::{SequenceLists, SequenceStep};
use super::step_outputs::{Outputs, Sampled};
use super::{Sequence, SequenceId, Shared};
use crate::models::{Content, RowMove, Stage, Tiles};
use crate::ops::SamplingRow;
use crate::plan::Backend;
use crate::range;
use crate::trace::Detail;
use crate::{DeviceLost, Error};

/// A request on its way to the engine's thread.
pub(super) type Arrival = Box<(Sequence, Job)>;

pub(super) struct Worker<B: Backend> {
    shared: Arc<Shared>,
    runner: Runner<B>,
    scheduler: Scheduler,
    jobs: HashMap<SequenceId, Job>,
    arrivals: Receiver<Arrival>,
    /// Steps that were enqueued and whose tokens were not read, the earliest first.
    in_flight: VecDeque<(Step, InFlight<B>)>,
    /// So many of them may be there while no other is being enqueued.
    ahead: usize,
    /// Number of the latest request.
    latest: SequenceId,
    stats: Stats,
    /// What the runner is watched for: the detail, and the start of the recording.
    recorded: Option<(Detail, Instant)>,
    profiled: bool,
}

impl<B: Backend> Worker<B> {
    /// With `async_scheduling`, a step is enqueued before the tokens of the one before it are read.
    pub fn new(
        shared: Arc<Shared>,
        runner: Runner<B>,
        scheduler: Scheduler,
        arrivals: Receiver<Arrival>,
        async_scheduling: bool,
    ) -> Worker<B> {
        Worker {
            shared,
            runner,
            scheduler,
            jobs: HashMap::new(),
            arrivals,
            in_flight: VecDeque::new(),
            ahead: usize::from(async_scheduling),
            latest: 0,
            stats: Stats::default(),
            recorded: None,
            profiled: false,
        }
    }

    /// Work until nobody can ask for anything any more and everything that was asked is answered, or the device is lost.
    pub fn run(mut self) {
        self.publish();
        while self.receive() {
            self.drop_unwanted();
            *self.shared.step() = Some(Instant::now());
            if let Err(lost) = self.turn() {
                return self.end(&lost);
            }
            *self.shared.step() = None;
            self.publish();
        }
    }

    /// Nothing to do, and nothing on its way.
    fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.in_flight.is_empty()
    }

    /// Take in what has arrived, and wait for it if there is nothing else to do. False when that will never be again.
    fn receive(&mut self) -> bool {
        if self.is_idle() {
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
        if job.looks_back() {
            sequence.look_back();
        }
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

    /// Enqueue a step if there is one, and take in what earlier ones have sampled while the device is at work. Only the loss
    /// of the device is an error here; every other failure is that of its requests.
    fn turn(&mut self) -> Result<(), DeviceLost> {
        self.follow().or_else(|error| lost(&error).map_or(Ok(()), |lost| Err(lost.clone())))?;
        let may_fly = if self.start()? { self.ahead } else { 0 };
        while self.in_flight.len() > may_fly {
            self.collect(None)?;
        }
        Ok(())
    }

    /// Watch the runner, or have it profiled, if somebody began or ceased to want that.
    fn follow(&mut self) -> anyhow::Result<()> {
        let (wanted, profiled) = {
            let instruments = self.shared.instruments();
            (instruments.wanted(), instruments.profiled)
        };
        if self.recorded != wanted {
            self.gather();
            self.recorded = wanted;
            self.runner.watch(wanted.map(|(detail, _)| detail))?;
        }
        if self.profiled != profiled {
            self.profiled = profiled;
            self.runner.backend().profile(profiled)?;
        }
        Ok(())
    }

    /// Keep what the device has done of that which is recorded. Times are no reason to fail a step: a device that is lost says
    /// so to the next one.
    fn gather(&mut self) {
        let Some((_, start)) = self.recorded else { return };
        if let Ok(runs) = self.runner.watched(start) {
            self.shared.instruments().ran(start, runs);
        }
    }

    /// Plan a step and enqueue it. Returns whether there was anything to enqueue.
    fn start(&mut self) -> Result<bool, DeviceLost> {
        let start = Instant::now();
        let range = range::open("schedule");
        let step = self.scheduler.schedule();
        drop(range);
        self.stats.schedule_ms += milliseconds(start);
        let number = self.stats.steps;
        self.shared.did("schedule", start, &[("step", number)]);
        self.note(&step);
        let start = Instant::now();
        let range = range::open("enqueue");
        let enqueued = self.enqueue(&step);
        drop(range);
        self.stats.enqueue_ms += milliseconds(start);
        let (rows, pictures) = (step.rows.len() as u64, step.encode.len() as u64);
        self.shared.did("enqueue", start, &[("step", number), ("rows", rows), ("pictures", pictures)]);
        match enqueued {
            Ok(Some(outputs)) => {
                self.stats.steps += 1;
                self.in_flight.push_back((step, outputs));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                // What was sampled before is not spoilt.
                while lost(&error).is_none() && !self.in_flight.is_empty() {
                    self.collect(Some(&step))?;
                }
                self.give_up(&step, &error)?;
                Ok(true)
            }
        }
    }

    /// Wait for the earliest step in flight, and deliver what it sampled. `behind` was planned after all that are in flight,
    /// and could not be enqueued.
    fn collect(&mut self, behind: Option<&Step>) -> Result<(), DeviceLost> {
        let Some((step, outputs)) = self.in_flight.pop_front() else { return Ok(()) };
        let start = Instant::now();
        let range = range::open("wait");
        let outputs = self.runner.wait(outputs);
        drop(range);
        self.stats.wait_ms += milliseconds(start);
        self.shared.did("wait", start, &[]);
        self.gather();
        match outputs {
            Ok(outputs) => {
                let start = Instant::now();
                let range = range::open("deliver");
                self.deliver(&step, &outputs);
                drop(range);
                self.stats.deliver_ms += milliseconds(start);
                self.shared.did("deliver", start, &[("rows", step.rows.len() as u64)]);
                Ok(())
            }
            Err(error) => {
                // Later steps have read what this one should have left, so they go first, the latest before all.
                behind.map_or(Ok(()), |step| self.give_up(step, &error))?;
                while let Some((later, _)) = self.in_flight.pop_back() {
                    self.give_up(&later, &error)?;
                }
                self.give_up(&step, &error)
            }
        }
    }

    fn note(&mut self, step: &Step) {
        for row in &step.rows {
            let prompt = self.scheduler.sequence(row.id).map_or(0, |s| s.prompt);
            self.stats.prompt_tokens += prompt.saturating_sub(row.start).min(row.ids.len()) as u64;
        }
        for id in &step.admitted {
            let cached = self.scheduler.sequence(*id).filter(|s| s.preemptions == 0).map(Sequence::cached);
            if let (Some(cached), Some(job)) = (cached, self.jobs.get(id)) {
                job.begin(cached);
            }
        }
    }

    /// Encode the pictures of a step and enqueue it; `None` if it has no rows.
    fn enqueue(&mut self, step: &Step) -> anyhow::Result<Option<InFlight<B>>> {
        for &id in &step.admitted {
            if let (Some(sequence), Some(job)) = (self.scheduler.sequence(id), self.jobs.get(&id))
                && job.counts_tokens()
            {
                let (prompt, answer) = sequence.ids().split_at(sequence.prompt);
                self.runner.reset_counts(sequence.state, prompt, answer)?;
            }
        }
        if step.rows.is_empty() {
            return Ok(None);
        }
        self.encode(step)?;
        let first_long_row = self.runner.model().long_rope().map_or(0, |rope| rope.first_row);
        let mut biases = vec![Vec::new(); step.rows.len()];
        let (mut sequences, mut lists) = (Vec::with_capacity(step.rows.len()), Vec::with_capacity(step.rows.len()));
        for (row, biases) in step.rows.iter().zip(&mut biases) {
            let job = self.jobs.get(&row.id);
            let sequence = self.scheduler.sequence(row.id);
            let sampling = job.and_then(|job| match (row.samples, row.reports) {
                (true, _) => Some(job.sampling(row.ahead, row.state, biases)),
                (false, true) => job.prompt_row(after(sequence, row)),
                (false, false) => None,
            });
            // What a row amid a prompt samples is not used, nor counted.
            let sampling = sampling.unwrap_or(SamplingRow::GREEDY);
            let blocks = sequence.map_or(&[][..], Sequence::blocks);
            let first_angle = if row.long { first_long_row } else { 0 };
            sequences.push(SequenceStep { ids: &row.ids, cached: row.start, first_angle, blocks, sampling });
            let prompt_logprobs = job.filter(|_| row.reports).and_then(Job::prompt_logprobs);
            lists.push(SequenceLists { biases, prompt_logprobs });
        }
        self.runner.enqueue(&sequences, &lists).map(Some)
    }

    /// Bring the rows of pictures to their pages: what begins at the same stage is encoded together, and embeddings are
    /// rows already.
    fn encode(&mut self, step: &Step) -> anyhow::Result<()> {
        let tile_rows = self.runner.model().tile_rows();
        let first_kept = self.shared.memory.first_kept_row(tile_rows);
        let row_of = |page: usize| first_kept + page * tile_rows;
        let asked = step.encode.iter().filter_map(|e| Some((e, self.jobs.get(&e.id)?.pictures.get(e.place)?)));
        let asked: Vec<(&Encode, &Tiles)> = asked.collect();
        for stage in [Stage::Tower, Stage::Projector] {
            let (mut pictures, mut moves, mut first) = (Vec::new(), Vec::new(), 0);
            for (encode, picture) in asked.iter().filter(|(_, picture)| picture.content.stage() == Some(stage)) {
                for (i, &page) in encode.pages.iter().enumerate() {
                    let rows = tile_rows.min(picture.rows.encoded() - i * tile_rows);
                    moves.push(RowMove { from: first + i * tile_rows, to: row_of(page), rows });
                }
                first += picture.rows.encoded();
                pictures.push(*picture);
            }
            self.runner.encode(&pictures)?;
            self.runner.keep(&moves)?;
        }
        for (encode, picture) in asked {
            let Content::Embeddings(rows) = &picture.content else { continue };
            let page_len = tile_rows * (rows.len() / picture.rows.encoded());
            for (i, &page) in encode.pages.iter().enumerate() {
                let part = i * page_len..rows.len().min((i + 1) * page_len);
                self.runner.write_rows(row_of(page), &rows.slice(part))?;
            }
        }
        Ok(())
    }

    /// Hand every sampled token to its request. Rows of requests that have ended meanwhile are nobody's.
    fn deliver(&mut self, step: &Step, outputs: &Outputs) {
        let mut tokens = Vec::with_capacity(step.rows.len());
        let mut first = 0;
        for row in &step.rows {
            let last = first + row.logit_rows() - 1;
            if let Some(alternatives) = self.jobs.get(&row.id).map(Job::alternatives) {
                match self.read(row, first..last + 1, alternatives, outputs) {
                    Ok(Some(sampled)) => tokens.push((row.id, sampled, last)),
                    Ok(None) => {}
                    Err(NoNumber) => {
                        // Whatever holds a NaN must not be found again.
                        self.scheduler.discard(row.id);
                        self.fail(row.id, Job::no_number);
                    }
                }
            }
            first = last + 1;
        }
        self.scheduler.ran(step);
        for (id, sampled, row) in tokens {
            let (Some(token), Some(job)) = (sampled.token, self.jobs.get_mut(&id)) else { continue };
            self.stats.generation_tokens += 1;
            self.scheduler.push(id, token as i32);
            let (ended, others) = (job.push(token, sampled), job.take_others());
            match ended {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    self.scheduler.finish(id);
                    self.stats.finished += 1;
                    self.stats.stopped += u64::from(reason == FinishReason::Stop);
                    if let Some(job) = self.jobs.remove(&id) {
                        job.finish(format!("{:016x}", outputs.logits_hash(row)));
                    }
                }
                Err(error) => {
                    self.scheduler.finish(id);
                    self.fail(id, |_| Error::Model(error));
                }
            }
            others.into_iter().for_each(|other| self.take(Box::new(other)));
        }
    }

    /// Tell a request what a row reports of its prompt, and return what it sampled, if it does. `rows` are its rows of
    /// logits.
    fn read(
        &mut self,
        row: &Row,
        rows: Range<usize>,
        alternatives: usize,
        outputs: &Outputs,
    ) -> Result<Option<Sampled>, NoNumber> {
        if !row.samples && !row.reports {
            return Ok(None);
        }
        let mut own: Vec<_> = rows.map(|row| outputs.sampled(row, alternatives)).collect();
        if own.iter().any(|sampled| sampled.token.is_none()) {
            return Err(NoNumber);
        }
        let next = after(self.scheduler.sequence(row.id), row);
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
        Ok(last)
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
        if let Some(lost) = lost(error) {
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
        self.in_flight.clear();
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

/// A row of logits holds no number to choose a token by.
struct NoNumber;

/// The id that follows a row amid the prompt of its sequence.
fn after(sequence: Option<&Sequence>, row: &Row) -> i32 {
    sequence.and_then(|s| s.ids().get(row.start + row.ids.len())).copied().unwrap_or(-1)
}

/// What ended the device, if that is what an error says.
fn lost(error: &anyhow::Error) -> Option<&DeviceLost> {
    error.downcast_ref()
}

/// The error of a step for one of several requests.
fn copy(error: &anyhow::Error) -> Error {
    Error::Device(match lost(error) {
        Some(lost) => anyhow::Error::new(lost.clone()),
        None => anyhow!("{error:#}"),
    })
}

#[cfg(test)]
mod tests;
