//! Placeholders, streaming decode and stop strings.

use std::sync::Arc;

use ocelli::text::{
    Detokenizer, ImageSpan, MAX_HELD, MAX_STOP_BYTES, MAX_STOPS, MAX_TEXT_BYTES, Piece, Placeholder, Special,
    StopMatcher, TextStream, Tokenizer, expand,
};
use proptest::prelude::*;

use super::{each, ids, tokenizer};

const IMAGE: u32 = 579;

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = Detokenizer::new(Arc::clone(tokenizer), skip_special);
    let mut parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    parts.push(stream.finish().unwrap());
    parts
}

#[test]
fn streamed_text_is_the_text_that_transformers_decodes() {
    each("decode", |tokenizer, case| {
        let parts = streamed(tokenizer, &ids(&case["ids"]), case["skip_special"].as_bool().unwrap());
        assert_eq!(parts.concat(), case["text"].as_str().unwrap(), "{case}");
    });
}

#[test]
fn characters_of_several_tokens_come_out_whole_and_in_time() {
    let llama = tokenizer("llama");
    let smile = [243, 162, 156, 133];
    // Held until the run of byte tokens ends, then out at once.
    let parts = streamed(&llama, &[[577].as_slice(), &smile, &[552]].concat(), true);
    assert_eq!(parts, ["", "", "", "", "", "\u{1f642}a", ""]);
    // A character that never ends is one U+FFFD a byte, when it is clear that it does not.
    assert_eq!(streamed(&llama, &[552, 243, 162, 552], true), ["a", "", "", "\u{fffd}\u{fffd}a", ""]);
    assert_eq!(streamed(&llama, &[552, 243, 162], true), ["a", "", "", "\u{fffd}\u{fffd}"]);
    // A run of newlines or of emoji is not held for ever.
    let parts = streamed(&llama, &vec![13; 100], true);
    assert_eq!(parts.concat(), "\n".repeat(100));
    assert_eq!(parts[MAX_HELD - 1].len(), MAX_HELD);
    let parts = streamed(&llama, &smile.repeat(50), true);
    assert_eq!(parts.concat(), "\u{1f642}".repeat(50));
    assert!(!parts[MAX_HELD - 1].is_empty());
    // Only the first space goes.
    assert_eq!(streamed(&llama, &[577, 577, 552, 577, 552], true).concat(), "  a a".strip_prefix(' ').unwrap());
    assert_eq!(streamed(&llama, &[1, 2, 577, 552], true).concat(), "a");
    // A run of invalid bytes does not pile up either.
    let parts = streamed(&llama, &vec![3 + 0xff; 1000], true);
    assert_eq!(parts.concat(), "\u{fffd}".repeat(1000));
}

/// Ids of all kinds: words, lone and paired bytes, whole characters as bytes, special tokens, ids that do not exist.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    let piece = prop_oneof![
        4 => (259u32..579).prop_map(|id| vec![id]),
        1 => Just(vec![577]),
        1 => (0u32..3).prop_map(|id| vec![id]),
        1 => (579u32..700).prop_map(|id| vec![id]),
        2 => (3u32..259).prop_map(|id| vec![id]),
        2 => any::<char>().prop_map(|c| c.to_string().bytes().map(|byte| u32::from(byte) + 3).collect()),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// The longest run of byte tokens, across tokens that give no text.
fn longest_run(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> usize {
    let gives_text = |id: &&u32| tokenizer.id_to_token(**id).is_some() && !(skip_special && tokenizer.is_special(**id));
    let mut longest = 0;
    let mut run = 0;
    for id in ids.iter().filter(gives_text) {
        run = if (3..259).contains(id) { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

/// What vLLM does at each character, on the whole text: the first string in the list that ends here.
fn naive_stop(text: &str, stops: &[String], include: bool) -> (String, Option<usize>) {
    for (start, c) in text.char_indices() {
        let end = start + c.len_utf8();
        if let Some(index) = stops.iter().position(|stop| text[..end].ends_with(stop.as_str())) {
            let keep = if include { end } else { end - stops[index].len() };
            return (text[..keep].to_owned(), Some(index));
        }
    }
    (text.to_owned(), None)
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[ab\u{e9} ]{1,4}", 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streamed_parts_joined_are_the_whole_decode(
        ids in any_ids(), skip in any::<bool>(), name in prop::sample::select(vec!["llama", "phi", "bytelevel"])
    ) {
        let tokenizer = tokenizer(name);
        let whole = tokenizer.decode(&ids, skip).unwrap();
        let parts = streamed(&tokenizer, &ids, skip);
        // A longer run is cut, which shows only if it is invalid.
        if longest_run(&tokenizer, &ids, skip) < MAX_HELD || !whole.contains('\u{fffd}') {
            prop_assert_eq!(parts.concat(), whole);
        }
    }

    #[test]
    fn text_that_is_whole_at_the_end_is_never_broken_on_the_way(
        text in any::<String>(), run in prop::collection::vec(any::<char>(), 0..40)
    ) {
        let tokenizer = tokenizer("llama");
        let text = (text + &String::from_iter(run)).replace('\u{fffd}', "");
        let ids = tokenizer.encode(&text, Special::AsText, false).unwrap();
        let parts = streamed(&tokenizer, &ids, true);
        prop_assert!(!parts.iter().any(|part| part.contains(char::REPLACEMENT_CHARACTER)));
        prop_assert_eq!(parts.concat(), tokenizer.decode(&ids, true).unwrap());
    }

    #[test]
    fn stops_are_found_as_in_the_whole_text(
        text in "[ab\u{e9} ]{0,24}", stops in stops(), include in any::<bool>(),
        cuts in prop::collection::vec(any::<bool>(), 24)
    ) {
        let mut matcher = StopMatcher::new(&stops, include).unwrap();
        let mut shown = String::new();
        let mut piece = String::new();
        for (c, cut) in text.chars().zip(cuts) {
            piece.push(c);
            if cut {
                shown.push_str(&matcher.push(&std::mem::take(&mut piece)));
                // What is out is never taken back, and never goes past the end.
                prop_assert!(naive_stop(&text, &stops, include).0.starts_with(&shown));
            }
        }
        shown.push_str(&matcher.push(&piece));
        shown.push_str(&matcher.finish());
        prop_assert_eq!((shown, matcher.stopped()), naive_stop(&text, &stops, include));
    }

    #[test]
    fn a_stream_ends_where_the_whole_text_has_its_stop(
        ids in any_ids(), stops in prop::collection::vec("[a-e\u{e9} .]{1,3}", 0..4), include in any::<bool>()
    ) {
        let tokenizer = tokenizer("llama");
        let whole: String = streamed(&tokenizer, &ids, true).concat();
        let mut stream = TextStream::new(Arc::clone(&tokenizer), &stops, include).unwrap();
        let mut shown: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        shown.push_str(&stream.finish().unwrap());
        prop_assert_eq!((shown, stream.stopped()), naive_stop(&whole, &stops, include));
    }
}

#[test]
fn a_stop_string_is_found_across_tokens_and_nothing_follows_it() {
    let llama = tokenizer("llama");
    let text = "the boats. USER: more";
    let ids = llama.encode(text, Special::AsText, false).unwrap();
    let mut stream = TextStream::new(Arc::clone(&llama), &["\n\n", "USER:"], false).unwrap();
    let mut shown = String::new();
    for &id in &ids {
        shown.extend(stream.push(id).unwrap());
        assert!("the boats. ".starts_with(&shown), "{shown}");
    }
    assert_eq!((shown.as_str(), stream.stopped()), ("the boats. ", Some(1)));
    assert_eq!(stream.finish().unwrap(), "");
    assert_eq!(stream.push(552).unwrap(), None);
    // The end of the text can be the stop string's, inside what was held back.
    let mut stream = TextStream::new(llama, &["\u{1f642}"], false).unwrap();
    for id in [552, 243, 162, 156, 133] {
        assert_ne!(stream.push(id).unwrap().as_deref(), Some("\u{1f642}"));
    }
    assert_eq!((stream.finish().unwrap().as_str(), stream.stopped()), ("", Some(0)));
}

#[test]
fn stop_strings_have_limits() {
    let error = |stops: &[String]| StopMatcher::new(stops, false).err().unwrap().to_string();
    assert!(error(&vec!["x".to_owned(); MAX_STOPS + 1]).contains("limit is 16"));
    assert!(error(&["a".to_owned(), String::new()]).contains("stop[1] is empty"));
    assert!(error(&["x".repeat(MAX_STOP_BYTES + 1)]).contains("1025 bytes"));
    // The longest one works, and text is held for no more than it.
    let stop = "x".repeat(MAX_STOP_BYTES);
    let mut matcher = StopMatcher::new(&[&stop], false).unwrap();
    assert_eq!(matcher.push(&"x".repeat(MAX_STOP_BYTES - 1)), "");
    assert_eq!(matcher.push("y").len(), MAX_STOP_BYTES);
    assert_eq!(matcher.push(&(stop + "rest")), "");
    assert_eq!(matcher.stopped(), Some(0));
}

fn prompt(text: &str) -> Vec<Piece> {
    tokenizer("llama").prompt(text, BY_TOKEN).unwrap()
}

const BY_TOKEN: Placeholder = Placeholder::Token(IMAGE);

#[test]
fn one_placeholder_a_picture_expands_to_its_tokens() {
    let prompt = prompt("a<image><image>b");
    assert_eq!(prompt, [Piece::Ids(vec![1, 261]), Piece::Image(0), Piece::Image(1), Piece::Ids(vec![269])]);
    let expanded = expand(&prompt, &[3, 2], BY_TOKEN).unwrap();
    assert_eq!(expanded.ids, [1, 261, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 269]);
    assert_eq!(expanded.images, [ImageSpan { image: 0, start: 2, len: 3 }, ImageSpan { image: 1, start: 5, len: 2 }]);
    assert_eq!(expanded.images[1].range(), 5..7);
}

#[test]
fn repeated_placeholders_are_the_same_prompt() {
    for (once, repeated, tokens) in [
        ("USER: <image>\nhi".to_owned(), format!("USER: {}\nhi", "<image>".repeat(576)), vec![576]),
        ("<image>x<image>".to_owned(), format!("{}x{}", "<image>".repeat(4), "<image>".repeat(2)), vec![4, 2]),
        ("<image><image>".to_owned(), "<image>".repeat(9), vec![4, 5]),
    ] {
        assert_eq!(
            expand(&prompt(&repeated), &tokens, BY_TOKEN).unwrap(),
            expand(&prompt(&once), &tokens, BY_TOKEN).unwrap()
        );
    }
    assert_eq!(expand(&prompt("hi"), &[], BY_TOKEN).unwrap().images, []);
}

#[test]
fn other_numbers_of_placeholders_are_errors_with_both_counts() {
    for (text, tokens, expected) in [
        ("hi".to_owned(), vec![576], "0 picture placeholders for 1 pictures; write one for each picture, or all 576"),
        ("<image>".to_owned(), vec![], "1 picture placeholders for 0 pictures"),
        ("<image><image>".to_owned(), vec![576], "2 picture placeholders for 1"),
        ("<image>".repeat(575), vec![576], "575 picture placeholders for 1"),
        ("<image><image> <image><image>".to_owned(), vec![3, 1], "interrupted by text after 2"),
        ("<image>".to_owned(), vec![0], "no tokens"),
        ("<image>".to_owned(), vec![usize::MAX, 2], "too many"),
    ] {
        let error = expand(&prompt(&text), &tokens, BY_TOKEN).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let twice = [Piece::Image(0), Piece::Image(0)];
    assert!(expand(&twice, &[2, 2], BY_TOKEN).unwrap_err().to_string().contains("twice"));
    assert!(expand(&[Piece::Image(4)], &[2], BY_TOKEN).unwrap_err().to_string().contains("placeholder 4"));
}

#[test]
fn numbered_placeholders_expand_to_the_token_that_stands_for_them() {
    let phi = tokenizer("phi");
    let id = phi.token_to_id("<|image|>").unwrap();
    let numbered = Placeholder::Numbered(id);
    let pieces = phi.prompt("<|image_1|><|image_2|>hi", numbered).unwrap();
    assert_eq!(
        pieces,
        [
            Piece::Ids(vec![1]),
            Piece::Image(0),
            Piece::Ids(vec![1]),
            Piece::Image(1),
            Piece::Ids(phi.encode("hi", Special::Parse, true).unwrap()),
        ]
    );
    let expanded = expand(&pieces, &[2, 3], numbered).unwrap();
    assert_eq!(expanded.ids[..8], [1, id, id, 1, id, id, id, 1]);
    assert_eq!(expanded.images, [ImageSpan { image: 0, start: 1, len: 2 }, ImageSpan { image: 1, start: 4, len: 3 }]);
    // The token itself, in a prompt that has tags, is a token like others.
    let literal = phi.prompt("<|image|><|image_1|>", numbered).unwrap();
    assert_eq!(expand(&literal, &[1], numbered).unwrap().ids, [1, id, id, 1]);
}

#[test]
fn other_numbers_of_tags_are_errors_with_both_counts() {
    let phi = tokenizer("phi");
    let numbered = Placeholder::Numbered(phi.token_to_id("<|image|>").unwrap());
    let error = |text: &str, tokens: &[usize]| {
        let expanded = phi.prompt(text, numbered).and_then(|pieces| expand(&pieces, tokens, numbered));
        expanded.unwrap_err().to_string()
    };
    for (text, tokens, expected) in [
        (
            "<|image_1|><|image_2|>",
            &[9; 3][..],
            "the prompt has 2 picture tags for 3 pictures; write one for each picture, <|image_1|> to <|image_3|>",
        ),
        ("hi", &[9], "the prompt has 0 picture tags for 1 pictures; write one for each picture, <|image_1|>"),
        ("<|image_1|>", &[], "the prompt has 1 picture tags for 0 pictures; write one for each picture"),
        // Tags are never repeated, be there as many of them as the picture has tokens.
        (
            "<|image_1|><|image_2|>",
            &[2],
            "the prompt has 2 picture tags for 1 pictures; write one for each picture, <|image_1|>",
        ),
    ] {
        assert_eq!(error(text, tokens), expected);
    }
    assert!(error("<|image_2|>", &[9]).contains("has <|image_2|> where <|image_1|> comes next"));
    let long = format!("<|image_1|>{}", "a".repeat(MAX_TEXT_BYTES));
    assert!(error(&long, &[9]).contains("the limit is"));
}
