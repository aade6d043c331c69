//! Rules of the house that a compiler does not know. Each returns what it found as `file:line: why`.

use crate::source::{Source, Token, tokens, without_tests};

/// Where the driver, a library beside it and the mapping of files need it.
const UNSAFE_FILES: [&str; 6] = [
    "src/backend/cuda/cublaslt.rs",
    "src/backend/cuda/driver.rs",
    "src/backend/cuda/graph.rs",
    "src/backend/cuda/tma.rs",
    "src/backend/cuda/transfer.rs",
    "src/backend/cuda/upload.rs",
];

/// `unsafe` outside the files that may: the driver's, and one mapping of a file in `weights`.
pub fn unsafe_code(sources: &[Source]) -> Vec<String> {
    let mut mapped = 0;
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|s| !UNSAFE_FILES.contains(&s.path.as_str())) {
        for (line, token) in tokens(&source.text) {
            if token.is_word("unsafe") {
                mapped += usize::from(source.path.starts_with("src/weights"));
                if mapped != 1 || !source.path.starts_with("src/weights") {
                    complaints.push(format!("{}:{line}: `unsafe` belongs into the driver", source.path));
                }
            }
        }
    }
    complaints
}

/// Files that nobody reads in one sitting.
pub fn long_files(sources: &[Source]) -> Vec<String> {
    const LIMIT: usize = 800;
    let lines = |s: &Source| s.text.lines().count();
    let long = sources.iter().filter(|s| lines(s) > LIMIT);
    long.map(|s| format!("{}: {} lines, and the limit is {LIMIT}", s.path, lines(s))).collect()
}

/// Output that bypasses the command line. A test may say what it found, also in a file of its own.
pub fn prints(sources: &[Source]) -> Vec<String> {
    const MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];
    let mut complaints = Vec::new();
    let silent = |path: &str| path.starts_with("src/") && !path.starts_with("src/cli") && !path.ends_with("/tests.rs");
    for source in sources.iter().filter(|s| silent(&s.path)) {
        for pair in without_tests(&tokens(&source.text)).windows(2) {
            let [(line, Token::Word(word)), (_, Token::Sign('!'))] = pair else { continue };
            if MACROS.contains(&word.as_str()) {
                complaints.push(format!("{}:{line}: only src/cli may print, and this is `{word}!`", source.path));
            }
        }
    }
    complaints
}

/// Kernel files without their Rust twin, their parameters' size or the comment that explains them.
pub fn kernels(cuda: &[Source], rust: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in cuda.iter().filter(|s| s.path.ends_with(".cu")) {
        let path = &source.path;
        let name = path.trim_start_matches("cuda/").trim_end_matches(".cu");
        // What is measured against is no op.
        let twin = format!("src/{}/{name}.rs", if name == "ceiling" { "workbench" } else { "ops" });
        if !rust.iter().any(|s| s.path == twin) {
            complaints.push(format!("{path}: there is no {twin}"));
        }
        if !source.text.contains(&format!("EXPORT_PARAMS({name}, ")) {
            complaints
                .push(format!("{path}: no EXPORT_PARAMS({name}, ...), so the loader cannot compare the parameters"));
        }
        let heading: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//")).collect();
        for part in ["What:", "Layout:", "Grid:", "Limits:", "Bound:"] {
            if !heading.iter().any(|line| line.trim_start_matches("// ").starts_with(part)) {
                complaints.push(format!("{path}: the comment at the top has no `{part}`"));
            }
        }
    }
    for source in cuda.iter().filter(|s| s.path.ends_with("params.cuh")) {
        let structs = source.text.lines().filter_map(|line| line.strip_prefix("struct ")?.split([' ', '{']).next());
        for name in structs.filter(|name| !source.text.contains(&format!("static_assert(sizeof({name}) == "))) {
            complaints.push(format!("{}: no static_assert on the size of {name}", source.path));
        }
    }
    complaints
}
