//! The thread on a backend that fails when it is told to.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Result, bail};
use bytemuck::Pod;

use super::Worker;
use crate::backend::Cpu;
use crate::engine::memory::{self, Placed};
use crate::engine::{
    Device, Engine, Event, Options, PictureKey, Prompt, Request, Runner, Sampling, Scheduler, Shared, Stats, Stream,
    Thread,
};
use crate::mem::{Buf, Span};
use crate::plan::{Backend, Fill, Plan, Probe, Step};
use crate::{DeviceLost, Error};

#[derive(Clone, Copy)]
enum Fault {
    /// One launch fails; the device goes on.
    Launch,
    /// The device does nothing any more.
    Lost,
    /// The thread itself.
    Panic,
}

/// The host, whose `at`-th plan fails.
struct Faulty {
    cpu: Cpu,
    at: usize,
    fault: Fault,
    runs: Cell<usize>,
}

impl Backend for Faulty {
    type Exec = Vec<Step>;

    fn link(&self, plan: &Plan) -> Result<Vec<Step>> {
        self.cpu.link(plan)
    }

    fn capture(&self, exec: &mut Vec<Step>) -> Result<()> {
        self.cpu.capture(exec)
    }

    fn run(&self, exec: &mut Vec<Step>, probe: Option<&mut dyn Probe>) -> Result<()> {
        self.runs.set(self.runs.get() + 1);
        if self.runs.get() == self.at {
            match self.fault {
                Fault::Launch => bail!("the launch failed"),
                Fault::Lost => {
                    let lost = DeviceLost { device: "cuda:0".into(), cause: "an illegal address".into() };
                    return Err(anyhow::Error::new(lost).context("running a step"));
                }
                Fault::Panic => panic!("a defect, planted"),
            }
        }
        self.cpu.run(exec, probe)
    }

    fn write<T: Pod>(&self, dst: Buf<T>, src: &[T]) -> Result<()> {
        self.cpu.write(dst, src)
    }

    fn read<T: Pod>(&self, src: Buf<T>, dst: &mut [T]) -> Result<()> {
        self.cpu.read(src, dst)
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

/// An engine for two sequences at once whose `at`-th plan fails.
fn engine(at: usize, fault: Fault) -> Engine {
    let dir = Path::new("tests/goldens/llava-tiny-mha");
    let options = Options { max_num_seqs: Some(2), ..Options::default() };
    let checkpoint = crate::engine::Checkpoint::open(dir, &options).unwrap();
    let limits = memory::limits(&checkpoint, &options, Device::Cpu);
    let Placed { model, memory, .. } = memory::place(&checkpoint, &options, Device::Cpu, limits).unwrap();
    let scheduler = Scheduler::new(memory.scheduler(&options, model.tile_rows())).unwrap();
    let model: Arc<dyn crate::models::Vlm> = model.into();
    let shared = Arc::new(Shared {
        checkpoint,
        model: model.clone(),
        processing: PictureKey([0; 32]),
        runs_kernels: false,
        backend: "faulty",
        hardware: String::new(),
        warnings: vec![],
        upload: None,
        memory,
        load_ms: 0.0,
        stats: Mutex::new(Stats::default()),
        lost: Default::default(),
    });
    let (arrivals, received) = channel();
    let own = shared.clone();
    let handle = thread::spawn(move || {
        let cpu = Cpu::new(model.regions()).unwrap();
        let runner = Runner::new(Faulty { cpu, at, fault, runs: Cell::new(0) }, model, |_| ()).unwrap();
        Worker::new(own, runner, scheduler, received).run();
    });
    Engine { thread: Arc::new(Thread { shared, arrivals: Some(arrivals), handle: Some(handle) }) }
}

fn request(text: &str) -> Request {
    let sampling = Sampling { temperature: 0.0, max_tokens: Some(6), ignore_eos: true, ..Sampling::default() };
    Request { prompt: Prompt::Raw(text.into()), images: vec![], sampling, cache_salt: None }
}

fn four(engine: &Engine) -> Vec<Stream> {
    ["a", "what is this?", "the moon", "a word"].map(|text| engine.submit(request(text))).into()
}

#[test]
fn a_step_that_fails_takes_its_own_requests_and_no_others() {
    let whole = engine(usize::MAX, Fault::Launch);
    let expected: Vec<_> =
        four(&whole).iter_mut().map(|s| s.output().unwrap().outputs[0].logits_hash.clone()).collect();
    // The first plan is a step of the first request, perhaps with the second.
    let engine = engine(3, Fault::Launch);
    let outputs: Vec<_> = four(&engine).iter_mut().map(Stream::output).collect();
    let failed = outputs.iter().filter(|o| o.is_err()).count();
    assert!((1..=2).contains(&failed), "two run at once, and {failed} failed");
    for (output, expected) in outputs.iter().zip(&expected) {
        match output {
            Ok(output) => assert_eq!(output.outputs[0].logits_hash, *expected),
            Err(error) => {
                assert!(matches!(error, Error::Device(_)) && error.device_lost().is_none(), "{error}");
                assert_eq!(error.to_string(), "the launch failed");
            }
        }
    }
    let again = engine.answer(&request("a"), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(again.outputs[0].logits_hash, expected[0]);
}

#[test]
fn a_request_for_several_answers_fails_once() {
    for at in [1, 3, 5, 8] {
        let engine = engine(at, Fault::Launch);
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
    let engine = engine(4, Fault::Lost);
    for stream in &mut four(&engine) {
        let error = stream.output().unwrap_err();
        assert!(error.device_lost().is_some(), "{error}");
    }
    let error = engine.submit(request("a")).output().unwrap_err();
    assert_eq!(error.device_lost().map(|l| l.cause.as_str()), Some("an illegal address"), "{error}");
}

#[test]
fn a_thread_that_panics_leaves_nobody_waiting() {
    let engine = engine(4, Fault::Panic);
    for stream in four(&engine) {
        let last = stream.last();
        assert!(matches!(last, Some(Event::Failed(Error::Device(_)))), "{last:?}");
    }
    assert!(engine.answer(&request("a"), |_| ControlFlow::Continue(())).is_err());
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
    std::fs::write(&input, (0..20).map(line).collect::<String>()).unwrap();
    let options = BatchOptions { served_model_names: vec![], media: MediaOptions::default() };
    for fault in [Fault::Lost, Fault::Panic] {
        std::fs::write(&output, "").unwrap();
        let lost = batch::run(&engine(16, fault), &input, &output, &options, |_| ()).unwrap_err();
        assert!(lost.downcast_ref::<Error>().is_some_and(Error::is_final), "{lost:#}");
        let before = std::fs::read_to_string(&output).unwrap();
        assert!((1..20).contains(&before.lines().count()) && !before.contains("\"status_code\":500"), "{before}");
        let rest = batch::run(&engine(usize::MAX, fault), &input, &output, &options, |_| ()).unwrap();
        assert_eq!((rest.answered + rest.kept, rest.failed), (20, 0));
        assert_eq!(rest.kept as usize, before.lines().count());
    }
}
