//! Which rooms of the crate a file names, and whether its own room may.

use std::collections::BTreeMap;

use crate::source::{Source, Spot, Token, tokens, without_tests};

/// Each room, and the rooms it may name besides itself and `error`. A room is a module of the crate's root. Read it
/// from the bottom: nothing names a room below its own line.
pub const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("range", &[]),
    ("mem", &[]),
    ("host", &["mem"]),
    ("kernel", &["host", "mem"]),
    ("ops", &["kernel", "host", "mem"]),
    ("plan", &["ops", "kernel", "host", "mem"]),
    ("trace", &["plan", "ops", "kernel", "mem"]),
    ("backend", &["plan", "ops", "kernel", "host", "range", "mem"]),
    ("config", &["mem"]),
    ("weights", &["mem"]),
    ("image", &[]),
    ("text", &[]),
    ("models", &["plan", "ops", "kernel", "mem", "config", "weights", "image", "text"]),
    ("workbench", &["backend", "plan", "ops", "kernel", "host", "mem", "image"]),
    (
        "engine",
        &["models", "backend", "trace", "plan", "ops", "kernel", "range", "mem", "config", "weights", "image", "text"],
    ),
    ("server", &["engine", "models", "mem", "config", "image", "text"]),
    (
        "cli",
        &[
            "server",
            "engine",
            "models",
            "workbench",
            "backend",
            "trace",
            "plan",
            "ops",
            "kernel",
            "host",
            "mem",
            "config",
            "weights",
            "image",
            "text",
        ],
    ),
    ("main", &["cli"]),
];

/// What `name` may name.
pub fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ROOMS.iter().find(|(room, _)| *room == name).map(|(_, rooms)| *rooms)
}

/// The module path of a file: `src/ops/gemm.rs` is `["ops", "gemm"]`, and the root's is empty.
fn module(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// One end of a use tree or a path: its segments, and the name that it goes by here.
struct Leaf {
    path: Vec<String>,
    name: String,
}

/// Collect the ends of the path or use tree at `i`, and return the index after it.
fn tree(spots: &[Spot], i: usize, prefix: &[String], leaves: &mut Vec<Leaf>) -> usize {
    let token = |i: usize| spots.get(i).map(|(_, token)| token);
    match token(i) {
        Some(Token::Word(word)) => {
            let path = [prefix, std::slice::from_ref(word)].concat();
            match (token(i + 1), token(i + 2)) {
                (Some(Token::Separator), _) => tree(spots, i + 2, &path, leaves),
                (Some(Token::Word(keyword)), Some(Token::Word(alias))) if keyword == "as" => {
                    leaves.push(Leaf { path, name: alias.clone() });
                    i + 3
                }
                _ => {
                    leaves.push(Leaf { path, name: word.clone() });
                    i + 1
                }
            }
        }
        Some(Token::Sign('{')) => {
            let mut i = i + 1;
            while token(i).is_some_and(|t| !t.is_sign('}')) {
                let next =
                    if token(i).is_some_and(|t| t.is_sign(',')) { i + 1 } else { tree(spots, i, prefix, leaves) };
                i = next.max(i + 1);
            }
            i + 1
        }
        Some(Token::Sign('*')) => {
            leaves.push(Leaf { path: [prefix, &["*".to_owned()]].concat(), name: "*".to_owned() });
            i + 1
        }
        _ => i,
    }
}

/// The names that `src/lib.rs` hands on from a room: `pub use error::{Error, Result}` makes `Error` a name of `error`.
pub fn reexports(lib: &str) -> BTreeMap<String, String> {
    let spots = tokens(lib);
    let mut leaves = Vec::new();
    for (i, (_, token)) in spots.iter().enumerate() {
        if token.is_word("use") {
            tree(&spots, i + 1, &[], &mut leaves);
        }
    }
    let in_room = leaves.into_iter().filter(|leaf| leaf.path.len() > 1);
    in_room
        .map(|leaf| (leaf.name, leaf.path.into_iter().find(|s| s != "crate" && s != "self").unwrap_or_default()))
        .collect()
}

/// The rooms that a file names outside its tests, each with its line.
fn named(source: &Source, reexports: &BTreeMap<String, String>) -> Vec<(usize, String)> {
    let file = module(&source.path);
    let spots = without_tests(&tokens(&source.text));
    let is = |i: usize, token: &Token| spots.get(i).is_some_and(|(_, t)| t == token);
    let (mut rooms, mut depth, mut inline) = (Vec::new(), 0usize, Vec::<(usize, String)>::new());
    let mut i = 0;
    while i < spots.len() {
        let (line, token) = &spots[i];
        let mut next = i + 1;
        match token {
            Token::Sign('{') => depth += 1,
            Token::Sign('}') => {
                depth = depth.saturating_sub(1);
                inline.retain(|(at, _)| *at < depth + 1);
            }
            Token::Word(word) if word == "mod" && is(i + 2, &Token::Sign('{')) => {
                if let Some((_, Token::Word(name))) = spots.get(i + 1) {
                    inline.push((depth, name.clone()));
                }
            }
            Token::Word(word) if is(i + 1, &Token::Separator) && (i == 0 || !is(i - 1, &Token::Separator)) => {
                let mut base: Vec<String> = file.iter().chain(inline.iter().map(|(_, name)| name)).cloned().collect();
                let known = match word.as_str() {
                    // `pub(in crate::x)` says who may see it and uses nothing.
                    "crate" if i > 0 && spots[i - 1].1.is_word("in") => false,
                    "crate" | "ocelli" => {
                        base.clear();
                        true
                    }
                    "self" => true,
                    "super" => {
                        base.pop();
                        true
                    }
                    _ => false,
                };
                if known {
                    let mut leaves = Vec::new();
                    next = tree(&spots, i + 2, &[], &mut leaves);
                    for leaf in leaves {
                        let supers = leaf.path.iter().take_while(|s| *s == "super").count();
                        let base = &base[..base.len().saturating_sub(supers)];
                        let rest = leaf.path[supers..].iter().filter(|s| *s != "self");
                        if let Some(room) = base.iter().chain(rest).next() {
                            rooms.push((*line, reexports.get(room).unwrap_or(room).clone()));
                        }
                    }
                }
            }
            _ => {}
        }
        i = next.max(i + 1);
    }
    rooms
}

/// Every use of a room by one that may not, as `file:line: why`.
pub fn complaints(sources: &[Source]) -> Vec<String> {
    let lib = sources.iter().find(|s| s.path == "src/lib.rs").map(|s| reexports(&s.text)).unwrap_or_default();
    let mut complaints = Vec::new();
    // The root declares rooms and hands names on; it has no place in the order.
    for source in sources.iter().filter(|s| s.path != "src/lib.rs" && !s.path.ends_with("/tests.rs")) {
        let path = &source.path;
        let room = module(path).into_iter().next().unwrap_or_default();
        let Some(allowed) = allowed(&room) else {
            complaints
                .push(format!("{path}: `{room}` is no room of the table in tests/dependency_direction/imports.rs"));
            continue;
        };
        for (line, named) in named(source, &lib) {
            if named != room && named != "error" && !allowed.contains(&named.as_str()) {
                complaints.push(format!("{path}:{line}: `{room}` may not use `{named}`"));
                complaints.dedup();
            }
        }
    }
    complaints
}
