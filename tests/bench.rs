//! `ocelli bench` as its users meet it: the record of every subcommand, what its figures must agree on, and what becomes of
//! a record beside another one. Servers are measured in `tests/serve/bench.rs`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const PICTURE: &str = "demo/images/shapes.jpg";

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")) {
        command.env_remove(name);
    }
    command.arg("bench").args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The record of a run on the host that succeeds.
fn record(bench_name: &str, args: &[&str]) -> Value {
    let output = bench(&[&[bench_name, "--device", "cpu", "--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&record["bench"], &record["gpu"], &record["ceilings"]),
        (&json!(bench_name), &json!("host"), &json!(null))
    );
    assert_eq!((&record["backend"], &record["model"]), (&json!("cpu"), &json!("llava-shapes")));
    assert!(record["command"].as_str().unwrap().starts_with(&format!("ocelli bench {bench_name} --device cpu")));
    let repeats = record["input"]["repeats"].as_u64().unwrap();
    for (name, figure) in record["figures"].as_object().unwrap() {
        let at = |what: &str| figure[what].as_f64().unwrap_or_else(|| panic!("{name} has no {what}"));
        let ordered = [at("min"), at("median"), at("p90"), at("p99"), at("max")];
        assert!(ordered.is_sorted(), "{name}: {ordered:?}");
        assert!((at("min")..=at("max")).contains(&at("mean")) || at("std") < 1e-9, "{name}: {figure}");
        assert_eq!(figure["repeats"].as_array().unwrap().len() as u64, repeats, "{name}");
        assert!(figure["ceiling_percent"].is_null(), "{name}: nobody measures the ceiling of a host");
    }
    record
}

fn figure(record: &Value, name: &str, what: &str) -> f64 {
    record["figures"][name][what].as_f64().unwrap_or_else(|| panic!("no {what} of {name} in {record}"))
}

#[test]
fn latency_is_made_of_its_parts() {
    let work = ["--image", PICTURE, "--input-len", "160", "--output-len", "4", "--num-iters", "3", "--repeats", "2"];
    let record = record("latency", &work);
    let input = &record["input"];
    assert_eq!((&input["prompt_tokens"], &input["output_tokens"]), (&json!(160), &json!(4)));
    assert_eq!((&input["requests"], &input["concurrency"], &input["warmup"]), (&json!(3), &json!(1), &json!(3)));
    let rgb = image::image_dimensions(PICTURE).unwrap();
    assert_eq!(input["pictures"], json!([format!("{}x{}", rgb.0, rgb.1)]));
    let mean = |name: &str| figure(&record, name, "mean");
    let (ttft, e2el) = (mean("ttft_ms"), mean("e2el_ms"));
    assert!(ttft <= e2el);
    // Every gap of every request is a sample, and they lie between the first token and the last.
    assert_eq!((figure(&record, "itl_ms", "samples"), figure(&record, "ttft_ms", "samples")), (18.0, 6.0));
    assert!((ttft + 3.0 * mean("itl_ms") - e2el).abs() < 1e-6 * e2el, "{record}");
    assert!((mean("tpot_ms") - mean("itl_ms")).abs() < 1e-6 * e2el, "{record}");
    // The parts are taken on the engine's thread and the whole where the answer arrives.
    let parts = mean("prepare_ms") + mean("queue_ms") + mean("prefill_ms");
    assert!(0.5 * ttft < parts && parts <= ttft, "{parts} of {ttft}");
    // What a step moves does not depend on the clock.
    let moved = figure(&record, "decode_gb_s", "max") * figure(&record, "tpot_ms", "min") * 1e6;
    let again = figure(&record, "decode_gb_s", "min") * figure(&record, "tpot_ms", "max") * 1e6;
    assert!((moved / again - 1.0).abs() < 1e-9 && moved > 1e6, "{moved} {again}");
    assert!(figure(&record, "prefill_tflop_s", "median") > 0.0);
}

#[test]
fn prompts_have_the_length_that_was_asked_for() {
    let quick = ["--output-len", "2", "--num-iters", "1", "--num-iters-warmup", "1", "--repeats", "1"];
    for (pictures, length, seen) in
        [(&[][..], "2", 0), (&[], "37", 0), (&["--images", "2", "--image-size", "40x30"], "300", 2)]
    {
        let seeded = record("latency", &[&quick[..], pictures, &["--input-len", length, "--seed", "7"]].concat());
        assert_eq!(seeded["input"]["prompt_tokens"].to_string(), *length);
        assert_eq!(seeded["input"]["pictures"].as_array().unwrap().len(), seen);
        assert_eq!(seeded["input"]["seed"], 7);
    }
    for length in ["3", "1023"] {
        let out = bench(&["latency", "--device", "cpu", "--image", PICTURE, "--input-len", length]);
        assert_eq!(out.status.code(), Some(1));
        assert!(text(&out.stderr).contains(&format!("--input-len {length} cannot be met")), "{}", text(&out.stderr));
    }
    let out = bench(&["latency", "--image", PICTURE, "--images", "1"]);
    assert_eq!(out.status.code(), Some(2), "files or made ones");
}

#[test]
fn throughput_is_requests_by_seconds() {
    let work = ["--image", PICTURE, "--input-len", "160", "--output-len", "4", "--num-prompts", "5", "--repeats", "2"];
    let record = record("throughput", &work);
    assert_eq!((&record["input"]["requests"], &record["input"]["concurrency"]), (&json!(5), &json!(null)));
    let each = |name: &str| -> Vec<f64> {
        record["figures"][name]["repeats"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let seconds = each("duration_s");
    for (name, number) in [("request_throughput", 5.0), ("output_throughput", 20.0), ("total_token_throughput", 820.0)]
    {
        for (rate, seconds) in each(name).iter().zip(&seconds) {
            assert!((rate * seconds / number - 1.0).abs() < 1e-9, "{name}: {rate} in {seconds} s");
        }
    }
    assert!(figure(&record, "ttft_ms", "max") <= figure(&record, "e2el_ms", "max"));
    assert_eq!(figure(&record, "ttft_ms", "samples"), 10.0);
    assert!(figure(&record, "compute_tflop_s", "min") > 0.0 && figure(&record, "preemptions", "max") == 0.0);
}

#[test]
fn a_request_may_have_pictures_of_its_own() {
    let work = ["--images", "2", "--image-size", "50x40", "--output-len", "2", "--num-prompts", "3"];
    let record = record("throughput", &[&work[..], &["--repeats", "1", "--num-iters-warmup", "0"]].concat());
    assert_eq!(record["input"]["pictures"], json!(["50x40", "50x40"]));
    let (prompt, image) = (&record["input"]["prompt_tokens"], record["input"]["image_tokens"].as_u64().unwrap());
    assert!(image > 0 && prompt == &json!(645), "{image} of {prompt}");
}

#[test]
fn vision_is_measured_for_every_number_of_pictures() {
    let work = ["--images", "1,3", "--image-size", "60x40", "--num-iters", "2", "--repeats", "2"];
    let record = record("vision", &work);
    for (count, n) in [("1", 1.0), ("3", 3.0)] {
        let mean = |name: &str| figure(&record, &format!("{name}@{count}"), "mean");
        // A picture is decoded and resized on its way to the patches, and that on the way to its rows.
        assert!(mean("decode_ms") < mean("patches_ms") && mean("resize_ms") < mean("patches_ms"), "{record}");
        assert!(mean("patches_ms") < mean("vision_ms") && mean("encode_ms") < mean("vision_ms"), "{record}");
        let (slowest, rate) = (format!("vision_ms@{count}"), format!("picture_throughput@{count}"));
        assert!((figure(&record, &slowest, "max") * figure(&record, &rate, "min") / 1e3 - 1.0).abs() < 1e-9, "{n}");
        assert!(figure(&record, &format!("encode_tflop_s@{count}"), "median") > 0.0);
        assert_eq!(figure(&record, &rate, "samples"), 4.0);
        assert!(record["figures"].get(format!("device_resize_ms@{count}")).is_none(), "there is no device");
    }
    let output = bench(&["vision", "--images", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_start_is_the_sum_of_its_parts() {
    let work = ["--image", PICTURE, "--input-len", "5", "--repeats", "2", "--num-iters-warmup", "0"];
    let record = record("startup", &work);
    let parts = ["process", "open", "device", "plan", "weights", "warm", "record", "ttft"];
    let sum: f64 = parts.iter().map(|part| figure(&record, &format!("{part}_ms"), "mean")).sum();
    let whole = figure(&record, "startup_ms", "mean");
    assert!((sum / whole - 1.0).abs() < 1e-9, "{sum} of {whole}");
    for part in parts {
        assert!(figure(&record, &format!("{part}_ms"), "min") >= 0.0, "{part}: {record}");
    }
    assert!(figure(&record, "open_ms", "min") > 0.0 && figure(&record, "ttft_ms", "min") > 0.0);
    assert!(record["input"]["image_tokens"].as_u64().unwrap() > 0);
    let output = bench(&["startup", "tests/goldens/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("tests/goldens/nowhere"), "{}", text(&output.stderr));
}

/// The shortest run that has a verdict.
const SHORT: [&str; 11] = [
    "latency",
    "--device",
    "cpu",
    "--input-len",
    "8",
    "--output-len",
    "2",
    "--num-iters",
    "1",
    "--num-iters-warmup",
    "1",
];

#[test]
fn a_saved_record_is_a_baseline() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (saved, slow) = (path("saved.json"), path("slow.json"));
    let output = bench(&[&SHORT[..], &["--save", &saved]].concat());
    assert!(output.status.success() && text(&output.stdout).contains("medians of the repeats"));
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(record["input"]["repeats"], 5);

    // A thousand times slower then: everything is faster now, and all is well.
    let mut scale = |factor: f64, file: &str| {
        for figure in record["figures"].as_object_mut().unwrap().values_mut() {
            let lower = figure["better"] == "lower";
            let times = |value: &Value| json!(value.as_f64().unwrap() * if lower { factor } else { 1.0 / factor });
            figure["repeats"] = figure["repeats"].as_array().unwrap().iter().map(times).collect();
            figure["median"] = times(&figure["median"]);
        }
        record["gpu"] = json!("NVIDIA H200");
        fs::write(file, record.to_string()).unwrap();
    };
    scale(1e3, &slow);
    let output = bench(&[&SHORT[..], &["--baseline", &slow]].concat());
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(table.contains("another GPU: NVIDIA H200 then, host now"), "{table}");
    assert!(table.contains("faster") && !table.contains("slower"), "{table}");

    // And a thousand times faster: the table comes, the new record is kept, and the exit code says so.
    scale(1e-6, &slow);
    let output = bench(&[&SHORT[..], &["--baseline", &slow, "--save", &saved]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("slower"));
    let message = text(&output.stderr);
    assert!(message.contains("error: slower than before: ttft_ms ") && message.contains("decode_gb_s"), "{message}");
    assert!(serde_json::from_str::<Value>(&fs::read_to_string(&saved).unwrap()).is_ok());

    // With --json there is one object on stdout, whatever the verdict.
    let output = bench(&[&SHORT[..], &["--baseline", &slow, "--json"]].concat());
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_ok() && output.status.code() == Some(1));
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (saved, damaged) = (file("saved.json", ""), file("damaged.json", "{\"bench\": \"latency\"}"));
    assert!(bench(&[&SHORT[..], &["--save", &saved, "--repeats", "1"]].concat()).status.success());
    for (args, message) in [
        (vec!["vision", "--baseline", &saved], "is a record of `ocelli bench latency`; this is `ocelli bench vision`"),
        (vec!["latency", "--baseline", &damaged], "damaged.json is no record of a bench (--baseline)"),
        (vec!["latency", "--baseline", "/nowhere/x.json"], "/nowhere/x.json (--baseline)"),
        (vec!["latency", "--save", "/nowhere/x.json"], "/nowhere/x.json (--save)"),
        (vec!["latency", "--image", "/nowhere/x.png"], "/nowhere/x.png"),
    ] {
        let output = bench(&args);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error}");
    }
    // What the input comes to is known once it is measured.
    let other = [&SHORT[..], &["--baseline", &saved, "--repeats", "1", "--seed", "1"]].concat();
    let output = bench(&other);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("input.seed is 0 in"), "{}", text(&output.stderr));
    assert!(Path::new(&saved).exists());
}
