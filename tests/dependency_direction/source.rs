//! Rust source as the checks see it: words and signs with their lines, without comments, strings and test modules.

use std::fs;
use std::iter;
use std::path::Path;

/// A file of the repository.
#[derive(Clone)]
pub struct Source {
    /// From the repository's root, for example `src/ops/gemm.rs`.
    pub path: String,
    pub text: String,
}

/// The files under `dir` whose name ends in `extension`, sorted by path.
pub fn read(dir: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.expect("a directory entry").path().to_str().expect("a path in UTF-8").to_owned();
            if Path::new(&path).is_dir() {
                dirs.push(path);
            } else if path.ends_with(extension) {
                found.push(Source { text: fs::read_to_string(&path).expect(&path), path });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(String),
    /// `::`
    Separator,
    Sign(char),
}

impl Token {
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self, Token::Word(w) if w == word)
    }

    pub fn is_sign(&self, sign: char) -> bool {
        *self == Token::Sign(sign)
    }
}

/// A token and the line it stands on, counted from 1.
pub type Spot = (usize, Token);

/// The tokens of `text`, without comments and the contents of literals.
pub fn tokens(text: &str) -> Vec<Spot> {
    let c: Vec<char> = text.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let (mut spots, mut i, mut line) = (Vec::new(), 0, 1);
    while i < c.len() {
        let start = i;
        match c[i] {
            '/' if at(i + 1) == '/' => i += c[i..].iter().take_while(|&&ch| ch != '\n').count(),
            '/' if at(i + 1) == '*' => i += block_comment(&c[i..]),
            '"' => i += string(&c[i..]),
            // 'x' and '\n' are characters, 'a alone is a lifetime.
            '\'' if at(i + 1) == '\\' => i += 3 + c[i + 3..].iter().take_while(|&&ch| ch != '\'').count() + 1,
            '\'' if at(i + 2) == '\'' => i += 3,
            ch if ch.is_alphanumeric() || ch == '_' => {
                let word: String = c[i..].iter().take_while(|ch| ch.is_alphanumeric() || **ch == '_').collect();
                i += word.chars().count();
                let hashes = c[i..].iter().take_while(|&&ch| ch == '#').count();
                match word.as_str() {
                    "r" | "br" | "cr" if at(i + hashes) == '"' => i += raw_string(&c[i..], hashes),
                    "b" | "c" if at(i) == '"' => i += string(&c[i..]),
                    _ => spots.push((line, Token::Word(word))),
                }
            }
            ':' if at(i + 1) == ':' => {
                spots.push((line, Token::Separator));
                i += 2;
            }
            ch => {
                if !ch.is_whitespace() {
                    spots.push((line, Token::Sign(ch)));
                }
                i += 1;
            }
        }
        i = i.min(c.len());
        line += c[start..i].iter().filter(|&&ch| ch == '\n').count();
    }
    spots
}

/// Length of the block comment at the start of `c`; they nest.
fn block_comment(c: &[char]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < c.len() {
        match (c[i], c.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// Length of the string literal at the start of `c`.
fn string(c: &[char]) -> usize {
    let mut i = 1;
    while i < c.len() && c[i] != '"' {
        i += if c[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Length of the raw string literal whose hashes stand at the start of `c`.
fn raw_string(c: &[char], hashes: usize) -> usize {
    let end: Vec<char> = iter::once('"').chain(iter::repeat_n('#', hashes)).collect();
    let body = hashes + 1;
    let length = c[body..].windows(end.len()).position(|w| w == end).unwrap_or(c.len());
    body + length + end.len()
}

/// `spots` without the modules that only tests compile.
pub fn without_tests(spots: &[Spot]) -> Vec<Spot> {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let is_cfg_test = |i: usize| {
        spots[i..].len() >= CFG_TEST.len()
            && iter::zip(&spots[i..], CFG_TEST).all(|((_, token), text)| match token {
                Token::Word(word) => word == text,
                Token::Sign(sign) => text.starts_with(*sign),
                Token::Separator => false,
            })
    };
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < spots.len() {
        if is_cfg_test(i) {
            let mut module = i + CFG_TEST.len();
            // The visibility, if any, and what follows the name: `mod tests {`.
            while module < spots.len() && !spots[module].1.is_word("mod") && !spots[module].1.is_sign(';') {
                module += 1;
            }
            if spots.get(module + 2).is_some_and(|(_, token)| token.is_sign('{')) {
                i = after_braces(spots, module + 2);
                continue;
            }
        }
        kept.push(spots[i].clone());
        i += 1;
    }
    kept
}

/// The index after the brace that closes the one at `open`.
fn after_braces(spots: &[Spot], open: usize) -> usize {
    let mut depth = 0;
    for (i, (_, token)) in spots.iter().enumerate().skip(open) {
        depth += i32::from(token.is_sign('{')) - i32::from(token.is_sign('}'));
        if depth == 0 {
            return i + 1;
        }
    }
    spots.len()
}
