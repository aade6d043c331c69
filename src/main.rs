//! The `ocelli` binary: parse, dispatch, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ocelli::cli::main()
}
