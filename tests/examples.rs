//! The examples, run: what they print is what their readers expect.

#![allow(dead_code, reason = "an example's main")]

use std::error::Error;

#[path = "../examples/async_tokio.rs"]
mod async_tokio;
#[path = "../examples/chat.rs"]
mod chat;
#[path = "../examples/custom_model.rs"]
mod custom_model;
#[path = "../examples/embedding.rs"]
mod embedding;
#[path = "../examples/measuring.rs"]
mod measuring;
#[path = "../examples/offline_batch.rs"]
mod offline_batch;
#[path = "../examples/sampling.rs"]
mod sampling;
#[path = "../examples/streaming.rs"]
mod streaming;

fn lines(run: impl Fn(&mut Vec<u8>) -> Result<(), Box<dyn Error>>) -> Vec<String> {
    let mut out = Vec::new();
    run(&mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

const SHAPES: &str = "Three yellow squares, two red stars and the word \"SUN\".";

#[test]
fn offline_batch_answers_about_every_picture() {
    let expected = [
        format!("shapes.jpg: What is in this picture? {SHAPES}"),
        "two-red-triangles.jpg: What is in this picture? Two red triangles.".into(),
        "four-orange-rings.jpg: How many orange rings do you see? There are four orange rings.".into(),
        "yellow-square.jpg: What is the yellow shape? The yellow shape is a square.".into(),
    ];
    assert_eq!(lines(offline_batch::run), expected);
}

#[test]
fn streaming_ends_in_the_whole_answer() {
    assert_eq!(lines(streaming::run), [SHAPES]);
}

#[test]
fn async_tokio_answers_in_order() {
    let expected = [
        format!("shapes.jpg: {SHAPES}"),
        "two-red-triangles.jpg: Two red triangles.".into(),
        "yellow-square.jpg: A yellow square.".into(),
    ];
    assert_eq!(lines(async_tokio::run), expected);
}

#[test]
fn embedding_refuses_gives_up_and_answers() {
    let expected = [
        format!("in time: {SHAPES}"),
        "impatient: too late".into(),
        "one too many: busy, try again in a second".into(),
        format!("waited: {SHAPES}"),
        format!("waited: {SHAPES}"),
    ];
    assert_eq!(lines(embedding::run), expected);
}

#[test]
fn measuring_finds_every_step_and_every_op() {
    let said = lines(measuring::run);
    for (line, file) in said.iter().zip(["shapes.jpg", "two-red-triangles.jpg", "yellow-square.jpg"]) {
        assert!(line.starts_with(&format!("{file}: prepared ")), "{said:?}");
    }
    // Of each answer's 16 tokens the first comes with the prompt.
    assert_eq!(said[3], "48 steps, 48 tokens");
    for op in ["gemv", "paged_decode", "sample"] {
        assert!(said[4..].iter().any(|line| line.starts_with(&format!("decode, {op}: "))), "no {op} in {said:?}");
    }
}

#[test]
fn sampling_draws_the_same_three_every_time() {
    let drawn = lines(sampling::run);
    assert_eq!(drawn.len(), 6, "{drawn:?}");
    assert!((0..3).all(|i| drawn[i].starts_with(&format!("[{i}] "))), "{drawn:?}");
    let answers: std::collections::HashSet<_> = drawn[..3].iter().map(|line| &line[4..]).collect();
    assert!(answers.len() > 1, "drawn alike: {drawn:?}");
    assert!(drawn[3].starts_with("begins with \"") && drawn[3].ends_with(" %"), "{drawn:?}");
    assert_eq!(lines(sampling::run), drawn);
}

#[test]
fn chat_remembers_the_picture() {
    let said = lines(chat::run);
    assert_eq!(said.len(), 6, "{said:?}");
    assert_eq!(
        said[..2],
        ["> What is in this picture?".to_owned(), format!("{SHAPES} (0 prompt tokens from the cache)")]
    );
    // The picture's 144 tokens and what was said are in the cache.
    let cached = |line: &str| -> usize {
        let rest = line.rsplit_once('(').unwrap().1;
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(cached(&said[3]) >= 144 && cached(&said[5]) > cached(&said[3]), "{said:?}");
}

/// Its pictures take 100 tokens where the demo's take 144.
#[test]
fn a_model_from_outside_answers() {
    assert_eq!(
        lines(custom_model::run),
        [
            "two-red-triangles.jpg, 100 tokens: Two red triangles.",
            "yellow-square.jpg, 100 tokens: The square is yellow."
        ]
    );
}
