//! A trace holds what ran, and changes no answer.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use ocelli::engine::{Device, Engine, Output, Prompt, Request, Sampling};
use ocelli::text::{Message, Role};
use ocelli::trace::{Detail, Kind, Run, Trace};
use serde_json::Value;

const TOKENS: usize = 4;

fn engine() -> Engine {
    Engine::builder("demo/llava-shapes").device(Device::Cpu).open().unwrap()
}

fn answer(engine: &Engine) -> Output {
    let request = Request {
        prompt: Prompt::Chat(vec![Message::with_images(Role::User, 1, "How many stars are there?")]),
        images: vec![Path::new("demo/images/shapes.jpg").into()],
        sampling: Sampling { temperature: 0.0, max_tokens: Some(TOKENS), ignore_eos: true, ..Sampling::default() },
        // Nothing is found that another request has left.
        cache_salt: Some(format!("{:?}", std::time::Instant::now())),
        ..Request::default()
    };
    engine.answer(&request, |_| ControlFlow::Continue(())).unwrap()
}

fn traced(engine: &Engine, detail: Detail) -> (Output, Trace) {
    engine.start_trace(detail);
    let output = answer(engine);
    (output, engine.take_trace())
}

fn kinds(trace: &Trace) -> Vec<Kind> {
    trace.runs.iter().map(|run| run.kind).collect()
}

#[test]
fn every_plan_of_an_answer_is_there_in_order_with_its_launches() {
    let engine = engine();
    let plain = answer(&engine);
    for detail in [Detail::Launches, Detail::Plans] {
        let (output, trace) = traced(&engine, detail);
        assert_eq!(output.outputs[0].logits_hash, plain.outputs[0].logits_hash);
        let expected = [&[Kind::Encode, Kind::Keep, Kind::Prefill][..], &[Kind::Decode; TOKENS - 1]].concat();
        assert_eq!(kinds(&trace), expected);
        assert_eq!(trace.dropped, 0);
        assert!(trace.runs.windows(2).all(|pair| pair[0].start + pair[0].time <= pair[1].start));
        let Run { name, launches, apart, time, .. } = &trace.runs[2];
        assert_eq!((name.as_str(), *apart), ("prefill of 158 tokens", detail == Detail::Launches));
        assert_eq!(launches[0].label.as_str(), "llm/embed_splice");
        assert!(launches.iter().all(|launch| launch.cost.bytes > 0));
        let sum: std::time::Duration = launches.iter().map(|launch| launch.time).sum();
        assert_eq!(sum, if *apart { *time } else { std::time::Duration::ZERO });
        // The step's tokens were read and handed on, all by the thread that has a name.
        let of = |name| trace.spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        assert_eq!((of("decode").len(), of("prepare").len(), of("enqueue").len()), (1, 1, TOKENS));
        assert_eq!(trace.threads[&of("enqueue")[0].thread], "ocelli-engine");
        let (prepare, enqueue) = (of("prepare")[0], of("enqueue")[0]);
        assert!(prepare.start + prepare.time <= enqueue.start && prepare.thread != enqueue.thread);
        assert!(enqueue.start <= trace.runs[0].start);
    }
    assert!(engine.take_trace().runs.is_empty(), "a trace is taken once");
    answer(&engine);
    assert!(engine.take_trace().spans.is_empty(), "nothing is recorded that nobody asked for");
}

/// What attention is said to move depends on how long its sequences are in this run.
#[test]
fn costs_are_those_of_the_lengths_of_the_run() {
    let engine = engine();
    let (_, trace) = traced(&engine, Detail::Launches);
    let decode: Vec<&Run> = trace.runs.iter().filter(|run| run.kind == Kind::Decode).collect();
    let bytes = |run: &Run| run.launches.iter().filter(|l| l.op == "paged_decode").map(|l| l.cost.bytes).sum::<u64>();
    assert!(bytes(decode[0]) < bytes(decode[1]) && bytes(decode[1]) < bytes(decode[2]));
    let others = |run: &Run| run.launches.iter().filter(|l| l.op != "paged_decode").map(|l| l.cost.bytes).sum::<u64>();
    assert_eq!(others(decode[0]), others(decode[2]));
}

#[test]
fn a_trace_of_the_command_line_opens_and_stands_beside_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let ocelli = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        command.args(arguments).env_clear().output().unwrap()
    };
    let path = file.to_str().unwrap();
    let ran = ocelli(&[
        "run",
        "--device",
        "cpu",
        "-p",
        "How many stars?",
        "--image",
        "demo/images/shapes.jpg",
        "--trace",
        path,
    ]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&trace["otherData"]["model"], &trace["otherData"]["gpu"]), (&"llava-shapes".into(), &"host".into()));
    let events = trace["traceEvents"].as_array().unwrap();
    let slices: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert!(slices.iter().all(|s| s["ts"].as_f64() >= Some(0.0) && s["dur"].as_f64() >= Some(0.0)));

    let shown = ocelli(&["plan", "decode", "--cost", "--measured", path]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let total = shown.lines().find(|line| line.starts_with("total")).unwrap();
    let microseconds: f64 = total.split_whitespace().nth(5).unwrap().parse().unwrap();
    assert!(microseconds > 0.0 && !shown.contains("not in the trace"), "{shown}");

    let other = ocelli(&["plan", "decode", "--batch", "8", "--measured", path]);
    let error = String::from_utf8(other.stderr).unwrap();
    assert!(error.contains("it has no \"decode of 8\"; it has decode of 1, encoding of 1 tile"), "{error}");

    let nowhere = ocelli(&["run", "--device", "cpu", "-p", "x", "--trace", "/nowhere/trace.json"]);
    let error = String::from_utf8(nowhere.stderr).unwrap();
    assert!(!nowhere.status.success() && error.contains("--trace /nowhere/trace.json"), "{error}");
}
