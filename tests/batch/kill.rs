//! A run that is killed at any moment is taken up again: no line is lost, none answered twice.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{MODEL, answers, body, line};

const LINES: usize = 150;

fn start(input: &Path, output: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    std::env::vars().filter(|(name, _)| name.starts_with("OCELLI_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.args(["batch", MODEL]).args([input, output]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn write_input(path: &Path) {
    let lines: Vec<_> =
        (0..LINES).map(|i| line(&format!("id {i}"), &body("what is the moon?", &[], 20 + i % 40))).collect();
    fs::write(path, lines.join("\n") + "\nno request\n").unwrap();
}

/// What was said to whom; each once.
fn said(output: &Path) -> HashMap<String, String> {
    let mut said = HashMap::new();
    for answer in answers(output) {
        let id = answer["custom_id"].as_str().unwrap_or("nobody").to_owned();
        let text = answer["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap_or("error");
        assert!(said.insert(id.clone(), text.to_owned()).is_none(), "{id} was answered twice");
    }
    said
}

#[test]
fn a_kill_at_any_moment_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (input, whole, output) = (dir.path().join("in"), dir.path().join("whole"), dir.path().join("out"));
    write_input(&input);
    assert_eq!(start(&input, &whole).wait().unwrap().code(), Some(1), "one line is an error");
    let expected = said(&whole);
    assert_eq!(expected.len(), LINES + 1);

    let mut killed_amid = 0;
    for round in 0..8 {
        fs::write(&output, "").unwrap();
        // Killed again and again, at other places in every round, until a run gets through.
        for kill in 1.. {
            let before = fs::read(&output).unwrap().len();
            let mut child = start(&input, &output);
            let deadline = Instant::now() + Duration::from_secs(60);
            let grown = |output: &Path| fs::metadata(output).unwrap().len() as usize > before + round * 4000;
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if (kill <= 3 && grown(&output)) || Instant::now() > deadline {
                    break None;
                }
                thread::sleep(Duration::from_micros(300));
            };
            if ended.is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                let found = fs::read_to_string(&output).unwrap().lines().count();
                killed_amid += usize::from((1..=LINES).contains(&found));
                continue;
            }
            assert_eq!(ended.unwrap().code(), Some(1));
            break;
        }
        assert_eq!(said(&output), expected, "round {round}");
    }
    assert!(killed_amid >= 8, "only {killed_amid} kills came amid the work");
}

/// Whatever part of a line was on its way when the end came: every length of the last, and none of it.
#[test]
fn half_a_line_at_the_end_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (input, whole, output) = (dir.path().join("in"), dir.path().join("whole"), dir.path().join("out"));
    write_input(&input);
    start(&input, &whole).wait().unwrap();
    let expected = said(&whole);
    let bytes = fs::read(&whole).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    for end in [last, last + 1, last + 6, last + 30, last + (bytes.len() - last) / 2, bytes.len() - 2, bytes.len() - 1]
    {
        fs::write(&output, &bytes[..end]).unwrap();
        start(&input, &output).wait().unwrap();
        assert_eq!(said(&output), expected, "cut at {} of {}", end - last, bytes.len() - last);
        assert!(fs::read(&output).unwrap().starts_with(&bytes[..last]), "what was whole was touched");
    }
}
