//! Times the kernels over the table of `ocelli kernels list`, each beside the ceilings of the GPU.
//!
//! ```sh
//! cargo bench --bench device > kernels.jsonl         # every op in bf16
//! cargo bench --bench device -- gemv --shape 8x      # whatever `ocelli kernels bench` takes
//! ```
//!
//! It writes the lines of `ocelli kernels bench --json`, which `ocelli bench report` reads. Without a GPU it times nothing and
//! says so; `OCELLI_REQUIRE_GPU=1` makes that a failure.

use std::process::ExitCode;

#[cfg(feature = "cuda")]
fn main() -> ExitCode {
    use std::env;
    use std::ffi::OsString;
    use std::io::{Write, stderr};

    // cargo says `--bench` if times are wanted; `cargo test --benches` does not, and runs this, too.
    let asked: Vec<OsString> = env::args_os().skip(1).collect();
    if !asked.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if let Err(missing) = ocelli::backend::cuda::driver::count() {
        let required = env::var_os("OCELLI_REQUIRE_GPU").is_some_and(|v| v == "1");
        let _ = writeln!(stderr(), "{}: {missing:#}", if required { "error" } else { "skipped" });
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let command = ["ocelli", "kernels", "bench", "--json"].map(OsString::from);
    ocelli::cli::main_from(command.into_iter().chain(asked.into_iter().filter(|argument| argument != "--bench")))
}

#[cfg(not(feature = "cuda"))]
fn main() -> ExitCode {
    ExitCode::SUCCESS
}
