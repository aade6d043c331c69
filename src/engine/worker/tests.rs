//! The thread on a backend that fails when it is told to.

use std::cell::Cell;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytemuck::Pod;

use super::Worker;
use crate::backend::Cpu;
use crate::config::ProcessorKwargs;
use crate::engine::memory::{self, Placed};
use crate::engine::pictures::Processing;
use crate::engine::{
    Device, Engine, Event, Options, Prompt, Request, Runner, Sampling, Scheduler, Shared, Stats, Stream, Thread,
};
use crate::mem::{Buf, Span};
use crate::plan::{Backend, Fill, Plan, Step};
use crate::{DeviceLost, Error};

#[derive(Clone, Copy)]
enum Fault {
    /// One launch fails; the device goes on.
    Launch,
    /// The device does nothing any more.
    Lost,
    /// The thread itself.
    Panic,
    /// What one step sampled cannot be read; the device goes on.
    Wait,
    /// The device is lost while a step is waited for.
    LostWaiting,
}

impl Fault {
    fn strike(self) -> Result<()> {
        match self {
            Fault::Launch => bail!("the launch failed"),
            Fault::Wait => bail!("the copy failed"),
            Fault::Lost | Fault::LostWaiting => {
                let lost = DeviceLost { device: "cuda:0".into(), cause: "an illegal address".into() };
                Err(anyhow::Error::new(lost).context("running a step"))
            }
            Fault::Panic => panic!("a defect, planted"),
        }
    }

    /// Whether it is a wait that fails, and not a plan.
    fn waits(self) -> bool {
        matches!(self, Fault::Wait | Fault::LostWaiting)
    }
}

/// The host, whose `at`-th plan or wait fails.
struct Faulty {
    cpu: Cpu,
    at: usize,
    fault: Fault,
    runs: Cell<usize>,
    waits: Cell<usize>,
}

impl Backend for Faulty {
    type Exec = Vec<Step>;
    type Pending = Vec<u8>;
    type Mark = Instant;

    fn link(&self, plan: &Plan) -> Result<Vec<Step>> {
        self.cpu.link(plan)
    }

    fn capture(&self, exec: &mut Vec<Step>) -> Result<()> {
        self.cpu.capture(exec)
    }

    fn run(&self, exec: &mut Vec<Step>, marks: Option<&mut Vec<Instant>>) -> Result<()> {
        self.runs.set(self.runs.get() + 1);
        if self.runs.get() == self.at && !self.fault.waits() {
            self.fault.strike()?;
        }
        self.cpu.run(exec, marks)
    }

    fn mark(&self) -> Result<Instant> {
        self.cpu.mark()
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> Result<Option<Duration>> {
        self.cpu.elapsed(from, to)
    }

    fn profile(&self, on: bool) -> Result<()> {
        self.cpu.profile(on)
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        self.cpu.write(dst, src)
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        self.cpu.read(src, dst)
    }

    fn enqueue_read(&self, src: Buf<u8>) -> Result<Vec<u8>> {
        self.cpu.enqueue_read(src)
    }

    fn wait(&self, pending: Vec<u8>) -> Result<Vec<u8>> {
        self.waits.set(self.waits.get() + 1);
        if self.waits.get() == self.at && self.fault.waits() {
            self.fault.strike()?;
        }
        self.cpu.wait(pending)
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        self.cpu.snapshot(span)
    }

    fn restore(&self, span: Span, bytes: &[u8]) -> Result<()> {
        self.cpu.restore(span, bytes)
    }

    fn upload(&self, fills: &[Fill], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.cpu.upload(fills, progress)
    }
}

const MODEL: &str = "tests/goldens/llava-tiny-mha";

/// An engine on a backend of one's own.
fn on<B: Backend + Send + 'static>(
    dir: &Path,
    options: Options,
    backend: impl FnOnce([usize; 4]) -> B + Send + 'static,
) -> Engine {
    let checkpoint = crate::engine::Checkpoint::open(dir, &options).unwrap();
    let limits = memory::limits(&checkpoint, &options, Device::Cpu);
    let Placed { model, memory, .. } = memory::place(&checkpoint, &options, Device::Cpu, limits).unwrap();
    let scheduler = Scheduler::new(memory.scheduler(&options, &*model)).unwrap();
    let model: Arc<dyn crate::models::Vlm> = model.into();
    let shared = Arc::new(Shared {
        checkpoint,
        model: model.clone(),
        processing: Processing::new(model.processor(&ProcessorKwargs::new()).unwrap()),
        runs_kernels: false,
        backend: "faulty",
        hardware: String::new(),
        warnings: vec![],
        upload: None,
        startup: super::super::Startup::default(),
        memory,
        load_ms: 0.0,
        stats: Mutex::new(Stats::default()),
        step: Mutex::default(),
        instruments: Mutex::default(),
        lost: Default::default(),
    });
    let (arrivals, received) = channel();
    let own = shared.clone();
    let handle = thread::spawn(move || {
        let runner = Runner::new(backend(model.regions()), model, |_| ()).unwrap();
        Worker::new(own, runner, scheduler, received, options.async_scheduling == Some(true)).run();
    });
    Engine { thread: Arc::new(Thread { shared, arrivals: Some(arrivals), handle: Some(handle) }) }
}

/// An engine for two sequences at once whose `at`-th plan or wait fails.
fn engine(at: usize, fault: Fault, async_scheduling: bool) -> Engine {
    let options = Options { max_num_seqs: Some(2), async_scheduling: Some(async_scheduling), ..Options::default() };
    on(Path::new(MODEL), options, move |regions| {
        let cpu = Cpu::new(regions).unwrap();
        Faulty { cpu, at, fault, runs: Cell::new(0), waits: Cell::new(0) }
    })
}

fn request(text: &str) -> Request {
    let sampling = Sampling { temperature: 0.0, max_tokens: Some(6), ignore_eos: true, ..Sampling::default() };
    Request { prompt: Prompt::Raw(text.into()), sampling, ..Request::default() }
}

fn four(engine: &Engine) -> Vec<Stream> {
    ["a", "what is this?", "the moon", "a word"].map(|text| engine.submit(request(text))).into()
}

/// Every plan and every wait of the four fails once, with a step in flight and without: whoever is not hit gets the same
/// answer, and the engine goes on.
#[test]
fn a_step_that_fails_takes_its_own_requests_and_no_others() {
    let whole = engine(usize::MAX, Fault::Launch, false);
    let expected: Vec<_> =
        four(&whole).iter_mut().map(|s| s.output().unwrap().outputs[0].logits_hash.clone()).collect();
    for (fault, said) in [(Fault::Launch, "the launch failed"), (Fault::Wait, "the copy failed")] {
        for (at, ahead) in (1..=12).flat_map(|at| [(at, false), (at, true)]) {
            let engine = engine(at, fault, ahead);
            let outputs: Vec<_> = four(&engine).iter_mut().map(Stream::output).collect();
            let failed = outputs.iter().filter(|o| o.is_err()).count();
            // A wait that fails takes the step that was enqueued after it, too.
            let most = if fault.waits() && ahead { 4 } else { 2 };
            assert!((1..=most).contains(&failed), "{said} at {at}: two run at once, and {failed} failed");
            for (output, expected) in outputs.iter().zip(&expected) {
                match output {
                    Ok(output) => assert_eq!(output.outputs[0].logits_hash, *expected),
                    Err(error) => {
                        assert!(matches!(error, Error::Device(_)) && error.device_lost().is_none(), "{error}");
                        assert_eq!(error.to_string(), said);
                    }
                }
            }
            let again = engine.answer(&request("a"), |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(again.outputs[0].logits_hash, expected[0], "{said} at {at}");
            // They are published after the last event.
            let stats = loop {
                let stats = engine.stats();
                if stats.failed + stats.finished == 5 {
                    break stats;
                }
                thread::yield_now();
            };
            assert_eq!((stats.failed, stats.running, stats.blocks.used), (failed as u64, 0, 0));
        }
    }
}

/// The step that fails was enqueued before anyone knew that the answer had ended with the one before.
#[test]
fn a_step_for_nobody_that_fails_spoils_no_answer() {
    let whole = engine(usize::MAX, Fault::Launch, false).submit(request("a")).output().unwrap();
    let tokens = &whole.outputs[0].token_ids;
    let new = (1..tokens.len()).rev().find(|&i| !tokens[..i].contains(&tokens[i])).expect("a token that comes late");
    let stop = Sampling { stop_token_ids: vec![tokens[new]], ..request("a").sampling };
    let engine = engine(new + 2, Fault::Launch, true);
    let output = engine.submit(Request { sampling: stop, ..request("a") }).output().unwrap();
    assert_eq!(output.outputs[0].token_ids, tokens[..=new]);
}

#[test]
fn a_request_for_several_answers_fails_once() {
    for (at, ahead) in [1, 3, 5, 8].into_iter().flat_map(|at| [(at, false), (at, true)]) {
        let engine = engine(at, Fault::Launch, ahead);
        let mut several = request("the moon");
        (several.sampling.n, several.sampling.temperature) = (5, 1.0);
        let events: Vec<_> = engine.submit(several).collect();
        let failed = events.iter().filter(|event| matches!(event, Event::Failed(_))).count();
        assert!(failed == 1 && matches!(events.last(), Some(Event::Failed(_))), "{events:?}");
        let again = engine.answer(&request("a"), |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((again.outputs.len(), engine.stats().waiting), (1, 0));
    }
}

#[test]
fn a_lost_device_ends_every_request_with_the_reason() {
    for (fault, at, ahead) in [Fault::Lost, Fault::LostWaiting]
        .into_iter()
        .flat_map(|fault| (1..=12).flat_map(move |at| [(fault, at, false), (fault, at, true)]))
    {
        let engine = engine(at, fault, ahead);
        let (mut lost, mut done) = (0, 0);
        for stream in &mut four(&engine) {
            match stream.output() {
                Ok(_) => done += 1,
                Err(error) => {
                    assert!(error.device_lost().is_some(), "{error}");
                    lost += 1;
                }
            }
        }
        assert!(lost > 0 && lost + done == 4, "{lost} lost and {done} done at {at}");
        let error = engine.submit(request("a")).output().unwrap_err();
        assert_eq!(error.device_lost().map(|l| l.cause.as_str()), Some("an illegal address"), "{error}");
    }
}

#[test]
fn a_thread_that_panics_leaves_nobody_waiting() {
    for ahead in [false, true] {
        let engine = engine(4, Fault::Panic, ahead);
        for stream in four(&engine) {
            let last = stream.last();
            assert!(matches!(last, Some(Event::Failed(Error::Device(_)))), "{last:?}");
        }
        assert!(engine.answer(&request("a"), |_| ControlFlow::Continue(())).is_err());
    }
}

/// A device on which every plan takes no time, once it is told to begin: what is left is what the host does.
struct Idle {
    begin: Cell<Option<Receiver<()>>>,
}

impl Backend for Idle {
    type Exec = ();
    type Pending = usize;
    type Mark = ();

    fn link(&self, _: &Plan) -> Result<()> {
        Ok(())
    }

    fn capture(&self, (): &mut ()) -> Result<()> {
        Ok(())
    }

    fn run(&self, (): &mut (), _: Option<&mut Vec<()>>) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&self, (): &(), (): &()) -> Result<Option<Duration>> {
        Ok(Some(Duration::ZERO))
    }

    fn profile(&self, _: bool) -> Result<()> {
        Ok(())
    }

    fn write<T: Pod>(&self, _: Buf<T>, _: &[T]) -> Result<()> {
        Ok(())
    }

    fn read<T: Pod>(&self, _: Buf<T>, dst: &mut [T]) -> Result<()> {
        dst.fill(T::zeroed());
        Ok(())
    }

    fn enqueue_read(&self, src: Buf<u8>) -> Result<usize> {
        Ok(src.len())
    }

    /// Every row samples token 65.
    fn wait(&self, bytes: usize) -> Result<Vec<u8>> {
        if let Some(begin) = self.begin.take() {
            begin.recv()?;
        }
        Ok([65, 0, 0, 0].repeat(bytes / 4))
    }

    fn snapshot(&self, span: Span) -> Result<Vec<u8>> {
        Ok(vec![0; span.bytes() as usize])
    }

    fn restore(&self, _: Span, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn upload(&self, _: &[Fill], _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
}

/// A figure, not a promise: what the host does for a step of 256 sequences whose block tables are as long as those of a
/// context of 4,096 tokens.
#[test]
#[allow(clippy::print_stdout, reason = "the figure is what it is for")]
fn what_the_host_does_for_a_step_of_256_sequences() {
    const SEQS: usize = 256;
    const TOKENS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(MODEL).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let positions = "\"max_position_embeddings\": ";
    let start = config.find(positions).unwrap() + positions.len();
    let end = start + config[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
    fs::write(dir.path().join("config.json"), format!("{}4096{}", &config[..start], &config[end..])).unwrap();

    for ahead in [false, true] {
        let options = Options {
            max_num_seqs: Some(SEQS),
            max_num_batched_tokens: Some(8192),
            num_kv_blocks: Some(SEQS * 50),
            async_scheduling: Some(ahead),
            ..Options::default()
        };
        let (begin, told) = channel();
        let engine = on(dir.path(), options, |_| Idle { begin: Cell::new(Some(told)) });
        let sampling = Sampling { max_tokens: Some(TOKENS), ignore_eos: true, ..Sampling::default() };
        let text = "what is the moon and ".repeat(30);
        let ask = |i| Request {
            prompt: Prompt::Raw(format!("{i} {text}")),
            sampling: sampling.clone(),
            ..Request::default()
        };
        let mut streams: Vec<_> = (0..SEQS).map(|i| engine.submit(ask(i))).collect();
        begin.send(()).unwrap();
        streams.iter_mut().for_each(|s| assert_eq!(s.output().unwrap().outputs[0].token_ids, [65; TOKENS]));
        let stats = engine.stats();
        let us = |ms: f64| 1e3 * ms / stats.steps as f64;
        let (schedule, enqueue, deliver) = (us(stats.schedule_ms), us(stats.enqueue_ms), us(stats.deliver_ms));
        println!(
            "{} steps, {:.0} tokens each, ahead {ahead}: schedule {schedule:.0}, enqueue {enqueue:.0}, deliver {deliver:.0} us",
            stats.steps,
            stats.generation_tokens as f64 / stats.steps as f64,
        );
    }
}

/// Nothing is written of the requests that a lost device took along, and the next run asks them.
#[cfg(feature = "server")]
#[test]
fn a_batch_that_loses_the_device_goes_on_with_another() {
    use crate::server::batch::{self, BatchOptions};
    use crate::server::media::MediaOptions;

    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let line = |i: usize| {
        format!(
            "{{\"custom_id\":\"{i}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{{\"max_tokens\":4,\
             \"ignore_eos\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}]}}}}\n"
        )
    };
    fs::write(&input, (0..20).map(line).collect::<String>()).unwrap();
    let options = BatchOptions { served_model_names: vec![], media: MediaOptions::default() };
    for (fault, ahead) in [Fault::Lost, Fault::Panic].into_iter().flat_map(|fault| [(fault, false), (fault, true)]) {
        fs::write(&output, "").unwrap();
        let lost = batch::run(&engine(16, fault, ahead), &input, &output, &options, |_| ()).unwrap_err();
        assert!(lost.downcast_ref::<Error>().is_some_and(Error::is_final), "{lost:#}");
        let before = fs::read_to_string(&output).unwrap();
        assert!((1..20).contains(&before.lines().count()) && !before.contains("\"status_code\":500"), "{before}");
        let rest = batch::run(&engine(usize::MAX, fault, ahead), &input, &output, &options, |_| ()).unwrap();
        assert_eq!((rest.answered + rest.kept, rest.failed), (20, 0));
        assert_eq!(rest.kept as usize, before.lines().count());
    }
}
