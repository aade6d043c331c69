//! The command line as a user meets it: output, exit codes, messages.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn goldens(name: &str) -> PathBuf {
    Path::new("tests/goldens").join(name)
}

fn tiny() -> String {
    goldens("llava-tiny-mha").display().to_string()
}

fn wide() -> String {
    goldens("pictures/wide.png").display().to_string()
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")) {
        command.env_remove(name);
    }
    command
}

fn ocelli(args: &[&str]) -> Output {
    command().args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that succeeds.
fn succeed(args: &[&str]) -> String {
    let output = ocelli(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The message of a run that exits with `code` and prints nothing on stdout.
fn fail(args: &[&str], code: i32) -> String {
    let output = ocelli(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?} printed on stdout");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn run_prints_the_answer_and_one_closing_line() {
    let output =
        ocelli(&["run", &tiny(), "--image", &wide(), "-p", "what is this?", "--max-tokens", "8", "--ignore-eos"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).ends_with('\n'));
    let told = text(&output.stderr);
    let [memory, closing] = told.lines().collect::<Vec<_>>()[..] else { panic!("not two lines: {told}") };
    for part in ["[cache of 512 blocks, 8192 tokens, ", "up to 16 sequences and 2048 tokens]"] {
        assert!(memory.contains(part), "{memory}");
    }
    for part in ["cpu f32", "(16 of pictures)", "8 tokens in", "tokens/s", "logits "] {
        assert!(closing.contains(part), "{closing}");
    }
}

#[test]
fn run_json_is_one_object_with_every_field() {
    let (model, image) = (tiny(), wide());
    let args = ["run", &model, "--image", &image, "-p", "what is this?", "--max-tokens", "6", "--ignore-eos", "--json"];
    let out: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(out["model"], "llava-tiny-mha");
    assert_eq!((&out["backend"], &out["dtype"]), (&"cpu".into(), &"f32".into()));
    assert_eq!(out["prompt"], "USER: <image>\nwhat is this? ASSISTANT:");
    assert_eq!(out["prompt_tokens"].as_u64().unwrap() as usize, out["prompt_token_ids"].as_array().unwrap().len());
    assert_eq!(out["image_tokens"], serde_json::json!([16]));
    assert_eq!(out["outputs"][0]["token_ids"].as_array().unwrap().len(), 6);
    assert_eq!(out["outputs"][0]["logprobs"].as_array().unwrap().len(), 6);
    assert_eq!(out["outputs"][0]["finish_reason"], "length");
    assert_eq!(out["outputs"][0]["logits_hash"].as_str().unwrap().len(), 16);
    for time in ["load_ms", "prepare_ms", "queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "tokens_per_s"] {
        assert!(out["timings"][time].as_f64().unwrap() > 0.0, "{time}");
    }
    let again: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(
        (&out["outputs"][0]["text"], &out["outputs"][0]["logits_hash"]),
        (&again["outputs"][0]["text"], &again["outputs"][0]["logits_hash"])
    );
}

#[test]
fn a_seed_repeats_an_answer_and_a_stop_string_ends_it() {
    let model = tiny();
    let run = |more: &[&str]| -> Value {
        let args = [&["run", &model, "-p", "a", "--ignore-eos", "--max-tokens", "12", "--json"], more].concat();
        serde_json::from_str(&succeed(&args)).unwrap()
    };
    let seeded = ["--temperature", "1", "--seed", "7"];
    assert_eq!(run(&seeded)["outputs"][0]["token_ids"], run(&seeded)["outputs"][0]["token_ids"]);
    assert_ne!(
        run(&seeded)["outputs"][0]["token_ids"],
        run(&["--temperature", "1", "--seed", "8"])["outputs"][0]["token_ids"]
    );
    let whole = run(&[])["outputs"][0]["text"].as_str().unwrap().to_owned();
    let middle: String = whole.chars().skip(4).take(2).collect();
    let cut = run(&["--stop", &middle]);
    assert_eq!(cut["outputs"][0]["text"], whole[..whole.find(&middle).unwrap()]);
    assert_eq!(cut["outputs"][0]["finish_reason"], "stop");
    let switch = command().args(["run", &model, "-p", "a"]).env("OCELLI_IGNORE_EOS", "1").output().unwrap();
    assert!(switch.status.success());
}

#[test]
fn every_sampling_parameter_has_its_flag() {
    let model = tiny();
    let run = |more: &[&str]| -> Value {
        let args = [&["run", &model, "-p", "a", "--ignore-eos", "--max-tokens", "8", "--json"], more].concat();
        serde_json::from_str(&succeed(&args)).unwrap()
    };
    let seeded = |seed: &str| run(&["--temperature", "1", "--seed", seed])["outputs"][0]["token_ids"].clone();
    let several = run(&["--temperature", "1", "--seed", "7", "--n", "2"]);
    let ids: Vec<_> = several["outputs"].as_array().unwrap().iter().map(|o| o["token_ids"].clone()).collect();
    assert_eq!(ids, [seeded("7"), seeded("8")]);
    let printed =
        succeed(&["run", &model, "-p", "a", "--max-tokens", "3", "--temperature", "1", "--seed", "7", "--n", "2"]);
    assert!(printed.starts_with("[0] ") && printed.contains("\n[1] "), "{printed}");

    let first = |out: &Value, field: &str| out["outputs"][0][field].clone();
    let certain = ["--allowed-token-ids", "77,78", "--logit-bias", "77=50", "--logit-bias", "78=-3"];
    assert_eq!(first(&run(&certain), "token_ids"), Value::from(vec![77; 8]));
    let stopped = run(&[&certain[..], &["--stop-token-ids", "77,3"]].concat());
    assert_eq!((first(&stopped, "token_ids"), first(&stopped, "stop_reason")), (serde_json::json!([77]), 77.into()));
    let later = run(&[&certain[..], &["--stop-token-ids", "77", "--min-tokens", "2"]].concat());
    assert_eq!(first(&later, "token_ids"), serde_json::json!([78, 78, 77]));
    let whole = first(&run(&[]), "text").as_str().unwrap().to_owned();
    let (at, c) = whole.char_indices().nth(3).unwrap();
    let stop = c.to_string();
    let end = whole.find(c).unwrap() + c.len_utf8();
    assert!(end <= at + c.len_utf8());
    let included = run(&["--stop", &stop, "--include-stop-str-in-output"]);
    assert_eq!((first(&included, "text"), first(&included, "stop_reason")), (whole[..end].into(), stop.into()));
    let reported = run(&["--top-logprobs", "2", "--prompt-logprobs", "1"]);
    assert_eq!(first(&reported, "top_logprobs")[7].as_array().unwrap().len(), 2);
    let prompt = reported["prompt_logprobs"].as_array().unwrap();
    assert!(prompt[0].is_null() && prompt[1]["token_id"] == reported["prompt_token_ids"][1], "{prompt:?}");
    assert!(fail(&["run", &model, "-p", "a", "--bad-words", " "], 1).contains("bad_words[0] is"));
    for usage in [&["--logit-bias", "77"][..], &["--logit-bias", "x=1"], &["--stop-token-ids", "-1"], &["--n", "x"]] {
        fail(&[&["run", &model, "-p", "a"], usage].concat(), 2);
    }
    fail(&["run", &model, "--n", "2"], 2);
    assert!(fail(&["run", &model, "-p", "a", "--n", "2"], 1).contains("n is 2 and temperature 0"));
}

#[test]
fn a_raw_prompt_skips_the_template() {
    let (model, image) = (tiny(), wide());
    let prompt = "<image>\nwhat?";
    let out = succeed(&["run", &model, "--image", &image, "-p", prompt, "--raw-prompt", "--max-tokens", "2", "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["prompt"], prompt);
    let message = fail(&["run", &model, "-p", prompt, "--raw-prompt"], 1);
    assert!(message.contains("1 picture placeholders for 0 pictures"), "{message}");
}

#[test]
fn a_flag_has_an_environment_twin_and_wins_over_it() {
    let run = |flags: &[&str]| {
        let output = command()
            .args(["run", "-p", "a", "--ignore-eos", "--json"])
            .args(flags)
            .env("OCELLI_MODEL", tiny())
            .env("OCELLI_MAX_TOKENS", "3")
            .env("OCELLI_DTYPE", "bf16")
            .output()
            .unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let out = run(&[]);
    assert_eq!((out["outputs"][0]["token_ids"].as_array().unwrap().len(), &out["dtype"]), (3, &"bf16".into()));
    let plan = command().args(["plan", "encode", "--json"]).env("OCELLI_MODEL", tiny()).output().unwrap();
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["dtype"], "f32", "a lone kind does not hide the model of the environment");
    let out = run(&["--max-tokens", "2", "--dtype", "f16"]);
    assert_eq!((out["outputs"][0]["token_ids"].as_array().unwrap().len(), &out["dtype"]), (2, &"f16".into()));
}

#[test]
fn wrong_usage_is_2_and_a_failure_is_1() {
    let model = tiny();
    for usage in [
        &["run", "--no-such-flag"][..],
        &["run", "-p", "a", "--dtype", "int4"],
        &["run", "-p", "a", "--device", "tpu"],
        &["run", "-p", "a", "--load-format", "npcache"],
        &["run", "-p", "a", "--max-tokens", "0"],
        &["run", "-p", "a", "--top-k", "-2"],
        &["run", "--json"],
        &["run", "-p", "a", "--limit-mm-per-prompt", "video=1"],
        &["nonsense"],
        &[],
    ] {
        fail(usage, 2);
    }
    for (args, part) in [
        (&["run", "/no/such/model", "-p", "a"][..], "/no/such/model"),
        (&["run", &model, "-p", "a", "--image", "/no/such.png"], "/no/such.png"),
        (&["run", &model, "-p", "a", "--image", &model], "is a directory"),
        (&["run", &model, "-p", "a", "--image", "Cargo.toml"], "picture 1"),
        (&["run", &model, "-p", "a", "--temperature", "9"], "temperature is 9"),
        (&["run", &model, "-p", "a", "--device", "cuda"], "--device cpu"),
        (&["run", &model, "-p", "a", "--max-model-len", "99999999"], "max_model_len is 99999999"),
        (&["run", &model, "-p", "a", "--chat-template", "{% for"], "chat template"),
        (&["run", &model, "-p", "a", "--image", "/dev/zero"], "has more than the 67108864 bytes"),
        (&["run", &model, "-p", "a", "--stop", ""], "stop[0] is empty"),
        (&["run", &model, "-p", "a", "--repetition-penalty", "1e-39"], "repetition_penalty is 1e-39"),
        (&["plan", &model, "prefill", "--tokens", "4000000000"], "--tokens is 4000000000"),
        (&["plan", &model, "decode", "--context", "4000000000"], "--context is 4000000000"),
        (&["inspect", "tests"], "config.json"),
        (&["plan", "tests", "decode"], "config.json"),
    ] {
        let message = fail(args, 1);
        // A model that was loaded has said how much memory it took.
        let said: Vec<_> = message.lines().filter(|l| !l.starts_with("[cache of ")).collect();
        assert!(said[0].starts_with("error: ") && message.contains(part), "{args:?}: {message}");
        assert_eq!(message.matches(part).count(), 1, "said twice: {message}");
    }
}

/// However a prompt is cut and whatever is kept, the last logits are the same.
#[test]
fn the_flags_of_the_scheduler_change_no_answer() {
    let (tiny, wide) = (tiny(), wide());
    let ask = |flags: &[&str]| {
        let base = ["run", &tiny, "--image", &wide, "-p", "what is this?", "--max-tokens", "8", "--ignore-eos"];
        let output = ocelli(&[&base, flags].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let hash = |told: &str| told.trim_end().rsplit(' ').next().unwrap().to_owned();
    let expected = hash(&ask(&[]));
    let narrow = ask(&["--max-num-seqs", "2", "--max-num-batched-tokens", "7", "--num-gpu-blocks-override", "3"]);
    assert!(narrow.starts_with("[cache of 3 blocks, 48 tokens, "), "{narrow}");
    assert!(narrow.contains("up to 2 sequences and 7 tokens]"), "{narrow}");
    assert_eq!(hash(&narrow), expected);
    let without = ["--no-enable-prefix-caching", "--no-encoder-cache", "--no-async-scheduling"];
    assert_eq!(hash(&ask(&without)), expected);
    let message = fail(&["run", &tiny, "-p", "a", "--max-tokens", "100", "--num-gpu-blocks-override", "2"], 1);
    assert!(message.contains("cache blocks of 16 tokens, and there are 2"), "{message}");
    assert!(fail(&["run", &tiny, "-p", "a", "--gpu-memory-utilization", "0"], 1).contains("utilization is 0"));
    fail(&["run", &tiny, "-p", "a", "--max-num-seqs", "0"], 2);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command()
        .args(["run", &tiny(), "-p", "a", "--max-tokens", "200", "--ignore-eos"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_chat_remembers_and_survives_mistakes() {
    let mut child = command()
        .args(["run", &tiny(), "--max-tokens", "5", "--ignore-eos"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines =
        format!("hello\n/image /no/such.png\n/nonsense\n/image {}\nwhat is this?\nand now?\n/clear\nhello\n", wide());
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}");
    let closing: Vec<_> = told.lines().filter(|l| l.starts_with("[cpu ")).collect();
    assert_eq!(closing.len(), 4, "{told}");
    let pictures: Vec<_> = closing.iter().map(|l| l.contains("(16 of pictures)")).collect();
    assert_eq!(pictures, [false, true, true, false], "{told}");
    assert!(told.contains("/no/such.png") && told.contains("/nonsense is no command"), "{told}");
    let hash = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
    assert_eq!(hash(closing[0]), hash(closing[3]), "a cleared chat is a new one: {said}");
}

#[test]
fn plan_lists_every_launch_with_its_cost() {
    let model = tiny();
    for (kind, first, last) in [
        ("encode", "vision/patch_embed", "projector/gemm"),
        ("prefill", "llm/embed_splice", "llm/head/sample"),
        ("decode", "llm/embed_splice", "llm/head/sample"),
    ] {
        let plan: Value = serde_json::from_str(&succeed(&["plan", &model, kind, "--json"])).unwrap();
        let steps = plan["steps"].as_array().unwrap();
        assert_eq!(plan["launches"].as_u64().unwrap() as usize, steps.len());
        assert_eq!((&steps[0]["label"], &steps[steps.len() - 1]["label"]), (&first.into(), &last.into()));
        let bytes: u64 = steps.iter().map(|s| s["bytes"].as_u64().unwrap()).sum();
        assert_eq!(plan["bytes"].as_u64().unwrap(), bytes);
        assert_eq!(succeed(&["plan", &model, kind]).lines().count(), steps.len() + 2);
        assert!(succeed(&["plan", &model, kind, "--cost"]).lines().last().unwrap().starts_with("total"));
        assert!(succeed(&["plan", &model, kind, "--dot"]).starts_with("digraph plan {"));
    }
    let decode = |batch: &str| -> u64 {
        let plan: Value =
            serde_json::from_str(&succeed(&["plan", &model, "decode", "--batch", batch, "--json"])).unwrap();
        plan["flops"].as_u64().unwrap()
    };
    assert_eq!(decode("8"), 8 * decode("1"));
}

#[test]
fn inspect_shows_settings_memory_and_the_pool_that_fits() {
    let model = tiny();
    let args = ["inspect", &model, "--json", "--memory", "1", "--gpu-memory-utilization", "0.5", "--tensors"];
    let out: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(out["architecture"], "LlavaForConditionalGeneration");
    assert_eq!(out["text"]["vocab_size"], 331);
    let memory = |name: &str| out["memory"][name].as_u64().unwrap();
    let rest = (1 << 29) - memory("weights_bytes") - memory("scratch_bytes") - memory("io_bytes");
    assert_eq!(memory("kv_blocks"), rest / memory("kv_block_bytes"));
    // Two layers of keys and values, two heads of 64, 16 tokens, f32.
    assert_eq!(memory("kv_block_bytes"), 2 * 2 * 2 * 64 * 16 * 4);
    let names: Vec<_> = out["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"language_model.lm_head.weight"));
    let shown = succeed(&["inspect", &model]);
    for part in ["LlavaForConditionalGeneration", "16 tokens a picture", "weights", "pool of"] {
        assert!(shown.contains(part), "{shown}");
    }
}

/// Settings and tokenizer are enough, and the answer to whether a model fits and what it launches is the same.
#[test]
fn dummy_weights_need_no_files() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let (stored, bare) = (tiny(), dir.path().display().to_string());
    let dummy = ["--load-format", "dummy"];
    let args = [&["run", &bare, "--image", &wide(), "-p", "what?", "--max-tokens", "4", "--ignore-eos"], &dummy[..]];
    let output = ocelli(&args.concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("warning: the weights are random numbers"), "{}", text(&output.stderr));
    assert_eq!(succeed(&[&["plan", &bare, "encode"], &dummy[..]].concat()), succeed(&["plan", &stored, "encode"]));

    let memory = |args: &[&str]| -> Value {
        let out: Value = serde_json::from_str(&succeed(&[&["inspect", "--json"], args].concat())).unwrap();
        out["memory"]["weights_bytes"].clone()
    };
    assert_eq!(memory(&[&bare, dummy[0], dummy[1]]), memory(&[&stored]));
    let shown = command().args(["inspect", &bare]).env("OCELLI_LOAD_FORMAT", "dummy").output().unwrap();
    assert!(text(&shown.stdout).contains("of random numbers"), "{}", text(&shown.stdout));
    assert!(fail(&["inspect", &bare, "--tensors", dummy[0], dummy[1]], 1).contains("--load-format dummy reads none"));
    assert!(fail(&["plan", &bare, "--load-format", "safetensors"], 1).contains("model.safetensors"));
}

#[test]
fn kernels_are_listed_with_their_cases_and_need_a_gpu_for_more() {
    let listed = succeed(&["kernels", "list", "--json"]);
    let ops: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(ops.len(), ocelli::ops::Op::NAMES.len());
    let gemm = ops.iter().find(|op| op["op"] == "gemm").unwrap();
    assert!(gemm["cases"].as_u64() > gemm["edges"].as_u64() && gemm["edges"].as_u64() > Some(1), "{gemm}");
    let shown = succeed(&["kernels", "list"]);
    assert!(shown.contains("rope_kv") && shown.contains("of them edges"), "{shown}");
    for kernel in gemm["kernels"].as_array().unwrap() {
        assert!(shown.contains(kernel["symbol"].as_str().unwrap()), "{shown}");
    }

    for usage in [
        &["kernels"][..],
        &["kernels", "check", "no_such_op"],
        &["kernels", "check", "--fill", "ones"],
        &["kernels", "check", "--dtype", "f32"],
        &["kernels", "bench", "--repeat", "3"],
        &["kernels", "bench", "--against", "rocblas"],
    ] {
        fail(usage, 2);
    }
    for command in ["check", "bench"] {
        let message = fail(&["kernels", command, "gemm", "--shape", "no such shape"], 1);
        assert!(message.contains("no case of gemm matches --shape \"no such shape\""), "{message}");
    }
    if !Path::new("/dev/nvidiactl").exists() {
        for command in ["check", "bench"] {
            let message = fail(&["kernels", command, "rmsnorm"], 1);
            assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
        }
    }
}

#[test]
fn doctor_completions_and_man_print_something_useful() {
    let doctor: Value = serde_json::from_str(&succeed(&["doctor", "--json"])).unwrap();
    for name in ["build", "models", "cpu", "demo"] {
        assert!(doctor[name].is_object(), "{name}");
    }
    assert!(succeed(&["doctor"]).contains("LlavaForConditionalGeneration"));
    assert!(succeed(&["completions", "bash"]).contains("complete -F _ocelli"));
    let man = succeed(&["man"]);
    assert!(man.contains(".TH ocelli") && man.contains("ocelli-run"), "{man}");
    assert!(succeed(&["--version"]).starts_with("ocelli "));
}

/// What stands on stderr is for people; whether there are any changes nothing.
#[test]
fn nobody_need_read_stderr() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run = ["run", "tests/goldens/llava-tiny-mha", "-p", "a", "--max-tokens", "3", "--ignore-eos", "--json"];
    let output = command().args(run).stdin(Stdio::null()).stderr(writer).output().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["outputs"][0]["token_ids"].as_array().unwrap().len(), 3);
}
