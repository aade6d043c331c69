//! The plan of the house, held against the source: which room may use which, and a few rules beside.
//!
//! Every check is also shown a text that breaks it, so that a check which sees nothing cannot pass.

mod imports;
mod rules;
mod source;

use source::{Source, read};

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn file(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

/// Complaints about one file in a crate whose root hands on `Error` from `error` and `Request` from `engine`.
fn about(path: &str, text: &str) -> Vec<String> {
    let lib = "pub mod engine;\nmod error;\npub use engine::Request;\npub use error::{Error, Result};\n";
    imports::complaints(&[file("src/lib.rs", lib), file(path, text)])
}

#[test]
fn no_room_uses_one_above_it() {
    let sources = read("src", ".rs");
    assert!(sources.len() > 10, "the checks run in the root of the repository");
    none(&imports::complaints(&sources));
}

#[test]
fn the_table_has_no_way_back() {
    for (i, (room, allowed)) in imports::ROOMS.iter().enumerate() {
        for name in *allowed {
            assert!(
                imports::ROOMS[..i].iter().any(|(below, _)| below == name),
                "`{room}` uses `{name}`, which is not below it"
            );
        }
    }
    let uses = |room: &str, other: &str| imports::allowed(room).is_some_and(|rooms| rooms.contains(&other));
    assert!(!uses("models", "backend") && !uses("backend", "models"));
    for device in ["ops", "plan", "backend", "engine"] {
        assert!(!uses("image", device) && !uses("text", device) && !uses("weights", device) && !uses("config", device));
    }
}

#[test]
fn a_forbidden_use_is_found_however_it_is_written() {
    for (path, text, expected) in [
        ("src/image/decode.rs", "use crate::ops::Gemm;", "src/image/decode.rs:1: `image` may not use `ops`"),
        (
            "src/models/llava.rs",
            "\n\nuse crate::backend::Cpu;",
            "src/models/llava.rs:3: `models` may not use `backend`",
        ),
        ("src/backend/cpu.rs", "use crate::models::Vlm;", "src/backend/cpu.rs:1: `backend` may not use `models`"),
        ("src/text/mod.rs", "use super::engine::Engine;", "src/text/mod.rs:1: `text` may not use `engine`"),
        ("src/text/stop.rs", "use super::super::engine;", "src/text/stop.rs:1: `text` may not use `engine`"),
        (
            "src/text/stop.rs",
            "mod a { use super::super::super::engine; }",
            "src/text/stop.rs:1: `text` may not use `engine`",
        ),
        (
            "src/mem.rs",
            "use crate::{\n    error::Error,\n    plan::{Plan, Step},\n};",
            "src/mem.rs:1: `mem` may not use `plan`",
        ),
        ("src/mem.rs", "fn f() { crate::cli::main() }", "src/mem.rs:1: `mem` may not use `cli`"),
        ("src/ops/gemm.rs", "fn f(r: ocelli::server::State) {}", "src/ops/gemm.rs:1: `ops` may not use `server`"),
        ("src/config/mod.rs", "pub use crate::weights as w;", "src/config/mod.rs:1: `config` may not use `weights`"),
        ("src/image/mod.rs", "fn f(r: crate::Request) {}", "src/image/mod.rs:1: `image` may not use `engine`"),
        ("src/image/mod.rs", "use crate::*;", "src/image/mod.rs:1: `image` may not use `*`"),
        ("src/main.rs", "use ocelli::engine::Engine;", "src/main.rs:1: `main` may not use `engine`"),
    ] {
        assert_eq!(about(path, text), [expected], "{text}");
    }
    let new = about("src/cellar/mod.rs", "");
    assert_eq!(new, ["src/cellar/mod.rs: `cellar` is no room of the table in tests/dependency_direction/imports.rs"]);
}

#[test]
fn what_is_allowed_or_no_use_at_all_is_not_found() {
    for (path, text) in [
        (
            "src/ops/gemm.rs",
            "use crate::mem::Buf; use super::math::dot; use crate::{Error, Result}; use std::mem::take;",
        ),
        ("src/text/stop.rs", "// crate::engine\n/* crate::engine /* nested */ crate::engine */ /// [`crate::engine`]"),
        (
            "src/text/stop.rs",
            "const A: &str = \"crate::engine \\\" crate::engine\"; const B: &str = r#\"\"crate::engine\"#;",
        ),
        ("src/text/stop.rs", "const QUOTE: char = '\"'; use super::Stop; const END: char = '\\'';"),
        (
            "src/text/stop.rs",
            "fn f<'a>(x: &'a str) -> &'a str { x } pub(crate) fn g() {} pub(in crate::text) fn h() {}",
        ),
        (
            "src/text/stop.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n    fn f() { { } }\n}\nfn g() {}",
        ),
        ("src/text/stop.rs", "mod inner { use super::*; use super::super::template; use self::x; }"),
        ("src/main.rs", "fn main() -> std::process::ExitCode { ocelli::cli::main() }"),
    ] {
        none(&about(path, text));
    }
    // A use after a test module is seen again, and on its own line.
    let text = "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::engine;";
    assert_eq!(about("src/text/stop.rs", text), ["src/text/stop.rs:3: `text` may not use `engine`"]);
}

#[test]
fn unsafe_stays_in_the_driver() {
    let everywhere = ["src", "tests", "benches", "examples", "fuzz"];
    none(&rules::unsafe_code(&everywhere.iter().flat_map(|dir| read(dir, ".rs")).collect::<Vec<_>>()));
    let planted = [
        file("src/backend/cuda/driver.rs", "unsafe { launch() }"),
        file("src/weights/files.rs", "// unsafe\nunsafe { map() }"),
        file("src/ops/gemm.rs", "#![allow(unsafe_code)]\nfn f() { unsafe { g() } }"),
    ];
    assert_eq!(rules::unsafe_code(&planted), ["src/ops/gemm.rs:2: `unsafe` belongs into the driver"]);
    let twice = [file("src/weights.rs", "unsafe { a() }\nunsafe { b() }")];
    assert_eq!(rules::unsafe_code(&twice), ["src/weights.rs:2: `unsafe` belongs into the driver"]);
}

#[test]
fn files_are_short() {
    let files = [("src", ".rs"), ("tests", ".rs"), ("cuda", ".cu"), ("cuda", ".cuh"), ("tools", ".py")];
    none(&rules::long_files(&files.iter().flat_map(|(dir, ext)| read(dir, ext)).collect::<Vec<_>>()));
    let planted = [file("src/a.rs", &"\n".repeat(801)), file("src/b.rs", &"\n".repeat(800))];
    assert_eq!(rules::long_files(&planted), ["src/a.rs: 801 lines, and the limit is 800"]);
}

#[test]
fn only_the_command_line_prints() {
    none(&rules::prints(&read("src", ".rs")));
    let planted = [
        file("src/cli/run.rs", "println!()"),
        file("src/engine/mod.rs", "fn f() {\n    eprintln!(\"{}\", 1);\n    // println!()\n    fingerprint!();\n}"),
        file("src/ops/mod.rs", "#[cfg(test)]\nmod tests { fn f() { println!() } }"),
        file("src/engine/tests.rs", "fn f() { println!() }"),
    ];
    let expected = "src/engine/mod.rs:2: only src/cli may print, and this is `eprintln!`";
    assert_eq!(rules::prints(&planted), [expected]);
}

#[test]
fn every_kernel_has_its_twin_its_size_and_its_comment() {
    let cuda = [read("cuda", ".cu"), read("cuda", ".cuh")].concat();
    assert!(!cuda.is_empty(), "the checks run in the root of the repository");
    none(&rules::kernels(&cuda, &read("src", ".rs")));
    let complete = "// What: x\n// Layout: x\n// Grid: x\n// Limits: x\n// Bound: x\n\nEXPORT_PARAMS(add, AddParams)\n";
    let params = "struct AddParams {\n};\nstatic_assert(sizeof(AddParams) == 8, \"\");\nstruct MulParams {\n};\n";
    let cuda = [
        file("cuda/add.cu", complete),
        file("cuda/mul.cu", "// What: x\n\n// Grid: x"),
        file("cuda/params.cuh", params),
    ];
    assert_eq!(
        rules::kernels(&cuda, &[file("src/ops/add.rs", "")]),
        [
            "cuda/mul.cu: there is no src/ops/mul.rs",
            "cuda/mul.cu: no EXPORT_PARAMS(mul, ...), so the loader cannot compare the parameters",
            "cuda/mul.cu: the comment at the top has no `Layout:`",
            "cuda/mul.cu: the comment at the top has no `Grid:`",
            "cuda/mul.cu: the comment at the top has no `Limits:`",
            "cuda/mul.cu: the comment at the top has no `Bound:`",
            "cuda/params.cuh: no static_assert on the size of MulParams",
        ]
    );
}
